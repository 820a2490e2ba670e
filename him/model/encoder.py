"""The transformer encoder: blocks of self-attention and feed-forward, pre-LN or post-LN.

`norm_first` is decided in `EncoderBlock` and `Encoder` and nowhere else.

# B batch   L length   S attended length   D embed_dim   H heads   K width of one head   F feed-forward
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from him.model.attention import RotaryTables, SelfAttention, attention_bias, rotary_tables
from him.model.convolution import DepthwiseConvolution
from him.model.dropout import Dropout


@dataclass
class EncoderOutput:
    """What an encoder returns.

    Attributes:
        hidden_BLD: the last layer's output.
        attention_weights: a (B, H, L, S) tensor per layer if they were asked for, else empty.
    """

    hidden_BLD: Tensor
    attention_weights: list[Tensor] = field(default_factory=list)


class FeedForward(nn.Module):
    """Linear, GELU (exact), Linear."""

    def __init__(self, embed_dim: int, dim_feedforward: int) -> None:
        super().__init__()
        self.expand = nn.Linear(embed_dim, dim_feedforward)
        self.contract = nn.Linear(dim_feedforward, embed_dim)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.contract(F.gelu(self.expand(x_BLD)))


class EncoderBlock(nn.Module):
    """Self-attention then feed-forward, each on a residual branch; before them, if wanted, a convolution on one too.

    norm_first=False: norm(x + f(x)), Vaswani et al. 2017 (arXiv:1706.03762), section 3.1.
    norm_first=True:  x + f(norm(x)), Xiong et al. 2020 (arXiv:2002.04745), figure 1b; Encoder adds the final norm.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dim_feedforward: int,
        norm_first: bool,
        dropout: float,
        attention_dropout: float = 0.0,
        conv_width: int = 0,
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        if conv_width:
            self.convolution = DepthwiseConvolution(embed_dim, conv_width)
            self.convolution_norm = nn.LayerNorm(embed_dim)
        else:
            self.convolution = None
        self.attention = SelfAttention(embed_dim, num_heads, embed_dim // num_heads, attention_dropout)
        self.attention_norm = nn.LayerNorm(embed_dim)
        self.feed_forward = FeedForward(embed_dim, dim_feedforward)
        self.feed_forward_norm = nn.LayerNorm(embed_dim)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x_BLD: Tensor,
        bias_BLS: Tensor,
        present_BL1: Tensor | None = None,
        rotary: RotaryTables | None = None,
        return_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Returns (B, L, D) and, if asked for, the attention weights (B, H, L, S)."""
        if self.norm_first:
            if self.convolution is not None:
                x_BLD = self.dropout.add(x_BLD, self.convolution(self.convolution_norm(x_BLD), present_BL1))
            attended_BLD, weights = self.attention(self.attention_norm(x_BLD), bias_BLS, rotary, return_weights)
            x_BLD = self.dropout.add(x_BLD, attended_BLD)
            x_BLD = self.dropout.add(x_BLD, self.feed_forward(self.feed_forward_norm(x_BLD)))
        else:
            if self.convolution is not None:
                x_BLD = self.convolution_norm(self.dropout.add(x_BLD, self.convolution(x_BLD, present_BL1)))
            attended_BLD, weights = self.attention(x_BLD, bias_BLS, rotary, return_weights)
            x_BLD = self.attention_norm(self.dropout.add(x_BLD, attended_BLD))
            x_BLD = self.feed_forward_norm(self.dropout.add(x_BLD, self.feed_forward(x_BLD)))
        return x_BLD, weights


class Encoder(nn.Module):
    """A stack of `EncoderBlock`s over embedded tokens, with a final norm if `norm_first`.

    Args:
        num_encoder_layers: number of blocks.
        embed_dim: D.
        num_heads: H; divides D.
        dim_feedforward: F.
        norm_first: pre-LN if true, post-LN otherwise.
        dropout: on both residual branches.
        attention_dropout: on attention weights.
        conv_width: places that a convolution before each attention sees; 0 is none.
        rotary: whether queries and keys are rotated by their position.
    """

    def __init__(
        self,
        num_encoder_layers: int,
        embed_dim: int,
        num_heads: int,
        dim_feedforward: int,
        norm_first: bool = True,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        conv_width: int = 0,
        rotary: bool = True,
    ) -> None:
        super().__init__()
        self.rotary = rotary
        self.num_heads, self.head_width = num_heads, embed_dim // num_heads
        self.blocks = nn.ModuleList(
            EncoderBlock(embed_dim, num_heads, dim_feedforward, norm_first, dropout, attention_dropout, conv_width)
            for _ in range(num_encoder_layers)
        )
        self.final_norm = nn.LayerNorm(embed_dim) if norm_first else nn.Identity()

    def forward(self, x_BLD: Tensor, attention_mask: Tensor, return_weights: bool = False) -> EncoderOutput:
        """Encodes embedded tokens.

        Args:
            x_BLD: embedded tokens.
            attention_mask: boolean (B, S) or (B, L, S), True = may be attended to.
            return_weights: whether to return each layer's attention weights.
        """
        if torch.is_autocast_enabled(x_BLD.device.type):
            # The residual stream too, or every norm and every sum would convert back and forth.
            x_BLD = x_BLD.to(torch.get_autocast_dtype(x_BLD.device.type))
        bias_BLS = attention_bias(attention_mask).to(x_BLD.dtype)
        present_BL1 = attention_mask[:, :, None].to(x_BLD.dtype) if attention_mask.dim() == 2 else None
        rotary = rotary_tables(x_BLD.shape[1], self.num_heads, self.head_width, like=x_BLD) if self.rotary else None
        collected = []
        for block in self.blocks:
            x_BLD, weights_BHLS = block(x_BLD, bias_BLS, present_BL1, rotary, return_weights)
            if weights_BHLS is not None:
                collected.append(weights_BHLS)
        return EncoderOutput(self.final_norm(x_BLD), collected)
