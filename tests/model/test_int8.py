"""int8 layers: how far they are from floats with every kernel there is and with none.

# N output channels   K input channels
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from him.model.embeddings import TokenEmbedding
from him.model.int8 import Int8Embedding, Int8Linear, describe, pack, quantize, quantized_rows
from him.model.int8_kernels import BACKENDS, FEW_ROWS

THERE = [name for name in BACKENDS if name in torch.backends.quantized.supported_engines]
# Each kernel once: without bf16 every backend has its own; with it onednn chooses, and all others round as without.
KERNELS = pytest.mark.parametrize(
    ("backend", "bf16"),
    [
        (None, False),
        (None, True),
        *((backend, False) for backend in THERE),
        *((backend, True) for backend in THERE[:2]),
    ],
)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative_error(found, expected):
    return float((found.float() - expected).norm() / expected.norm())


def computed_in(bf16):
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16)


# -- numbers -----------------------------------------------------------------------------------------------------------


def test_rows_by_hand():
    """The largest of each row becomes 127; halves are rounded to even."""
    weight = torch.tensor([[1.27, -0.635, 0.0], [-254.0, 3.0, 2.1], [0.0, 0.0, 0.0]])
    rounded, scale = quantized_rows(weight)
    assert rounded.tolist() == [[127, -64, 0], [-127, 2, 1], [0, 0, 0]]
    assert scale.tolist() == pytest.approx([0.01, 2.0, 1.0])
    assert (rounded.dtype, scale.dtype) == (torch.int8, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_number_is_off_by_more_than_half_a_step_of_its_row(dtype):
    weight = (random(200, 96) * torch.logspace(-6, 3, 200)[:, None]).to(dtype)
    weight[17] = 0.0
    weight[18] = 0.0
    weight[18, 5] = -3.0
    rounded, scale = quantized_rows(weight.requires_grad_())
    error = (rounded * scale[:, None] - weight.detach().float()).abs()
    assert (error <= 0.5 * scale[:, None] * (1 + 1e-5)).all()
    assert error.max() > 0.4 * scale.max()
    assert (rounded.abs().amax(dim=1) == 127)[torch.arange(200) != 17].all()
    assert (rounded[17] == 0).all() and scale[17] == 1
    assert (scale > 0).all() and not scale.requires_grad


# -- layers ------------------------------------------------------------------------------------------------------------


def packed_layer(N, K, backend, bf16, bias=True):
    layer = torch.nn.Linear(K, N, bias=bias)
    layer.weight.data.copy_(random(N, K, seed=1))
    if bias:
        layer.bias.data.copy_(10 * random(N, seed=2))
    model = torch.nn.Sequential(layer)
    expected = layer.weight.detach().clone(), None if layer.bias is None else layer.bias.detach().clone()
    pack(quantize(model), backend, bf16)
    assert isinstance(model[0], Int8Linear)
    return model[0], expected


# Wide ones, as an output layer is, have other kernels in bf16, and so have few rows whose length is whole vectors.
NARROW, ODD, WIDE = (48, 96), (48, 100), (2048, 64)


@KERNELS
@pytest.mark.parametrize(
    ("layer", "shape", "bias"),
    [
        (NARROW, (1,), True),
        (NARROW, (2, FEW_ROWS // 2), False),
        (NARROW, (3, 70), True),
        (ODD, (1, 1), False),
        (ODD, (1, FEW_ROWS + 1), True),
        (WIDE, (1, FEW_ROWS), True),
        (WIDE, (1, FEW_ROWS + 1), False),
        (WIDE, (3, 70), True),
    ],
    ids=str,
)
def test_a_layer_is_close_to_its_floats(backend, bf16, layer, shape, bias):
    """Rounding to 8 bits costs 1.2 % of a normal product, to 7 bits, on CPUs that need it, 1.9 %; a sum in bf16 0.3 %.

    Then the sum with a bias that is ten times as large as it need be, of which 8 bits are kept in bf16.
    """
    packed, (weight, of_bias) = packed_layer(*layer, backend, bf16, bias)
    x = random(*shape, layer[1], seed=3).to(torch.bfloat16 if bf16 else torch.float32)
    with computed_in(bf16):
        found = packed(x)
    product = F.linear(x.float(), weight)
    assert (found.shape, found.dtype) == (product.shape, x.dtype)
    error = (found.float() - (product if of_bias is None else product + of_bias)).norm() / product.norm()
    assert 1e-4 < error < (0.03 if not bf16 or of_bias is None else 0.05)


@KERNELS
@pytest.mark.parametrize(("layer", "num_rows"), [(NARROW, 1), (ODD, 40), (WIDE, 40)])
def test_zeros_leave_the_bias(backend, bf16, layer, num_rows):
    packed, (_, bias) = packed_layer(*layer, backend, bf16)
    with computed_in(bf16):
        found = packed(torch.zeros(1, num_rows, layer[1], dtype=torch.bfloat16 if bf16 else torch.float32))
    expected = bias.expand(1, num_rows, len(bias))
    torch.testing.assert_close(found.float(), expected, rtol=0.005 if bf16 else 1e-5, atol=1e-5)


@KERNELS
@pytest.mark.parametrize(("layer", "num_rows"), [(NARROW, 4), (NARROW, 30), (WIDE, 30)])
def test_inputs_of_any_layout(backend, bf16, layer, num_rows):
    packed, _ = packed_layer(*layer, backend, bf16)
    x = random(layer[1], num_rows, seed=3).T[None].to(torch.bfloat16 if bf16 else torch.float32)
    assert not x.is_contiguous()
    with computed_in(bf16):
        assert relative_error(packed(x), packed(x.contiguous()).float()) < 0.01


@pytest.mark.parametrize(("backend", "bf16"), [(backend, bf16) for backend in THERE[:1] for bf16 in (False, True)])
@pytest.mark.parametrize("layer", [NARROW, ODD])
@pytest.mark.parametrize("num_rows", [1, FEW_ROWS])
def test_few_rows_alone_or_among_neighbours(backend, bf16, layer, num_rows):
    """What lies behind a row in memory is of no account: a kernel that reads whole vectors could read it."""
    packed, _ = packed_layer(*layer, backend, bf16)
    many = random(num_rows + 1, layer[1], seed=3).to(torch.bfloat16 if bf16 else torch.float32)
    few = many[:num_rows].clone()
    many[num_rows:] = float("nan")
    with computed_in(bf16):
        assert torch.equal(packed(many[:num_rows]), packed(few))


@KERNELS
@pytest.mark.parametrize("num_rows", [1, 40])
def test_an_embedding_and_its_products_have_the_same_numbers(backend, bf16, num_rows):
    floats = TokenEmbedding(2048, 64)
    model = quantize(nn.Sequential(floats))
    tokens, bias = model[0], random(2048, seed=2)
    assert isinstance(tokens, Int8Embedding)
    tokens.pack(bias, backend, bf16)
    weight = tokens.weight * tokens.scale[:, None]
    assert relative_error(weight, floats.weight.detach()) < 0.01
    assert torch.equal(tokens(torch.arange(2048)[None])[0], weight)
    hidden = random(2, num_rows, 64).to(torch.bfloat16 if bf16 else torch.float32)
    with computed_in(bf16):
        assert relative_error(tokens.project(hidden, bias), F.linear(hidden.float(), weight, bias)) < 0.02


def test_products_need_a_kernel():
    with pytest.raises(AssertionError, match="pack first"):
        Int8Linear(32, 32)(torch.zeros(1, 32))


def test_what_becomes_int8():
    """Linear layers from 32 to 32 channels on, and token embeddings; nothing has a gradient any more."""
    layers = {"a": nn.Linear(32, 32), "b": nn.Linear(31, 64), "c": nn.Linear(64, 31), "d": nn.Embedding(99, 64)}
    model = quantize(nn.ModuleDict({**layers, "e": TokenEmbedding(99, 16), "f": nn.Linear(64, 40, bias=False)}))
    kinds = {name: type(module) for name, module in model.items()}
    assert kinds == {
        "a": Int8Linear,
        "b": nn.Linear,
        "c": nn.Linear,
        "d": nn.Embedding,
        "e": Int8Embedding,
        "f": Int8Linear,
    }
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert describe(model) == {
        "format_version": 1,
        "weights": "int8, symmetric, a scale for each row; activations are rounded to 8 bits as they come",
        "layers": {"a": [32, 32], "e": [99, 16], "f": [40, 64]},
    }
    assert sorted(model["f"].state_dict()) == ["scale", "weight"], "no bias"
