"""Train state: weights, optimizer state, EMA weights and place in the loop, all that a step hands on to the next."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from him.config import Config
from him.core.errors import CheckpointError
from him.runs.checkpoint import Checkpoint, optimizer_tensors, put_weights, restore_optimizers
from him.runs.folder import RunFolder
from him.training.ema import ExponentialMovingAverage
from him.training.loop_state import LoopState
from him.training.non_finite import all_finite
from him.training.optimizers import build_optimizers


class TrainState:
    """Train state: what a training run is made of, and what its checkpoints hold.

    Attributes:
        model: that is trained.
        optimizers: of its parameters.
        ema: the moving average of its weights, or None.
        loop: where the loop stands; always the same object.

    Args:
        model: to be trained, on its device.
        config: its optimization.
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
        states = (state for optimizer in self.optimizers for state in optimizer.state.values())
        values = [value for state in states for value in state.values() if value is not None]
        tensors = [value for value in values if isinstance(value, Tensor)] + self._parameters
        if self.ema is not None:
            tensors += self.ema.weights.values()
        numbers = [value for value in values if not isinstance(value, Tensor)]
        return all(map(math.isfinite, numbers)) and all_finite([each for each in tensors if each.is_floating_point()])

    def to_checkpoint(self, plain: Mapping[str, Any]) -> Checkpoint:
        """A checkpoint of this state.

        Args:
            plain: what it holds beside the tensors, `loop` included.
        """
        return Checkpoint(
            state=dict(plain),
            weights=self.model.state_dict(),
            optimizer_state=optimizer_tensors(self.model, self.optimizers),
            ema=self.ema.weights if self.ema is not None else {},
        )

    def restore(self, checkpoint: Checkpoint, folder: RunFolder, data: str, validation: str) -> None:
        """Takes over what `to_checkpoint` gave.

        Args:
            checkpoint: of the run.
            folder: of the run, for messages.
            data, validation: digests of what is learned from and of the validation data.

        Raises:
            CheckpointError: the digests are others, a weight has another shape, or the loop's state is of another HIM.
        """
        where = f"{folder}: the checkpoint"
        if checkpoint.state.get("data") != data:
            raise CheckpointError(
                f"{where} was made with other training data; restore the data, or start a new run with --init_from "
                f"{folder}"
            )
        if checkpoint.state.get("validation", "") != validation:
            raise CheckpointError(
                f"{where} was made with other validation data, by which its best model was chosen; restore the data, "
                f"or start a new run with --init_from {folder}"
            )
        put_weights(self.model, checkpoint.weights, where, "restore the config.json that the run began with")
        restore_optimizers(self.model, self.optimizers, checkpoint.optimizer_state)
        if self.ema is not None:
            device = next(self.model.parameters()).device
            self.ema.weights = {name: value.to(device, copy=True) for name, value in checkpoint.ema.items()}
        self.loop.restore(checkpoint.state["loop"], where)
