"""Forms that CPUs are faster with, against the stock ones that they stand for; modules test them in their places.

# B batch   L length   D embed_dim   W width
"""

import pytest
import torch
import torch.nn.functional as F

from him.model.cpu_kernels import AddMasked, DepthwiseConvolve, as_many_side, few_rows_product


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_of_few_rows(dtype):
    few, many = random(2, 3, 4, 48, dtype=dtype), random(2, 3, 48, 16, seed=1, dtype=dtype)
    for side in (many, as_many_side(many)):
        assert torch.equal(side, many)
        expected = few.float() @ many.float()
        torch.testing.assert_close(few_rows_product(few, side).float(), expected, rtol=0.01, atol=0.1)
    assert as_many_side(many).transpose(2, 3).is_contiguous() == (dtype == torch.bfloat16)


@pytest.mark.parametrize("width", [1, 3, 7])
def test_a_depthwise_convolution_and_its_gradients(width):
    x_BLD, weight_D1W, bias_D = random(2, 9, 5), random(5, 1, width, seed=1), random(5, seed=2)
    inputs = [each.requires_grad_() for each in (x_BLD, weight_D1W, bias_D)]
    found = DepthwiseConvolve.apply(*inputs)
    expected = F.conv1d(x_BLD.transpose(1, 2), weight_D1W, bias_D, padding=width // 2, groups=5).transpose(1, 2)
    torch.testing.assert_close(found, expected)
    gradient = random(2, 9, 5, seed=3)
    for ours, stock in zip(
        torch.autograd.grad(found, inputs, gradient), torch.autograd.grad(expected, inputs, gradient), strict=True
    ):
        torch.testing.assert_close(ours, stock)


def test_a_masked_sum_and_its_gradients():
    residual, x = random(4, 6).requires_grad_(), random(4, 6, seed=1).requires_grad_()
    mask = 2.0 * (random(4, 6, seed=2) > 0)
    found, expected = AddMasked.apply(residual, x, mask), residual + x * mask
    assert torch.equal(found, expected)
    gradient = random(4, 6, seed=3)
    ours, stock = (torch.autograd.grad(each, (residual, x), gradient) for each in (found, expected))
    assert all(torch.equal(one, other) for one, other in zip(ours, stock, strict=True))
