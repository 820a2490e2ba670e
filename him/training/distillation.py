"""Knowledge distillation: training with a teacher, Hinton et al. 2015 (arXiv:1503.02531)."""

from functools import cached_property

from torch import Tensor, nn

from him.data.cache import content_digest
from him.tasks.base import DistillableTask, LossSums, Task
from him.training.masks import WeightMasks
from him.training.objective import Objective


class Distillation(Objective):
    """Distillation loss: the labels, and the predictions of a teacher.

    Args:
        task: with its training data.
        teacher: in evaluation mode.
        weight: of the teacher's predictions, in [0, 1]; the labels have the rest.
        masks: see `Objective`.
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
    """Distillation, or the loss on the labels alone where the task cannot be taught by a model; see `Distillation`."""
    if isinstance(task, DistillableTask):
        return Distillation(task, teacher, weight, masks)
    return Objective(task, masks)
