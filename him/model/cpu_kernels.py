"""Forms of products, convolutions and dropout that CPUs are faster with than with the stock ones.

Each is the same function as what it stands for, up to rounding; modules choose between the two by device.

# B batch   L length   D embed_dim   W width   H heads   P, S, K other sizes
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def few_rows_product(few: Tensor, many: Tensor) -> Tensor:
    """The product `few @ many`; in bf16 on CPUs as the other one's transpose, which takes two thirds of the time there.

    That needs the long side of `many` to be contiguous in the last but one position: see `as_many_side`.
    """
    if few.dtype == torch.bfloat16 and few.device.type == "cpu":
        return torch.matmul(many.transpose(2, 3), few.transpose(2, 3)).transpose(2, 3)
    return torch.matmul(few, many)


def as_many_side(values_BHPK: Tensor) -> Tensor:
    """Lays values out in memory as `few_rows_product` reads its second factor fastest."""
    if values_BHPK.dtype == torch.bfloat16 and values_BHPK.device.type == "cpu":
        return values_BHPK.transpose(2, 3).contiguous().transpose(2, 3)
    return values_BHPK.contiguous()


class AddMasked(torch.autograd.Function):
    """residual + x * mask; the backward pass of `torch.addcmul` multiplies twice."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        return torch.addcmul(residual, x, mask)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        (mask,) = ctx.saved_tensors
        return gradient, (gradient * mask).to(mask.dtype), None


def scaled_mask(like: Tensor, p: float) -> Tensor:
    """0 with probability p, else 1 / (1 - p), in the shape and type of `like`; p is rounded to 1/256."""
    kept_of_256 = max(1, 256 - round(256 * p))
    draws = torch.empty((like.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
    signed = draws.view(torch.int8)[: like.numel()].view(like.shape)  # each of -128 ... 127 equally often
    kept = signed.le_(kept_of_256 - 129)
    return kept.to(like.dtype).mul_(256 / kept_of_256)


class Dropout(nn.Module):
    """`nn.Dropout` with the probability rounded to 1/256 on CPUs, where eight mask bytes are cut from one 64-bit draw.

    Srivastava et al. 2014, "Dropout: A Simple Way to Prevent Neural Networks from Overfitting".

    `bernoulli_` draws a number per element from a serial generator: a quarter of a training step. On other devices
    this is `F.dropout`. The scale uses the rounded probability, so that the expectation is exactly the input.

    Args:
        p: probability of zeroing an element.
        shared: whether all positions of a sample lose the same channels (Gal and Ghahramani 2016, arXiv:1512.05287);
            inputs are then (B, L, D), and masks (B, 1, D).
    """

    def __init__(self, p: float, shared: bool = False) -> None:
        super().__init__()
        self.p = p
        self.shared = shared

    def forward(self, x: Tensor) -> Tensor:
        """Returns `x` with elements zeroed and the others scaled up, while training."""
        if not self._is_on():
            return x
        if self.shared or x.device.type == "cpu":
            return x * self._mask(x)
        return F.dropout(x, self.p)

    def add(self, residual: Tensor, x: Tensor) -> Tensor:
        """Returns `residual + dropout(x)`; on CPUs mask, scale and sum are one pass over memory."""
        if self._is_on() and x.device.type == "cpu":
            return AddMasked.apply(residual, x, self._mask(x))
        return residual + self(x)

    def _is_on(self) -> bool:
        return self.training and self.p > 0.0

    def _mask(self, x: Tensor) -> Tensor:
        like = x[:, :1] if self.shared else x
        return scaled_mask(like, self.p) if x.device.type == "cpu" else F.dropout(torch.ones_like(like), self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}" + (", shared" if self.shared else "")


class DepthwiseConvolve(torch.autograd.Function):
    """The same as `F.conv1d` on transposed data, four times as fast on CPUs in bf16.

    (B, L, D) as it lies in memory is what `conv2d` calls channels-last, where it is fastest forward and for the
    gradient of the input. It is slowest there for the gradient of the weights, which is a sum of W products instead.
    """

    @staticmethod
    def forward(ctx: Any, x_BLD: Tensor, weight_D1W: Tensor, bias_D: Tensor) -> Tensor:
        ctx.save_for_backward(x_BLD, weight_D1W)
        return _channels_last(x_BLD, weight_D1W, bias_D)

    @staticmethod
    def backward(ctx: Any, gradient_BLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x_BLD, weight_D1W = ctx.saved_tensors
        length, width = x_BLD.shape[1], weight_D1W.shape[2]
        gradient_BLD = gradient_BLD.contiguous()
        padded_BPD = F.pad(x_BLD, (0, 0, width // 2, width // 2))
        of_weight_DW = torch.stack(
            [(padded_BPD[:, shift : shift + length] * gradient_BLD).sum((0, 1)) for shift in range(width)], dim=1
        )
        of_x_BLD = _channels_last(gradient_BLD, weight_D1W.flip(-1), None)
        return of_x_BLD, of_weight_DW[:, None, :], gradient_BLD.sum((0, 1))


def _channels_last(x_BLD: Tensor, weight_D1W: Tensor, bias_D: Tensor | None) -> Tensor:
    image_BD1L = x_BLD.transpose(1, 2).unsqueeze(2)
    width = weight_D1W.shape[2]
    found = F.conv2d(image_BD1L, weight_D1W.unsqueeze(2), bias_D, padding=(0, width // 2), groups=len(weight_D1W))
    return found.squeeze(2).transpose(1, 2)
