"""What the readers of data files share; their tests say the rest, fault by fault."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from him.core.errors import DataError
from him.core.messages import one_line, shown, shown_names
from him.data.text_files import Format, parse_json, read_lines, read_text

TEXT = st.text(st.characters(exclude_categories=()), max_size=20)
LINES = Format("JSON Lines", "one object a line")


@given(TEXT)
def test_shown_text_is_one_printable_line(text):
    assert shown(text).isprintable() and one_line(text).isprintable()


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "null"), (False, "false"), (7, "7"), (1.5, "1.5"), ("é\t", '"é\\t"'), ([1], "a list"), ({}, "an object")],
)
def test_shown(value, expected):
    assert shown(value) == expected


def test_shown_names():
    assert shown_names([]) == "nothing"
    assert shown_names({"a": 1, "b\n": 2}) == '"a", "b\\n"'
    assert shown_names("abcdefg") == '"a", "b", "c", "d", "e", "f", ...'


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_lines_of_a_file(tmp_path, ends, mark):
    """A line separator of Unicode inside a text does not end the line."""
    path = tmp_path / "x"
    path.write_bytes(f"{mark}a\u2028b{ends}{ends}c".encode())
    assert list(read_lines(path, LINES)) == [f"a\u2028b{ends}", ends, "c"]
    assert read_text(path, LINES) == f"a\u2028b{ends}{ends}c"


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_byte_that_is_not_utf_8_is_found_in_a_later_line(tmp_path, mark):
    path = tmp_path / "x"
    path.write_bytes(mark + b"ab\ncd\nef\xe9\n")
    expected = rf"x: not UTF-8 at byte {8 + len(mark)} \(line 3, byte value 0xe9\); save the file as UTF-8"
    for read in (read_text, read_lines):
        with pytest.raises(DataError, match=expected):
            list(read(path, LINES))


def test_error_while_reading_lines(tmp_path):
    with pytest.raises(DataError, match="is a folder, not a file; name the JSON Lines file in it"):
        list(read_lines(tmp_path, LINES))
    with pytest.raises(DataError, match=r"cannot be read \(embedded null byte\); check the path"):
        list(read_lines("a\0b", LINES))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": }', r"^x: line 7, column 7: not valid JSON \(Expecting value\); correct the file there"),
        ('{"a": NaN}', "^x: line 7, column 7: NaN is not JSON"),
        ('{"a": 1, "a": 1}', '^x: line 7: an object has the key "a" twice'),
        ("[" * 200_000, "^x: line 7: the JSON is nested too deeply to be read; write one object a line"),
        ("9" * 5000, "^x: line 7: a number has more than 4,300 digits; correct it or leave it out"),
        ('{"a": "b', "^x: line 7, column 7: the JSON breaks off .*; put each object on one line, or, if"),
    ],
    ids=["token", "constant", "key twice", "deep", "huge", "cut"],
)
def test_fault_in_a_line_names_the_line(text, message):
    with pytest.raises(DataError, match=message):
        parse_json(text, "x", LINES, first_line=7)
