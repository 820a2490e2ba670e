"""Training objective: the loss that a step minimizes, and the weights that have to stay 0 while it does."""

from torch import Tensor, nn

from him.tasks.base import LossSums, Task
from him.training.masks import WeightMasks


class Objective:
    """Training loss on the labels: what the task itself says. Subclasses add to it.

    Attributes:
        digest: tells what is learned from beside the training data; empty if nothing is.

    Args:
        task: with its training data.
        masks: of the weights that stay 0; applied before each loss here, and before each evaluation by the trainer.
    """

    digest: str = ""

    def __init__(self, task: Task, masks: WeightMasks | None = None) -> None:
        self.task = task
        self.masks = WeightMasks() if masks is None else masks

    def __call__(self, model: nn.Module, batch: dict[str, Tensor]) -> LossSums:
        """Loss of a batch, summed over its targets."""
        self.masks.apply(model)
        return self.loss(model, batch)

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> LossSums:
        """The loss itself, of the weights as they are; see `Task.loss`."""
        return self.task.loss(model, batch)

    def data_digest(self) -> str:
        """Tells all that is learned from, training data included, from anything else: what a checkpoint holds."""
        return f"{self.task.train_digest}-{self.digest}" if self.digest else self.task.train_digest
