"""Multi-head self-attention with its own q/k/v/o projections, rotary positions, and two equal ways to compute it.

Vaswani et al. 2017 (arXiv:1706.03762), section 3.2; rotary positions: Su et al. 2021 (arXiv:2104.09864), section 3.4.

# B batch   L length   S attended length   D embed_dim   H heads   K width of one head   E = H * K   N = B * H
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from him.model.dropout import Dropout

# What a forbidden position is given before the softmax: its weight becomes exactly 0, and a row without any allowed
# position becomes uniform instead of NaN, which -inf would make of it.
MASKED_SCORE = -1e9


def rotary_tables(length: int, num_heads: int, head_width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and signed sine of the rotation at each position, for heads that lie side by side; base 10,000.

    Returns:
        Two (L, H * K) tensors in the type and on the device of `like`; the sine is negative in a head's first half.
    """
    device = like.device
    frequencies_K = 10_000.0 ** (-torch.arange(0, head_width, 2, device=device, dtype=torch.float32) / head_width)
    angles_LK = torch.arange(length, device=device, dtype=torch.float32)[:, None] * frequencies_K
    cos_LK, sin_LK = angles_LK.cos(), angles_LK.sin()
    cos_LE = torch.cat((cos_LK, cos_LK), dim=1).repeat(1, num_heads)
    sin_LE = torch.cat((-sin_LK, sin_LK), dim=1).repeat(1, num_heads)
    return cos_LE.to(like.dtype), sin_LE.to(like.dtype)


class Rotate(torch.autograd.Function):
    """Turns each pair (k, k + K/2) of every head by its position's angle.

    Tables over all heads and a backward pass of its own (the turn the other way) make it four times as fast on CPUs as
    the usual formula left to autograd, which was a tenth of a training step.
    """

    @staticmethod
    def forward(ctx: Any, x_BLE: Tensor, cos_LE: Tensor, sin_LE: Tensor, head_width: int) -> Tensor:
        ctx.save_for_backward(cos_LE, sin_LE)
        ctx.head_width = head_width
        return (x_BLE * cos_LE).addcmul_(_swap_halves(x_BLE, head_width), sin_LE)

    @staticmethod
    def backward(ctx: Any, gradient_BLE: Tensor) -> tuple[Tensor, None, None, None]:
        cos_LE, sin_LE = ctx.saved_tensors
        swapped_BLE = _swap_halves(gradient_BLE, ctx.head_width)
        return (gradient_BLE * cos_LE).addcmul_(swapped_BLE, sin_LE, value=-1), None, None, None


def _swap_halves(x_BLE: Tensor, head_width: int) -> Tensor:
    """The two halves of each head exchanged."""
    x_BLHK = x_BLE.unflatten(-1, (-1, head_width))
    half = head_width // 2
    return torch.cat((x_BLHK[..., half:], x_BLHK[..., :half]), dim=-1).flatten(2)


def explicit_attention(
    q_BHLK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, bias_BLS: Tensor, dropout: nn.Module
) -> tuple[Tensor, Tensor]:
    """Attention as two batched matrix products around a softmax.

    On CPUs in bf16, forward and backward together take about half the time of `scaled_dot_product_attention`
    (32 rows x 8 heads x 192 tokens, two cores: 28 ms against 51 ms). The mask rides along inside the first product.

    Args:
        bias_BLS: 0 where attention is allowed and `MASKED_SCORE` elsewhere; (B, 1, S) or (B, L, S).
        dropout: applied to the weights before the values are summed.

    Returns:
        The attended values (B, H, L, K) and the weights (B, H, L, S) before dropout, whose rows add up to 1.
    """
    B, H, L, K = q_BHLK.shape
    S = k_BHSK.shape[2]
    bias_BHLS = bias_BLS[:, None].to(q_BHLK.dtype).expand(-1, H, -1, -1)
    scores_NLS = torch.baddbmm(
        bias_BHLS.reshape(B * H, -1, S),
        q_BHLK.reshape(B * H, L, K),
        k_BHSK.reshape(B * H, S, K).transpose(1, 2),
        alpha=K**-0.5,
    )
    weights_NLS = scores_NLS.softmax(dim=-1)
    attended_NLK = torch.bmm(dropout(weights_NLS), v_BHSK.reshape(B * H, S, K))
    return attended_NLK.view(B, H, L, K), weights_NLS.view(B, H, L, S)


class SelfAttention(nn.Module):
    """Multi-head self-attention: softmax(q k^T / sqrt(K)) v per head, then the output projection.

    Queries, keys and values come from one Linear layer, the queries of all heads first: one large matrix product is
    faster than three. It is HIM's own, so that heads can be removed, weights quantized and the model exported. CPUs
    take `explicit_attention`, other devices `scaled_dot_product_attention`; both give the same result.

    Args:
        embed_dim: width D of input and output.
        num_heads: number of heads H.
        head_width: width K of one head; H * K may be smaller than D after pruning.
        dropout: probability of zeroing an attention weight; off by default, because it cost 1.7 times the step time
            and twice the memory, and gave nothing.
    """

    def __init__(self, embed_dim: int, num_heads: int, head_width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_width = head_width
        self.query_key_value = nn.Linear(embed_dim, 3 * num_heads * head_width)
        self.output = nn.Linear(num_heads * head_width, embed_dim)
        self.dropout = Dropout(dropout)

    def forward(
        self, x_BLD: Tensor, bias_BLS: Tensor, rotary: bool = False, return_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Returns (B, L, D) and, if asked for, the weights (B, H, L, S).

        Args:
            bias_BLS: 0 where attention is allowed, `MASKED_SCORE` elsewhere (see `attention_bias`).
            rotary: whether queries and keys are turned by their position.
        """
        H, K = self.num_heads, self.head_width
        qk_BLE, v_BLE = self.query_key_value(x_BLD).split((2 * H * K, H * K), dim=-1)
        if rotary:
            tables_LE = rotary_tables(x_BLD.shape[1], 2 * H, K, like=qk_BLE)
            qk_BLE = Rotate.apply(qk_BLE, *tables_LE, K)
        q_BHLK, k_BHLK, v_BHLK = (
            part_BLE.unflatten(-1, (H, K)).transpose(1, 2) for part_BLE in (*qk_BLE.chunk(2, dim=-1), v_BLE)
        )
        weights_BHLS = None
        dropping = self.training and self.dropout.p > 0
        if return_weights or dropping or x_BLD.device.type == "cpu":
            attended_BHLK, weights_BHLS = explicit_attention(q_BHLK, k_BHLK, v_BHLK, bias_BLS, self.dropout)
        else:
            bias_BHLS = bias_BLS[:, None].to(q_BHLK.dtype)
            attended_BHLK = F.scaled_dot_product_attention(q_BHLK, k_BHLK, v_BHLK, attn_mask=bias_BHLS)
        attended_BLE = attended_BHLK.transpose(1, 2).flatten(2)
        return self.output(attended_BLE), weights_BHLS if return_weights else None


def attention_bias(attention_mask: Tensor) -> Tensor:
    """Turns a boolean mask into what is added to the scores: 0.0 where True, `MASKED_SCORE` where False.

    Args:
        attention_mask: (B, S) for keys that every position may see, or (B, L, S) for each position apart;
            True = may be attended to.

    Returns:
        (B, 1, S) or (B, L, S) float32.
    """
    if attention_mask.dim() == 2:
        attention_mask = attention_mask[:, None, :]
    return torch.zeros(attention_mask.shape, device=attention_mask.device).masked_fill_(~attention_mask, MASKED_SCORE)
