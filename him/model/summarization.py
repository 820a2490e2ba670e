"""Summarization by one encoder: the document is read in both directions, the summary is written behind it.

Prefix language model: Liu et al. 2018 (arXiv:1801.10198), Dong et al. 2019 (arXiv:1905.03197), "sequence-to-sequence
mask". A row is `[CLS] document [SEP] summary [SEP] padding`; the prompt ends with the first [SEP].

# B batch   N hypotheses   L length   P longest prompt   T longest summary   D embed_dim   V vocabulary
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from him.model.copy_head import CopyHead, CopySource, copied_log_probabilities, mixed_probabilities
from him.model.decoding_cache import DecodingCache
from him.model.embeddings import InputEmbedding
from him.model.encoder import Encoder, EncoderOutput
from him.model.generative import Decoding, GenerativeModel, last_places, padded


@dataclass
class SummaryDecoding(Decoding):
    """With the documents, of which every hypothesis may copy: those of one prompt share one, so it stays in place."""

    source: CopySource | None


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

    def loss(self, batch: dict[str, Tensor], label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """Sum of the cross-entropy of the summary's tokens in nats, and how many are the model's first choice.

        Args:
            batch: that of `forward`, with `labels` int64 (B, T), -1 behind a summary's end, and `label_places` int64
                (B, T), the place in its row that predicts each of them.
            label_smoothing: share of each target spread evenly over the vocabulary, which copying has no part in.
        """
        hidden_BLD = self(batch).hidden_BLD
        labels_BT, places_BT = batch["labels"], batch["label_places"]
        is_target_BT = labels_BT >= 0
        labels_BT = labels_BT.clamp(min=0)
        hidden_BTD = hidden_BLD.gather(1, places_BT[:, :, None].expand(-1, -1, hidden_BLD.shape[2]))
        vocabulary_BTV = self._logits(hidden_BTD).log_softmax(dim=-1)
        log_chosen_BT = vocabulary_BTV.gather(2, labels_BT[:, :, None]).squeeze(2)
        if self.copy is None:
            first_choice_BT = vocabulary_BTV.detach().argmax(dim=-1)
        else:
            embedded_BLD = self._embedded(batch["input_ids"])
            previous_BTD = embedded_BLD.gather(1, places_BT[:, :, None].expand(hidden_BTD.shape))
            prompt_length = int((batch["token_type_ids"] == 0).logical_and(batch["attention_mask"]).sum(dim=1).max())
            source = self._source(
                hidden_BLD[:, :prompt_length],
                embedded_BLD[:, :prompt_length],
                batch["input_ids"][:, :prompt_length],
                (batch["attention_mask"] & (batch["token_type_ids"] == 0))[:, :prompt_length],
            )
            log_weights_BTS, gate_BT = self.copy(hidden_BTD, previous_BTD, source)
            log_copied_BT = copied_log_probabilities(log_weights_BTS, source.ids_NS, labels_BT)
            log_chosen_BT = torch.logaddexp(
                F.logsigmoid(gate_BT) + log_copied_BT, F.logsigmoid(-gate_BT) + log_chosen_BT
            )
            with torch.no_grad():
                mixed_BTV = mixed_probabilities(vocabulary_BTV.exp(), log_weights_BTS, gate_BT, source.ids_NS)
                first_choice_BT = mixed_BTV.argmax(dim=-1)
        loss_BT = -log_chosen_BT
        if label_smoothing:
            loss_BT = (1.0 - label_smoothing) * loss_BT - label_smoothing * vocabulary_BTV.mean(dim=-1)
        num_correct = ((first_choice_BT == labels_BT) & is_target_BT).sum()
        return loss_BT.masked_fill(~is_target_BT, 0.0).sum(), num_correct

    def start(self, prompts: Sequence[Sequence[int]], num_hypotheses: int) -> tuple[Tensor, SummaryDecoding]:
        ids_BP, mask_BP = padded(prompts, self.device)
        cache = DecodingCache.empty(mask_BP, len(self.encoder.blocks), num_hypotheses)
        batch = {"input_ids": ids_BP, "token_type_ids": torch.zeros_like(ids_BP)}
        hidden_BPD = self.encoder(self.embedding(batch), mask_BP[:, None].expand(-1, ids_BP.shape[1], -1), cache=cache)
        hidden_BPD = hidden_BPD.hidden_BLD
        source = None
        if self.copy is not None:
            source = self._source(hidden_BPD, self._embedded(ids_BP), ids_BP, mask_BP)
        lengths_B = mask_BP.sum(dim=1)
        last_B1 = ids_BP.gather(1, lengths_B[:, None] - 1)
        log_probabilities_BV = self._log_probabilities(last_places(hidden_BPD, mask_BP)[:, None], last_B1, source)
        return log_probabilities_BV, SummaryDecoding(cache, source.repeat(num_hypotheses) if source else None)

    def advance(self, ids_N: Tensor, decoding: SummaryDecoding) -> Tensor:
        ids_N1 = ids_N[:, None]
        batch = {"input_ids": ids_N1, "token_type_ids": torch.ones_like(ids_N1)}
        x_N1D = self.embedding({**batch, "places": decoding.cache.places_N[:, None]})
        return self._log_probabilities(self.encoder.decode(x_N1D, decoding.cache), ids_N1, decoding.source)

    def read_all(self, prompts: Sequence[Sequence[int]], written: Sequence[Sequence[int]]) -> Tensor:
        ids_NL, mask_NL = padded([[*prompt, *more] for prompt, more in zip(prompts, written, strict=True)], self.device)
        lengths_N1 = torch.tensor([len(prompt) for prompt in prompts], device=self.device)[:, None]
        in_prompt_NL = torch.arange(ids_NL.shape[1], device=self.device) < lengths_N1
        batch = {"input_ids": ids_NL, "token_type_ids": (~in_prompt_NL).long(), "attention_mask": mask_NL}
        hidden_NLD = self(batch).hidden_BLD
        source = None
        if self.copy is not None:
            source = self._source(hidden_NLD, self._embedded(ids_NL), ids_NL, in_prompt_NL)
        last_N1 = ids_NL.gather(1, mask_NL.sum(dim=1, keepdim=True) - 1)
        return self._log_probabilities(last_places(hidden_NLD, mask_NL)[:, None], last_N1, source)

    def _source(self, hidden_NSD: Tensor, embedded_NSD: Tensor, ids_NS: Tensor, mask_NS: Tensor) -> CopySource:
        return self.copy.source(hidden_NSD, embedded_NSD, ids_NS, mask_NS)

    def _embedded(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.embedding.tokens.weight)

    def _logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.embedding.tokens.weight, self.output_bias).float()

    def _log_probabilities(self, hidden_N1D: Tensor, last_N1: Tensor, source: CopySource | None) -> Tensor:
        logits_N1V = self._logits(hidden_N1D)
        if self.copy is None:
            return logits_N1V.log_softmax(dim=-1)[:, 0]
        log_weights_N1S, gate_N1 = self.copy(hidden_N1D, self._embedded(last_N1), source)
        mixed_N1V = mixed_probabilities(logits_N1V.softmax(dim=-1), log_weights_N1S, gate_N1, source.ids_NS)
        return mixed_N1V[:, 0].log()


def prefix_mask(present_BL: Tensor, in_prompt_BL: Tensor) -> Tensor:
    """Boolean (B, L, L), True where row's place l may attend to place s: all of the prompt, and what is not later.

    Args:
        present_BL: True at tokens.
        in_prompt_BL: True in the prompt (and anywhere in the padding).
    """
    length = present_BL.shape[1]
    not_later_LL = torch.ones(length, length, dtype=torch.bool, device=present_BL.device).tril()
    return (in_prompt_BL[:, None, :] | not_later_LL) & present_BL[:, None, :]
