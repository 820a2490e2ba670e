"""Dropout: right in expectation, reproducible, nothing in evaluation, and the same gradient as its mask."""

import math

import pytest
import torch

from him.model.cpu_kernels import Dropout


def dropped(x, p, seed=0):
    torch.manual_seed(seed)
    return Dropout(p).train()(x)


@pytest.mark.parametrize("p", [0.1, 0.2, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(1000, 1000), (999, 1001)], ids=["whole words", "bytes left over"])
def test_share_of_zeros_and_expectation(p, shape):
    """Of a million draws, within five standard deviations of the probability rounded to 1/256."""
    rounded = round(256 * p) / 256
    assert abs(rounded - p) <= 1 / 512
    y = dropped(torch.ones(shape), p)
    count = y.numel()
    zeros = int((y == 0).sum())
    assert abs(zeros - rounded * count) < 5 * math.sqrt(rounded * (1 - rounded) * count)
    # The others are scaled by the rounded probability: the expectation is exactly the input.
    kept = y[y != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - rounded)), rtol=1e-6, atol=0)


def test_neighbours_are_independent():
    """Eight mask bytes come from one draw: none may follow from another, nor from the place in the draw."""
    zero = (dropped(torch.ones(800_000), 0.5) == 0).view(-1, 8).double()
    deviation = math.sqrt(0.25 / len(zero))
    assert ((zero.mean(dim=0) - 0.5).abs() < 5 * deviation).all()
    correlation = torch.corrcoef(zero.T) - torch.eye(8)
    assert correlation.abs().max() < 5 / math.sqrt(len(zero))


@pytest.mark.parametrize("shape", [(0,), (), (1,), (7,), (3, 5, 7)])
def test_any_shape(shape):
    y = dropped(torch.ones(shape), 0.5, seed=1)
    assert y.shape == shape
    assert set(y.flatten().tolist()) <= {0.0, 2.0}


def test_not_contiguous():
    x = torch.arange(1.0, 13).view(3, 4).T
    y = dropped(x, 0.5)
    assert y.shape == (4, 3)
    assert ((y == 0) | (y == 2 * x)).all()


def test_same_seed_same_mask_and_others_differ():
    x = torch.ones(1000)
    assert torch.equal(dropped(x, 0.3, seed=5), dropped(x, 0.3, seed=5))
    assert not torch.equal(dropped(x, 0.3, seed=5), dropped(x, 0.3, seed=6))
    torch.manual_seed(5)
    layer = Dropout(0.3).train()
    assert not torch.equal(layer(x), layer(x))


def test_evaluation_and_zero_probability_change_nothing():
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    state = torch.random.get_rng_state()
    assert Dropout(0.9).eval()(x) is x
    assert Dropout(0.0).train()(x) is x
    assert torch.equal(Dropout(0.9).eval().add(x, x), 2 * x)
    assert torch.equal(Dropout(0.0).train().add(x, x), 2 * x)
    # No draw either: a resumed run that evaluates at other steps trains with the same masks.
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("p", [0.001, 0.999])
def test_probabilities_at_the_ends(p):
    """Below 1/512 nothing is dropped; at most 255 of 256 are."""
    y = dropped(torch.ones(100_000), p)
    if p < 0.5:
        assert torch.equal(y, torch.ones(100_000))
    else:
        assert set(y.tolist()) == {0.0, 256.0}
        assert abs(int((y != 0).sum()) - 100_000 / 256) < 5 * math.sqrt(100_000 / 256)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_add_is_residual_plus_dropout(dtype):
    generator = torch.Generator().manual_seed(0)
    residual, x = (torch.randn(33, 65, generator=generator).to(dtype) for _ in range(2))
    torch.manual_seed(9)
    added = Dropout(0.25).train().add(residual, x)
    assert added.dtype == dtype
    # The fused sum rounds once, the two steps twice.
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 0.04}[dtype]
    torch.testing.assert_close(added, residual + dropped(x, 0.25, seed=9), rtol=0, atol=tolerance)


@pytest.mark.parametrize("fused", [False, True])
def test_gradient_is_mask_times_scale(fused):
    x = torch.randn(50, 40, generator=torch.Generator().manual_seed(1), requires_grad=True)
    residual = torch.zeros(50, 40, requires_grad=True)
    upstream = torch.randn(50, 40, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(4)
    layer = Dropout(0.5).train()
    (layer.add(residual, x) if fused else layer(x)).backward(upstream)
    mask = dropped(torch.ones(50, 40), 0.5, seed=4)
    assert torch.equal(x.grad, upstream * mask)
    if fused:
        assert torch.equal(residual.grad, upstream)


def test_the_input_is_left_alone():
    """The mask is made in place, the input must not be."""
    x = torch.ones(64)
    dropped(x, 0.5)
    assert torch.equal(x, torch.ones(64))


def test_probability_is_shown():
    assert repr(Dropout(0.25)) == "Dropout(p=0.25)"
