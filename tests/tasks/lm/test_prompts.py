"""Prompts from files: the whole of a text, or a field of each record."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from him.core.errors import DataError
from him.tasks.lm.sources import read_prompts


@pytest.mark.parametrize(
    ("content", "prompt"),
    [
        (b"Once upon", "Once upon"),
        (b"Once upon\n", "Once upon"),
        (b"Once upon\r\n", "Once upon"),
        (b"Once upon\n\n", "Once upon\n"),
        (b" Once \nupon a \n", " Once \nupon a "),
        (b"\xef\xbb\xbfOnce upon \xc3\xa9\xf0\x9f\x98\x80", "Once upon \xe9\U0001f600"),
    ],
)
@pytest.mark.parametrize("name", ["x.txt", "x.TXT"])
def test_the_whole_of_a_text_is_a_prompt(tmp_path, name, content, prompt):
    """Spaces count; the line end that editors add at the end of a file does not."""
    (tmp_path / name).write_bytes(content)
    assert read_prompts(tmp_path / name) == {"0": prompt}


RECORDS = [{"id": "b", "text": " Once\nupon "}, {"id": "a", "text": "A 'cat', red", "summary": "not read"}]
PROMPTS = {"b": " Once\nupon ", "a": "A 'cat', red"}


def test_records(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(map(json.dumps, RECORDS)))
    assert read_prompts(path) == PROMPTS
    assert list(read_prompts(str(path))) == ["b", "a"]
    path.write_text("\n".join(json.dumps({"text": record["text"]}) for record in RECORDS))
    assert read_prompts(path) == dict(zip("01", PROMPTS.values(), strict=True))


def test_tables(tmp_path):
    pq.write_table(pa.Table.from_pylist(RECORDS), tmp_path / "x.parquet")
    assert read_prompts(tmp_path / "x.parquet") == PROMPTS
    (tmp_path / "x.csv").write_text('id,text\nb," Once\nupon "\na,"A \'cat\', red"\n')
    assert read_prompts(tmp_path / "x.csv") == PROMPTS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", b"a\xff", "not UTF-8 at byte 1"),
        ("x.txt", b"a\0", "byte 1 is NUL"),
        ("x.txt", b"", "the file is blank; write"),
        ("x.txt", b" \n\t\n", "the file is blank; write"),
        ("x.jsonl", b"", "no record"),
        ("x.jsonl", b'{"text": "a"}\n{"document": "b"}', 'line 2: "text" is missing'),
        ("x.jsonl", b'{"text": "  "}', 'line 1: "text" is'),
        ("x.jsonl", b'{"text": 3}', 'line 1: "text" is 3, not text'),
        ("x.csv", b"id,prompt\n1,a\n", 'no column "text"'),
        ("x.json", b'[{"text": "a"}]', "no format"),
    ],
)
def test_what_is_no_prompt(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_prompts(tmp_path / name)


def test_a_missing_file(tmp_path):
    for name in ("x.txt", "x.jsonl"):
        with pytest.raises(DataError, match="no such file"):
            read_prompts(tmp_path / name)
