"""Dropout whose mask costs a fraction of the stock one on CPUs.

Srivastava et al. 2014, "Dropout: A Simple Way to Prevent Neural Networks from Overfitting".
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from him.model.cpu_kernels import AddMasked, scaled_mask


class Dropout(nn.Module):
    """`nn.Dropout` with the probability rounded to 1/256 on CPUs, where eight mask bytes are cut from one 64-bit draw.

    `bernoulli_` draws a number per element from a serial generator: a quarter of a training step. On other devices
    this is `F.dropout`. The scale uses the rounded probability, so that the expectation is exactly the input.

    Args:
        p: probability of zeroing an element.
        shared: whether all places of a sample lose the same channels (Gal and Ghahramani 2016, arXiv:1512.05287);
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
