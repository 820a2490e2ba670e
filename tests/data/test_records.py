"""The readers of documents with summaries: three formats, and every fault is one line with its place and its fix."""

import csv
import io
import json
import re
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from him.core.errors import ConfigError, DataError, HimError
from him.data.records import Fields, Pair, PairData, pairs_from_records, read_pairs

REPOSITORY = Path(__file__).parents[2]
SHARED = REPOSITORY.parent / "shared" / "data"
SHARED_FILES = {"acl_titles/validation": 2_000, "scitldr/train": 1_920, "dialogsum/validation": 491}
ROWS = [
    {"id": "a", "document": "A cat, red,\nsat.", "summary": 'A "cat".'},
    {"id": "b", "document": "Ein Hündchen 犬 lief.", "summary": "Hündchen"},
]
PAIRS = (Pair("a", "A cat, red,\nsat.", ('A "cat".',)), Pair("b", "Ein Hündchen 犬 lief.", ("Hündchen",)))


def lines(*rows: object) -> bytes:
    return "\n".join(map(json.dumps, rows)).encode()


def csv_of(rows: list[dict], ends: str = "\n") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator=ends)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def parquet_of(rows: list[dict] | pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def read(tmp_path: Path, name: str, content: bytes, *fields: str, **options: bool) -> PairData:
    path = tmp_path / name
    path.write_bytes(content)
    return read_pairs(path, *fields, **options)


def check_one_line(error: pytest.ExceptionInfo) -> None:
    message = str(error.value)
    assert message.isprintable() and len(message) < 500, message
    assert "; " in message, "fault and fix"


# --- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.jsonl", lines(*ROWS)),
        ("x.JSONL", lines(*ROWS) + b"\n\n"),
        ("x.jsonlines", b"\xef\xbb\xbf\r\n \r\n" + lines(*ROWS).replace(b"\n", b"\r\n\r\n")),
        ("x.csv", csv_of(ROWS)),
        ("x.csv", b"\xef\xbb\xbf" + csv_of(ROWS, "\r\n").replace(b"\r\n", b"\r\n\r\n")),
        ("x.parquet", parquet_of(ROWS)),
    ],
    ids=["lines", "upper case", "lines, CR LF, mark", "csv", "csv, CR LF, mark", "parquet"],
)
def test_each_format_gives_the_same_pairs(tmp_path, name, content):
    data = read(tmp_path, name, content)
    assert data == PairData(PAIRS, str(tmp_path / name)) and len(data) == 2


@pytest.mark.parametrize(
    ("name", "make"), [("x.jsonl", lambda r: lines(*r)), ("x.csv", csv_of), ("x.parquet", parquet_of)]
)
def test_fields_of_other_names(tmp_path, name, make):
    rows = [{"title": "One", "text": "One two", "summary": 5}, {"title": "Two", "text": "Two two", "summary": 6}]
    data = read(tmp_path, name, make(rows), "text", "title")
    assert data.pairs == (Pair("0", "One two", ("One",)), Pair("1", "Two two", ("Two",)))


@pytest.mark.parametrize(
    ("record", "summaries"),
    [
        ({"summary": "a"}, ("a",)),
        ({"summary": "a", "summaries": ["a", "b", " ", "b"]}, ("a", "b")),
        ({"summary": "c", "summaries": ["a"]}, ("c", "a")),
        ({"summaries": ["b", "", "a"]}, ("b", "a")),
        ({"summary": None, "summaries": ["b"]}, ("b",)),
        ({"summary": " ", "summaries": ["b"]}, ("b",)),
        ({"summary": ["b", "a", "b"]}, ("b", "a")),
        ({"summary": "a", "summaries": None}, ("a",)),
        ({"summary": "a", "summaries": []}, ("a",)),
    ],
)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_several_references(tmp_path, record, summaries, suffix):
    record = {"document": "A b c", **record}
    content = lines(record) if suffix == "jsonl" else parquet_of([record])
    assert read(tmp_path, f"x.{suffix}", content).pairs == (Pair("0", "A b c", summaries),)


def test_summaries_belong_to_the_summary_only(tmp_path):
    """Beside a field of another name they may be anything."""
    record = {"document": "d", "tldr": ["a", "b"], "summaries": 7}
    assert read(tmp_path, "x.jsonl", lines(record), "document", "tldr").pairs[0].summaries == ("a", "b")
    assert read(tmp_path, "x.csv", b"document,summary,summaries\nd,s,7\n").pairs[0].summaries == ("s",)
    record = {"summaries": "the text", "summary": "s"}
    assert read(tmp_path, "x.jsonl", lines(record), "summaries").pairs == (Pair("0", "the text", ("s",)),)


@pytest.mark.parametrize("record", [{}, {"summary": None}, {"summary": ""}, {"summary": []}, {"summaries": [" "]}])
def test_summaries_may_be_missing_to_predict_on(tmp_path, record):
    content = lines({"document": "d", **record}, {"document": "e", "summary": "s"})
    data = read(tmp_path, "x.jsonl", content, summaries_required=False)
    assert data.pairs == (Pair("0", "d", ()), Pair("1", "e", ("s",)))


def test_columns_of_summaries_may_be_missing_to_predict_on(tmp_path):
    expected = (Pair("0", "d", ()), Pair("1", "e", ()))
    assert read(tmp_path, "x.csv", b"document\nd\ne\n", summaries_required=False).pairs == expected
    rows = [{"document": "d"}, {"document": "e"}]
    assert read(tmp_path, "x.parquet", parquet_of(rows), summaries_required=False).pairs == expected


def test_ids(tmp_path):
    records = [{"document": "d", "summary": "s", **more} for more in ({"id": 7}, {}, {"id": "x y"}, {"id": -(10**20)})]
    assert [pair.id for pair in read(tmp_path, "x.jsonl", lines(*records)).pairs] == ["7", "1", "x y", str(-(10**20))]


def test_long_cells_and_a_line_separator_inside_a_text(tmp_path):
    """The csv module stops at 131,072 characters by itself; its limit is as before afterwards."""
    before = csv.field_size_limit()
    document = "word \u2028" * 100_000
    data = read(tmp_path, "x.csv", csv_of([{"document": document, "summary": "s"}]))
    assert data.pairs[0].document == document and csv.field_size_limit() == before
    content = json.dumps({"document": document, "summary": "s"}, ensure_ascii=False).encode()
    assert read(tmp_path, "x.jsonl", content).pairs[0].document == document


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data here")
@pytest.mark.parametrize(("name", "num_pairs"), SHARED_FILES.items(), ids=SHARED_FILES.keys())
def test_reads_real_files(name, num_pairs):
    assert len(read_pairs(SHARED / f"{name}.jsonl")) == num_pairs


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data here")
def test_reads_2000_pairs_in_a_moment():
    """0.04 s of one core where it was written; processor time, so that a busy machine does not fail it."""
    started_at = time.process_time()
    read_pairs(SHARED / "acl_titles" / "validation.jsonl")
    assert time.process_time() - started_at < 0.5


# --- faults of the file ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.jsonl", r"none\.jsonl: no such file; check the path"),
        ("none.csv", r"none\.csv: no such file"),
        ("none.parquet", r"none\.parquet: no such file"),
        ("", "is a folder, not a file; name a .jsonl, .csv or .parquet file in it"),
        ("folder.jsonl", "is a folder, not a file; name the JSON Lines file in it"),
        ("zero\0byte.csv", r"zero\\x00byte\.csv: cannot be read \(embedded null byte\); check the path"),
        ("zero\0byte", r"zero\\x00byte: its name has no ending"),
        ("n" * 300 + ".parquet", r"cannot be read \(File name too long\)"),
        (
            "x.txt",
            r'x\.txt: the ending "\.txt" of its name tells no format; give a file that ends in \.jsonl, \.csv or',
        ),
        ("x", r"x: its name has no ending; give a file that ends in \.jsonl, \.csv or \.parquet"),
        ("x.json", r"write one object a line, as `jq -c '\.\[\]'` does, and let its name end in \.jsonl"),
        ("x.jsonl.gz", r'the ending "\.gz" of its name tells no format; unpack it first'),
    ],
)
def test_file_that_cannot_be_opened(tmp_path, name, message):
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(DataError, match=message) as error:
        read_pairs(f"{tmp_path}/{name}")
    assert str(error.value).isprintable() and "; " in str(error.value)


def test_file_without_permission(tmp_path, monkeypatch):
    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)  # by hand, because root may read everything
    with pytest.raises(DataError, match=r"x\.csv: cannot be read \(Permission denied\); check the path and its perm"):
        read_pairs(tmp_path / "x.csv")


GOOD = lines(ROWS[0]) + b"\n"
LINE_FAULTS = {
    "empty": (b"", "^{}: there is no record in it; give at least one document with its summary"),
    "blank": (b"\xef\xbb\xbf \n\r\n\t", "^{}: there is no record in it"),
    "latin-1": (GOOD + b'{"a": "\xe9"}', r"not UTF-8 at byte 77 \(line 2, byte value 0xe9\); save the file as UTF-8"),
    "utf-16": (GOOD.decode().encode("utf-16"), "not UTF-8 at byte 0 .*looks like UTF-16; save it as UTF-8"),
    "gzip": (b"\x1f\x8b\x08\x00\xff", "not UTF-8 at byte 1 .*compressed by gzip; unpack it first"),
    "parquet": (b"PAR1\xff\xff", "not UTF-8 .*it is a Parquet file; write it as JSON Lines"),
    "parquet of ASCII": (b"PAR1\x15", "^{}: line 1, .*a Parquet file, not JSON; write it as JSON Lines"),
    "zeros": (b"\0\0\0\0", r"^{}: line 1, column 1: not valid JSON \(Expecting value\)"),
    "token": (GOOD + b'\n{"document": }\n', r"^{}: line 3, column 14: not valid JSON \(Expecting value\); correct the"),
    "cut short": (GOOD + GOOD[:30], "^{}: line 2, column 25: the JSON breaks off .*if the file is cut short, save"),
    "printed over lines": (json.dumps(ROWS[0], indent=1).encode(), "^{}: line 1, .*; put each object on one line"),
    "array": (json.dumps(ROWS).encode(), r"^{}: line 1: a JSON array begins, not an object; write one object a line"),
    "array over lines": (b"\n" + json.dumps(ROWS, indent=1).encode(), "^{}: line 2: a JSON array begins"),
    "two in a line": (GOOD.strip() + GOOD, r"^{}: line 1, column \d+: not valid JSON \(Extra data\)"),
    "html": (b"<!DOCTYPE html>\n<html>", "^{}: line 1, column 1: HTML or XML, not JSON; download the raw file"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer.*`git lfs pull`"),
    "NaN": (GOOD + b'{"n": NaN}', "^{}: line 2, column 7: NaN is not JSON"),
    "deep": (GOOD + b'{"document":' * 200_000, "^{}: line 2: the JSON is nested too deeply.*; write one object a line"),
    "huge number": (GOOD + b'{"id": ' + b"9" * 5000 + b"}", "^{}: line 2: a number has more than 4,300 digits"),
    "key twice": (GOOD + b'{"id": 1, "id": 1}', '^{}: line 2: an object has the key "id" twice; keep one'),
    "list": (GOOD + b'["a"]', "^{}: line 2: is a list, not an object; write one object a line"),
    "null": (b"null", "^{}: line 1: is null, not an object"),
}


@pytest.mark.parametrize(("content", "message"), LINE_FAULTS.values(), ids=LINE_FAULTS.keys())
def test_fault_of_json_lines(tmp_path, content, message):
    with pytest.raises(DataError, match=message.format(re.escape(str(tmp_path / "x.jsonl")))) as error:
        read(tmp_path, "x.jsonl", content)
    check_one_line(error)


CSV_FAULTS = {
    "empty": (b"", "^{}: there is no record in it"),
    "header only": (b"document,summary\n\n", "^{}: has a header line and no row below it; give at least one pair"),
    "no header": (
        b"A cat sat.,A cat\nA dog ran.,A dog\n",
        r'^{}: line 1: the header line has no column "document" \(there is "A cat sat\.", "A cat"\); add a header line',
    ),
    "no summary": (b"document,text\na,b\n", 'no column "summary" .* or name the column with --summary_field'),
    "summaries": (b"document,summaries\na,b\n", 'no column "summary"'),
    "semicolons": (b"document;summary\na;b\n", 'no column "document" .*; save the file with commas between the cells'),
    "tabs": (b"document\tsummary\na\tb\n", "save the file with commas between the cells"),
    "column twice": (b"document,summary,summary\na,b,c\n", '^{}: line 1: there are several columns "summary"; rename'),
    "more cells": (b'document,summary\n"a\n\nb",c\na,b,c\n', "^{}: line 5: has 3 cells, and the header line 2; put a"),
    "fewer cells": (b"document,summary\na,b\n\na\n", "^{}: line 4: has 1 cells, and the header line 2"),
    "open quote": (
        b'document,summary\na,b\nc,"d\ne,f\n',
        r"^{}: line 3: not valid CSV \(unexpected end of data\); write",
    ),
    "quote inside": (b'document,summary\n"a "b" c",d\n', r"^{}: line 2: not valid CSV \('.*expected after '\"'\)"),
    "CR alone": (b"document,summary\ra,b\r", "^{}: line 1: has a line end of CR alone; save the file with LF or CR LF"),
    "blank": (b"document,summary\na,b\nc, \n", '^{}: line 3: "summary" is blank; fill it in, or remove the entry'),
    "latin-1": (b"document,summary\na,\xe9\n", r"not UTF-8 at byte 19 \(line 2, byte value 0xe9\)"),
    "id twice": (
        b"id,document,summary\n1,a,b\n1,c,d\n",
        '^{}: line 3: the id "1" is that of line 2 already; give each',
    ),
    "blank id": (b"id,document,summary\n,a,b\n", '^{}: line 2: "id" is blank'),
}


@pytest.mark.parametrize(("content", "message"), CSV_FAULTS.values(), ids=CSV_FAULTS.keys())
def test_fault_of_csv(tmp_path, content, message):
    with pytest.raises(DataError, match=message.format(re.escape(str(tmp_path / "x.csv")))) as error:
        read(tmp_path, "x.csv", content)
    check_one_line(error)


WHOLE = parquet_of(ROWS)
PARQUET_FAULTS = {
    "empty": (b"", "^{}: the file is empty; give a file of the columns document and summary"),
    "lines": (lines(*ROWS), "^{}: not a Parquet file, which begins with PAR1; give it the ending of what it is"),
    "cut short": (
        WHOLE[:-20],
        r"^{}: the Parquet file cannot be read \(.*\); it is damaged or cut short: write it again",
    ),
    "magic only": (b"PAR1", "^{}: the Parquet file cannot be read"),
    "no rows": (parquet_of(pa.table({"document": pa.array([], "str"), "summary": pa.array([], "str")})), "no record"),
    "no document": (
        parquet_of([{"text": "a", "summary": "b"}]),
        r'^{}: has no column "document" \(there is "text", "summary"\); name the column with --document_field',
    ),
    "no summary": (parquet_of([{"document": "a"}]), 'no column "summary" .* with --summary_field'),
    "column twice": (
        parquet_of(pa.table([pa.array(["a"])] * 3, names=["document", "summary", "document"])),
        '^{}: there are several columns "document"; rename all but one',
    ),
    "null": (parquet_of([ROWS[0], {**ROWS[1], "document": None}]), '^{}: row 2: "document" is null, not text; write'),
    "number": (parquet_of([{"document": "a", "summary": 5}]), '^{}: row 1: "summary" is 5, not text'),
    "bytes": (parquet_of([{"document": b"a", "summary": "b"}]), '^{}: row 1: "document" is a bytes, not text'),
}


@pytest.mark.parametrize(("content", "message"), PARQUET_FAULTS.values(), ids=PARQUET_FAULTS.keys())
def test_fault_of_parquet(tmp_path, content, message):
    with pytest.raises(DataError, match=message.format(re.escape(str(tmp_path / "x.parquet")))) as error:
        read(tmp_path, "x.parquet", content)
    check_one_line(error)


# --- faults of a record ----------------------------------------------------------------------------------------------

MISSING = object()
RECORD_FAULTS = [
    (
        "document",
        MISSING,
        r'"document" is missing \(there is "id", "summary"\); add it, or name its field with --document_field',
    ),
    ("summary", MISSING, r'"summary" is missing \(there is "id", "document"\); .* its field with --summary_field'),
    ("document", 5, '"document" is 5, not text; write a string there, or name another field with --document_field'),
    ("document", None, '"document" is null, not text'),
    ("document", ["A"], '"document" is a list, not text'),
    ("document", "", '"document" is blank; fill it in, or remove the entry it belongs to'),
    ("document", " \n\u3000", '"document" is blank'),
    ("document", "a\ud800", r'"document" has half a character \(the lone surrogate U\+D800\) at 1; write the whole'),
    ("summary", {}, '"summary" is an object, not text; write a string there, or .* with --summary_field'),
    ("summary", None, '"summary" is null, not text'),
    ("summary", True, '"summary" is true, not text'),
    ("summary", "\t", '"summary" is blank'),
    ("summary", "\udfff", '"summary" has half a character'),
    ("summary", [], '"summary" has no text in it; fill it in, or remove the record'),
    ("summary", [" "], '"summary" has no text in it'),
    ("summary", ["a", 5], '"summary", text 2: is 5, not text; write a list of strings, or .* with --summary_field'),
    ("summary", ["\ud83d"], '"summary" has half a character'),
    ("summaries", "a", '"summaries" is a string, not a list; put its texts in '),
    ("summaries", {"a": 1}, '"summaries" is an object, not a list'),
    ("summaries", [None], '"summaries", text 1: is null, not text'),
    ("id", None, '"id" is null, neither text nor a whole number; correct it, or leave the field out'),
    ("id", True, '"id" is true, neither text nor a whole number'),
    ("id", 1.5, r'"id" is 1\.5, neither'),
    ("id", ["a"], '"id" is a list, neither'),
    ("id", " ", '"id" is blank'),
    ("id", "\udfff", '"id" has half a character'),
    ("id", "a", 'the id "a" is that of line 1 already; give each record an id'),
]


@pytest.mark.parametrize(
    ("field", "value", "message"), RECORD_FAULTS, ids=[f"{i}-{fault[0]}" for i, fault in enumerate(RECORD_FAULTS)]
)
def test_fault_of_a_record(tmp_path, field, value, message):
    record = {**ROWS[1], field: value}
    if value is MISSING:
        del record[field]
    with pytest.raises(DataError, match=rf"x\.jsonl: line 3: (?:{message})") as error:
        read(tmp_path, "x.jsonl", lines(ROWS[0]) + b"\n\n" + lines(record))
    check_one_line(error)


def test_neither_summary_nor_summaries_is_text(tmp_path):
    with pytest.raises(DataError, match='line 1: "summaries" is null, not text'):
        read(tmp_path, "x.jsonl", lines({"document": "d", "summaries": None}))
    with pytest.raises(DataError, match='line 1: "summaries" has no text in it'):
        read(tmp_path, "x.jsonl", lines({"document": "d", "summaries": []}))


def test_ids_that_differ_in_type_only_are_the_same(tmp_path):
    with pytest.raises(DataError, match='line 2: the id "7" is that of line 1 already'):
        read(tmp_path, "x.jsonl", lines({**ROWS[0], "id": 7}, {**ROWS[1], "id": "7"}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (("a", "a"), '--document_field and --summary_field are both "a"; name two different fields'),
        (("summary",), '--document_field and --summary_field are both "summary"'),
        (("", "a"), "--document_field is blank; give the name of a field"),
        (("a", " "), "--summary_field is blank"),
    ],
)
def test_fields_that_cannot_be(fields, message):
    with pytest.raises(ConfigError, match=message) as error:
        read_pairs("x.jsonl", *fields)
    check_one_line(error)


def test_no_record():
    with pytest.raises(DataError, match="^x: there is no record in it; give at least one document with its summary"):
        pairs_from_records(iter(()), "x", Fields())


# --- anything at all -------------------------------------------------------------------------------------------------

CONTENTS = {
    ".jsonl": lines(*ROWS, {"document": "d", "summaries": ["a", "b"]}),
    ".csv": csv_of(ROWS),
    ".parquet": parquet_of([*ROWS, {"document": "d", "summaries": ["a", "b"]}]),
}


@st.composite
def damaged_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """An ending and bytes: any, or those of a good file with a few of them replaced."""
    suffix = draw(st.sampled_from(sorted(CONTENTS)))
    if draw(st.booleans()):
        return suffix, draw(st.sampled_from([b"", b"PAR1", b"document,summary\n", b'{"'])) + draw(
            st.binary(max_size=60)
        )
    content = CONTENTS[suffix]
    place = draw(st.integers(0, len(content)))
    end = place + draw(st.integers(0, 8))
    return suffix, content[:place] + draw(st.binary(max_size=4)) + content[end:]


@pytest.mark.run
@settings(max_examples=600, deadline=None, derandomize=True)
@given(damaged_files(), st.booleans())
def test_whatever_bytes_a_file_holds_only_our_errors_come_out(tmp_path_factory, damaged, summaries_required):
    suffix, content = damaged
    path = tmp_path_factory.getbasetemp() / f"fuzz{suffix}"
    path.write_bytes(content)
    try:
        data = read_pairs(path, summaries_required=summaries_required)
    except HimError as error:
        assert str(error).isprintable() and len(str(error)) < 600
    else:
        assert all(pair.document.strip() for pair in data.pairs) and len({pair.id for pair in data.pairs}) == len(data)
        assert all(pair.summaries for pair in data.pairs) or not summaries_required


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.run
@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.sampled_from(["id", "document", "summary", "summaries"]), ANY_JSON, st.booleans())
def test_whatever_stands_in_a_record_only_our_errors_come_out(field, value, summaries_required):
    records = [("row 1", ROWS[0]), ("row 2", {**ROWS[1], field: value})]
    try:
        pairs_from_records(iter(records), "x", Fields(), summaries_required=summaries_required)
    except HimError as error:
        assert str(error).isprintable() and len(str(error)) < 500
