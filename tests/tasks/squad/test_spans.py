"""The search for the best spans against all spans, one by one."""

import pytest
import torch

from him.tasks.squad.answers import SPANS_PER_WINDOW, best_spans
from him.tasks.squad.model import FORBIDDEN_LOGIT

# Rows of `word_ids`: whole words, words of several pieces, a window that starts inside a word, one word, none.
ROWS = [
    [-1, -1, -1, 0, 1, 2, 3, 4, 5, 6, -1, -1],
    [-1, -1, 7, 7, 8, 9, 9, 9, 10, -1, -1, -1],
    [-1, 4, 4, 5, 6, 6, 7, 8, 9, 10, 11, -1],
    [-1, -1, -1, -1, 3, 3, 3, 3, -1, -1, -1, -1],
    [-1] * 12,
]


def edges(row):
    """Whether each place is the first and the last piece of a context word."""
    first = [word >= 0 and row[place - 1] != word for place, word in enumerate(row)]
    last = [word >= 0 and row[place + 1] != word for place, word in enumerate(row)]
    return first, last


@pytest.fixture
def window():
    """Random logits, forbidden off word borders, in row 2 also at the start that the window cuts, and [CLS] allowed."""
    torch.manual_seed(11)
    word_ids = torch.tensor(ROWS)
    logits = torch.randn(2, *word_ids.shape)
    for row, words in enumerate(ROWS):
        for side, allowed in enumerate(edges(words)):
            allowed[0] = True
            if row == 2:
                allowed[1] = False
            logits[side, row].masked_fill_(~torch.tensor(allowed), FORBIDDEN_LOGIT)
    return logits[0], logits[1], word_ids


def brute_force(start, end, words, longest):
    found = []
    for first, first_word in enumerate(words):
        for last, last_word in enumerate(words[first:], start=first):
            if first_word < 0 or last_word < 0 or last_word - first_word >= longest:
                continue
            if start[first] > FORBIDDEN_LOGIT and end[last] > FORBIDDEN_LOGIT:
                found.append((float(start[first] + end[last]), first_word, last_word))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("longest", [1, 2, 3, 15, 10**9])
def test_against_all_spans(window, longest):
    start, end, word_ids = window
    found = best_spans(start, end, word_ids, longest)
    assert len(found) == len(ROWS)
    for row, spans in enumerate(found):
        expected = brute_force(start[row], end[row], ROWS[row], longest)[:SPANS_PER_WINDOW]
        assert [(span.first_word, span.last_word) for span in spans] == [(first, last) for _, first, last in expected]
        assert [span.score for span in spans] == pytest.approx([score for score, _, _ in expected], abs=1e-6)
    assert len(found[0]) == {1: 7, 2: 13, 3: 18}.get(longest, SPANS_PER_WINDOW)
    assert found[4] == []


def test_forbidden_positions_are_never_chosen(window):
    """Only the words 8 may start and 10 end an answer, and what is best of all may not."""
    _, _, word_ids = window
    start = torch.full(word_ids.shape, FORBIDDEN_LOGIT)
    end = start.clone()
    start[1, 4], end[1, 8] = -500.0, -300.0
    start[0, 0], end[0, 0] = 900.0, 900.0  # [CLS] is no answer
    start[3, 4] = 5.0  # a start without an end
    found = best_spans(start, end, word_ids, 15)
    assert [[(span.first_word, span.last_word, span.score) for span in spans] for spans in found] == [
        [],
        [(8, 10, -800.0)],
        [],
        [],
        [],
    ]
    assert best_spans(start, end, word_ids, 2) == [[]] * 5


def test_at_most_so_many_spans():
    words = torch.arange(100)[None]
    torch.manual_seed(0)
    (spans,) = best_spans(torch.randn(1, 100), torch.randn(1, 100), words, 15)
    assert len(spans) == SPANS_PER_WINDOW
    assert [span.score for span in spans] == sorted((span.score for span in spans), reverse=True)
