"""Masked language modelling: what a model of any task can learn from text without labels.

# B batch   L length   W words   D embed_dim   V vocabulary   N masked positions
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from him.model.cross_entropy import cross_entropy_sum

POSITIONS_MULTIPLE = 128


class MLMHead(nn.Module):
    """Linear, GELU, norm, and an output layer tied to the token embedding (Devlin et al. 2018, arXiv:1810.04805)."""

    def __init__(self, embed_dim: int, vocab_size: int) -> None:
        super().__init__()
        self.transform = nn.Linear(embed_dim, embed_dim)
        self.norm = nn.LayerNorm(embed_dim)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, hidden_ND: Tensor) -> Tensor:
        """What the token vectors are multiplied with, (N, D), in the type that products are made in."""
        transformed_ND = self.transform(hidden_ND)
        return self.norm(F.gelu(transformed_ND)).to(transformed_ND.dtype)


class PretrainingModel(nn.Module):
    """A task's model, with a head for masked tokens beside it that is thrown away after pretraining.

    Args:
        model: of the task, with a `TokenEmbedding` as `embedding.tokens`.
        words: the head; None for a model that predicts words itself.
    """

    def __init__(self, model: nn.Module, words: MLMHead | None = None) -> None:
        super().__init__()
        self.model = model
        self.words = words

    def mlm_loss(self, hidden_BLD: Tensor, ids_BL: Tensor, is_masked_BL: Tensor) -> tuple[Tensor, int, Tensor]:
        """Cross-entropy, summed over masked positions, their number, and how many of them the first choice met.

        Args:
            hidden_BLD: output of the encoder, which saw the mask there.
            ids_BL: the tokens as they were.
            is_masked_BL: boolean; of many positions the last few are left out.
        """
        positions_N = is_masked_BL.flatten().nonzero().squeeze(1)
        if len(positions_N) > POSITIONS_MULTIPLE:
            # Logits of another number of rows in each step would leave gaps in memory: 1.3 GB became 2.7 in 75 steps.
            positions_N = positions_N[: len(positions_N) // POSITIONS_MULTIPLE * POSITIONS_MULTIPLE]
        tokens = self.model.embedding.tokens
        hidden_ND, labels_N = hidden_BLD.flatten(0, 1)[positions_N], ids_BL.flatten()[positions_N]
        loss, num_correct = cross_entropy_sum(self.words(hidden_ND), tokens.weight, self.words.bias, labels_N)
        return loss, len(positions_N), num_correct


class WordNumbers:
    """Numbers the words of token ids, for tokens that come without the text that they are from.

    Args:
        pieces: the text of each token, with a space before it where it begins a word; "" for special tokens.
    """

    def __init__(self, pieces: Sequence[str]) -> None:
        self.begins_V = torch.tensor([piece.startswith(" ") for piece in pieces])
        self.is_special_V = torch.tensor([not piece for piece in pieces])

    def __call__(self, ids_BL: Tensor) -> Tensor:
        """int64 (B, L): counted from the row's first token on; -1 for special tokens."""
        return self.begins_V[ids_BL].long().cumsum(dim=1).masked_fill(self.is_special_V[ids_BL], -1)


def mask_positions(
    word_ids_BL: Tensor, share: float, may_mask_BL: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Boolean (B, L), True at all pieces of a random `share` of the words (whole-word masking).

    Args:
        word_ids_BL: int64 number of the word that a piece is part of, -1 for none.
        share: in [0, 1].
        may_mask_BL: boolean; the other positions stay.
        generator: of the random numbers; None is the device's own.
    """
    shape = (len(word_ids_BL), max(0, int(word_ids_BL.amax())) + 1)
    chosen_BW = torch.rand(shape, device=word_ids_BL.device, generator=generator) < share
    return chosen_BW.gather(1, word_ids_BL.clamp(min=0)) & may_mask_BL
