"""Pretraining: what it is in all tasks, a task of its own on the same texts, without labels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from him.config.resolve import pretraining_config
from him.core.compute import Compute
from him.model.initialization import initialize
from him.model.masked_lm import MLMHead, PretrainingModel, mask_positions
from him.tasks.base import LossSums, Task, TrainingTask
from him.tasks.evaluation import Batches, forward_passes
from him.text.tokenizer import MASK, special_id

MASKED_SHARE = 0.15  # of the words (Devlin et al. 2018, arXiv:1810.04805)
MLM_WEIGHT = 0.5  # of the masked tokens; the synthetic questions, or the words that follow, count 1
EVALUATION_SEED = 0  # of the tokens that are masked in validation texts
EVALUATION_BATCH = 64


class Pretraining(TrainingTask):
    """A task that is learned before another one, `task`, from its texts, some tokens of which are masked."""

    best_metric: ClassVar[str] = "Loss"
    shown_metrics: ClassVar[tuple[str, ...]] = ("Accuracy",)
    stages: ClassVar[tuple[str, str]] = ("pretraining", "pretraining")

    def __init__(self, task: Task) -> None:
        self.config = pretraining_config(task.config)
        self.task = task.with_config(self.config)
        self.tokenizer = task.tokenizer
        self.mask_id = special_id(task.tokenizer, MASK)

    @cached_property
    def validation_digest(self) -> str:
        """That of the task, from whose validation data these texts are."""
        return self.task.validation_digest

    def num_targets(self, batch: dict[str, Tensor]) -> int:
        """Those of what the task is about; masked tokens count beside them."""
        return self.task.num_targets(batch)

    def masked(
        self, batch: dict[str, Tensor], may_mask_BL: Tensor, generator: torch.Generator | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The batch with `MASKED_SHARE` of its words masked, and where, boolean (B, L).

        Args:
            batch: `input_ids` (B, L) and `word_ids` (B, L), see `mask_positions`.
            may_mask_BL: boolean; the other tokens stay.
            generator: chooses the words; None is the device's own.
        """
        ids_BL = batch["input_ids"]
        is_masked_BL = mask_positions(batch["word_ids"], MASKED_SHARE, may_mask_BL, generator)
        return {**batch, "input_ids": ids_BL.masked_fill(is_masked_BL, self.mask_id)}, is_masked_BL

    def save(self, folder: Path) -> None:
        """Writes what the task needs beside its weights."""
        self.task.save(folder)


class MaskedPretraining(Pretraining):
    """A pretraining whose masked tokens are predicted by a head of their own, beside what the task is about."""

    validation_batches: Batches

    def build_model(self) -> PretrainingModel:
        """The task's model with a head beside it, with weights drawn anew."""
        head = MLMHead(self.config.embed_dim, self.tokenizer.get_vocab_size())
        model = PretrainingModel(self.task.build_model(), head)
        initialize(head)
        return model

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> LossSums:
        """That of what the task is about, and that of the masked tokens as if there were as many, times a weight."""
        sums, masked = self.losses(model, batch)
        weight = MLM_WEIGHT * sums.num_targets / max(1, masked.num_targets)
        return LossSums(sums.loss + weight * masked.loss, sums.num_targets, sums.num_correct)

    def validation_losses(self, model: PretrainingModel, compute: Compute) -> Iterator[tuple[LossSums, LossSums]]:
        """`losses` of each batch of the validation texts, in which the same tokens are masked each time."""
        model.eval()
        generator = torch.Generator(compute.device).manual_seed(EVALUATION_SEED)
        forward = partial(self.losses, model, generator=generator)
        return (sums for _, _, sums in forward_passes(self.validation_batches, EVALUATION_BATCH, compute, forward))

    @abstractmethod
    def losses(
        self, model: PretrainingModel, batch: dict[str, Tensor], generator: torch.Generator | None = None
    ) -> tuple[LossSums, LossSums]:
        """The loss of what the task is about, and that of the masked tokens, from one forward pass.

        Args:
            model, batch: see `loss`.
            generator: chooses the masked tokens; None is the device's own.
        """
