"""What the readers of data files share: text and JSON read strictly, and the parts of their one-line messages.

A message is `where: what is wrong; how to fix it`. Whatever a file holds, only `DataError` comes out of here.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import NoReturn

from him.core.messages import fail, one_line, shown, shown_names, shown_source


@dataclass(frozen=True)
class Format:
    """How messages speak of a kind of file.

    Attributes:
        name: such as "SQuAD JSON".
        layout: what is in it, as the object of "write".
        fix_for_lines: what to do with a file that is JSON Lines instead; empty: write it as `layout`.
    """

    name: str
    layout: str
    fix_for_lines: str = ""


def read_text(path: str | PathLike, file_format: Format) -> str:
    """A whole file as text, without its byte order mark.

    Raises:
        DataError: it cannot be read, is not UTF-8, or is blank.
    """
    source = shown_source(path)
    with faults_of_reading(source, file_format):
        content = Path(path).read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        _fail_not_utf8(content, 0, 1, content, source, file_format)
    if not text.strip():
        fail_empty(source, file_format)
    return text


def read_lines(path: str | PathLike, file_format: Format) -> Iterator[str]:
    """The lines of a file one by one, with their LF or CR LF, without a byte order mark; nothing of a blank file.

    Raises:
        DataError: it cannot be read or is not UTF-8.
    """
    source = shown_source(path)
    with faults_of_reading(source, file_format), open(path, "rb") as file:
        head, offset = b"", 0
        for number, line in enumerate(file, start=1):
            head = head or line
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                _fail_not_utf8(line, offset, number, head, source, file_format)
            offset += len(line)


@contextmanager
def faults_of_reading(source: str, file_format: Format) -> Iterator[None]:
    """Turns what opening and reading a file can raise into a DataError."""
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        fail_unreadable(source, error, f"name the {file_format.name} file in it")


def fail_unreadable(source: str, error: OSError | ValueError, fix_of_folder: str) -> NoReturn:
    """Raises the DataError of a file that cannot be opened or read.

    Args:
        source: the file, for messages.
        error: what opening or reading it raised.
        fix_of_folder: what to do where it is a folder.
    """
    if isinstance(error, FileNotFoundError):
        fail(source, "no such file", "check the path")
    if isinstance(error, IsADirectoryError):
        fail(source, "is a folder, not a file", fix_of_folder)
    reason = one_line(getattr(error, "strerror", None) or str(error))
    fail(source, f"cannot be read ({reason})", "check the path and its permissions")


def fail_empty(source: str, file_format: Format) -> NoReturn:
    """Raises the DataError of a file without anything in it."""
    fail(source, "the file is empty", f"give a file of {file_format.layout}")


def _fail_not_utf8(
    content: bytes, offset: int, first_line: int, head: bytes, source: str, file_format: Format
) -> NoReturn:
    """Says where `content` is no UTF-8, which begins `offset` bytes behind the start of the file, in `first_line`."""
    try:
        content.decode("utf-8")  # once more without "-sig", whose offsets leave out the byte order mark
    except UnicodeDecodeError as error:
        start = error.start
    line = first_line + content.count(b"\n", 0, start)
    fault = f"not UTF-8 at byte {offset + start} (line {line}, byte value 0x{content[start]:02x})"
    parquet = {b"PAR1": f"it is a Parquet file; write it as {file_format.name}"}
    fail(source, fault, fix_for_binary(head, parquet, "save the file as UTF-8"))


def fix_for_binary(head: bytes, more: dict[bytes, str], otherwise: str) -> str:
    """What to do with a file that is no UTF-8, told from its first bytes; `more` are beginnings of other kinds."""
    known = {
        b"\xff\xfe": "it looks like UTF-16; save it as UTF-8",
        b"\xfe\xff": "it looks like UTF-16; save it as UTF-8",
        b"\x1f\x8b": "it is compressed by gzip; unpack it first",
        b"PK\x03\x04": "it is a zip archive; unpack it first",
        **more,
    }
    return next((hint for start, hint in known.items() if head.startswith(start)), otherwise)


def parse_json(text: str, source: str, file_format: Format, *, first_line: int | None = None) -> object:
    """Strict JSON: no NaN, no key twice in an object.

    Args:
        text: one JSON value.
        source: names the file in messages.
        file_format: what the file should be.
        first_line: number of the line in which `text` begins, if it is a part of the file; None: it is all of it.

    Raises:
        DataError: it is not JSON, or is not to be parsed (nested too deeply, too long a number).
    """
    start = first_line or 1
    where = source if first_line is None else f"{source}: line {first_line}"

    def refuse_constant(name: str) -> NoReturn:
        line, column = _place_of_constant(text)
        fix = "write a number or leave the field out"
        fail(f"{source}: line {start + line - 1}, column {column}", f"{name} is not JSON", fix)

    def without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):  # `dict` keeps the last one, which would lose data in silence
            twice = next(name for name, number in Counter(name for name, _ in pairs).items() if number > 1)
            fail(where, f"an object has the key {shown(twice)} twice", "keep one of the two")
        return found

    try:
        return json.loads(text, parse_constant=refuse_constant, object_pairs_hook=without_repeats)
    except json.JSONDecodeError as error:
        at = f"{source}: line {start + error.lineno - 1}, column {error.colno}"
        _fail_not_json(text, error, at, file_format, is_line=first_line is not None)
    except RecursionError:
        fail(where, "the JSON is nested too deeply to be read", f"write {file_format.layout}")
    except ValueError:  # a whole number of more digits than Python converts
        fail(where, "a number has more than 4,300 digits", "correct it or leave it out")


def _place_of_constant(text: str) -> tuple[int, int]:
    """Line and column, counted from 1, of the first NaN or Infinity outside of strings."""
    for match in re.finditer(r'"(?:[^"\\]|\\.)*"|(NaN|-?Infinity)', text, re.DOTALL):
        if match[1]:
            line_start = text.rfind("\n", 0, match.start()) + 1
            return text.count("\n", 0, line_start) + 1, match.start() - line_start + 1
    raise AssertionError("json found a constant that is not in the text")


def _fail_not_json(
    text: str, error: json.JSONDecodeError, where: str, file_format: Format, *, is_line: bool
) -> NoReturn:
    if error.msg == "Extra data" and is_json_object(text.lstrip().split("\n", 1)[0]):
        fix = file_format.fix_for_lines or f"write {file_format.layout}"
        fail(where, "a second JSON value begins, as in JSON Lines", fix)
    if text.lstrip().startswith("<"):
        fail(where, "HTML or XML, not JSON", "download the raw file, not the page that shows it")
    if text.startswith("PAR1"):
        fail(where, "a Parquet file, not JSON", f"write it as {file_format.name}")
    if text.startswith("version https://git-lfs"):
        fail(where, "a Git LFS pointer, not the data itself", "fetch the data with `git lfs pull`")
    if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
        fix = "the file is cut short: save or download it again"
        if is_line:
            fix = "put each object on one line, or, if the file is cut short, save or download it again"
        fail(where, f"the JSON breaks off ({error.msg})", fix)
    fail(where, f"not valid JSON ({error.msg})", "correct the file there")


def is_json_object(line: str) -> bool:
    """Whether a text is one whole JSON object."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def required(found: Mapping, key: str, at: str) -> object:
    """The value of a key that has to be there."""
    if key not in found:
        fail(at, f'"{key}" is missing (there is {shown_names(found)})', "add it")
    return found[key]


def string(found: Mapping, key: str, at: str) -> str:
    """A string that can be encoded, which those with lone surrogates cannot."""
    value = required(found, key, at)
    if not isinstance(value, str):
        fail(at, f'"{one_line(key)}" is {shown(value)}, not a string', "write text in quotes")
    if not value.isascii() and (surrogate := re.search("[\ud800-\udfff]", value)):
        fault = f'"{one_line(key)}" has half a character (the lone surrogate U+{ord(surrogate[0]):04X})'
        fail(at, f"{fault} at {surrogate.start()}", "write the whole character, or its \\u escapes as a pair")
    return value


def text_of(found: Mapping, key: str, at: str) -> str:
    """A string with something in it."""
    value = string(found, key, at)
    if not value.strip():
        fail(at, f'"{one_line(key)}" is blank', "fill it in, or remove the entry it belongs to")
    return value
