"""Which examples are refused, and which tokens are shown when not all fit."""

import dataclasses

import numpy as np
import pytest

from him.attention_maps import AttentionExample, choose_slots
from him.attention_maps.example import MAX_SLOTS


def shown_tokens(example: AttentionExample, max_slots: int = MAX_SLOTS) -> list[int]:
    return [slot.start for slot in choose_slots(example, max_slots) if len(slot) == 1]


def test_short_input_is_shown_whole(make_example):
    assert shown_tokens(make_example(length=MAX_SLOTS)) == list(range(MAX_SLOTS))


@pytest.mark.parametrize("answer", [(20, 22), (150, 153), (295, 298)])
def test_long_input_keeps_question_specials_answer_and_its_surroundings(answer, make_example):
    example = make_example(length=300, question=11, answer=answer)
    shown = shown_tokens(example)
    assert {0, 12, 299} <= set(shown)
    assert set(range(1, 12)) <= set(shown)
    assert set(range(answer[0], answer[1] + 1)) <= set(shown)
    assert {answer[0] - 3, min(answer[1] + 3, 299)} <= set(shown)


@pytest.mark.parametrize("answer", [None, (0, 0), (150, 153), (100, 290)])
@pytest.mark.parametrize("question", [1, 11, 60])
@pytest.mark.parametrize("max_slots", [5, 16, 38])
def test_slots_cover_all_tokens_in_order_and_fill_the_room(answer, question, max_slots, make_example):
    example = make_example(length=300, question=question, answer=answer)
    slots = choose_slots(example, max_slots)
    assert [position for slot in slots for position in slot] == list(range(300))
    assert max_slots - 2 <= len(slots) <= max_slots
    gaps = [len(slot) > 1 for slot in slots]
    assert not any(left and right for left, right in zip(gaps, gaps[1:], strict=False))


def test_very_long_question_leaves_room_around_the_answer(make_example):
    shown = shown_tokens(make_example(length=300, question=100, answer=(200, 201)))
    assert {1, 100, 197, 204} <= set(shown)


def test_very_long_answer_keeps_both_its_ends(make_example):
    shown = shown_tokens(make_example(length=300, question=8, answer=(100, 200)))
    assert {100, 101, 199, 200} <= set(shown) and 150 not in shown
    assert set(range(1, 9)) <= set(shown)


def test_without_answer_the_longest_section_starts_at_its_beginning(make_example):
    shown = shown_tokens(make_example(length=300, question=8, answer=None))
    assert shown == [*range(0, len(shown) - 1), 299]


def test_many_special_tokens_do_not_push_the_answer_out(make_example):
    example = make_example(length=300, answer=(20, 22))
    example = dataclasses.replace(example, special=[i == 0 or i > 100 for i in range(300)])
    assert {0, 20, 21, 22} <= set(shown_tokens(example))


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "a/b"},
        {"special": [True]},
        {"answer": (9, 12)},
        {"answer": (4, 3)},
        {"sections": [("question", 3, 99)]},
        {"weights": [np.zeros((2, 12, 11))]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_contradictory_example_is_refused(changes, make_example):
    with pytest.raises(AssertionError):
        make_example(**changes)
