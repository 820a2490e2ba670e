"""distinct-n against fractions counted by hand."""

import pytest

from him.metrics import distinct_n


@pytest.mark.parametrize(
    ("texts", "n", "expected"),
    [
        (["the cat saw the dog"], 1, 4 / 5),  # the cat saw dog, of five words
        (["the cat saw the dog"], 2, 4 / 4),
        (["the cat", "the cat"], 1, 2 / 4),
        (["the cat", "the cat"], 2, 1 / 2),
        (["The CAT", "the cat"], 2, 1 / 2),  # lower-cased
        (["a b", "c d"], 2, 2 / 2),  # b c is no bigram: n-grams stay within a text
        (["yes, yes, yes"], 1, 2 / 5),  # yes and the comma
        (["don't"], 1, 3 / 3),  # don ' t
        (["a a a a"], 2, 1 / 3),
        (["a a a a"], 4, 1 / 1),
        (["Stra\u00dfe stra\u00dfe \u5317\u4eac"], 1, 2 / 3),
        (["one two", "three"], 2, 1 / 1),  # the short text has no bigram
    ],
)
def test_distinct_n_by_hand(texts, n, expected):
    assert distinct_n(texts, n) == pytest.approx(expected)


@pytest.mark.parametrize("texts", [[], [""], ["  \n"], ["one", "two"]])
def test_distinct_n_is_zero_without_any_ngram(texts):
    assert distinct_n(texts, 2) == 0.0


def test_distinct_n_refuses_misuse():
    with pytest.raises(AssertionError, match="at least 1, not 0"):
        distinct_n(["a"], 0)
    with pytest.raises(AssertionError, match="a list of texts, not one text"):
        distinct_n("a text", 1)
