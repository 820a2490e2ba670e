"""Depthwise convolution over a sequence: each channel with its neighbours.

Cheap reading of phrases before attention relates them, as in QANet (Yu et al. 2018, arXiv:1804.09541, section 2.1).

# B batch   L length   D embed_dim   W width
"""

import torch.nn.functional as F
from torch import Tensor, nn

from him.model.cpu_kernels import DepthwiseConvolve
from him.model.kv_cache import LayerCache


class DepthwiseConvolution(nn.Module):
    """Mixes each channel with its neighbours; what lies beyond the ends and where no token is counts as zero.

    Args:
        embed_dim: D channels, each with weights of its own.
        width: odd number W of places that a channel sees, itself in the middle, or at the end if `causal`.
        causal: whether a place sees itself and earlier ones only.
    """

    def __init__(self, embed_dim: int, width: int, causal: bool = False) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(embed_dim, embed_dim, width, padding=width // 2, groups=embed_dim)
        self.width = width
        self.causal = causal

    def forward(self, x_BLD: Tensor, present_BL1: Tensor | None = None, cache: LayerCache | None = None) -> Tensor:
        """Returns (B, L, D).

        Args:
            present_BL1: 1 where there is a token and 0 where there is padding. Not needed if `causal`, with the padding
                at the end, where nothing sees it.
            cache: as in `SelfAttention`; for causal ones only.
        """
        if cache is not None and cache.is_filled:
            return self._step(cache.shift_in(x_BLD))
        if cache is not None:
            cache.keep_last(x_BLD, self.width - 1)
        if present_BL1 is not None:
            x_BLD = x_BLD * present_BL1
        if self.causal:  # centred over a sequence that begins half a width earlier
            length = x_BLD.shape[1]
            return self._centred(F.pad(x_BLD, (0, 0, self.width // 2, 0)))[:, :length]
        assert present_BL1 is not None, "a centred convolution has to know where the padding is"
        return self._centred(x_BLD)

    def _centred(self, x_BLD: Tensor) -> Tensor:
        if x_BLD.device.type != "cpu":
            return self.convolution(x_BLD.transpose(1, 2)).transpose(1, 2)
        return DepthwiseConvolve.apply(x_BLD, *self._parameters_like(x_BLD))

    def _step(self, window_NWD: Tensor) -> Tensor:
        """The output for the last place of each window, (N, 1, D)."""
        weight_D1W, bias_D = self._parameters_like(window_NWD)
        return ((window_NWD * weight_D1W[:, 0].T).sum(dim=1) + bias_D)[:, None]

    def _parameters_like(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.convolution.weight.to(x.dtype), self.convolution.bias.to(x.dtype)
