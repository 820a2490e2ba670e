"""Extractive question answering: encoder and span head.

# B batch   L length   D embed_dim
"""

from dataclasses import dataclass, field

from torch import Tensor, nn

from him.model.embeddings import InputEmbedding
from him.model.encoder import Encoder

# Logit of a position where no answer may start or end. Finite, so that 0 * log-probability stays 0.
FORBIDDEN_LOGIT = -1e9


@dataclass
class SpanOutput:
    """Start and end logits (B, L) float32, `FORBIDDEN_LOGIT` where not allowed; attention weights if asked for; and
    what the encoder says of each position, (B, L, D), which an exported model keeps to itself."""

    start_logits_BL: Tensor
    end_logits_BL: Tensor
    attention_weights: list[Tensor] = field(default_factory=list)
    hidden_BLD: Tensor | None = None


class QuestionAnsweringModel(nn.Module):
    """Embedding, encoder, and one Linear for the logits of start and end (Devlin et al. 2018, section 4.2)."""

    def __init__(self, embedding: InputEmbedding, encoder: Encoder, embed_dim: int) -> None:
        super().__init__()
        self.embedding = embedding
        self.encoder = encoder
        self.span = nn.Linear(embed_dim, 2)

    def forward(self, batch: dict[str, Tensor], return_weights: bool = False) -> SpanOutput:
        """Scores every position as start and as end of the answer.

        Args:
            batch: fields of `InputEmbedding`, `attention_mask` boolean (B, L) with True = may be attended to, and
                `may_start`, `may_end` boolean (B, L).
            return_weights: whether to return attention weights.
        """
        encoded = self.encoder(self.embedding(batch), batch["attention_mask"], return_weights)
        start_BL, end_BL = self.span(encoded.hidden_BLD).float().unbind(dim=-1)
        return SpanOutput(
            start_BL.masked_fill(~batch["may_start"], FORBIDDEN_LOGIT),
            end_BL.masked_fill(~batch["may_end"], FORBIDDEN_LOGIT),
            encoded.attention_weights,
            encoded.hidden_BLD,
        )
