"""Copy mechanism: a distribution over the tokens of the source, so that a summary can take words from its document.

Pointer-generator: See et al. 2017 (arXiv:1704.04368), section 2.2. What is pointed at is the token that followed, in
the source, a token like the one just written: both neighbours enter the scores.

# N rows   T positions that predict   S source length   D embed_dim   V vocabulary
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FORBIDDEN_SCORE = -1e9


@dataclass
class CopySource:
    """What may be copied.

    Attributes:
        keys_NSD: of each source token.
        ids_NS: int64 source tokens.
        mask_NS: boolean, True where there is a token to copy.
    """

    keys_NSD: Tensor
    ids_NS: Tensor
    mask_NS: Tensor

    def repeat(self, number: int) -> "CopySource":
        """Each row `number` times."""
        return CopySource(*(part.repeat_interleave(number, dim=0) for part in vars(self).values()))


class CopyHead(nn.Module):
    """Scores every source token for every position, and how much to rely on copying."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.query = nn.Linear(embed_dim, embed_dim)
        self.previous_query = nn.Linear(embed_dim, embed_dim, bias=False)
        # A bias of the keys would add the same to all scores of a position.
        self.key = nn.Linear(embed_dim, embed_dim, bias=False)
        self.previous_key = nn.Linear(embed_dim, embed_dim, bias=False)
        self.gate = nn.Linear(embed_dim, 1)

    def source(self, hidden_NSD: Tensor, embedded_NSD: Tensor, ids_NS: Tensor, mask_NS: Tensor) -> CopySource:
        """Makes the source's keys.

        Args:
            hidden_NSD: encoder output at the source tokens.
            embedded_NSD: embeddings of the source tokens.
            ids_NS, mask_NS: see `CopySource`.
        """
        previous_NSD = F.pad(embedded_NSD, (0, 0, 1, 0))[:, :-1]
        return CopySource(self.key(hidden_NSD) + self.previous_key(previous_NSD), ids_NS, mask_NS)

    def forward(self, hidden_NTD: Tensor, previous_NTD: Tensor, source: CopySource) -> tuple[Tensor, Tensor]:
        """Scores each source token.

        Args:
            hidden_NTD: encoder output at the positions that predict.
            previous_NTD: embeddings of the tokens at these positions, which are those just written.
            source: what may be copied.

        Returns:
            Log-probabilities (N, T, S) float32 over the source tokens, and logits (N, T) float32 of copying at all.
        """
        query_NTD = self.query(hidden_NTD) + self.previous_query(previous_NTD)
        scores_NTS = torch.matmul(query_NTD, source.keys_NSD.transpose(1, 2)).float() * hidden_NTD.shape[-1] ** -0.5
        scores_NTS = scores_NTS.masked_fill(~source.mask_NS[:, None], FORBIDDEN_SCORE)
        return scores_NTS.log_softmax(dim=-1), self.gate(hidden_NTD).float().squeeze(-1)


def copied_log_probabilities(log_weights_NS: Tensor, source_ids_NS: Tensor, targets_N: Tensor) -> Tensor:
    """Log of the summed weight of the positions that hold the target; very low, not -inf, where none does; (N,)."""
    holds_NS = source_ids_NS == targets_N[:, None]
    return log_weights_NS.masked_fill(~holds_NS, FORBIDDEN_SCORE).logsumexp(dim=-1)


def mixed_probabilities(
    vocabulary_NV: Tensor, log_weights_NS: Tensor, gate_logits_N: Tensor, source_ids_NS: Tensor
) -> Tensor:
    """Probabilities (N, V) of writing each token from the vocabulary or from the source.

    Args:
        vocabulary_NV: probabilities over the vocabulary; overwritten where no gradient is wanted.
        log_weights_NS, gate_logits_N: what `CopyHead` returns, for each of N positions.
        source_ids_NS: the source tokens that each position may copy.
    """
    gate_N1 = gate_logits_N.sigmoid()[:, None]
    if vocabulary_NV.requires_grad:
        return (vocabulary_NV * (1.0 - gate_N1)).scatter_add(1, source_ids_NS, gate_N1 * log_weights_NS.exp())
    return vocabulary_NV.mul_(1.0 - gate_N1).scatter_add_(1, source_ids_NS, gate_N1 * log_weights_NS.exp())
