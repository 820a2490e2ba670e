"""Training objective: the loss that a step minimizes, a teacher's part in it, and the weights that have to stay 0.

Distillation: Hinton et al. 2015 (arXiv:1503.02531).
"""

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor, nn

from him.data.cache import content_digest
from him.tasks.base import DistillableTask, LossSums, Task


class WeightMasks:
    """Weight masks of magnitude pruning: single weights that are 0 and stay so while the others are trained.

    Args:
        masks: by parameter name, False where a weight has to be 0; parameters that are not named are free.
    """

    def __init__(self, masks: Mapping[str, Tensor] | None = None) -> None:
        self.masks = dict(masks or {})

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Sets the weights of a model to 0 where their mask is False."""
        for name, mask in self.masks.items():
            model.get_parameter(name).mul_(mask)


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


class Distillation(Objective):
    """Distillation loss: the labels, and the predictions of a teacher.

    Args:
        teacher: in evaluation mode.
        weight: of the teacher's predictions, in [0, 1]; the labels have the rest.
    """

    def __init__(
        self, task: DistillableTask, teacher: nn.Module, weight: float, masks: WeightMasks | None = None
    ) -> None:
        super().__init__(task, masks)
        self.teacher = teacher
        self.weight = weight

    @cached_property
    def digest(self) -> str:
        """Tells the teacher's weights from others."""
        return content_digest(*(tensor.float().cpu().numpy() for tensor in self.teacher.state_dict().values()))

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> LossSums:
        """See `DistillableTask.distillation_loss`."""
        if not self.weight:
            return self.task.loss(model, batch)
        return self.task.distillation_loss(model, self.teacher, batch, self.weight)


def objective_with_teacher(
    task: Task, teacher: nn.Module, weight: float, masks: WeightMasks | None = None
) -> Objective:
    """Distillation, or the loss on the labels alone where the task cannot learn from a teacher; see `Distillation`."""
    if isinstance(task, DistillableTask):
        return Distillation(task, teacher, weight, masks)
    return Objective(task, masks)
