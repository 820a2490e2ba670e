"""Messages: on one line, short, and with their fix, whatever they quote."""

import pytest

from him.core.messages import CAUSE_CHARACTERS, MESSAGE_CHARACTERS, as_given, cause_of, line_of, one_line, shown


def test_one_line_escapes_what_would_break_or_hide_in_it():
    assert one_line("a\nb\x1b[31m\u202e\ud800é人") == r"a\nb\x1b[31m\u202e\ud800é人"
    assert one_line("abcdefgh", 6) == "abc..." and one_line("abcdef", 6) == "abcdef"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("No rows.\n\t None\n"), "No rows. None"),
        (ConnectionError(), "ConnectionError"),
        (KeyError("a"), "'a'"),
        (OSError(28, "No space left on device", "x"), "[Errno 28] No space left on device: 'x'"),
        (ValueError("x\0y"), r"x\x00y"),
    ],
)
def test_causes(error, expected):
    assert cause_of(error) == expected


def test_a_long_cause_is_cut():
    assert cause_of(ValueError("x" * 1000)) == "x" * (CAUSE_CHARACTERS - 3) + "..."
    assert cause_of(ValueError("x" * 1000), 10) == "xxxxxxx..."


def test_a_long_message_keeps_its_fix():
    assert line_of("where:\n what;  fix") == "where: what; fix"
    line = line_of("where: " + "x" * 10_000 + "; the fix")
    assert line.startswith("where: x") and line.endswith("x; the fix")
    assert len(line) == MESSAGE_CHARACTERS + len(" ... ")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.5, "0.5"),
        ("a b", "a b"),
        ("a\nb", r"a\nb"),
        ("x" * 99, "x" * 60 + "..."),
        pytest.param(2**20_000, "(too large to be shown)", id="digits"),
    ],
)
def test_settings_as_given(value, expected):
    assert as_given(value) == expected


def test_values():
    values = ("a", True, None, 2, 0.5, [1], [], {})
    expected = ('"a"', "true", "null", "2", "0.5", "a list", "an empty list", "an object")
    assert tuple(map(shown, values)) == expected
