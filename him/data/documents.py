"""Documents for language modelling, read when they are asked for: from text files, rows of a data set, or memory.

A document is a text. All of them together may be larger than memory: what is kept of each is where it stands, its size
and a hash of its content, which are taken in one pass over the bytes.
"""

import codecs
import hashlib
import os
import re
import stat
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from him.core.messages import fail, kind, shown, shown_source
from him.data.text_files import fail_unreadable, fix_for_binary

if TYPE_CHECKING:
    from datasets import Dataset

FIX_OF_FOLDER = "give it as --corpus_dir"
BLOCK_BYTES = 2**20
ROWS_AT_ONCE = 1000
DIGEST_BYTES = 16
# " = Title = ", with the rest of the article where a row is a whole one; sections are " = = Section = = ".
WIKITEXT_TITLE = re.compile(r"\s*= (?!=)[^\n]*(?<!=) =[^\S\n]*(\n|$)")


@dataclass(frozen=True)
class Documents:
    """Texts in order; iterating reads them one after the other, as often as it is done.

    Attributes:
        source: names them in messages.
        read: the text of a document, in blocks, by its index in the store that it is from.
        indices: (documents,) int64, where they are there.
        digests: (documents, 16) uint8, a hash of the content of each.
        sizes: (documents,) int64, bytes of each in UTF-8.
    """

    source: str
    read: Callable[[int], Iterator[str]]
    indices: np.ndarray
    digests: np.ndarray
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[str]:
        return ("".join(self.read(int(index))) for index in self.indices)

    def blocks(self) -> Iterator[Iterator[str]]:
        """The same texts in blocks of about a megabyte, so that a huge one need not be held."""
        return (self.read(int(index)) for index in self.indices)

    @property
    def num_bytes(self) -> int:
        """Of all texts, in UTF-8."""
        return int(self.sizes.sum())

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all texts in their order and of where each ends, as 32 hexadecimal digits."""
        return hashlib.sha256(np.ascontiguousarray(self.digests).data).hexdigest()[:32]

    def take(self, indices: Sequence[int]) -> "Documents":
        """Those at some indices, in the order of `indices`."""
        at = np.asarray(indices, np.int64)
        return replace(self, indices=self.indices[at], digests=self.digests[at], sizes=self.sizes[at])


def documents_of(
    source: str, read: Callable[[int], Iterator[str]], digests: bytes | bytearray, sizes: Sequence[int]
) -> Documents:
    """All documents of a store: how to read one, and the digests of all of them joined."""
    digest_rows = np.frombuffer(bytes(digests), np.uint8).reshape(-1, DIGEST_BYTES)
    return Documents(source, read, np.arange(len(sizes)), digest_rows, np.array(sizes, np.int64))


def text_documents(texts: Sequence[str], source: str) -> Documents:
    """Documents that are in memory."""
    encoded = [text.encode("utf-8") for text in texts]
    digests = b"".join(map(_digest, encoded))
    return documents_of(source, lambda index: iter((texts[index],)), digests, list(map(len, encoded)))


def _digest(*parts: bytes) -> bytes:
    return hashlib.sha256(b"\0".join(parts)).digest()[:DIGEST_BYTES]


@dataclass(frozen=True, slots=True)
class TextFile:
    """A UTF-8 file that has been read once.

    Attributes:
        path: where it is.
        start, stop: bytes between which its text stands, without the byte order mark.
        num_characters: of the text.
        is_blank: it holds white space at most.
        digest: hash of the text.
        marks: positions in the text, about a megabyte from one to the next: (byte, characters before it), rising.
    """

    path: str
    start: int
    stop: int
    num_characters: int
    is_blank: bool
    digest: bytes
    marks: tuple[tuple[int, int], ...]

    def byte_of(self, character: int) -> int:
        """The byte at which a character starts, from 0 to `num_characters`; reads a block of the file at most."""
        byte, before = max(mark for mark in self.marks if mark[1] <= character)
        text = "".join(_decoded(self.path, byte, min(self.stop, byte + 2 * BLOCK_BYTES), cut_short=True))
        return byte + len(text[: character - before].encode("utf-8"))


@dataclass(frozen=True, slots=True)
class FilePart:
    """The text between two bytes of a file."""

    file: TextFile
    start: int
    stop: int


def find_text_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The `.txt` files in a folder and below, and all others; hidden ones, with a leading dot, are left out.

    Links are followed, each folder once. Sorted by path below `folder`.

    Raises:
        DataError: a folder cannot be listed.
    """

    def refuse(error: OSError) -> NoReturn:
        fail_unreadable(shown_source(error.filename), error, FIX_OF_FOLDER)

    texts, others, seen = [], [], set()
    for at, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        found = os.stat(at)
        if (found.st_dev, found.st_ino) in seen:
            folders.clear()
            continue
        seen.add((found.st_dev, found.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if not name.startswith("."):
                (texts if name.lower().endswith(".txt") else others).append(Path(at, name))
    return tuple(sorted(found, key=lambda path: path.relative_to(folder).as_posix()) for found in (texts, others))


def read_text_file(path: str | os.PathLike) -> TextFile:
    """Reads a file once, in blocks, and checks that it is text.

    Raises:
        DataError: it cannot be read, is not UTF-8, or has a NUL byte, which text has not.
    """
    name = os.fspath(path)
    content_hash = hashlib.sha256()
    byte = start = num_characters = 0
    is_blank, marks = True, []
    decoder = codecs.getincrementaldecoder("utf-8")()
    for block in _blocks(name, 0, None):
        if byte == 0 and block.startswith(codecs.BOM_UTF8):
            block = block.removeprefix(codecs.BOM_UTF8)
            start = byte = len(codecs.BOM_UTF8)
        if (at := block.find(b"\0")) >= 0:
            _decode(decoder, block[:at], name, byte)  # the first fault is told, whatever the blocks
            _fail_binary(name, byte + at, 0)
        text = _decode(decoder, block, name, byte)
        content_hash.update(block)
        byte += len(block)
        num_characters += len(text)
        is_blank = is_blank and not text.strip()
        marks.append((byte - _num_pending(decoder), num_characters))
    _decode(decoder, b"", name, byte, final=True)
    digest = content_hash.digest()[:DIGEST_BYTES]
    return TextFile(name, start, byte, num_characters, is_blank, digest, ((start, 0), *marks))


def file_documents(parts: Sequence[FilePart], source: str) -> Documents:
    """Documents that are files or parts of files, read from them when they are asked for."""
    digests = [
        part.file.digest
        if (part.start, part.stop) == (part.file.start, part.file.stop)
        else _digest(part.file.digest, b"%d" % (part.start - part.file.start), b"%d" % (part.stop - part.file.start))
        for part in parts
    ]
    return documents_of(
        source,
        lambda index: _decoded(parts[index].file.path, parts[index].start, parts[index].stop),
        b"".join(digests),
        [part.stop - part.start for part in parts],
    )


def whole(file: TextFile) -> FilePart:
    """All text of a file."""
    return FilePart(file, file.start, file.stop)


def _decoded(path: str, start: int, stop: int, cut_short: bool = False) -> Iterator[str]:
    """The text between two bytes, in blocks; `cut_short` says that `stop` may lie within a character."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    byte = start
    for block in _blocks(path, start, stop):
        yield _decode(decoder, block, path, byte)
        byte += len(block)
    if not cut_short:
        _decode(decoder, b"", path, byte, final=True)
    if byte != stop:
        fail(shown_source(path), "has become shorter since it was first read", "start again when nothing writes to it")


def _blocks(path: str, start: int, stop: int | None) -> Iterator[bytes]:
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a pipe would keep us waiting, and is read once only
            fail(shown_source(path), "is a device or a pipe", "give a regular file")
        with open(path, "rb") as file:
            file.seek(start)
            while block := file.read(BLOCK_BYTES if stop is None else min(BLOCK_BYTES, stop - file.tell())):
                yield block
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        fail_unreadable(shown_source(path), error, FIX_OF_FOLDER)


def _decode(decoder: codecs.IncrementalDecoder, block: bytes, path: str, byte: int, final: bool = False) -> str:
    """Decodes a block that starts at `byte` of the file, and the beginning of a character from the block before."""
    first = byte - _num_pending(decoder)
    try:
        return decoder.decode(block, final)
    except UnicodeDecodeError as error:
        _fail_binary(path, first + error.start, error.object[error.start])


def _num_pending(decoder: codecs.IncrementalDecoder) -> int:
    """Bytes of a character of which the rest is still to come."""
    return len(decoder.getstate()[0])


def _fail_binary(path: str, byte: int, value: int) -> NoReturn:
    with open(path, "rb") as file:
        beginning = file.read(4)
    fault = (
        f"byte {byte} is NUL, so it is not text" if value == 0 else f"not UTF-8 at byte {byte} (value 0x{value:02x})"
    )
    pdf = {b"%PDF": "it is a PDF; extract its text first"}
    fail(shown_source(path), fault, fix_for_binary(beginning, pdf, "save it as UTF-8, or leave the file out"))


def row_documents(rows: "Dataset", column: str, source: str, wikitext: bool) -> Documents:
    """Documents of a table's text column: each row that is not blank or, in WikiText, each article.

    There a row is a line, to which its line end is added where it is missing, and an article starts at its title,
    ` = Title = `.

    Raises:
        DataError: a row is not text.
    """
    texts = _Rows(rows, column, source)
    bounds, digests, sizes = array("q"), bytearray(), array("q")
    for first, last in _articles(texts) if wikitext else ((row, row + 1) for row in range(len(texts))):
        text = texts.joined(first, last, wikitext)
        if text.strip():
            content = text.encode("utf-8")
            bounds.extend((first, last))
            digests += _digest(content)
            sizes.append(len(content))

    def read(index: int) -> Iterator[str]:
        yield texts.joined(bounds[2 * index], bounds[2 * index + 1], wikitext)

    return documents_of(source, read, digests, sizes)


def _articles(texts: "_Rows") -> Iterator[tuple[int, int]]:
    """First row of each article and the row after its last."""
    first = 0
    for row in range(len(texts)):
        if row > first and WIKITEXT_TITLE.match(texts[row]):
            yield first, row
            first = row
    yield first, len(texts)


class _Rows:
    """A text column, null as an empty text; read many rows at a time, because single ones take 0.1 ms each."""

    def __init__(self, rows: "Dataset", column: str, source: str) -> None:
        self.table = rows.select_columns([column]).with_format("arrow")
        self.column, self.source = column, source
        self.chunk, self.chunk_number = [], -1

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, row: int) -> str:
        if row // ROWS_AT_ONCE != self.chunk_number:
            self.chunk_number = row // ROWS_AT_ONCE
            start = self.chunk_number * ROWS_AT_ONCE
            self.chunk = self.table[start : start + ROWS_AT_ONCE].column(0).to_pylist()
        text = self.chunk[row % ROWS_AT_ONCE]
        if text is not None and not isinstance(text, str):
            fault = f"row {row + 1} of column {shown(self.column)} is {kind(text)}, not a text"
            fail(self.source, fault, "name another column with --text_field COLUMN")
        return text or ""

    def joined(self, first: int, last: int, as_lines: bool) -> str:
        """The text of some rows; `as_lines` adds the line ends that are missing."""
        texts = (self[row] for row in range(first, last))
        return "".join(text if not as_lines or text.endswith("\n") else f"{text}\n" for text in texts)
