"""Running means over batches, from sums and counts: a mean of batch means would give small batches too much weight."""

import math
from collections.abc import Mapping

from him.core.errors import CheckpointError


class RunningMean:
    """A total and what it is a total of (targets, tokens, examples), added up batch by batch.

    The sums are Python floats (64 bits). To join the means of several processes, add their `total` and `count`.
    """

    def __init__(self) -> None:
        self.total = 0.0
        self.count = 0.0

    def add(self, total: float, count: float) -> None:
        """Adds the sum over a batch (not its mean) and the number of things summed; `count` 0 is allowed.

        One-element tensors are accepted; reading one from a GPU waits for it, so add them at the pace of the log.
        """
        count = float(count)
        assert count >= 0, f"a count cannot be negative: {count}"
        self.total += float(total)
        self.count += count

    @property
    def mean(self) -> float:
        """total / count; NaN while nothing has been counted, so that it cannot pass for a measured 0."""
        return self.total / self.count if self.count else math.nan

    def state_dict(self) -> dict[str, float]:
        """`total` and `count`, plain floats for JSON; `load_state_dict` continues from them exactly."""
        return {"total": self.total, "count": self.count}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Takes over what `state_dict` returned.

        Raises:
            CheckpointError: `state` does not have exactly the two numbers, or the count is negative.
        """
        is_one = isinstance(state, Mapping) and set(state) == {"total", "count"}
        if not is_one or not all(type(value) in (int, float) for value in state.values()):
            raise CheckpointError(f"running mean: expected the numbers 'total' and 'count', found {state!r}")
        if not state["count"] >= 0:
            raise CheckpointError(f"running mean: count {state['count']} must be 0 or more")
        self.total = float(state["total"])
        self.count = float(state["count"])


def perplexity(total_loss: float, total_targets: float) -> float:
    """exp(total_loss / total_targets), the loss in nats; inf where that exceeds a float (above 709 nats a target).

    NaN if there is no target or the loss is NaN.
    """
    if not total_targets:
        return math.nan
    try:
        return math.exp(total_loss / total_targets)
    except OverflowError:
        return math.inf
