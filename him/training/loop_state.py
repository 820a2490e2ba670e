"""Where the training loop stands: everything about it that a checkpoint holds."""

import typing
from dataclasses import dataclass, field
from typing import Any

from him.errors import CheckpointError
from him.metrics.running import RunningMean

SUMS = ("since_log", "since_epoch")


def new_means() -> dict[str, RunningMean]:
    """Sums of loss and accuracy, empty."""
    return {"Loss": RunningMean(), "Accuracy": RunningMean()}


@dataclass
class LoopState:
    """Where the loop stands; everything here is saved with each checkpoint.

    Attributes:
        step: updates made so far; epoch and place in it follow from this number.
        evaluation_due: whether the evaluation at this step is still to come.
        best_value, best_step: best value of the task's metric so far, and the step that reached it.
        bad_epochs: epochs since then.
        plateau_reductions: how often the `plateau` schedule has halved the rate.
        stopped_early: whether early stopping has ended the run.
        refused_in_a_row: updates refused since the last good one.
        rate_factor: of the learning rate; below 1 after a roll-back.
        most_tokens: in a forward pass, since memory ran out with more; None if it never did.
        since_log, since_epoch: sums of loss and accuracy since the last record and since the epoch began.
        epoch_before: mean loss and accuracy of the epoch before; of the first step, in the first epoch.
    """

    step: int = 0
    evaluation_due: bool = False
    best_value: float | None = None
    best_step: int = 0
    bad_epochs: int = 0
    plateau_reductions: int = 0
    stopped_early: bool = False
    refused_in_a_row: int = 0
    rate_factor: float = 1.0
    most_tokens: int | None = None
    since_log: dict[str, RunningMean] = field(default_factory=new_means)
    since_epoch: dict[str, RunningMean] = field(default_factory=new_means)
    epoch_before: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; floats survive JSON exactly."""
        sums = {each: {name: mean.state_dict() for name, mean in getattr(self, each).items()} for each in SUMS}
        return {name: value for name, value in vars(self).items() if name not in SUMS} | sums

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "LoopState":
        """Reads what `to_dict` gave.

        Raises:
            CheckpointError: it is something else.
        """
        try:
            state = cls(**{name: value for name, value in data.items() if name not in SUMS})
            for each in SUMS:
                for name, mean in getattr(state, each).items():
                    mean.load_state_dict(data[each][name])
        except (CheckpointError, KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"not a state of this HIM ({error})") from None
        kinds = {name: kind for name, kind in typing.get_type_hints(cls).items() if name not in (*SUMS, "epoch_before")}
        odd = [name for name, kind in kinds.items() if not isinstance(getattr(state, name), kind)]
        if odd or not 0 <= state.best_step <= state.step or set(state.epoch_before) - {"Loss", "Accuracy"}:
            raise CheckpointError(f"not a state of this HIM ({', '.join(odd) or 'step, best_step, epoch_before'})")
        return state
