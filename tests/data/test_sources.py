"""Holding out for validation, and what the user is told about it; the flags themselves are tested with the tasks."""

import random

import pytest

from him.core.errors import DataError
from him.data.sources import note_held_out, note_leakage, num_held_out, split_off


def test_groups_are_split_off_whole_and_in_order():
    groups = ["a", "b", "a", "c", "d", "c"]
    parts = split_off(range(6), groups, 2, 0, "articles")
    held = set(random.Random(0).sample(["a", "b", "c", "d"], 2))
    assert parts.train == [index for index in range(6) if groups[index] not in held]
    assert parts.validation == [index for index in range(6) if groups[index] in held]
    assert parts.share == "2 of 4 articles"


def test_which_are_split_off_depends_on_the_seed_alone():
    drawn = [split_off(range(50), range(50), 5, seed, "files").validation for seed in (0, 0, 1, "0")]
    assert drawn[0] == drawn[1] and len({tuple(each) for each in drawn}) == 3


@pytest.mark.parametrize(
    ("num_groups", "share", "expected"), [(2, 0.01, 1), (2, 0.99, 1), (30, 0.1, 3), (15, 0.1, 2), (10, 0.999, 9)]
)
def test_how_many_are_held_out(num_groups, share, expected):
    assert num_held_out(num_groups, share, "a.json", "context") == expected


def test_of_one_group_none_can_be_held_out():
    with pytest.raises(DataError, match=r"^a\.json: there is only one context, so that none can be held out for val"):
        num_held_out(1, 0.5, "a.json", "context")


def test_note_of_what_is_held_out():
    notes = []
    note_held_out("3 of 30 files", notes)
    assert notes == ["no --validation_file: 3 of 30 files are held out for validation"]


@pytest.mark.parametrize(
    ("train", "validation", "expected"),
    [
        ("abcaa", "ax", ["warning: 1 of 2 are in both; validation scores will be too good"]),
        ("a", "aba", ["warning: 2 of 3 are in both; validation scores will be too good"]),
        ("a" * 5, "a" * 1234, ["warning: 1,234 of 1,234 are in both; validation scores will be too good"]),
        ("abc", "xyz", []),
        ("", "", []),
    ],
)
def test_leakage(train, validation, expected):
    notes = []
    note_leakage(iter(train), validation, "{shared} of {total} are in both", notes)
    assert notes == expected
