"""Learning rate schedules: the rate as a pure function of the step, and the number of steps of a run."""

import math
from dataclasses import dataclass

from him.config import Config


def lr_at(step: int, config: Config, max_steps: int, plateau_reductions: int = 0) -> float:
    """Learning rate of the update number `step`, counted from 0.

    A linear rise over `warmup_ratio` of all steps, never from 0, so that the first update is not lost; then

    - `cosine`: half a cosine down to 0 (Loshchilov and Hutter 2016, arXiv:1608.03983, without restarts);
    - `linear`: straight down to 0;
    - `constant`: stays;
    - `plateau`: stays, and halves with each reduction, which the trainer counts when an epoch brings nothing.
    """
    num_warmup = math.ceil(config.warmup_ratio * max_steps)
    if step < num_warmup:
        return config.learning_rate * (step + 1) / num_warmup
    progress = (step - num_warmup) / max(1, max_steps - num_warmup)
    factor = {
        "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
        "linear": 1.0 - progress,
        "constant": 1.0,
        "plateau": 0.5**plateau_reductions,
    }[config.schedule]
    return config.learning_rate * factor


@dataclass(frozen=True)
class StepBudget:
    """Steps of an epoch and of the run; a step is one update.

    Attributes:
        steps_per_epoch: the last batch of an epoch may be a smaller one.
        max_steps: of the whole run: `--num_epochs` or `--max_steps`, whichever is less.
    """

    steps_per_epoch: int
    max_steps: int

    @classmethod
    def of(cls, examples_per_epoch: int, config: Config) -> "StepBudget":
        """The budget of a run."""
        steps_per_epoch = math.ceil(examples_per_epoch / config.batch_size)
        max_steps = config.num_epochs * steps_per_epoch
        return cls(steps_per_epoch, max_steps if config.max_steps is None else min(max_steps, config.max_steps))

    @property
    def num_epochs(self) -> int:
        """Epochs that are begun."""
        return math.ceil(self.max_steps / self.steps_per_epoch)

    def epoch(self, step: int) -> float:
        """Epochs done after so many steps, fractions included."""
        return step / self.steps_per_epoch

    def epochs_begun(self, step: int) -> int:
        """Number of the epoch, counted from 1, that ended with this step or goes on after it."""
        return math.ceil(self.epoch(step))

    def steps_in_epoch(self, step: int) -> int:
        """Steps made in this epoch."""
        return step - (self.epochs_begun(step) - 1) * self.steps_per_epoch

    def is_epoch_end(self, step: int) -> bool:
        """Whether the step was the last of an epoch or of the run."""
        return step % self.steps_per_epoch == 0 or step == self.max_steps
