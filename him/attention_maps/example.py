"""An example with its attention, and which of its tokens are shown when not all fit.

Shapes:  H heads of the layer   L tokens of the example
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MAX_SLOTS = 38  # rows and columns of a heatmap, gap marks included: 10.8 pixels each when 8 heads fill a 1920 px screen


@dataclass(frozen=True, eq=False)
class AttentionExample:
    """One example and the attention that a model paid on it.

    Attributes:
        name: short and safe in a file name (letters, digits, `.`, `_`, `-`), such as "1".
        title: one line for people, such as question, predicted and gold answer.
        tokens: the L tokens as the model read them, without padding.
        weights: per layer an array (H, L, L), row = the token that looks, column = the token looked at; H may differ
            per layer, as it does after pruning.
        special: L flags, True where the token is one of the tokenizer's own, such as [CLS] and [SEP].
        answer: first and last token of the predicted answer, both inclusive, or None.
        sections: (label, first token, last token), both inclusive and in order, such as
            (("question", 1, 9), ("context", 11, 60)).
    """

    name: str
    title: str
    tokens: list[str]
    weights: list[np.ndarray]
    special: list[bool]
    answer: tuple[int, int] | None = None
    sections: Sequence[tuple[str, int, int]] = ()

    def __post_init__(self) -> None:
        length = len(self.tokens)
        assert re.fullmatch(r"[\w.-]+", self.name, re.ASCII), f"{self.name!r} is not safe in a file name"
        assert length > 0 and len(self.special) == length, (length, len(self.special))
        for weights_HLL in self.weights:
            assert weights_HLL.ndim == 3 and weights_HLL.shape[1:] == (length, length), (weights_HLL.shape, length)
        for _, first, last in [*self.sections, *([("answer", *self.answer)] if self.answer else [])]:
            assert 0 <= first <= last < length, (first, last, length)


def choose_slots(example: AttentionExample, max_slots: int = MAX_SLOTS) -> list[range]:
    """Chooses which tokens a heatmap shows when not all fit.

    In this order: special tokens, the predicted answer, every section but the longest (the question, or the summary of
    a document), and from the longest the tokens nearest to the answer, or its beginning when there is none. Each step
    leaves room for the next, so that a very long question does not push the answer's surroundings out.

    Args:
        example: its weights are not looked at, so that the choice is the same for every layer.
        max_slots: most rows and columns, gap marks included.

    Returns:
        At most `max_slots` ranges that cover all L tokens in order. A range of one token is shown, a longer one is a
        gap.
    """
    ranked = _rank_tokens(example, max_slots)
    # Gap marks need room as well, and how many there are follows from the choice: take fewer tokens until all fits.
    # One slot at the least remains: a gap over everything.
    for num_tokens in range(min(max_slots, len(ranked)), -1, -1):
        slots = _slots_around(sorted(ranked[:num_tokens]), len(example.tokens))
        if len(slots) <= max_slots:
            break
    return slots


def _rank_tokens(example: AttentionExample, max_slots: int) -> list[int]:
    """Orders all token positions by how much a reader wants to see them, the most wanted first."""
    length = len(example.tokens)
    if length <= max_slots:
        return list(range(length))

    ranked: dict[int, None] = {}  # a set that keeps its order

    def take(positions: Sequence[int], at_most: int) -> None:
        fresh = [position for position in positions if position not in ranked]
        ranked.update(dict.fromkeys(fresh[: max(0, at_most)]))

    take([position for position in range(length) if example.special[position]], max_slots // 4)
    if example.answer:
        take(_from_both_ends(*example.answer), max_slots // 3)
    sections = sorted(example.sections, key=lambda section: section[2] - section[1])
    room_around_answer = max_slots // 4
    for _, first, last in sections[:-1]:
        take(_from_both_ends(first, last), max_slots - room_around_answer - len(ranked))
    first, last = sections[-1][1:] if sections else (0, length - 1)
    centre_first, centre_last = example.answer or (first, first)

    def distance(position: int) -> int:
        return max(centre_first - position, position - centre_last, 0)

    take(sorted(range(first, last + 1), key=distance), length)
    take(sorted(range(length), key=distance), length)
    return list(ranked)


def _from_both_ends(first: int, last: int) -> list[int]:
    """Orders `first..last` as first, last, second, last but one, ...: cut anywhere, both ends remain."""
    return sorted(range(first, last + 1), key=lambda position: min(position - first, last - position))


def _slots_around(shown: list[int], length: int) -> list[range]:
    """Makes slots of sorted positions. A hole of one token is shown: its gap mark would need as much room."""
    slots: list[range] = []
    next_position = 0
    for position in [*shown, length]:
        if position > next_position:
            slots.append(range(next_position, position))
        if position < length:
            slots.append(range(position, position + 1))
        next_position = position + 1
    return slots


def slot_span(slots: list[range], first: int, last: int) -> tuple[int, int]:
    """First slot that holds one of the tokens first..last, and the one after the last such slot."""
    inside = [index for index, slot in enumerate(slots) if slot.start <= last and slot.stop > first]
    return inside[0], inside[-1] + 1
