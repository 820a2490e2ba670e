"""Weight masks of magnitude pruning: single weights that are 0 and stay so while the others are trained."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class WeightMasks:
    """Masks of a model's weights.

    Args:
        masks: by parameter name, False where a weight has to be 0; parameters that are not named are free.
    """

    def __init__(self, masks: Mapping[str, Tensor] | None = None) -> None:
        self.masks = dict(masks or {})

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Sets the weights of a model to 0 where their mask is False."""
        for name, mask in self.masks.items():
            model.get_parameter(name).mul_(mask)
