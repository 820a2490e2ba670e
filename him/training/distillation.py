"""Training with a teacher: Hinton et al. 2015 (arXiv:1503.02531)."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from him.config import Config
from him.core.compute import Compute
from him.core.errors import ConfigError
from him.data.cache import content_digest
from him.model.embeddings import hold_in_bf16
from him.runs.init_from import find_model
from him.runs.models import load_stage
from him.tasks.base import Evaluation, LossSums, Task


class TaughtTask:
    """A task whose training loss listens to a teacher too; all the rest is the task's own.

    Args:
        task: with its training data.
        teacher: the unpruned model, in evaluation mode.
        share: what the teacher counts, in [0, 1].
        masks: by parameter name, False where a weight has to stay 0.
    """

    def __init__(self, task: Task, teacher: nn.Module, share: float, masks: Mapping[str, Tensor]) -> None:
        self.task = task
        self.teacher = teacher
        self.share = share
        self.masks = masks

    @property
    def __class__(self) -> type:
        return type(self.task)  # whose capabilities it has

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    @cached_property
    def train_digest(self) -> str:
        """Tells what is learned from: the data and the teacher."""
        weights = [tensor.float().cpu().numpy() for tensor in self.teacher.state_dict().values()]
        return f"{self.task.train_digest}-{content_digest(*weights)}"

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> LossSums:
        """See `DistillableTask.distillation_loss`."""
        apply_masks(model, self.masks)
        if not self.share:
            return self.task.loss(model, batch)
        return self.task.distillation_loss(model, self.teacher, batch, self.share)

    def evaluate(self, model: nn.Module, compute: Compute, final: bool = False) -> Evaluation:
        """See `Task.evaluate`; the model that is measured, and kept if it is the best, has its zeros."""
        apply_masks(model, self.masks)
        return self.task.evaluate(model, compute, final)


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Sets weights to 0 where their mask is False."""
    for name, mask in masks.items():
        model.get_parameter(name).mul_(mask)


def teacher_folder(config: Config) -> Path | None:
    """The model folder that `--teacher` names.

    Raises:
        CheckpointError: it holds no model, or one of another task.
        ConfigError: it cannot read what the student reads.
    """
    if config.teacher is None:
        return None
    best = find_model("--teacher", config.teacher, config.task_type)
    teacher = Config.load(best / "config.json")
    if config.max_seq_len > teacher.max_seq_len and teacher.positions == "learned":
        raise ConfigError(
            f"--max_seq_len {config.max_seq_len}: the teacher reads {teacher.max_seq_len} tokens; use at most that"
        )
    if teacher.lexical_features and not config.lexical_features:
        raise ConfigError("--no-lexical_features: the teacher reads them; leave the flag out")
    return best


def taught_by_run(task: Task, config: Config, compute: Compute) -> Task | TaughtTask:
    """The task with the teacher that `--teacher` names, if any; it shares its tokenizer with the student."""
    folder = teacher_folder(config)
    if folder is None:
        return task
    teacher = load_stage(task.with_config(Config.load(folder / "config.json")), folder, compute)
    if compute.bf16:
        hold_in_bf16(teacher)
    return TaughtTask(task, teacher, config.distillation_weight, {})
