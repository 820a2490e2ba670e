"""Figures of several rounds: their middle and their range, and ratios taken round by round."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Spread:
    """A figure over rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of one value a round, at least one."""
        return cls(median(values), min(values), max(values))

    def text(self, form: str = ",.0f") -> str:
        """`median (low-high)`."""
        return f"{self.median:{form}} ({self.low:{form}}-{self.high:{form}})"

    def to_dict(self) -> dict[str, float]:
        """Plain data, to five digits, which is more than any of them is worth."""
        return {
            name: float(f"{value:.5g}")
            for name, value in (("median", self.median), ("min", self.low), ("max", self.high))
        }


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Ours divided by theirs in each round: what slows a whole round down drops out."""
    return Spread.of([own / other for own, other in zip(ours, theirs, strict=True)])
