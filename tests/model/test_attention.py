"""Attention: both ways to compute it agree, masks are exact, and rotation turns by position and nothing else.

# B batch   L length   H heads   K width of one head   D embed_dim   E = H * K
"""

import math
import types

import pytest
import torch
from torch import nn

from him.model import attention
from him.model.attention import (
    MASKED_SCORE,
    RotaryTables,
    SelfAttention,
    SplitHeads,
    attention_bias,
    explicit_attention,
    rotary_tables,
)
from him.model.cpu_kernels import Dropout

B, L, H, K = 3, 9, 2, 8
D = H * K


def rotated(x, head_width, positions=None):
    """`x` (B, L, E) turned by its positions, or by others."""
    heads = x.shape[-1] // head_width
    tables = rotary_tables(torch.arange(x.shape[1] if positions is None else 1 + max(positions)), heads, head_width, x)
    if positions is not None:
        tables = RotaryTables(*(table[positions] for table in tables))
    q, k, v = SplitHeads.apply(torch.cat((x, x, x), dim=-1), head_width, tables)
    assert torch.equal(q, k)
    assert torch.equal(v.transpose(1, 2).flatten(2), x)
    return q.transpose(1, 2).flatten(2)


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- rotary positions -------------------------------------------------------------------------------------------------


def test_rotation_by_hand():
    """K = 2: one pair, turned by as many radians as its position."""
    x = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]]])
    expected = [[1, 0], [math.cos(1), math.sin(1)], [-2 * math.sin(2), 2 * math.cos(2)]]
    torch.testing.assert_close(rotated(x, 2), torch.tensor([expected]))


def test_frequencies_by_hand():
    """K = 4: pairs (0, 2) and (1, 3), the second a hundred times slower; two heads alike."""
    x = torch.tensor([1.0, 1.0, 0.0, 0.0]).repeat(1, 51, 2)
    turned = rotated(x, 4)[0, 50]
    expected = [math.cos(50), math.cos(0.5), math.sin(50), math.sin(0.5)]
    torch.testing.assert_close(turned, torch.tensor(expected * 2), rtol=0, atol=1e-5)


def test_rotation_keeps_every_norm():
    x = random(B, 40, D)
    turned = rotated(x, K)
    pairs = [each.unflatten(-1, (H, 2, K // 2)).norm(dim=-2) for each in (x, turned)]
    torch.testing.assert_close(*pairs)
    assert (turned[:, 1:] - x[:, 1:]).abs().amax(dim=-1).min() > 0.1
    assert torch.equal(turned[:, 0], x[:, 0])


@pytest.mark.parametrize("shift", [1, 17, 300])
def test_scores_depend_on_the_distance_only(shift):
    """In float64: in float32, an angle of 300 radians has lost two digits."""
    q, k = random(1, L, D, seed=1, dtype=torch.float64), random(1, L, D, seed=2, dtype=torch.float64)
    here, there = list(range(L)), list(range(shift, shift + L))

    def scores(positions):
        heads = [rotated(x, K, positions).unflatten(-1, (H, K)).transpose(1, 2) for x in (q, k)]
        return heads[0] @ heads[1].transpose(-1, -2)

    # The angles themselves are made in float32.
    torch.testing.assert_close(scores(here), scores(there), rtol=0, atol=1e-4)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(scores(here), scores(list(reversed(here))), rtol=0, atol=0.1)


def test_gradient_of_the_rotation():
    tables = rotary_tables(torch.arange(5), H, 4, like=torch.zeros(0, dtype=torch.float64))
    x = random(2, 5, 3 * H * 4, dtype=torch.float64).requires_grad_()
    for rotary in (tables, None):
        assert torch.autograd.gradcheck(lambda x, rotary=rotary: SplitHeads.apply(x, 4, rotary), (x,))


def test_rotation_leaves_its_input_alone():
    x = random(B, L, D)
    before = x.clone()
    rotated(x, K)
    assert torch.equal(x, before)


def test_tables_follow_the_type_but_are_made_in_float32():
    """In bfloat16, position 257 would be 256."""
    like = torch.zeros(0, dtype=torch.bfloat16)
    cos, _ = rotary_tables(torch.arange(300), 1, 2, like)
    assert cos.dtype is torch.bfloat16
    torch.testing.assert_close(cos[257, 0].item(), math.cos(257), rtol=0, atol=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_with_positions_of_their_own(dtype):
    """The tables are those of the same positions alone, and so are the turned queries and keys."""
    positions = torch.tensor([[0, 1, 2, 3], [7, 300, 7, 0], [5, 4, 3, 2]])
    qkv = random(3, 4, 3 * D, seed=4, dtype=dtype)
    tables = rotary_tables(positions, H, K, qkv)
    plain = rotary_tables(torch.arange(301), H, K, qkv)
    together = SplitHeads.apply(qkv, K, tables)
    for table, reference in zip(tables, plain, strict=True):
        assert table.shape == (3, 4, 2 * D) and table.dtype is dtype
        assert torch.equal(table, reference[positions])
    for row in range(3):
        alone = SplitHeads.apply(qkv[row : row + 1], K, RotaryTables(*(table[positions[row]] for table in plain)))
        for part, expected in zip(together, alone, strict=True):
            torch.testing.assert_close(part[row : row + 1], expected)
    tables = rotary_tables(positions, H, 4, like=torch.zeros(0, dtype=torch.float64))
    x = random(3, 4, 3 * H * 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: SplitHeads.apply(x, 4, tables), (x,))


# --- two ways to compute --------------------------------------------------------------------------------------------


@pytest.fixture
def layer():
    torch.manual_seed(0)
    made = SelfAttention(D, H, K)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    return made


def masks():
    lengths = torch.tensor([L, 4, 1])
    keys = torch.arange(L)[None] < lengths[:, None]
    causal = torch.ones(L, L, dtype=torch.bool).tril()
    return {"padding": keys, "causal": causal.expand(B, L, L), "both": causal & keys[:, None, :]}


@pytest.mark.parametrize("mask", ["padding", "causal", "both"])
@pytest.mark.parametrize("rotary", [False, True])
def test_explicit_attention_equals_sdpa(layer, monkeypatch, mask, rotary):
    """The branch of other devices, run on the CPU, with the gradients of input and weights."""
    bias, upstream = attention_bias(masks()[mask]), random(B, L, D, seed=5)
    calls = []
    fused = nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        attention.F, "scaled_dot_product_attention", lambda *args, **named: calls.append(1) or fused(*args, **named)
    )
    results = []
    for kind in (torch.Tensor, Elsewhere):
        x = random(B, L, D, seed=3).requires_grad_()
        layer.zero_grad()
        y, weights = layer(x.as_subclass(kind), bias, rotary_tables(torch.arange(L), H, K, x) if rotary else None)
        assert weights is None
        y.backward(upstream)
        results.append([y, x.grad, *(parameter.grad.clone() for parameter in layer.parameters())])
    assert len(calls) == 1
    for one, other in zip(*results, strict=True):
        assert one.abs().max() > 0.01
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * max(1.0, one.abs().max().item()))


@pytest.mark.parametrize("mask", ["padding", "causal", "both"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_way_without_a_gradient_equals_that_of_training(layer, monkeypatch, mask, dtype):
    """Where nothing is trained, `scaled_dot_product_attention` is the faster one on CPUs too."""
    layer.to(dtype)
    calls = []
    fused = nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        attention.F, "scaled_dot_product_attention", lambda *args, **named: calls.append(1) or fused(*args, **named)
    )
    x, bias = random(B, L, D, seed=3, dtype=dtype), attention_bias(masks()[mask]).to(dtype)
    tables = rotary_tables(torch.arange(L), H, K, x)
    expected, _ = layer(x, bias, tables)
    assert not calls
    with torch.no_grad():
        found, weights = layer(x, bias, tables)
        asked, asked_weights = layer(x, bias, tables, return_weights=True)
    assert len(calls) == 1, "asked for weights, they are made"
    assert weights is None and asked_weights.shape == (B, H, L, L)
    bound = 1e-5 if dtype == torch.float32 else 0.03
    for each in (found, asked):
        torch.testing.assert_close(each, expected, rtol=bound, atol=bound * expected.abs().max().item())


def test_dropout_of_weights_is_there_without_a_gradient_too(layer):
    """In training mode under `no_grad`, as a frozen part would be."""
    layer.dropout.p = 0.5
    x, bias = random(B, L, D), attention_bias(torch.ones(B, L, dtype=torch.bool))
    torch.manual_seed(0)
    with torch.no_grad():
        assert (layer.train()(x, bias)[0] - layer.eval()(x, bias)[0]).abs().max() > 0.1


class Elsewhere(torch.Tensor):
    """A tensor that says that it is not on the CPU; what is computed from it is an ordinary one."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @property
    def device(self):
        return types.SimpleNamespace(type="elsewhere")


@pytest.mark.parametrize("rotary", [False, True])
def test_against_the_formula(layer, rotary):
    """softmax(q k^T / sqrt(K)) v, row by row and head by head."""
    x = random(B, L, D, seed=3)
    mask = masks()["padding"]
    tables = rotary_tables(torch.arange(L), H, K, x) if rotary else None
    y, weights = layer(x, attention_bias(mask), tables, return_weights=True)
    q, k, v = layer.query_key_value(x).chunk(3, dim=-1)
    if rotary:
        q, k = rotated(q, K), rotated(k, K)
    for row in range(B):
        length = int(mask[row].sum())
        heads = []
        for head in range(H):
            part = slice(head * K, (head + 1) * K)
            scores = q[row, :, part] @ k[row, :length, part].T / math.sqrt(K)
            expected = scores.softmax(dim=-1)
            torch.testing.assert_close(weights[row, head, :, :length], expected, rtol=1e-5, atol=1e-6)
            heads.append(expected @ v[row, :length, part])
        torch.testing.assert_close(y[row], layer.output(torch.cat(heads, dim=-1)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mask", ["padding", "causal", "both"])
def test_masked_positions_have_no_weight_at_all(mask, dtype):
    q, k, v = (random(B, H, L, K, seed=seed).to(dtype) for seed in range(3))
    allowed = masks()[mask]
    _, weights = explicit_attention(q, k, v, attention_bias(allowed).to(dtype), Dropout(0.0))
    allowed = (allowed[:, None] if allowed.dim() == 2 else allowed)[:, None].expand(B, H, L, L)
    assert (weights[~allowed] == 0).all()
    assert (weights[allowed] > 0).all()
    torch.testing.assert_close(weights.float().sum(dim=-1), torch.ones(B, H, L), rtol=0, atol=0.02)


def test_a_row_without_an_allowed_position_is_even_not_nan():
    q, k, v = (random(1, 1, 4, K, seed=seed) for seed in range(3))
    bias = attention_bias(torch.zeros(1, 4, dtype=torch.bool))
    attended, weights = explicit_attention(q, k, v, bias, Dropout(0.0))
    torch.testing.assert_close(weights, torch.full((1, 1, 4, 4), 0.25), rtol=0, atol=1e-6)
    assert torch.isfinite(attended).all()


def test_bias_by_hand():
    mask = torch.tensor([[True, False], [True, True]])
    assert attention_bias(mask).tolist() == [[[0, MASKED_SCORE]], [[0, 0]]]
    assert attention_bias(mask[None]).tolist() == [[[0, MASKED_SCORE], [0, 0]]]
    assert attention_bias(mask).dtype is torch.float32


def test_dropout_on_weights_only_while_training(layer):
    layer.dropout.p = 0.5
    x, bias = random(B, L, D), attention_bias(torch.ones(B, L, dtype=torch.bool))
    layer.eval()
    still, weights = layer(x, bias, return_weights=True)
    assert torch.equal(still, layer(x, bias)[0])
    layer.train()
    torch.manual_seed(0)
    moving, same = layer(x, bias, return_weights=True)
    assert (moving - still).abs().max() > 0.1
    assert torch.equal(weights, same)  # those before dropout, whose rows add up to 1


def test_fewer_heads_than_the_width_holds():
    """After pruning, H * K is smaller than D."""
    layer = SelfAttention(embed_dim=12, num_heads=1, head_width=4)
    x = random(2, 5, 12)
    y, weights = layer(
        x, attention_bias(torch.ones(2, 5, dtype=torch.bool)), rotary_tables(torch.arange(5), 1, 4, x), True
    )
    assert y.shape == (2, 5, 12)
    assert weights.shape == (2, 1, 5, 5)
    assert sum(parameter.numel() for parameter in layer.parameters()) == 12 * 12 + 12 + 4 * 12 + 12
