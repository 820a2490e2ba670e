"""Training after pruning, taught by the model as it was before: Hinton et al. 2015 (arXiv:1503.02531)."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from him.compute import Compute
from him.config import Config
from him.tasks.base import Evaluation, LossSums, Task

SHARE_OF_STEPS = 1 / 3  # of the training before, where nobody says how long


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

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> LossSums:
        """See `Task.distillation_loss`."""
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


def fine_tuning_config(config: Config, steps_per_epoch: int, best_step: int) -> Config:
    """The settings of the training after pruning.

    Args:
        config: of the pruned model, with the budget of the training before.
        steps_per_epoch: of the training data.
        best_step: the step of the training before that the model is of.
    """
    rate = config.fine_tune_learning_rate or config.learning_rate / 2
    num_epochs, max_steps = config.fine_tune_epochs, None
    if num_epochs is None:
        before = min(config.num_epochs * steps_per_epoch, config.max_steps or math.inf)
        if config.early_stopping_epochs:
            before = min(before, best_step + config.early_stopping_epochs * steps_per_epoch)
        max_steps = math.ceil(SHARE_OF_STEPS * before)
        num_epochs = math.ceil(max_steps / steps_per_epoch)
    return dataclasses.replace(
        config,
        num_epochs=num_epochs,
        max_steps=2 if config.dry_run else max_steps,
        learning_rate=rate,
        # Muon's rate goes down with the other one.
        muon_learning_rate=min(10.0, config.muon_learning_rate * rate / config.learning_rate),
        early_stopping_epochs=0,
        eval_every_steps=None,
        bertscore_samples=0,
    )
