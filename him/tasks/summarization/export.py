"""Export of summarization: log-probabilities of the next token as a graph."""

import torch
from torch import Tensor, nn

from him.tasks.exporting import Batch
from him.tasks.summarization.model import SummarizationModel


class NextTokenLogProbabilities(nn.Module):
    """Log-probabilities of the token after each position, from the vocabulary or copied.

    The same as `SummarizationModel.recompute` at all positions at once. Those within a document, which the model never
    learned to continue, come along.
    """

    def __init__(self, model: SummarizationModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> tuple[Tensor]:
        """Returns (B, L, V)."""
        model, ids_BL = self.model, batch["input_ids"]
        hidden_BLD = model(batch).hidden_BLD
        logits_BLV = model.embedding.tokens.project(hidden_BLD, model.output_bias)
        if model.copy is None:
            return (logits_BLV.log_softmax(dim=-1),)
        embedded_BLD = model.embedding.tokens(ids_BL)
        in_prompt_BL = batch["attention_mask"] & (batch["token_type_ids"] == 0)
        source = model.copy.source(hidden_BLD, embedded_BLD, ids_BL, in_prompt_BL)
        log_weights_BLL, gate_BL = model.copy(hidden_BLD, embedded_BLD, source)
        gate_BL1 = gate_BL.sigmoid()[:, :, None]
        vocabulary_BLV = logits_BLV.softmax(dim=-1) * (1.0 - gate_BL1)
        copied_ids_BLL = ids_BL[:, None, :].expand_as(log_weights_BLL)
        mixed_BLV = vocabulary_BLV.scatter_add(2, copied_ids_BLL, gate_BL1 * log_weights_BLL.exp())
        return (mixed_BLV.clamp_min(torch.finfo(mixed_BLV.dtype).tiny).log(),)
