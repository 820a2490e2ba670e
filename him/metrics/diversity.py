"""Diversity of generated text: distinct-1 and distinct-2."""

import re
from collections.abc import Sequence

# A word (letters, digits, underscore, in any script) or one other visible character, so that punctuation counts too.
_TOKEN = re.compile(r"\w+|[^\w\s]")


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Share of different n-grams among all n-grams of `texts`, in [0, 1]; 0.0 when there is none.

    Tokens are runs of word characters and single punctuation marks of the lower-cased text: "Don't!" has the four
    tokens don, ', t and !. An n-gram lies within one text; a text of fewer than n tokens has none.
    The more text, the lower the share: compare values only over the same number of texts of similar length.

    Li et al. 2016, "A Diversity-Promoting Objective Function for Neural Conversation Models" (arXiv:1510.03055),
    section 5.2.
    """
    assert n >= 1, f"distinct-n needs n of at least 1, not {n}"
    assert not isinstance(texts, str), "distinct_n takes a list of texts, not one text"
    num_ngrams = 0
    different = set()
    for text in texts:
        tokens = _TOKEN.findall(text.lower())
        ngrams = list(zip(*(tokens[offset:] for offset in range(n)), strict=False))
        num_ngrams += len(ngrams)
        different.update(ngrams)
    return len(different) / num_ngrams if num_ngrams else 0.0
