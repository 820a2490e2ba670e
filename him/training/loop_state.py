"""Loop state: where the training loop stands, everything about it that a checkpoint holds."""

import math
import typing
from dataclasses import dataclass, field
from typing import Any

from him.core.errors import CheckpointError
from him.metrics.running import RunningMean

SUMS = ("since_log", "since_epoch")
LARGEST_COUNT = 2**53  # a float holds it


def new_means() -> dict[str, RunningMean]:
    """Sums of loss and accuracy, empty."""
    return {"Loss": RunningMean(), "Accuracy": RunningMean()}


@dataclass
class LoopState:
    """Loop state; everything here is saved with each checkpoint.

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

    def count_update(self, loss: RunningMean, accuracy: RunningMean) -> None:
        """Takes the sums of an update that was made into the means."""
        self.refused_in_a_row = 0
        self.epoch_before = self.epoch_before or {"Loss": loss.mean, "Accuracy": accuracy.mean}
        for sums in (self.since_log, self.since_epoch):
            sums["Loss"].add(loss.total, loss.count)
            sums["Accuracy"].add(accuracy.total, accuracy.count)

    def end_epoch(self, num_steps: int, patience: int, halves_rate: bool) -> None:
        """Begins new means, and counts epochs that brought no best model, for early stopping and the plateau schedule.

        Args:
            num_steps: of the epoch that ends here.
            patience: such epochs in a row that end the run; 0 for never.
            halves_rate: whether each of them reduces the rate.
        """
        if self.since_epoch["Loss"].count:
            self.epoch_before = {name: mean.mean for name, mean in self.since_epoch.items()}
        self.since_epoch = new_means()
        if self.best_step > self.step - num_steps:
            self.bad_epochs = 0
            return
        self.bad_epochs += 1
        self.plateau_reductions += halves_rate
        self.stopped_early = 0 < patience <= self.bad_epochs

    def restore(self, data: dict[str, Any], where: str) -> None:
        """Becomes what `to_dict` gave.

        Raises:
            CheckpointError: it is something else; the message begins with `where`.
        """
        try:
            vars(self).update(vars(LoopState.from_dict(data)))
        except CheckpointError as error:
            raise CheckpointError(f"{where}: {error}") from None

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "LoopState":
        """Reads what `to_dict` gave.

        Raises:
            CheckpointError: it is something else.
        """
        kinds = typing.get_type_hints(cls)
        if not isinstance(data, dict) or set(data) != set(kinds):
            names = ", ".join(sorted(map(str, set(data) ^ set(kinds)))) if isinstance(data, dict) else "no names"
            raise CheckpointError(f"not a state of this HIM ({names})")
        odd = [name for name, kind in kinds.items() if name not in SUMS and not _is_sound(data[name], kind)]
        if odd or data["best_step"] > data["step"] or not 0 < data["rate_factor"] <= 1:
            raise CheckpointError(f"not a state of this HIM ({', '.join(odd) or 'step, best_step, rate_factor'})")
        state = cls(**{name: value for name, value in data.items() if name not in SUMS})
        try:
            for each in SUMS:
                means = getattr(state, each)
                if set(data[each]) != set(means):
                    raise CheckpointError(f"expected {', '.join(means)}")
                for name, mean in means.items():
                    mean.load_state_dict(data[each][name])
                    if not math.isfinite(mean.total + mean.count):
                        raise CheckpointError(f"{name} is not finite")
        except (CheckpointError, KeyError, TypeError, OverflowError) as error:
            raise CheckpointError(f"not a state of this HIM ({each}: {error})") from None
        return state


def _is_sound(value: Any, kind: Any) -> bool:
    """Whether a value is one that the loop may have had: counts from 0 on, and finite means of both kinds or none."""
    if kind == dict[str, float]:
        means = isinstance(value, dict) and set(value) in (set(), set(new_means()))
        return means and all(isinstance(mean, float) and math.isfinite(mean) for mean in value.values())
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    return isinstance(value, kind) and not (isinstance(value, int) and not 0 <= value <= LARGEST_COUNT)
