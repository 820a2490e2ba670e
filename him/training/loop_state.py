"""Loop state and train state: all that a step hands on to the next, everything that a checkpoint holds."""

import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from him.config import Config
from him.core.errors import CheckpointError
from him.metrics.running import RunningMean
from him.runs.checkpoint import Checkpoint, optimizer_tensors, put_weights, restore_optimizers
from him.runs.folder import RunFolder
from him.training.ema import ExponentialMovingAverage
from him.training.non_finite import all_finite
from him.training.optimizers import build_optimizers

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


class TrainState:
    """Train state: weights, optimizer state, EMA weights and place in the loop, which are what checkpoints hold.

    Attributes:
        model: that is trained, on its device.
        ema: the moving average of its weights, or None.
        loop: where the loop stands; always the same object.
    """

    def __init__(self, model: nn.Module, config: Config) -> None:
        self.model = model
        self.optimizers = build_optimizers(model, config)
        self.ema = ExponentialMovingAverage(model, config.ema_decay) if config.ema_decay else None
        self.loop = LoopState()
        self._parameters = list(model.parameters())

    def update(self, learning_rate: float) -> None:
        """One update of the weights by their gradients, and of their average."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * group["lr_ratio"]
            optimizer.step()
        if self.ema is not None:
            self.ema.update(self.model, self.loop.step)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by the words of messages. What was bad before an update comes before what it made bad."""
        averaged = self.ema.weights if self.ema is not None else {}
        optimizer_state = optimizer_tensors(self.model, self.optimizers)
        return (
            {f"the optimizer state {name}": value for name, value in optimizer_state.items()}
            | {f"the weights {name}": value.detach() for name, value in self.model.named_parameters()}
            | {f"the EMA weights {name}": value for name, value in averaged.items()}
        )

    def is_finite(self) -> bool:
        """Whether all of `tensors` are, without their names: every step asks."""
        values = [value for each in self.optimizers for state in each.state.values() for value in state.values()]
        values += [*self._parameters, *(self.ema.weights.values() if self.ema is not None else ())]
        tensors = [value for value in values if isinstance(value, Tensor) and value.is_floating_point()]
        return all(math.isfinite(value) for value in values if isinstance(value, float)) and all_finite(tensors)

    def to_checkpoint(self, plain: Mapping[str, Any]) -> Checkpoint:
        """A checkpoint of this state; `plain` is what it holds beside the tensors, `loop` included."""
        return Checkpoint(
            state=dict(plain),
            weights=self.model.state_dict(),
            optimizer_state=optimizer_tensors(self.model, self.optimizers),
            ema=self.ema.weights if self.ema is not None else {},
        )

    def restore(self, checkpoint: Checkpoint, folder: RunFolder, data: str, validation: str) -> None:
        """Takes over what `to_checkpoint` gave.

        Args:
            folder: of the run, for messages.
            data, validation: digests of what is learned from and of the validation data.

        Raises:
            CheckpointError: the digests are others, a weight has another shape, or the loop's state is of another HIM.
        """
        where = f"{folder}: the checkpoint"
        fix = f"restore the data, or start a new run with --init_from {folder}"
        if checkpoint.state.get("data") != data:
            raise CheckpointError(f"{where} was made with other training data; {fix}")
        if checkpoint.state.get("validation", "") != validation:
            others = "other validation data, by which its best model was chosen"
            raise CheckpointError(f"{where} was made with {others}; {fix}")
        put_weights(self.model, checkpoint.weights, where, "restore the config.json that the run began with")
        restore_optimizers(self.model, self.optimizers, checkpoint.optimizer_state)
        if self.ema is not None:
            device = next(self.model.parameters()).device
            self.ema.weights = {name: value.to(device, copy=True) for name, value in checkpoint.ema.items()}
        self.loop.restore(checkpoint.state["loop"], where)
