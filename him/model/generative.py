"""Generative models: an embedding, an encoder, a tied output layer, and decoding by prefill and steps.

# B prompts   N hypotheses, the same number for each prompt   P longest prompt   L length   D embed_dim   V vocabulary
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from him.model.embeddings import InputEmbedding
from him.model.encoder import Encoder
from him.model.kv_cache import DecodingCache


@dataclass
class Decoding:
    """Where a generation stands; models add what they need beside the cache of all layers."""

    cache: DecodingCache

    def reorder(self, origins_N: Tensor) -> None:
        """See `LayerCache.reorder`."""
        self.cache.reorder(origins_N)


class GenerativeModel(nn.Module, ABC):
    """Embedding, encoder, and an output layer that is the token embedding (Press and Wolf 2016, arXiv:1608.05859).

    Args:
        encoder: with causal convolutions.
        context_length: tokens that a prompt and its continuation may have together before the beginning of the prompt
            has to be let go; None where the task sees to it that there are never too many.
    """

    def __init__(self, embedding: InputEmbedding, encoder: Encoder, context_length: int | None) -> None:
        super().__init__()
        self.embedding = embedding
        self.encoder = encoder
        self.output_bias = nn.Parameter(torch.zeros(embedding.tokens.num_embeddings))
        self.context_length = context_length

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.output_bias.device

    @abstractmethod
    def prefill(self, prompts: Sequence[Sequence[int]], num_hypotheses: int) -> tuple[Tensor, Decoding]:
        """Reads prompts of any lengths.

        Args:
            prompts: B lists of ids, none empty.
            num_hypotheses: how many continuations of each will be written side by side.

        Returns:
            Log-probabilities (B, V) float32 of the first token to be written, and the state to go on from.
        """

    @abstractmethod
    def decode_step(self, ids_N: Tensor, decoding: Decoding) -> Tensor:
        """Reads the token that each hypothesis wrote; returns log-probabilities (N, V) float32 of the next."""

    @abstractmethod
    def recompute(self, prompts: Sequence[Sequence[int]], written: Sequence[Sequence[int]]) -> Tensor:
        """Log-probabilities (N, V) of the next token, computed anew from all N prompts and what was written after each.

        The same as `prefill` and `decode_step` up to rounding: what they are checked and timed against.
        """

    def window_start(self, length: int) -> int:
        """Where the context begins that the token after `length` tokens is predicted from.

        It moves by half a context at a time, so that most steps can go on from the cache, and depends on the length
        only, so that a text is continued alike whatever is generated beside it.
        """
        if self.context_length is None or length <= self.context_length:
            return 0
        half = max(1, self.context_length // 2)
        return ((length - self.context_length - 1) // half + 1) * half

    def window(self, ids: Sequence[int]) -> Sequence[int]:
        """The ids from `window_start` on."""
        return ids[self.window_start(len(ids)) :]


def padded(rows: Sequence[Sequence[int]], device: torch.device, pad_id: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of ids as (B, L) int64 with padding at the end, and a boolean mask (B, L), True at the ids."""
    lengths = torch.tensor([len(row) for row in rows], device=device)
    longest = int(lengths.max())
    ids_BL = torch.tensor([[*row, *[pad_id] * (longest - len(row))] for row in rows], device=device)
    return ids_BL, torch.arange(longest, device=device) < lengths[:, None]


def last_positions(x_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """The vector at the last True position of each row, (B, D)."""
    return x_BLD[torch.arange(len(x_BLD), device=x_BLD.device), mask_BL.sum(dim=1) - 1]
