"""Summarization by one encoder: the document is read in both directions, the summary is written behind it.

Prefix language model: Liu et al. 2018 (arXiv:1801.10198), Dong et al. 2019 (arXiv:1905.03197), "sequence-to-sequence
mask". A row is `[CLS] document [SEP] summary [SEP] padding`; the prompt ends with the first [SEP].

# B batch   N hypotheses, or targets of a batch   L length   P longest prompt   S source   T longest summary
# D embed_dim   V vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from him.model.embeddings import InputEmbedding
from him.model.encoder import Encoder, EncoderOutput
from him.model.generative import Decoding, GenerativeModel, last_positions, padded
from him.model.kv_cache import DecodingCache
from him.tasks.summarization.copy_head import CopyHead, CopySource, copied_log_probabilities, mixed_probabilities

TARGET_MULTIPLE = 64
LEAST_PROBABILITY = 1e-9  # of a token, where its logarithm is taken


@dataclass
class SummaryDecoding(Decoding):
    """With the documents, of which every hypothesis may copy: those of one prompt share one, so it stays in place."""

    source: CopySource | None


@dataclass
class _Predictions:
    """Log-probabilities of the vocabulary at N targets; what `CopyHead`, if there is one, said there, and the tokens
    (N, S) of their rows."""

    log_vocabulary_NV: Tensor
    log_weights_NS: Tensor | None = None
    gate_N: Tensor | None = None
    ids_NS: Tensor | None = None

    def probabilities_NV(self) -> Tensor:
        """Of writing each token, from the vocabulary or from the document."""
        vocabulary_NV = self.log_vocabulary_NV.exp()
        if self.gate_N is None:
            return vocabulary_NV
        return mixed_probabilities(vocabulary_NV, self.log_weights_NS, self.gate_N, self.ids_NS)


class SummarizationModel(GenerativeModel):
    """Writes a summary token by token, from the vocabulary or from the document."""

    def __init__(self, embedding: InputEmbedding, encoder: Encoder, embed_dim: int, copies: bool) -> None:
        super().__init__(embedding, encoder, context_length=None)
        self.copy = CopyHead(embed_dim) if copies else None

    def forward(self, batch: dict[str, Tensor], return_weights: bool = False) -> EncoderOutput:
        """Encodes rows.

        Args:
            batch: `input_ids` (B, L), `token_type_ids` (B, L), 0 in the prompt and 1 in the summary, and
                `attention_mask` boolean (B, L), True at tokens.
            return_weights: whether to return attention weights.
        """
        mask_BLL = prefix_mask(batch["attention_mask"], batch["token_type_ids"] == 0)
        return self.encoder(self.embedding(batch), mask_BLL, return_weights)

    def loss(
        self,
        batch: dict[str, Tensor],
        label_smoothing: float = 0.0,
        teacher: SummarizationModel | None = None,
        teacher_share: float = 0.0,
        hidden_BLD: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Sum of the cross-entropy of the summary's tokens in nats, and how many are the model's first choice.

        Args:
            batch: that of `forward`, with `labels` int64 (B, T), -1 behind a summary's end, and `label_positions` int64
                (B, T), the position in its row that predicts each of them.
            label_smoothing: share of each target spread evenly over the vocabulary, which copying has no part in.
            teacher: a model whose predictions are targets too (Hinton et al. 2015, arXiv:1503.02531), or None.
            teacher_share: how much they count; the loss has their Kullback-Leibler divergence.
            hidden_BLD: what `forward` said about the batch, if it is known.
        """
        chosen_N, counts_N = _targets(batch["labels"] >= 0)
        labels_N = batch["labels"].flatten()[chosen_N].clamp(min=0)
        predicted = self._predictions(batch, chosen_N, hidden_BLD)
        vocabulary_NV = predicted.log_vocabulary_NV
        log_chosen_N = vocabulary_NV.gather(1, labels_N[:, None]).squeeze(1)
        if (gate_N := predicted.gate_N) is not None:
            log_copied_N = copied_log_probabilities(predicted.log_weights_NS, predicted.ids_NS, labels_N)
            log_chosen_N = torch.logaddexp(F.logsigmoid(gate_N) + log_copied_N, F.logsigmoid(-gate_N) + log_chosen_N)
        with torch.no_grad():
            first_choice_N = predicted.probabilities_NV().max(dim=-1).indices  # `argmax` takes twice as long on CPUs
        loss_N = -log_chosen_N
        if label_smoothing:
            loss_N = (1.0 - label_smoothing) * loss_N - label_smoothing * vocabulary_NV.mean(dim=-1)
        if teacher is not None:
            with torch.no_grad():
                teacher_NV = teacher._predictions(batch, chosen_N).probabilities_NV()
            log_predicted_NV = predicted.probabilities_NV().clamp_min(LEAST_PROBABILITY).log()
            divergence_NV = teacher_NV * (teacher_NV.clamp_min(LEAST_PROBABILITY).log() - log_predicted_NV)
            loss_N = (1.0 - teacher_share) * loss_N + teacher_share * divergence_NV.sum(dim=-1)
        return loss_N[counts_N].sum(), (first_choice_N == labels_N)[counts_N].sum()

    def _predictions(
        self, batch: dict[str, Tensor], chosen_N: Tensor, hidden_BLD: Tensor | None = None
    ) -> _Predictions:
        """What is predicted at the targets of these numbers, counted row by row."""
        if hidden_BLD is None:
            hidden_BLD = self(batch).hidden_BLD
        positions_BT = batch["label_positions"]
        hidden_BTD = _at(hidden_BLD, positions_BT)
        vocabulary_NV = self._logits(hidden_BTD.flatten(0, 1)[chosen_N]).log_softmax(dim=-1)
        if self.copy is None:
            return _Predictions(vocabulary_NV)
        ids_BL, embedded_BLD = batch["input_ids"], self._embedded(batch["input_ids"])
        in_prompt_BL = batch["attention_mask"] & (batch["token_type_ids"] == 0)
        source = self.copy.source(hidden_BLD, embedded_BLD, ids_BL, in_prompt_BL)
        log_weights_BTS, gate_BT = self.copy(hidden_BTD, _at(embedded_BLD, positions_BT), source)
        log_weights_NS, gate_N = log_weights_BTS.flatten(0, 1)[chosen_N], gate_BT.flatten()[chosen_N]
        return _Predictions(vocabulary_NV, log_weights_NS, gate_N, ids_BL[chosen_N // positions_BT.shape[1]])

    def prefill(self, prompts: Sequence[Sequence[int]], num_hypotheses: int) -> tuple[Tensor, SummaryDecoding]:
        ids_BP, mask_BP = padded(prompts, self.device)
        cache = DecodingCache.empty(mask_BP, len(self.encoder.blocks), num_hypotheses)
        batch = {"input_ids": ids_BP, "token_type_ids": torch.zeros_like(ids_BP)}
        encoded = self.encoder(self.embedding(batch), mask_BP[:, None].expand(-1, ids_BP.shape[1], -1), cache=cache)
        hidden_BPD = encoded.hidden_BLD
        source = self._source(hidden_BPD, ids_BP, mask_BP)
        lengths_B = mask_BP.sum(dim=1)
        last_B1 = ids_BP.gather(1, lengths_B[:, None] - 1)
        log_probabilities_BV = self._log_probabilities(last_positions(hidden_BPD, mask_BP)[:, None], last_B1, source)
        return log_probabilities_BV, SummaryDecoding(cache, source.repeat(num_hypotheses) if source else None)

    def decode_step(self, ids_N: Tensor, decoding: SummaryDecoding) -> Tensor:
        ids_N1 = ids_N[:, None]
        batch = {"input_ids": ids_N1, "token_type_ids": torch.ones_like(ids_N1)}
        x_N1D = self.embedding({**batch, "positions": decoding.cache.positions_N[:, None]})
        return self._log_probabilities(self.encoder.decode(x_N1D, decoding.cache), ids_N1, decoding.source)

    def recompute(self, prompts: Sequence[Sequence[int]], written: Sequence[Sequence[int]]) -> Tensor:
        ids_NL, mask_NL = padded([[*prompt, *more] for prompt, more in zip(prompts, written, strict=True)], self.device)
        lengths_N1 = torch.tensor([len(prompt) for prompt in prompts], device=self.device)[:, None]
        in_prompt_NL = torch.arange(ids_NL.shape[1], device=self.device) < lengths_N1
        batch = {"input_ids": ids_NL, "token_type_ids": (~in_prompt_NL).long(), "attention_mask": mask_NL}
        hidden_NLD = self(batch).hidden_BLD
        source = self._source(hidden_NLD, ids_NL, in_prompt_NL)
        last_N1 = ids_NL.gather(1, mask_NL.sum(dim=1, keepdim=True) - 1)
        return self._log_probabilities(last_positions(hidden_NLD, mask_NL)[:, None], last_N1, source)

    def _source(self, hidden_NSD: Tensor, ids_NS: Tensor, mask_NS: Tensor) -> CopySource | None:
        return self.copy.source(hidden_NSD, self._embedded(ids_NS), ids_NS, mask_NS) if self.copy is not None else None

    def _embedded(self, ids: Tensor) -> Tensor:
        return self.embedding.tokens(ids)

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.embedding.tokens.project(hidden, self.output_bias).float()

    def _log_probabilities(self, hidden_N1D: Tensor, last_N1: Tensor, source: CopySource | None) -> Tensor:
        logits_N1V = self._logits(hidden_N1D)
        if self.copy is None:
            return logits_N1V.log_softmax(dim=-1)[:, 0]
        log_weights_N1S, gate_N1 = self.copy(hidden_N1D, self._embedded(last_N1), source)
        vocabulary_NV = logits_N1V[:, 0].softmax(dim=-1)
        mixed_NV = mixed_probabilities(vocabulary_NV, log_weights_N1S[:, 0], gate_N1[:, 0], source.ids_NS)
        return mixed_NV.clamp_min_(torch.finfo(mixed_NV.dtype).tiny).log_()  # 0 would be as if forbidden


def _targets(is_target_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of the True positions, counted row by row, and which of these numbers count.

    There are a few more than that, so that their number is a multiple of `TARGET_MULTIPLE`: with any number, what is as
    large as the vocabulary is of another size in each step, and the memory of freed ones fits nothing any more.
    """
    chosen_N = is_target_BT.flatten().nonzero().squeeze(1)
    num_more = -len(chosen_N) % TARGET_MULTIPLE
    counts_N = torch.arange(len(chosen_N) + num_more, device=chosen_N.device) < len(chosen_N)
    return F.pad(chosen_N, (0, num_more)), counts_N


def _at(x_BLD: Tensor, positions_BT: Tensor) -> Tensor:
    """The vectors at these positions of each row, (B, T, D)."""
    return x_BLD.gather(1, positions_BT[:, :, None].expand(-1, -1, x_BLD.shape[2]))


def prefix_mask(present_BL: Tensor, in_prompt_BL: Tensor) -> Tensor:
    """Boolean (B, L, L), True where position l of a row may attend to s: all of the prompt, and what is not later.

    Args:
        present_BL: True at tokens.
        in_prompt_BL: True in the prompt (and anywhere in the padding).
    """
    length = present_BL.shape[1]
    not_later_LL = torch.ones(length, length, dtype=torch.bool, device=present_BL.device).tril()
    return (in_prompt_BL[:, None, :] | not_later_LL) & present_BL[:, None, :]
