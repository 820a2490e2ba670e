"""Training observers: whoever wants to see what a run does without taking part in it, such as a diagnosis."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import nn

from him.tasks.base import Evaluation


@dataclass(frozen=True)
class Update:
    """An update that was made.

    Attributes:
        step: its number, counted from 1, as in the records.
        loss: mean over the targets of its batch.
        accuracy: of its predictions, in [0, 1].
        gradient_norm: before clipping.
        learning_rate: of `--learning_rate`'s groups.
        examples: (B,) indices of its training examples.
        model: after it; the gradients, clipped, are still there.
    """

    step: int
    loss: float
    accuracy: float
    gradient_norm: float
    learning_rate: float
    examples: np.ndarray
    model: nn.Module


class Observer(Protocol):
    """Observer of a training run. It may read what it is shown and has to leave it, and torch's generator, as it was.

    A step that is made again after a roll-back is shown again.
    """

    def after_update(self, update: Update) -> None:
        """An update was made; a refused one is not shown."""

    def after_evaluation(self, step: int, evaluation: Evaluation, is_best: bool) -> None:
        """The model was evaluated after so many steps, and is the best so far or not."""

    def at_epoch_end(self, step: int, epoch: int, means: dict[str, float]) -> None:
        """An epoch has ended, counted from 1; its evaluation was made.

        Args:
            means: training loss (`Loss`) and accuracy (`Accuracy`, in [0, 1]) over the epoch.
        """
