"""Predicting hidden words: what a model of any task can learn from text without labels.

# B batch   L length   W words   D embed_dim   V vocabulary   N hidden places
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from him.model.embeddings import TokenEmbedding


class MaskedWordHead(nn.Module):
    """Linear, GELU, norm, and an output layer tied to the token embedding (Devlin et al. 2018, arXiv:1810.04805)."""

    def __init__(self, embed_dim: int, vocab_size: int) -> None:
        super().__init__()
        self.transform = nn.Linear(embed_dim, embed_dim)
        self.norm = nn.LayerNorm(embed_dim)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, hidden_ND: Tensor, tokens: TokenEmbedding) -> Tensor:
        """Logits (N, V) float32 of the words at hidden places."""
        return tokens.project(self.norm(F.gelu(self.transform(hidden_ND))), self.bias).float()


class PretrainingModel(nn.Module):
    """A task's model, with a head for hidden words beside it that is thrown away after pretraining.

    Args:
        model: of the task, with a `TokenEmbedding` as `embedding.tokens`.
        words: the head; None for a model that predicts words itself.
    """

    def __init__(self, model: nn.Module, words: MaskedWordHead | None = None) -> None:
        super().__init__()
        self.model = model
        self.words = words

    def word_loss(self, hidden_BLD: Tensor, ids_BL: Tensor, is_hidden_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy, summed over the hidden places, and how many of them the first choice met.

        Args:
            hidden_BLD: output of the encoder, which saw the mask there.
            ids_BL: the tokens as they were.
            is_hidden_BL: boolean.
        """
        logits_NV = self.words(hidden_BLD[is_hidden_BL], self.model.embedding.tokens)
        labels_N = ids_BL[is_hidden_BL]
        return F.cross_entropy(logits_NV, labels_N, reduction="sum"), (logits_NV.argmax(dim=1) == labels_N).sum()


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


def hidden_places(
    word_ids_BL: Tensor, share: float, may_hide_BL: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Boolean (B, L), True at all pieces of a random `share` of the words (whole-word masking).

    Args:
        word_ids_BL: int64 number of the word that a piece is part of, -1 for none.
        share: in [0, 1].
        may_hide_BL: boolean; the other places stay.
        generator: of the random numbers; None is the device's own.
    """
    shape = (len(word_ids_BL), max(0, int(word_ids_BL.amax())) + 1)
    chosen_BW = torch.rand(shape, device=word_ids_BL.device, generator=generator) < share
    return chosen_BW.gather(1, word_ids_BL.clamp(min=0)) & may_hide_BL
