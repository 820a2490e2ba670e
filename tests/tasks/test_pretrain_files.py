"""Texts of `--pretrain_files`: text files, folders of them, and files of the tasks, whose labels are not read."""

import json
import re

import pytest

from him.core.errors import DataError
from him.data.document_files import is_text, read_texts
from him.tasks.squad.pretraining import CONTEXT_WORDS, contexts_of
from him.tasks.summarization.pretraining import documents_of
from tests.small_runs import write_jsonl


def paragraph(number: int, num_words: int) -> str:
    """Words that stand nowhere else, on lines of ten."""
    words = [f"w{number}x{place}" for place in range(num_words)]
    return "\n".join(" ".join(words[start : start + 10]) for start in range(0, num_words, 10))


# --- text files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("between", ["\n\n", "\n \t\n", "\n\n\n\n"])
def test_short_paragraphs_are_put_together(tmp_path, between):
    """Three of 50 words have 120 words; the last one is left over."""
    text = between.join(paragraph(number, 50) for number in range(7))
    (tmp_path / "book.txt").write_text(text, encoding="utf-8")
    found = contexts_of(str(tmp_path / "book.txt"))
    assert [len(context.split()) for _, context in found] == [150, 150, 50]
    assert " ".join(context for _, context in found) == " ".join(text.split())
    assert len({title for title, _ in found}) == 1


@pytest.mark.parametrize("sizes", [(1000,), (110, 1000, 20), (239,), (240,), (119, 130)], ids=str)
def test_contexts_are_about_as_long_as_paragraphs_of_squad(tmp_path, sizes):
    """A text without blank lines used to be one context, with most of its windows without an answer."""
    text = "\n\n".join(paragraph(number, size) for number, size in enumerate(sizes))
    (tmp_path / "book.txt").write_text(text, encoding="utf-8")
    found = [context for _, context in contexts_of(str(tmp_path / "book.txt"))]
    *before, last = (len(context.split()) for context in found)
    assert all(CONTEXT_WORDS <= length < 2 * CONTEXT_WORDS for length in before)
    assert 0 < last < 2 * CONTEXT_WORDS
    assert " ".join(found) == " ".join(text.split())


def test_a_folder_has_a_title_for_each_text(tmp_path):
    for name, number in (("a.txt", 0), ("below/b.txt", 1), ("below/c.md", 2)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(paragraph(number, 130), encoding="utf-8")
    expected = [" ".join(paragraph(number, 130).split()) for number in (0, 1)]
    found = contexts_of(str(tmp_path))
    assert [context for _, context in found] == expected
    assert len({title for title, _ in found}) == 2
    assert (
        read_texts(str(tmp_path)) == documents_of(str(tmp_path), None, None) == [paragraph(0, 130), paragraph(1, 130)]
    )
    assert is_text(str(tmp_path)) and is_text(str(tmp_path / "a.txt")) and not is_text(str(tmp_path / "below/c.md"))


# --- files of the tasks -----------------------------------------------------------------------------------------------


def test_a_squad_file_needs_no_answers(tmp_path):
    paragraphs = [{"context": f"context {number}", "qas": [{"id": str(number), "question": "?"}]} for number in (1, 2)]
    article = {"title": "article", "paragraphs": paragraphs}
    (tmp_path / "asked.json").write_text(json.dumps({"data": [article]}), encoding="utf-8")
    assert contexts_of(str(tmp_path / "asked.json")) == [("article", "context 1"), ("article", "context 2")]


@pytest.mark.parametrize(
    ("record", "fields"),
    [
        ({"document": "a text"}, (None, None)),
        ({"document": "a text", "summary": "short"}, (None, None)),
        ({"body": "a text", "document": "another", "summary": "short"}, ("body", None)),
        ({"document": "short", "body": "a text"}, ("body", "document")),
    ],
)
def test_pairs_need_no_summaries(tmp_path, record, fields):
    path = write_jsonl(tmp_path / "pairs.jsonl", [record, record])
    assert documents_of(str(path), *fields) == ["a text", "a text"]


# --- what cannot be read ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [contexts_of, lambda name: documents_of(name, None, None)], ids=["squad", "pairs"])
@pytest.mark.parametrize("name", ["no.txt", "no.json", "no.jsonl", "folder", "blank.txt", "bytes.txt"])
def test_what_cannot_be_read_is_one_line(tmp_path, monkeypatch, read, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "other.md").write_text("text", encoding="utf-8")
    (tmp_path / "blank.txt").write_text(" \n\n", encoding="utf-8")
    (tmp_path / "bytes.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=f"^(--pretrain_files )?{re.escape(name)}[: ]") as error:
        read(name)
    assert str(error.value).isprintable() and "; " in str(error.value)
