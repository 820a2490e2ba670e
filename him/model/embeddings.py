"""Input embeddings: tokens, segments, positions, and the lexical inputs of question answering.

# B batch   L length   D embed_dim   N scalars
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from him.model.cpu_kernels import Dropout


class LexicalEmbedding(nn.Module):
    """Embeds what the words themselves tell about a question and its context (see `him.tasks.squad.lexical`).

    After the exact-match and token features of DrQA, Chen et al. 2017 (arXiv:1704.00051), section 3.2. Without them a
    small transformer trained on a few thousand questions stays at the level of guessing, because it would have to
    learn from them alone which words are equal.

    Args:
        sizes: number of values of each categorical input, by name: `match`, `shape`, `class_shape`.
        num_scalars: N.
        embed_dim: D.
    """

    def __init__(self, sizes: dict[str, int], num_scalars: int, embed_dim: int) -> None:
        super().__init__()
        self.tables = nn.ModuleDict({name: nn.Embedding(size, embed_dim) for name, size in sizes.items()})
        self.scalars = nn.Linear(num_scalars, embed_dim)
        self.focus = nn.Linear(embed_dim, embed_dim)

    def forward(self, batch: dict[str, Tensor], focus_BD: Tensor) -> Tensor:
        """Returns (B, L, D), to be added to the token embedding.

        Args:
            batch: `match`, `shape`, `class_shape` as int (B, L) and `scalars` as float (B, L, N).
            focus_BD: token embedding of the question's focus word.
        """
        x_BLD = self.scalars(batch["scalars"])
        for name, table in self.tables.items():
            x_BLD = x_BLD + table(batch[name])
        # Only context words, the ones with a class x shape, hear what the question is after.
        is_context_BL1 = (batch["class_shape"] > 0)[:, :, None]
        return x_BLD + self.focus(focus_BD)[:, None, :] * is_context_BL1


class TokenEmbedding(nn.Embedding):
    """The vectors of all tokens, which are also the weights of a tied output layer (Press and Wolf 2016,
    arXiv:1608.05859)."""

    held_VD: Tensor | None = None  # the weights in the type that products are made in, where they change no more

    def project(self, hidden: Tensor, bias_V: Tensor) -> Tensor:
        """Logits of all tokens, (..., V), from (..., D)."""
        return F.linear(hidden, self.weight if self.held_VD is None else self.held_VD, bias_V)


def hold_in_bf16(model: nn.Module) -> None:
    """Converts the weights of a trained model once, which autocast would do again for each product.

    The results are the same; a summary takes a quarter less time. Vectors of tokens and norms stay float32.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv1d):
            module.to(torch.bfloat16)
        if isinstance(module, TokenEmbedding):
            module.held_VD = module.weight.detach().bfloat16()


@dataclass(frozen=True)
class EmbeddingShape:
    """What an input embedding is made of.

    Attributes:
        vocab_size: number of token ids.
        embed_dim: D.
        max_seq_len: longest sequence; sizes the position table.
        mask_id: id of the mask token.
        learned_positions: whether to add a position embedding (otherwise the encoder rotates).
        dropout: probability of zeroing an element of the sum.
        word_dropout: probability of putting `mask_id` for a token while training, so that matches and shapes are
            read instead of rare words being learned by heart.
        num_segments: different values of `token_type_ids`; 0 for none.
        variational_dropout: whether all positions of a sample share one dropout mask.
        layer_norm_eps: added to the variance in the norm.
    """

    vocab_size: int
    embed_dim: int
    max_seq_len: int
    mask_id: int
    learned_positions: bool = False
    dropout: float = 0.0
    word_dropout: float = 0.0
    num_segments: int = 2
    variational_dropout: bool = False
    layer_norm_eps: float = 1e-5


class InputEmbedding(nn.Module):
    """Sum of token, segment, optional position and optional lexical embeddings; then LayerNorm and dropout."""

    def __init__(self, shape: EmbeddingShape, lexical: LexicalEmbedding | None = None) -> None:
        super().__init__()
        embed_dim = shape.embed_dim
        self.tokens = TokenEmbedding(shape.vocab_size, embed_dim)
        self.segments = nn.Embedding(shape.num_segments, embed_dim) if shape.num_segments else None
        self.positions = nn.Embedding(shape.max_seq_len, embed_dim) if shape.learned_positions else None
        self.lexical = lexical
        self.norm = nn.LayerNorm(embed_dim, shape.layer_norm_eps)
        self.dropout = Dropout(shape.dropout, shape.variational_dropout)
        self.word_dropout = shape.word_dropout
        self.mask_id = shape.mask_id

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Embeds tokens as (B, L, D).

        Args:
            batch: `input_ids` (B, L); `token_type_ids` (B, L) if there are segments; `positions` (B, L) where they are
                not 0, 1, 2, ...; the lexical fields if there are any.
        """
        ids_BL = batch["input_ids"]
        if self.training and self.word_dropout > 0:
            hidden_BL = torch.rand(ids_BL.shape, device=ids_BL.device) < self.word_dropout
            ids_BL = torch.where(hidden_BL, self.mask_id, ids_BL)
        x_BLD = self.tokens(ids_BL)
        if self.segments is not None:
            x_BLD = x_BLD + self.segments(batch["token_type_ids"])
        if self.positions is not None:
            positions = batch.get("positions", torch.arange(ids_BL.shape[1], device=ids_BL.device))
            x_BLD = x_BLD + self.positions(positions)
        if self.lexical is not None:
            x_BLD = x_BLD + self.lexical(batch, self.tokens(batch["focus_ids"]))
        return self.dropout(self.norm(x_BLD))
