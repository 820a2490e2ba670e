"""Multi-head self-attention with its own q/k/v/o projections, rotary positions, and two equal ways to compute it.

Vaswani et al. 2017 (arXiv:1706.03762), section 3.2; rotary positions: Su et al. 2021 (arXiv:2104.09864), section 3.4.

# B batch   L length   S attended length   D embed_dim   H heads   K width of one head   E = H * K   N = B * H
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from him.model.cpu_kernels import Dropout, few_rows_product
from him.model.kv_cache import LayerCache

# What a forbidden position is given before the softmax: its weight becomes exactly 0, and a row without any allowed
# position becomes uniform instead of NaN, which -inf would make of it.
MASKED_SCORE = -1e9


class RotaryTables(NamedTuple):
    """Rotary tables: cosine and signed sine of the turn at each position.

    (L, 2 * E) for queries and keys of all heads side by side, or (B, L, 2 * E) where each row has positions of its own.
    The sine is negative in the first half of a head.
    """

    cos_LE: Tensor
    sin_LE: Tensor

    def of_heads(self, num_heads: int, head_width: int) -> "RotaryTables":
        """The tables for fewer heads, which are all alike."""
        width = 2 * num_heads * head_width
        return self if width == self.cos_LE.shape[-1] else RotaryTables(*(table[..., :width] for table in self))


def rotary_tables(positions: Tensor, num_heads: int, head_width: int, like: Tensor) -> RotaryTables:
    """The tables for these positions, (L,) or (B, L), in the type and on the device of `like`; base 10,000."""
    steps_K = torch.arange(0, head_width, 2, device=like.device, dtype=torch.float32)
    angles_LK = positions.to(like.device, torch.float32)[..., None] * 10_000.0 ** (-steps_K / head_width)
    cos_LK, sin_LK = angles_LK.cos(), angles_LK.sin()
    repeats = (*(1 for _ in positions.shape), 2 * num_heads)
    cos_LE = torch.cat((cos_LK, cos_LK), dim=-1).repeat(repeats)
    sin_LE = torch.cat((-sin_LK, sin_LK), dim=-1).repeat(repeats)
    return RotaryTables(cos_LE.to(like.dtype), sin_LE.to(like.dtype))


class SplitHeads(torch.autograd.Function):
    """Cuts the joint projection into queries, keys and values per head, and turns queries and keys by their position.

    Each pair (k, k + K/2) of a head is turned by its position's angle. Tables over all heads and a backward pass of its
    own (the turn the other way, written straight into the gradient of the projection) cost a quarter of what autograd
    makes of the usual formula, which was a tenth of a training step on CPUs.
    """

    @staticmethod
    def forward(ctx: Any, qkv_BLE: Tensor, head_width: int, rotary: RotaryTables | None) -> tuple[Tensor, ...]:
        ctx.head_width, ctx.rotary = head_width, rotary
        parts_BLPHK = qkv_BLE.unflatten(-1, (3, -1, head_width))
        if rotary is not None:
            turned_BLE = _turn(qkv_BLE[..., : rotary.cos_LE.shape[-1]], rotary, head_width, direction=1)
            qk_BLPHK = turned_BLE.unflatten(-1, (2, -1, head_width))
        else:
            qk_BLPHK = parts_BLPHK[:, :, :2]
        parts = (qk_BLPHK[:, :, 0], qk_BLPHK[:, :, 1], parts_BLPHK[:, :, 2])
        parts = tuple(part_BLHK.transpose(1, 2) for part_BLHK in parts)
        return tuple(part_BHLK.contiguous() for part_BHLK in parts) if ctx.needs_input_grad[0] else parts

    @staticmethod
    def backward(ctx: Any, *gradients_BHLK: Tensor) -> tuple[Tensor, None, None]:
        gradient_BLPHK = torch.stack([gradient_BHLK.transpose(1, 2) for gradient_BHLK in gradients_BHLK], dim=2)
        gradient_BLE = gradient_BLPHK.flatten(2)
        if ctx.rotary is not None:
            qk_BLE = gradient_BLE[..., : ctx.rotary.cos_LE.shape[-1]]
            qk_BLE.copy_(_turn(qk_BLE, ctx.rotary, ctx.head_width, direction=-1))
        return gradient_BLE, None, None


def _turn(x_BLE: Tensor, rotary: RotaryTables, head_width: int, direction: int) -> Tensor:
    """x * cos + swapped x * sin, or with -sin for the other direction; a new tensor."""
    x_BLHK = x_BLE.unflatten(-1, (-1, head_width))
    half = head_width // 2
    swapped_BLE = torch.cat((x_BLHK[..., half:], x_BLHK[..., :half]), dim=-1).flatten(2)
    return (x_BLE * rotary.cos_LE).addcmul_(swapped_BLE, rotary.sin_LE, value=direction)


def explicit_attention(
    q_BHLK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, bias_BLS: Tensor, dropout: nn.Module
) -> tuple[Tensor, Tensor]:
    """Attention as two batched matrix products around a softmax.

    On CPUs in bf16, forward and backward together take about half the time of `scaled_dot_product_attention`
    (32 rows x 8 heads x 192 tokens, two cores: 28 ms against 51 ms), whose forward pass alone is the faster one. The
    mask rides along inside the first product.

    Args:
        bias_BLS: 0 where attention is allowed and `MASKED_SCORE` elsewhere; (B, 1, S), (B, L, S) or (1, L, S).
        dropout: applied to the weights before the values are summed.

    Returns:
        The attended values (B, H, L, K) and the weights (B, H, L, S) before dropout, whose rows add up to 1.
    """
    B, H, L, K = q_BHLK.shape
    S = k_BHSK.shape[2]
    bias_BHLS = bias_BLS[:, None].to(q_BHLK.dtype).expand(B, H, -1, -1)
    scores_NLS = torch.baddbmm(
        bias_BHLS.reshape(B * H, -1, S),
        q_BHLK.reshape(B * H, L, K),
        k_BHSK.reshape(B * H, S, K).transpose(1, 2),
        alpha=K**-0.5,
    )
    weights_NLS = scores_NLS.softmax(dim=-1)
    attended_NLK = torch.bmm(dropout(weights_NLS), v_BHSK.reshape(B * H, S, K))
    return attended_NLK.view(B, H, L, K), weights_NLS.view(B, H, L, S)


def cached_attention(q_NH1K: Tensor, k_NH1K: Tensor, v_NH1K: Tensor, bias_B1P: Tensor, cache: LayerCache) -> Tensor:
    """Attention of one new token of each hypothesis to its prompt, to the tokens written since, and to itself.

    A prompt's keys and values are there once for all its W hypotheses, N = B * W, whose queries are one product's rows.

    Args:
        bias_B1P: 0 at the prompts' tokens, `MASKED_SCORE` at their padding.
        cache: gets the new keys and values.

    Returns:
        (N, H, 1, K).
    """
    keys_NHTK, values_NHTK = cache.append(k_NH1K, v_NH1K)
    N, H, _, K = q_NH1K.shape
    B, P = cache.prompt_keys_BHPK.shape[0], cache.prompt_keys_BHPK.shape[2]
    q_NH1K = q_NH1K * K**-0.5
    q_BHWK = q_NH1K.view(B, N // B, H, K).transpose(1, 2)
    to_prompt_BHWP = few_rows_product(q_BHWK, cache.prompt_keys_BHPK.transpose(2, 3)) + bias_B1P[:, None]
    to_own_NH1T = few_rows_product(q_NH1K, keys_NHTK.transpose(2, 3))
    to_own_BHWT = to_own_NH1T.view(B, N // B, H, -1).transpose(1, 2)
    weights_BHWS = torch.cat((to_prompt_BHWP, to_own_BHWT), dim=-1).softmax(dim=-1)
    from_prompt_BHWK = few_rows_product(weights_BHWS[..., :P], cache.prompt_values_BHPK)
    own_weights_NH1T = weights_BHWS[..., P:].transpose(1, 2).reshape(N, H, 1, -1)
    return from_prompt_BHWK.transpose(1, 2).reshape(N, H, 1, K) + torch.matmul(own_weights_NH1T, values_NHTK)


class SelfAttention(nn.Module):
    """Multi-head self-attention: softmax(q k^T / sqrt(K)) v per head, then the output projection.

    Queries, keys and values come from one Linear layer, the queries of all heads first: one large matrix product is
    faster than three. It is HIM's own, so that heads can be removed, weights quantized and the model exported. Training
    on CPUs takes `explicit_attention`, everything else `scaled_dot_product_attention`; both give the same result.

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
        self,
        x_BLD: Tensor,
        bias_BLS: Tensor,
        rotary: RotaryTables | None = None,
        return_weights: bool = False,
        cache: LayerCache | None = None,
        only_B: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Returns (B, L, D) and, if asked for, the weights (B, H, L, S).

        Args:
            bias_BLS: 0 where attention is allowed, `MASKED_SCORE` elsewhere (see `attention_bias`).
            rotary: how queries and keys are turned by their position, or None.
            cache: an empty one keeps keys and values of these tokens, the prompts. A filled one has those of all tokens
                before `x_BLD`, which is then one token of each hypothesis; `bias_BLS` is that of the prompts.
            only_B: the one position of each row that something is wanted for; L is 1 in what is returned.
        """
        q_BHLK, k_BHLK, v_BHLK = SplitHeads.apply(self.query_key_value(x_BLD), self.head_width, rotary)
        if cache is not None and cache.is_filled:
            attended_BHLK = cached_attention(q_BHLK, k_BHLK, v_BHLK, bias_BLS, cache)
            return self.output(attended_BHLK.transpose(1, 2).flatten(2)), None
        if cache is not None:
            cache.fill(k_BHLK, v_BHLK)
        if only_B is not None:
            rows_B = torch.arange(len(only_B), device=only_B.device)
            q_BHLK = q_BHLK[rows_B, :, only_B][:, :, None]
            bias_BLS = bias_BLS.expand(len(only_B), *bias_BLS.shape[1:])[rows_B, only_B][:, None]
        weights_BHLS = None
        dropping = self.training and self.dropout.p > 0
        on_cpu_with_gradient = x_BLD.device.type == "cpu" and torch.is_grad_enabled()
        if return_weights or dropping or on_cpu_with_gradient:
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
