"""Documents: texts come back as they stand in their files and rows, block by block; what is not text is refused."""

import os
import re
import tracemalloc
from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from him.core.errors import DataError
from him.data import documents
from him.data.documents import (
    FilePart,
    file_documents,
    find_text_files,
    read_text_file,
    row_documents,
    text_documents,
    whole,
)

TEXTS = ["one é\n", "two\r\n\r\n", " 東京 😀"]


def in_file(folder: Path, text: str | bytes, name: str = "text.txt") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return path


# --- documents of any kind --------------------------------------------------------------------------------------------


def test_documents_are_read_again_and_again():
    found = text_documents(TEXTS, "by hand")
    assert len(found) == 3
    assert list(found) == list(found) == TEXTS
    assert ["".join(blocks) for blocks in found.blocks()] == TEXTS
    assert found.sizes.tolist() == [7, 7, 12]
    assert found.num_bytes == 26
    assert found.source == "by hand"


def test_no_documents():
    found = text_documents([], "by hand")
    assert (len(found), list(found), found.num_bytes) == (0, [], 0)
    assert found.digests.shape == (0, 16)


def test_take():
    found = text_documents(TEXTS, "by hand")
    assert list(found.take([2, 0])) == [TEXTS[2], TEXTS[0]]
    assert list(found.take([2, 0]).take([1])) == [TEXTS[0]]
    assert found.take(range(2)).fingerprint == text_documents(TEXTS[:2], "other name").fingerprint
    assert len(found.take([])) == 0


def test_fingerprint_is_of_the_content_and_its_bounds(tmp_path):
    paths = [in_file(tmp_path, text, f"{place}.txt") for place, text in enumerate(TEXTS)]
    of_files = file_documents([whole(read_text_file(path)) for path in paths], "files")
    assert of_files.fingerprint == text_documents(TEXTS, "memory").fingerprint
    assert len(of_files.fingerprint) == 32
    others = (["a", "b"], ["b", "a"], ["ab"], ["a"], ["a", "b", "b"], [])
    assert len({text_documents(texts, "").fingerprint for texts in others}) == len(others)


# --- text files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [3, 4, 5, 2**20])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@given(
    text=st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=40).filter(
        lambda t: t[:1] != "\ufeff"
    )
)
@settings(max_examples=60, deadline=None)
def test_a_file_comes_back_whatever_the_blocks(tmp_path_factory, block, mark, text):
    """Blocks of a few bytes end within characters; each place of a character is found."""
    path = in_file(tmp_path_factory.mktemp("file"), mark + text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "BLOCK_BYTES", block)
        file = read_text_file(path)
        assert list(file_documents([whole(file)], "")) == [text]
        assert file.num_characters == len(text)
        assert file.is_blank == (not text.strip())
        assert file.stop - file.start == len(text.encode("utf-8"))
        for character in range(len(text) + 1):
            cut = file.byte_of(character)
            parts = file_documents([FilePart(file, file.start, cut), FilePart(file, cut, file.stop)], "")
            assert list(parts) == [text[:character], text[character:]]
            assert parts.num_bytes == len(text.encode("utf-8"))


def test_parts_differ_from_the_whole_and_from_each_other(tmp_path):
    file = read_text_file(in_file(tmp_path, "\ufeffaaaa"))
    spans = [(3, 7), (3, 5), (5, 7), (4, 7)]
    digests = file_documents([FilePart(file, *span) for span in spans], "").digests
    assert len(np.unique(digests, axis=0)) == len(spans)
    # The byte order mark is not part of the text, nor of what it is known by.
    plain = read_text_file(in_file(tmp_path, "aaaa", "plain.txt"))
    same = file_documents([FilePart(plain, start - 3, stop - 3) for start, stop in spans], "")
    np.testing.assert_array_equal(same.digests, digests)


def test_a_huge_file_is_not_held_in_memory(tmp_path):
    path = in_file(tmp_path, "some words of text\n" * 10**6)  # 19 MB
    tracemalloc.start()
    file = read_text_file(path)
    size = sum(len(block) for blocks in file_documents([whole(file)], "").blocks() for block in blocks)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size == path.stat().st_size
    assert peak < 8 * 2**20


FIX = "save it as UTF-8, or leave the file out"


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"abc\x00", f"byte 3 is NUL, so it is not text; {FIX}"),
        (b"\xef\xbb\xbfab\x00", f"byte 5 is NUL, so it is not text; {FIX}"),
        (b"caf\xe9 bar", f"not UTF-8 at byte 3 (value 0xe9); {FIX}"),
        (b"\xef\xbb\xbfcaf\xe9 bar", f"not UTF-8 at byte 6 (value 0xe9); {FIX}"),
        (b"abcd\xe2\x82", f"not UTF-8 at byte 4 (value 0xe2); {FIX}"),  # cut within a character
        (b"abcd\xe2\x82x", f"not UTF-8 at byte 4 (value 0xe2); {FIX}"),
        ("😀\ud800".encode("utf-8", "surrogatepass"), f"not UTF-8 at byte 4 (value 0xed); {FIX}"),
        ("hé".encode("utf-16"), "not UTF-8 at byte 0 (value 0xff); it looks like UTF-16; save it as UTF-8"),
        ("東京".encode("utf-16"), "not UTF-8 at byte 0 (value 0xff); it looks like UTF-16; save it as UTF-8"),
        (b"\xfe\xff\x67\x71", "not UTF-8 at byte 0 (value 0xfe); it looks like UTF-16; save it as UTF-8"),
        ("hé".encode("utf-16-le"), f"byte 1 is NUL, so it is not text; {FIX}"),
        (b"\x1f\x8b\x08\x01", "not UTF-8 at byte 1 (value 0x8b); it is compressed by gzip; unpack it first"),
        (b"PK\x03\x04\x00", "byte 4 is NUL, so it is not text; it is a zip archive; unpack it first"),
        (b"%PDF-1.4\n%\xe2", "not UTF-8 at byte 10 (value 0xe2); it is a PDF; extract its text first"),
    ],
)
@pytest.mark.parametrize("block", [3, 4, 2**20])
def test_binary_file(tmp_path, monkeypatch, content, fault, block):
    monkeypatch.setattr(documents, "BLOCK_BYTES", block)
    path = in_file(tmp_path, content)
    with pytest.raises(DataError, match=f"^{re.escape(f'{path}: {fault}')}$"):
        read_text_file(path)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("no.txt", "no such file; check the path"),
        ("folder", "is a folder, not a file; give it as --corpus_dir"),
        ("broken.txt", "no such file; check the path"),
        ("pipe.txt", "is a device or a pipe; give a regular file"),
        ("y" * 300, r"cannot be read \(File name too long\); check the path and its permissions"),
    ],
)
def test_file_that_cannot_be_read(tmp_path, name, fault):
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken.txt").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(DataError, match=f"^{tmp_path}/{name}: {fault}$"):
        read_text_file(tmp_path / name)


def test_impossible_name():
    with pytest.raises(DataError, match=r"^a\\x00b: cannot be read \(embedded null byte\); check the path and its p"):
        read_text_file("a\0b")


def test_file_that_shrinks(tmp_path):
    path = in_file(tmp_path, "abcdef")
    found = file_documents([whole(read_text_file(path))], "")
    path.write_text("abc")
    fault = "has become shorter since it was first read; start again when nothing writes to it"
    with pytest.raises(DataError, match=f"^{path}: {fault}$"):
        list(found)


# --- folders ----------------------------------------------------------------------------------------------------------


def test_text_files_of_a_folder(tmp_path):
    for name in ("b.txt", "a/z.TXT", "a/b/c.txt", "a.txt", "é.txt", ".hidden.txt", ".git/x.txt", "a/pdf.pdf", "txt"):
        in_file(tmp_path, "x", name)
    (tmp_path / "folder.txt").mkdir()
    texts, others = find_text_files(tmp_path)
    names = [path.relative_to(tmp_path).as_posix() for path in texts]
    assert names == ["a.txt", "a/b/c.txt", "a/z.TXT", "b.txt", "é.txt"]
    assert [path.name for path in others] == ["pdf.pdf", "txt"]


def test_links_are_followed_once(tmp_path):
    inner = tmp_path / "corpus" / "inner"
    in_file(inner, "x", "x.txt")
    in_file(tmp_path, "y", "outside/y.txt")
    (inner / "loop").symlink_to(tmp_path / "corpus")
    (inner / "self").symlink_to(inner)
    (tmp_path / "corpus" / "there").symlink_to(tmp_path / "outside")
    (tmp_path / "corpus" / "z.txt").symlink_to(tmp_path / "outside" / "y.txt")
    texts, _ = find_text_files(tmp_path / "corpus")
    assert [str(path.relative_to(tmp_path / "corpus")) for path in texts] == ["inner/x.txt", "there/y.txt", "z.txt"]


def test_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    """Not by its permissions, which do not hold for root."""

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=rf"^{tmp_path}: cannot be read \(Permission denied\); check the path and its"):
        find_text_files(tmp_path)


# --- rows -------------------------------------------------------------------------------------------------------------


def of_rows(*texts: object) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"id": list(range(len(texts))), "text": list(texts)})


@pytest.fixture(params=[1, 2, 1000])
def rows_at_once(request, monkeypatch):
    monkeypatch.setattr(documents, "ROWS_AT_ONCE", request.param)


def test_each_row_is_a_document(rows_at_once):
    found = row_documents(of_rows("one\ntwo", "", None, " \n", " = Title = ", "last"), "text", "set", wikitext=False)
    assert list(found) == list(found) == ["one\ntwo", " = Title = ", "last"]
    assert list(found.take([2, 0])) == ["last", "one\ntwo"]
    assert found.fingerprint == text_documents(list(found), "").fingerprint


@pytest.mark.parametrize("end", ["", "\n"])
def test_articles_of_wikitext(rows_at_once, end):
    """A title has one "=" at each side; headings in an article have more."""
    lines = [
        "",
        " = One = ",
        "",
        " text = here",
        " = = Section = = ",
        " = = = Deep = = = ",
        "",
        " = Two , = 2 = ",
        "end",
    ]
    rows = of_rows(*(line and line + end for line in lines))
    found = row_documents(rows, "text", "set", wikitext=True)
    assert list(found) == [
        " = One = \n\n text = here\n = = Section = = \n = = = Deep = = = \n\n",
        " = Two , = 2 = \nend\n",
    ]
    assert found.num_bytes == len("".join(found))


def test_text_before_the_first_title_is_a_document():
    found = row_documents(of_rows("no title", "", " = One = ", "text"), "text", "set", wikitext=True)
    assert list(found) == ["no title\n\n", " = One = \ntext\n"]


def test_rows_that_are_whole_articles():
    texts = [" = One = \n\n text \n = = Section = = \n more\n", " = Two = \n text\n"]
    assert list(row_documents(of_rows(*texts), "text", "set", wikitext=True)) == texts


@pytest.mark.parametrize("wikitext", [True, False])
def test_no_rows(wikitext):
    for rows in (of_rows(), of_rows("", None, " ")):
        assert len(row_documents(rows, "text", "set", wikitext)) == 0


@pytest.mark.parametrize("wikitext", [True, False])
@pytest.mark.parametrize(("value", "kind"), [(3, "a number"), (["a"], "a list"), ({"a": 1}, "an object")])
def test_column_that_is_not_text(value, kind, wikitext):
    fault = f'set: row 2 of column "text" is {kind}, not a text; name another column with --text_field COLUMN'
    with pytest.raises(DataError, match=f"^{re.escape(fault)}$"):
        row_documents(of_rows(None, value), "text", "set", wikitext)
