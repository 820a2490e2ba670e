"""Depthwise convolution over a sequence: each channel with its neighbours.

Cheap reading of phrases before attention relates them, as in QANet (Yu et al. 2018, arXiv:1804.09541, section 2.1).

# B batch   L length   D embed_dim   W width
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DepthwiseConvolution(nn.Module):
    """Mixes each channel with its neighbours; what lies beyond the ends and where no token is counts as zero.

    Args:
        embed_dim: D channels, each with weights of its own.
        width: odd number W of places that a channel sees, itself in the middle.
    """

    def __init__(self, embed_dim: int, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(embed_dim, embed_dim, width, padding=width // 2, groups=embed_dim)

    def forward(self, x_BLD: Tensor, present_BL1: Tensor) -> Tensor:
        """Returns (B, L, D); `present_BL1` is 1 where there is a token and 0 where there is padding."""
        x_BLD = x_BLD * present_BL1
        if x_BLD.device.type != "cpu":
            return self.convolution(x_BLD.transpose(1, 2)).transpose(1, 2)
        weight, bias = (parameter.to(x_BLD.dtype) for parameter in (self.convolution.weight, self.convolution.bias))
        return _Convolve.apply(x_BLD, weight, bias)


class _Convolve(torch.autograd.Function):
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
            [(padded_BPD[:, place : place + length] * gradient_BLD).sum((0, 1)) for place in range(width)], dim=1
        )
        of_x_BLD = _channels_last(gradient_BLD, weight_D1W.flip(-1), None)
        return of_x_BLD, of_weight_DW[:, None, :], gradient_BLD.sum((0, 1))


def _channels_last(x_BLD: Tensor, weight_D1W: Tensor, bias_D: Tensor | None) -> Tensor:
    image_BD1L = x_BLD.transpose(1, 2).unsqueeze(2)
    width = weight_D1W.shape[2]
    found = F.conv2d(image_BD1L, weight_D1W.unsqueeze(2), bias_D, padding=(0, width // 2), groups=len(weight_D1W))
    return found.squeeze(2).transpose(1, 2)
