"""Causal language modelling: encoder under a causal mask, tied output layer (Radford et al. 2019, section 2.3).

# B batch   N hypotheses   L length   D embed_dim   V vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from him.model.cross_entropy import SoftTargets, cross_entropy_of, cross_entropy_sum
from him.model.encoder import EncoderOutput
from him.model.generative import Decoding, GenerativeModel, last_positions, padded
from him.model.kv_cache import DecodingCache


class LanguageModel(GenerativeModel):
    """Predicts each token from those before it."""

    def forward(self, batch: dict[str, Tensor], return_weights: bool = False) -> EncoderOutput:
        """Encodes `input_ids` (B, L); padding, if there is any, is at the end of a row, where nothing sees it."""
        length = batch["input_ids"].shape[1]
        return self.encoder(self.embedding(batch), self._causal_mask(length), return_weights)

    def loss(
        self,
        batch: dict[str, Tensor],
        label_smoothing: float = 0.0,
        teacher: LanguageModel | None = None,
        teacher_share: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Sum of the cross-entropy in nats, and the number of tokens predicted rightly.

        Args:
            batch: `input_ids` (B, L), `labels` int64 (B, L), and, if not all labels count, `is_target` boolean (B, L).
            label_smoothing: see `cross_entropy_sum`.
            teacher: a model whose predictions are targets too, or None.
            teacher_share: how much they count.
        """
        targets_N = _counted(batch["labels"], batch)
        hidden_ND = _counted(self(batch).hidden_BLD, batch)
        tokens = self.embedding.tokens
        if not isinstance(tokens, nn.Embedding):  # other numbers than floats, which nothing can train
            return cross_entropy_of(partial(tokens.project, bias_V=self.output_bias), hidden_ND, targets_N)
        soft = None
        if teacher is not None:
            with torch.no_grad():
                teacher_ND = _counted(teacher(batch).hidden_BLD, batch)
            weight_VD = teacher.embedding.tokens.weight.to(teacher_ND.dtype)
            soft = SoftTargets(teacher_ND, weight_VD, teacher.output_bias.to(teacher_ND.dtype), teacher_share)
        return cross_entropy_sum(hidden_ND, tokens.weight, self.output_bias, targets_N, label_smoothing, soft)

    def prefill(self, prompts: Sequence[Sequence[int]], num_hypotheses: int) -> tuple[Tensor, Decoding]:
        ids_BP, mask_BP = padded([self.window(prompt) for prompt in prompts], self.device)
        cache = DecodingCache.empty(mask_BP, len(self.encoder.blocks), num_hypotheses)
        causal = self._causal_mask(ids_BP.shape[1])
        last_B = mask_BP.sum(dim=1) - 1
        encoded = self.encoder(self.embedding({"input_ids": ids_BP}), causal, cache=cache, only_B=last_B)
        return self._log_probabilities(encoded.hidden_BLD[:, 0]), Decoding(cache)

    def decode_step(self, ids_N: Tensor, decoding: Decoding) -> Tensor:
        positions_N1 = decoding.cache.positions_N[:, None]
        x_N1D = self.embedding({"input_ids": ids_N[:, None], "positions": positions_N1})
        return self._log_probabilities(self.encoder.decode(x_N1D, decoding.cache)[:, 0])

    def recompute(self, prompts: Sequence[Sequence[int]], written: Sequence[Sequence[int]]) -> Tensor:
        rows = [self.window([*prompt, *more]) for prompt, more in zip(prompts, written, strict=True)]
        ids_NL, mask_NL = padded(rows, self.device)
        return self._log_probabilities(last_positions(self({"input_ids": ids_NL}).hidden_BLD, mask_NL))

    def _log_probabilities(self, hidden_ND: Tensor) -> Tensor:
        return self.embedding.tokens.project(hidden_ND, self.output_bias).float().log_softmax(dim=-1)

    def _causal_mask(self, length: int) -> Tensor:
        return torch.ones(1, length, length, dtype=torch.bool, device=self.device).tril()


def _counted(values_BL: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """What is at the positions whose labels count, (N, ...)."""
    return values_BL[batch["is_target"]] if "is_target" in batch else values_BL.flatten(0, 1)
