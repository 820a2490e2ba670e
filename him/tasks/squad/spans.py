"""From start and end logits to answers: the best spans of whole words, over all windows of a question.

# B batch   L length   W words in a window   A longest answer in words   N spans kept
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SPANS_PER_WINDOW = 20
IMPOSSIBLE = -1e8  # below any sum of two real logits, above any sum with a forbidden one


@dataclass
class SpanCandidate:
    """An answer: its first and last word in the context, and the sum of its start and end logit."""

    first_word: int
    last_word: int
    score: float


def best_spans(
    start_logits_BL: Tensor, end_logits_BL: Tensor, word_ids_BL: Tensor, max_answer_words: int
) -> list[list[SpanCandidate]]:
    """The best spans of each window, best first.

    A span starts with the first piece of a word and ends with the last piece of one, so the search runs over words:
    every span of at most `max_answer_words` words is looked at, none is pruned.

    Args:
        start_logits_BL, end_logits_BL: float32, a large negative number where an answer may not start or end.
        word_ids_BL: word of the context at each place, -1 outside the context.
        max_answer_words: A.
    """
    in_context_BL = word_ids_BL >= 0
    first_word_B1 = word_ids_BL.masked_fill(~in_context_BL, torch.iinfo(torch.int64).max).amin(dim=1, keepdim=True)
    slot_BL = torch.where(in_context_BL, word_ids_BL - first_word_B1, 0)
    num_words = int(slot_BL.max()) + 1
    max_answer_words = min(max_answer_words, num_words)

    def per_word(logits_BL: Tensor) -> Tensor:
        blank_BW = torch.full((len(logits_BL), num_words), -1e9, device=logits_BL.device)
        return blank_BW.scatter_reduce(1, slot_BL, logits_BL.masked_fill(~in_context_BL, -1e9), "amax")

    starts_BW = per_word(start_logits_BL)
    ends_BWA = F.pad(per_word(end_logits_BL), (0, max_answer_words - 1), value=-1e9).unfold(1, max_answer_words, 1)
    scores_BN = (starts_BW[:, :, None] + ends_BWA).flatten(1)
    scores_BN, places_BN = scores_BN.topk(min(SPANS_PER_WINDOW, scores_BN.shape[1]), dim=1)
    first_BN = places_BN // max_answer_words + first_word_B1
    last_BN = first_BN + places_BN % max_answer_words
    rows = zip(first_BN.tolist(), last_BN.tolist(), scores_BN.tolist(), strict=True)
    return [[SpanCandidate(*span) for span in zip(*row, strict=True) if span[2] > IMPOSSIBLE] for row in rows]
