"""Recovery from numbers that are not finite: the update is refused; then the run goes back, once, at a lower rate."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from him.config import Config
from him.core.errors import HimError
from him.runs.checkpoint import Checkpoint, Checkpoints
from him.training.gradients import Gradients
from him.training.loop_state import TrainState
from him.training.non_finite import first_not_finite
from him.training.progress import Progress

MOST_REFUSED_IN_A_ROW = 5
RATE_AFTER_FAULT = 0.5


class RolledBack(Exception):
    """The run went back to an earlier step."""


@dataclass(eq=False)
class Recovery:
    """Recovery: what a run does about a loss, a gradient, a weight or an optimizer state that is not finite.

    `progress` tells the user, and drops the records of what is undone; `restore` puts a checkpoint into the run.
    """

    train_state: TrainState
    gradients: Gradients
    checkpoints: Checkpoints
    config: Config
    progress: Progress
    restore: Callable[[Checkpoint], None]

    def handle_non_finite(self, examples: np.ndarray, loss: float, gradient_norm: float) -> None:
        """Names the non-finite source of a step, whose update is not made; if that does not help, the run goes back.

        Args:
            examples: (B,) of the step, whose gradients are still there.

        Raises:
            RolledBack: the run is at an earlier step now.
            HimError: it went back before, or cannot.
        """
        loop = self.train_state.loop
        spoiled = first_not_finite(self.train_state.tensors())
        source = spoiled or self.gradients.non_finite_source(examples, loop.step, math.isfinite(loss))
        loop.refused_in_a_row += 1
        goes_back = spoiled is not None or loop.refused_in_a_row >= MOST_REFUSED_IN_A_ROW
        step = loop.step + 1
        self.progress.say(
            f"step {step}: loss {loss:.4g}, gradient norm {gradient_norm:.4g}; first not finite: {source}"
            + ("" if goes_back else "; the update is not made")
        )
        if goes_back:
            self.roll_back(f"step {step}: {source} is not finite")
            raise RolledBack

    def roll_back(self, reason: str) -> None:
        """Goes on from the newest checkpoint with a lower rate, once.

        Raises:
            HimError: the run went back before, or cannot.
        """
        loop = self.train_state.loop
        advice = (
            f"lower --learning_rate ({self.config.learning_rate:g}), raise --warmup_ratio, or use --precision fp32; "
            f"the checkpoints in {self.checkpoints.folder} are finite"
        )
        if loop.rate_factor < 1.0:
            raise HimError(f"{reason}, again after going back once with a lower rate; {advice}")
        checkpoint = self.checkpoints.load_newest(self.progress.say)
        if checkpoint is None:
            raise HimError(f"{reason}, and there is no checkpoint to go back to; {advice}")
        self.progress.close_records()
        self.restore(checkpoint)
        self.gradients.most_tokens = loop.most_tokens
        loop.rate_factor, loop.refused_in_a_row = RATE_AFTER_FAULT, 0
        self.progress.reopen_records()
        self.train_state.model.zero_grad(set_to_none=True)
        self.progress.say(f"back to step {loop.step}; from here on {RATE_AFTER_FAULT:g} of the learning rate")
