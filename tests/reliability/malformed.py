"""Malformed files, made of valid ones: what disks, editors, scripts and people do to them, as Hypothesis strategies."""

import json
import re
import string
import struct
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

# -- bytes -------------------------------------------------------------------------------------------------------------

ENCODINGS = ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-7", "utf-8-sig")
HEADS = (
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\x1f\x8b\x08\x00",
    b"PK\x03\x04",
    b"PAR1",
    b"<!DOCTYPE html>",
    b"\x7fELF",
    b"\0",
)
NO_UTF8 = (b"\xff", b"\xc3", b"\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xf8\x88\x80\x80\x80", b"\xc0\xaf")
SIGNS = tuple(b"\0 \r \n \t \" ' \\ { } [ ] ( ) < > , : ; | # & * ! % @ - ? ` ~ . 0 1 \x1b \x7f".split(b" "))
PIECES = (
    *NO_UTF8,
    *SIGNS,
    b"\xef\xbb\xbf",
    b"\xe2\x80\xa8",
    b"\r\n",
    b'""',
    b"\\u",
    b"\\ud800",
    b"\\udc00",
    b"NaN",
    b"-Infinity",
    b"null",
    b"1e999",
    b"-1",
    b"[" * 50,
    b"9" * 5000,
    b"x" * 100_000,
    b"\0" * 5000,
)


@st.composite
def damaged_bytes(draw: Callable, content: bytes) -> bytes:
    """A file that was cut, overwritten, re-encoded, mixed with another one, or lost parts: once, or more often."""
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 5)))):
        content = draw(st.sampled_from(BYTE_FAULTS))(draw, content)
    return content


def _span(draw: Callable, content: bytes) -> tuple[int, int]:
    start = draw(st.integers(0, len(content)))
    return start, draw(st.integers(start, min(len(content), start + draw(st.sampled_from((1, 8, 200, 10**9))))))


def _cut(draw: Callable, content: bytes) -> bytes:
    return content[: _span(draw, content)[0]]


def _flip(draw: Callable, content: bytes) -> bytes:
    """Some bits the other way round."""
    found = bytearray(content)
    for _ in range(draw(st.sampled_from((1, 3, 20)))):
        if found:
            found[draw(st.integers(0, len(found) - 1))] ^= 1 << draw(st.integers(0, 7))
    return bytes(found)


def _insert(draw: Callable, content: bytes) -> bytes:
    place = draw(st.integers(0, len(content)))
    return content[:place] + draw(st.sampled_from(PIECES)) + content[place:]


def _overwrite(draw: Callable, content: bytes) -> bytes:
    piece = draw(st.sampled_from(PIECES))
    place = draw(st.integers(0, len(content)))
    return content[:place] + piece + content[place + len(piece) :]


def _replace_span(draw: Callable, content: bytes) -> bytes:
    start, stop = _span(draw, content)
    filling = (b"", bytes(stop - start), draw(st.binary(min_size=1, max_size=16)), content[start:stop] * 2)
    return content[:start] + draw(st.sampled_from(filling)) + content[stop:]


def _move(draw: Callable, content: bytes) -> bytes:
    (start, stop), place = _span(draw, content), draw(st.integers(0, len(content)))
    return content[:place] + content[start:stop] + content[place:]


def _recode(draw: Callable, content: bytes) -> bytes:
    return content.decode("utf-8", "replace").encode(draw(st.sampled_from(ENCODINGS)), "replace")


def _latin_1(draw: Callable, content: bytes) -> bytes:
    place = draw(st.integers(0, len(content)))
    return (
        content[:place]
        + "Zoë — Łódź".encode(draw(st.sampled_from(("cp1252", "iso8859-2", "cp437"))), "replace")
        + content[place:]
    )


def _head(draw: Callable, content: bytes) -> bytes:
    return draw(st.sampled_from(HEADS)) + content


def _nothing(draw: Callable, content: bytes) -> bytes:
    return draw(st.sampled_from((b"", b" \n", b"\0", bytes(4096), b"\n" * 1000, b"\xef\xbb\xbf")))


BYTE_FAULTS = (
    _cut,
    _cut,
    _flip,
    _flip,
    _insert,
    _insert,
    _overwrite,
    _replace_span,
    _move,
    _recode,
    _latin_1,
    _head,
    _nothing,
)

# -- JSON --------------------------------------------------------------------------------------------------------------

# What stands for a value, as it is written in the file; not all of it is JSON.
RAW_VALUES = (
    *("null", "true", "false", "0", "-1", "1", "7", "0.5", "-0.0", "1e-320", "1e308", "1e999", "-1e999"),
    *("NaN", "Infinity", "-Infinity", "nan", "01", "+1", "0x1F", ".5", "1_000", "9" * 25, "9" * 400, "9" * 5000),
    *('""', '" "', '"x"', '"\\u0000"', '"\\ud800"', '"\\udfff\\ud800"', '"\\ud83d\\ude00"', '"a\\nb\\r\\u2028c"'),
    *('"\\x41"', "'x'", '"open', "undefined", "/* x */ 1", "1,", '"\\u001b[31m"', '"' + "long " * 20_000 + '"'),
    *("[]", "{}", "[[]]", "[null]", '{"": null}', '{"a": 1, "a": 2}', "[1, 2, 3]", '["x", "y"]', '{"text": "x"}'),
    *("[" * 1000 + "]" * 1000, "[" * 100_000, '{"a":' * 5000 + "1" + "}" * 5000, "[" + "0," * 50_000 + "0]"),
)
Path_ = tuple[str | int, ...]


def places_in(value: Any, at: Path_ = (), most: int = 3) -> list[Path_]:
    """Where values are in a document; the first few items of long lists and objects only, and the last one."""
    found = [at]
    keys: Sequence = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    chosen = keys if len(keys) <= 20 and isinstance(value, dict) else [*keys[:most], *keys[most:][-1:]]
    for key in chosen:
        found += places_in(value[key], (*at, key), most)
    return found


@st.composite
def damaged_json(draw: Callable, document: Any, values: Sequence[str] = RAW_VALUES) -> bytes:
    """A document in which a value has another type or is no JSON, or a key is lost, twice there or another one."""
    document = json.loads(json.dumps(document))
    raw: list[str] = []
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 4)))):
        # Deep values are many: a length first, then a place of this length.
        by_length: dict[int, list[Path_]] = {}
        for place in places_in(document):
            by_length.setdefault(len(place), []).append(place)
        place = draw(st.sampled_from(by_length[draw(st.sampled_from(sorted(by_length)))]))
        document = _with_fault(draw, document, place, values, raw)
    text = json.dumps(document, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from((None, 1))))
    text = re.sub(r'"@raw (\d+)@"', lambda match: raw[int(match[1])], text)
    return text.encode("utf-8", "surrogatepass")


def _with_fault(draw: Callable, document: Any, place: Path_, values: Sequence[str], raw: list[str]) -> Any:
    raw.append(draw(st.sampled_from(values)))
    standing_for_it = f"@raw {len(raw) - 1}@"
    if not place:
        return standing_for_it
    parent = document
    for key in place[:-1]:
        parent = parent[key]
    key, value = place[-1], parent[place[-1]]
    kind = draw(
        st.sampled_from(("value", "value", "value", "lost", "wrapped", "unwrapped", "twice", "renamed", "text"))
    )
    if kind == "lost":
        del parent[key]
    elif kind == "wrapped":
        parent[key] = draw(st.sampled_from(([value], {"value": value}, [value, value])))
    elif kind == "unwrapped" and isinstance(value, list | dict) and value:
        parent[key] = next(iter(value.values())) if isinstance(value, dict) else value[0]
    elif kind == "twice" and isinstance(parent, list):
        parent.insert(key, value)
    elif kind == "twice":
        raw[-1] = f"{json.dumps(value)}, {json.dumps(key)}: {raw[-1]}"
        parent[key] = standing_for_it
    elif kind == "renamed" and isinstance(parent, dict):
        parent[draw(st.sampled_from((key.upper(), key + " ", "", key[:-1], "\0", "x" * 1000)))] = parent.pop(key)
    elif kind == "text":
        parent[key] = json.dumps(value)
    else:
        parent[key] = standing_for_it
    return document


def damaged_document(document: Any) -> st.SearchStrategy[bytes]:
    """A JSON file with another content or with other bytes."""
    return damaged_json(document) | damaged_bytes(json.dumps(document).encode())


@st.composite
def damaged_lines(draw: Callable, records: Sequence[dict]) -> bytes:
    """JSON Lines in which one line is at fault, or that are no lines."""
    records = list(records)
    if draw(st.integers(0, 3)) == 0:
        return draw(damaged_bytes("".join(f"{json.dumps(record)}\n" for record in records).encode()))
    lines = [json.dumps(record).encode() for record in records]
    number = draw(st.integers(0, len(lines) - 1))
    lines[number] = draw(damaged_json(records[number]))
    joints = (b"\n", b"\n", b"\n", b"\r\n", b"\r", b"\n\n", b" ", b",\n", b"", b"\0\n", b"\xe2\x80\xa8")
    return draw(st.sampled_from(joints)).join(lines)


# -- CSV ---------------------------------------------------------------------------------------------------------------

CELLS = (
    '"',
    '""',
    "a,b",
    '"a"b',
    'x"y',
    "\0",
    "\r",
    "a\nb",
    '"a\nb',
    "",
    " ",
    "=1+1",
    "x" * 200_000,
    "\ud800",
    '"" ""',
)


@st.composite
def damaged_csv(draw: Callable, rows: Sequence[Sequence[str]]) -> bytes:
    """A table with cells too many, too few or not closed, another separator, or another header."""

    def line(cells: Sequence[str], separator: str) -> str:
        return separator.join('"' + cell.replace('"', '""') + '"' for cell in cells)

    whole = "\n".join(line(cells, ",") for cells in rows).encode()
    if draw(st.integers(0, 2)) == 0:
        return draw(damaged_bytes(whole))
    separator = draw(st.sampled_from((",", ",", ",", ";", "\t", "|")))
    lines = [line(cells, separator) for cells in rows]
    number = draw(st.sampled_from((0, draw(st.integers(0, len(rows) - 1)))))
    cells, at = list(rows[number]), draw(st.integers(0, len(rows[number]) - 1))
    cell = draw(st.sampled_from(CELLS))
    fault = draw(st.sampled_from(("cell", "raw", "more", "fewer", "none", "open")))
    if fault == "cell":
        cells[at] = cell
    elif fault == "more":
        cells.insert(at, cell)
    elif fault == "fewer":
        del cells[at]
    lines[number] = line(cells, separator)
    if fault == "raw":
        lines[number] = separator.join([*cells[:at], cell, *cells[at + 1 :]])
    elif fault == "none":
        del lines[number]
    elif fault == "open":
        lines[number] = lines[number][: draw(st.integers(0, len(lines[number])))]
    return draw(st.sampled_from(("\n", "\n", "\r\n", "\r", "\n\n"))).join(lines).encode("utf-8", "surrogatepass")


# -- Parquet -----------------------------------------------------------------------------------------------------------

COLUMNS: dict[str, Callable[[int], pa.Array]] = {
    "text": lambda n: pa.array([f"Ann built mill {i}." for i in range(n)]),
    "large text": lambda n: pa.array(["text"] * n, pa.large_string()),
    "dictionary": lambda n: pa.array(["text"] * n).dictionary_encode(),
    "blank": lambda n: pa.array([" "] * n),
    "null": lambda n: pa.nulls(n),
    "one null": lambda n: pa.array([None, *["text"] * (n - 1)][:n], pa.string()),
    "whole": lambda n: pa.array(range(n)),
    "unsigned": lambda n: pa.array([2**64 - 1] * n, pa.uint64()),
    "float": lambda n: pa.array([float("nan")] * n),
    "truth": lambda n: pa.array([True] * n),
    "bytes": lambda n: pa.array([b"\xff\xfe"] * n),
    "no UTF-8": lambda n: pa.array([b"\xff\xfe"] * n, pa.binary()).view(pa.string()),
    "surrogate": lambda n: pa.array([b"a\xed\xa0\x80"] * n, pa.binary()).view(pa.string()),
    "time": lambda n: pa.array([10**18] * n, pa.timestamp("ns")),
    "early time": lambda n: pa.array([-(2**62)] * n, pa.timestamp("us")),
    "time in a zone": lambda n: pa.array([0] * n, pa.timestamp("s", "Nowhere/Here")),
    "duration": lambda n: pa.array([2**62] * n, pa.duration("s")),
    "decimal": lambda n: pa.array([None] * n, pa.decimal128(38, 10)),
    "list": lambda n: pa.array([["a", "b"]] * n),
    "list of lists": lambda n: pa.array([[["a"]]] * n),
    "list of numbers": lambda n: pa.array([[1]] * n),
    "list of nothing": lambda n: pa.array([[]] * n, pa.list_(pa.string())),
    "object": lambda n: pa.array([{"a": 1}] * n),
    "map": lambda n: pa.array([[("a", 1)]] * n, pa.map_(pa.string(), pa.int64())),
}
NAMES = ("document", "summary", "summaries", "id", "text", "Document", "", "\0", "other")


@st.composite
def damaged_parquet(draw: Callable, content: bytes) -> bytes:
    """A table of other columns or types, or one whose bytes are damaged, its directory at the end more often."""
    if draw(st.booleans()):
        num_rows = draw(st.sampled_from((0, 1, 3)))
        names = draw(st.lists(st.sampled_from(NAMES[:5]) | st.sampled_from(NAMES), min_size=1, max_size=4))
        kinds = [draw(st.sampled_from(("text", *COLUMNS))) for _ in names]
        table = pa.Table.from_arrays([COLUMNS[kind](num_rows) for kind in kinds], names=names)
        try:
            return as_parquet(table, draw(st.sampled_from(("snappy", "none", "zstd", "gzip"))))
        except pa.ArrowException:  # a type that the format has not
            pass
    if draw(st.booleans()):
        return draw(damaged_bytes(content))
    found = bytearray(content)
    (length,) = struct.unpack("<I", found[-8:-4])
    for _ in range(draw(st.sampled_from((1, 1, 2, 10)))):
        place = len(found) - 8 - length + draw(st.integers(0, length + 7))
        found[place] = draw(st.integers(0, 255))
    return bytes(found)


def as_parquet(table: pa.Table, compression: str = "snappy") -> bytes:
    """The bytes of a Parquet file."""
    file = BytesIO()
    pq.write_table(table, file, compression=compression)
    return file.getvalue()


# -- YAML --------------------------------------------------------------------------------------------------------------

YAML_VALUES = (
    *("", "~", "null", "true", "yes", "Off", "0", "-1", "1.5", "1e999", ".inf", "-.inf", ".nan", "0x1F", "0o17", "0b_"),
    *(
        "0x" + "F" * 5000,
        "9" * 30,
        "9" * 400,
        "9" * 5000,
        "1:60:60",
        "1_000_",
        "190:20:30.15",
        "2001-99-99",
        "2001-01-01",
    ),
    *("0001-01-01 00:00:00 +14:00", "2001-01-01T00:00:00.5Z", "!!int x", "!!int ''", "!!float ''", "!!float x"),
    *(
        "!!bool x",
        "!!bool ''",
        "!!timestamp x",
        "!!timestamp ''",
        "!!binary é",
        "!!binary x",
        "!!binary aGk=",
        "!!null x",
    ),
    *("!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1]", "!!omap 1", "!!seq x", "!!map x", "!!str [1]", "!!set [1]"),
    *("!!python/object/apply:os.system ['true']", "!!python/name:os.system", "!own x", "! x", "!<x> y", "!!", "%x"),
    *(
        "[1, 2]",
        "[]",
        "{}",
        "{a: 1}",
        "[[1]]",
        "[a, b",
        "{a: 1",
        "- 1",
        "&a [*a]",
        "&a {b: *a}",
        "*b",
        "&a",
        "* a",
        "<<",
    ),
    *(
        '""',
        '"\\0"',
        '"\\ud800"',
        '"\\uDFFF"',
        '"\\x07"',
        '"a\\nb\\r\\u2028c"',
        "'",
        '"',
        '"\\q"',
        "|\n  a\n  b",
        ">-\n x",
    ),
    *(
        "a: b",
        "a:b: c",
        "? a",
        "? [a, b]",
        "@x",
        "`x`",
        "#",
        "x #",
        "\t1",
        "x" * 50_000,
        "[" * 500,
        "[" * 5000,
        "{a: " * 300,
    ),
    *(
        "cuda",
        "cuda:99",
        "squad",
        "lm",
        "sample",
        "none.json",
        "..",
        "train.json",
        "a\tb",
        "é",
        "\u2028",
        "🙂",
        "[[[1]]]",
    ),
    *(
        "[9, 9, 9]",
        "2147483648",
        "1e17",
        "100000000",
        "65536",
        "[null]",
        "[1.5]",
        "[true]",
        "[-1]",
        "[0]",
        "[99999999999]",
    ),
)
YAML_KEYS = (
    "",
    "x",
    "<<",
    "? [a]",
    "? {a: 1}",
    "*a",
    "&a",
    "!!int x",
    "null",
    "1",
    "1.5",
    "true",
    "{a: 1}",
    "\0",
    "-",
    "'",
    "é",
)


@st.composite
def damaged_yaml(draw: Callable, settings: dict[str, Any], names: Sequence[str]) -> bytes:
    """Settings of which one or two have another value, or another name, in a file that may be damaged too."""
    lines = [f"{name}: {json.dumps(value)}" for name, value in settings.items()]
    if draw(st.integers(0, 3)) == 0:
        return draw(damaged_bytes("\n".join(lines).encode()))
    for _ in range(draw(st.sampled_from((1, 1, 2)))):
        name = draw(st.sampled_from(names) | st.sampled_from(YAML_KEYS) | st.text(string.ascii_letters, max_size=8))
        lines = [line for line in lines if not line.startswith(f"{name}:") or draw(st.integers(0, 3)) == 0]
        place = draw(st.integers(0, len(lines)))
        joint = draw(st.sampled_from((": ", ": ", ": ", ": ", ": ", ":", " ", ": - ", ":\n  - ", ":\n\t", " = ")))
        lines.insert(place, name + joint + draw(st.sampled_from(YAML_VALUES)))
    return (
        draw(st.sampled_from(("\n", "\n", "\n", "\r\n", "\r", "\n---\n", "\n...\n")))
        .join(lines)
        .encode("utf-8", "surrogatepass")
    )


# -- safetensors -------------------------------------------------------------------------------------------------------

HEADER_VALUES = (
    *("null", "0", "-1", "1.5", '"x"', "[]", "{}", "[0]", "[0, 0]", "[-1, 4]", "[4, 0]", "[0, 99999999]", "9" * 25),
    *('"F64"', '"F16"', '"BF16"', '"I8"', '"I32"', '"I64"', '"BOOL"', '"U8"', '"U16"', '"C64"', '"F8_E4M3"', '"F4"'),
    *(
        "[1]",
        "[1, 1]",
        "[0, 1]",
        "[2147483647, 2147483647]",
        "[4294967296, 4294967296]",
        "[64, 32]",
        "[32, 64]",
        "true",
    ),
)


@st.composite
def damaged_safetensors(draw: Callable, content: bytes) -> bytes:
    """Tensors with another type, shape or place in the header, or with damaged bytes."""
    (length,) = struct.unpack("<Q", content[:8])
    kind = draw(st.sampled_from(("header", "header", "header", "length", "bytes", "numbers")))
    if kind == "bytes":
        return draw(damaged_bytes(content))
    if kind == "length":
        other = draw(st.sampled_from((0, 1, 7, length - 1, length + 1, 10**8, 2**31, 2**63, 2**64 - 1)))
        return struct.pack("<Q", other) + content[8:]
    if kind == "numbers":  # not a number, or infinite, or huge
        pattern = draw(st.sampled_from((b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\x7f\x7f", b"\xff" * 4)))
        start = 8 + length + 4 * draw(st.integers(0, (len(content) - 8 - length) // 4 - 1))
        number = draw(st.sampled_from((1, 64, 10**6)))
        filled = pattern * min(number, (len(content) - start) // 4)
        return content[:start] + filled + content[start + len(filled) :]
    header = draw(damaged_json(json.loads(content[8 : 8 + length]), HEADER_VALUES))
    return struct.pack("<Q", len(header)) + header + content[8 + length :]
