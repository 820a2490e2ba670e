"""The transformer encoder: blocks of self-attention and feed-forward, pre-LN or post-LN.

`norm_first` is decided in `EncoderBlock` and `Encoder` and nowhere else.

# B batch   L length   S attended length   D embed_dim   H heads   K width of one head   F feed-forward
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from him.model.attention import RotaryTables, SelfAttention, attention_bias, rotary_tables
from him.model.convolution import DepthwiseConvolution
from him.model.cpu_kernels import Dropout
from him.model.kv_cache import DecodingCache, LayerCache


@dataclass(frozen=True)
class EncoderShape:
    """What an encoder is made of.

    Attributes:
        num_encoder_layers: number of blocks.
        embed_dim: D.
        num_heads: H; divides D.
        dim_feedforward: F.
        norm_first: pre-LN if true, post-LN otherwise.
        dropout: on both residual branches.
        attention_dropout: on attention weights.
        conv_kernel_size: positions that a convolution before each attention sees; 0 is none.
        rotary: whether queries and keys are rotated by their position.
        activation: of the feed-forward layers, a name of `ACTIVATIONS`.
        causal: whether the convolutions see earlier positions only; attention sees what the mask admits.
        variational_dropout: whether all positions of a sample share one dropout mask.
        layer_heads: H of each layer where they differ, with heads of the same width D / H; empty: all the same.
        layer_feedforward: F of each layer where they differ; empty: all the same.
        layer_norm_eps: added to the variance in all norms.
    """

    num_encoder_layers: int
    embed_dim: int
    num_heads: int
    dim_feedforward: int
    norm_first: bool = True
    dropout: float = 0.0
    attention_dropout: float = 0.0
    conv_kernel_size: int = 0
    rotary: bool = True
    activation: str = "gelu"
    causal: bool = False
    variational_dropout: bool = False
    layer_heads: Sequence[int] = ()
    layer_feedforward: Sequence[int] = ()
    layer_norm_eps: float = 1e-5

    @property
    def head_width(self) -> int:
        """K, width of one head."""
        return self.embed_dim // self.num_heads

    @property
    def heads(self) -> Sequence[int]:
        """H of each layer."""
        return self.layer_heads or (self.num_heads,) * self.num_encoder_layers

    @property
    def widths(self) -> Sequence[int]:
        """F of each layer."""
        return self.layer_feedforward or (self.dim_feedforward,) * self.num_encoder_layers


@dataclass
class EncoderOutput:
    """What an encoder returns.

    Attributes:
        hidden_BLD: the last layer's output.
        attention_weights: a (B, H, L, S) tensor per layer if they were asked for, else empty.
    """

    hidden_BLD: Tensor
    attention_weights: list[Tensor] = field(default_factory=list)


class _ReluSquared(torch.autograd.Function):
    """max(x, 0) ** 2 (So et al. 2021, "Primer", arXiv:2109.08668); autograd's own backward pass takes twice as long."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = F.relu(x)
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return (gradient * positive).mul_(2.0)


ACTIVATIONS = {"gelu": F.gelu, "relu_squared": _ReluSquared.apply}


class FeedForward(nn.Module):
    """Linear, activation (`gelu`, the exact one, or `relu_squared`), Linear."""

    def __init__(self, embed_dim: int, dim_feedforward: int, activation: str = "gelu") -> None:
        super().__init__()
        self.expand = nn.Linear(embed_dim, dim_feedforward)
        self.contract = nn.Linear(dim_feedforward, embed_dim)
        self.activation = activation

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.contract(ACTIVATIONS[self.activation](self.expand(x_BLD)))


class EncoderBlock(nn.Module):
    """Self-attention then feed-forward, each on a residual branch; before them, if wanted, a convolution on one too.

    norm_first=False: norm(x + f(x)), Vaswani et al. 2017 (arXiv:1706.03762), section 3.1.
    norm_first=True:  x + f(norm(x)), Xiong et al. 2020 (arXiv:2002.04745), figure 1b; Encoder adds the final norm.

    H and F are those of this block.
    """

    def __init__(self, shape: EncoderShape, num_heads: int, dim_feedforward: int) -> None:
        super().__init__()
        embed_dim, eps = shape.embed_dim, shape.layer_norm_eps
        self.norm_first = shape.norm_first
        if shape.conv_kernel_size:
            self.convolution = DepthwiseConvolution(embed_dim, shape.conv_kernel_size, shape.causal)
            self.convolution_norm = nn.LayerNorm(embed_dim, eps)
        else:
            self.convolution = None
        self.attention = SelfAttention(embed_dim, num_heads, shape.head_width, shape.attention_dropout)
        self.attention_norm = nn.LayerNorm(embed_dim, eps)
        self.feed_forward = FeedForward(embed_dim, dim_feedforward, shape.activation)
        self.feed_forward_norm = nn.LayerNorm(embed_dim, eps)
        self.dropout = Dropout(shape.dropout, shape.variational_dropout)

    def forward(
        self,
        x_BLD: Tensor,
        bias_BLS: Tensor,
        present_BL1: Tensor | None = None,
        rotary: RotaryTables | None = None,
        return_weights: bool = False,
        cache: LayerCache | None = None,
        only_B: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Returns (B, L, D) and, if asked for, the attention weights (B, H, L, S); L is 1 with `only_B`, see there."""
        if self.norm_first:
            if self.convolution is not None:
                x_BLD = self.dropout.add(x_BLD, self.convolution(self.convolution_norm(x_BLD), present_BL1, cache))
            normed_BLD = self.attention_norm(x_BLD)
            attended_BLD, weights = self.attention(normed_BLD, bias_BLS, rotary, return_weights, cache, only_B)
            x_BLD = self.dropout.add(_only(x_BLD, only_B), attended_BLD)
            x_BLD = self.dropout.add(x_BLD, self.feed_forward(self.feed_forward_norm(x_BLD)))
        else:
            if self.convolution is not None:
                x_BLD = self.convolution_norm(self.dropout.add(x_BLD, self.convolution(x_BLD, present_BL1, cache)))
            attended_BLD, weights = self.attention(x_BLD, bias_BLS, rotary, return_weights, cache, only_B)
            x_BLD = self.attention_norm(self.dropout.add(_only(x_BLD, only_B), attended_BLD))
            x_BLD = self.feed_forward_norm(self.dropout.add(x_BLD, self.feed_forward(x_BLD)))
        return x_BLD, weights


def _only(x_BLD: Tensor, only_B: Tensor | None) -> Tensor:
    """The vectors at one position of each row, (B, 1, D); all of them if there is no choice."""
    return x_BLD if only_B is None else x_BLD[torch.arange(len(x_BLD), device=x_BLD.device), only_B][:, None]


class Encoder(nn.Module):
    """A stack of `EncoderBlock`s over embedded tokens, with a final norm if `norm_first`."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.rotary = shape.rotary
        self.head_width = shape.head_width
        self._kept_rotary: tuple[tuple, dict[int, RotaryTables]] | None = None
        self.blocks = nn.ModuleList(
            EncoderBlock(shape, num_heads, dim_feedforward)
            for num_heads, dim_feedforward in zip(shape.heads, shape.widths, strict=True)
        )
        self.final_norm = nn.LayerNorm(shape.embed_dim, shape.layer_norm_eps) if shape.norm_first else nn.Identity()

    def forward(
        self,
        x_BLD: Tensor,
        attention_mask: Tensor,
        return_weights: bool = False,
        cache: DecodingCache | None = None,
        only_B: Tensor | None = None,
    ) -> EncoderOutput:
        """Encodes embedded tokens.

        Args:
            x_BLD: embedded tokens.
            attention_mask: boolean (B, S) or (B, L, S), True = may be attended to. B may be 1 for all rows alike.
            return_weights: whether to return each layer's attention weights.
            cache: an empty one, which keeps what `decode` needs of these prompts.
            only_B: the one position of each row whose output is wanted, as (B, 1, D): the last block then computes
                nothing else but keys and values, which saves a fifth of reading a prompt.
        """
        x_BLD = _as_computed(x_BLD)
        bias_BLS = attention_bias(attention_mask).to(x_BLD.dtype)
        present_BL1 = attention_mask[:, :, None].to(x_BLD.dtype) if attention_mask.dim() == 2 else None
        rotary = self._rotary_of_length(x_BLD.shape[1], x_BLD)
        collected = []
        for number, block in enumerate(self.blocks):
            layer_cache = cache.layers[number] if cache is not None else None
            wanted_B = only_B if number == len(self.blocks) - 1 else None
            x_BLD, weights_BHLS = block(
                x_BLD, bias_BLS, present_BL1, rotary.get(number), return_weights, layer_cache, wanted_B
            )
            if weights_BHLS is not None:
                collected.append(weights_BHLS)
        return EncoderOutput(self.final_norm(x_BLD), collected)

    def decode(self, x_N1D: Tensor, cache: DecodingCache) -> Tensor:
        """Encodes one more token of each hypothesis, (N, 1, D), after those that the cache holds."""
        x_N1D = _as_computed(x_N1D)
        rotary = self._rotary(cache.positions_N[:, None], x_N1D)
        bias_B1P = attention_bias(cache.prompt_mask_BP).to(x_N1D.dtype)
        for number, (block, layer_cache) in enumerate(zip(self.blocks, cache.layers, strict=True)):
            x_N1D, _ = block(x_N1D, bias_B1P, None, rotary.get(number), cache=layer_cache)
        cache.positions_N = cache.positions_N + 1
        return self.final_norm(x_N1D)

    def _rotary_of_length(self, length: int, like: Tensor) -> dict[int, RotaryTables]:
        """The tables for positions 0, 1, ...; the last ones are kept: making them takes a tenth of a small batch."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._rotary(torch.arange(length, device=like.device), like)
        key = (length, like.dtype, like.device)
        if self._kept_rotary is None or self._kept_rotary[0] != key:
            self._kept_rotary = key, self._rotary(torch.arange(length, device=like.device), like)
        return self._kept_rotary[1]

    def _rotary(self, positions: Tensor, like: Tensor) -> dict[int, RotaryTables]:
        """The tables of each layer by its number; layers with as many heads share theirs."""
        if not self.rotary:
            return {}
        heads = [block.attention.num_heads for block in self.blocks]
        most = rotary_tables(positions, max(heads), self.head_width, like)
        return {layer: most.of_heads(number, self.head_width) for layer, number in enumerate(heads)}


def _as_computed(x: Tensor) -> Tensor:
    """In the type of matrix products under autocast: or every norm and sum would convert back and forth."""
    device_type = x.device.type
    return x.to(torch.get_autocast_dtype(device_type)) if torch.is_autocast_enabled(device_type) else x
