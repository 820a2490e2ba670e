"""Numerical differences: whether an export computes what the trained model computes."""

import math
from typing import Any

from torch import Tensor

from him.core.errors import CheckpointError

# Between two exact ways to compute the same there is rounding only, which grows with the numbers that are rounded.
TOLERANCE = 1e-5


class Differences:
    """The largest difference over all that was compared.

    Attributes:
        largest: of |found - expected|; NaN if either is.
        largest_output: of |expected|.
        shapes: what was tried, as [B, L].
    """

    def __init__(self) -> None:
        self.largest = 0.0
        self.largest_output = 0.0
        self.shapes: list[list[int]] = []

    def add(self, expected: Tensor, found: Tensor) -> None:
        """Compares two outputs of the same shape."""
        assert expected.shape == found.shape and expected.numel() > 0
        difference = float((found - expected).abs().max())
        # Python's `max` would let a NaN pass.
        self.largest = math.nan if math.isnan(difference + self.largest) else max(self.largest, difference)
        self.largest_output = max(self.largest_output, float(expected.abs().max()))

    def check(self, what: str) -> None:
        """Raises CheckpointError if `what` was more than rounding away from the trained model."""
        allowed = TOLERANCE * max(1.0, self.largest_output)
        if not self.largest <= allowed:
            raise CheckpointError(
                f"{what}: its outputs differ from the trained model's by {self.largest:.2g}, allowed are "
                f"{allowed:.2g}; nothing was written"
            )

    def to_dict(self) -> dict[str, Any]:
        """For `export.json`."""
        return {
            "max_difference": self.largest,
            "largest_output": self.largest_output,
            "checked_shapes": self.shapes,
        }
