"""What the pretraining of all tasks has in common: a task of its own, on the same texts, without labels."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn

from him.config.resolve import pretraining_config
from him.core.compute import Compute
from him.model.initialization import initialize
from him.model.masked_lm import MLMHead, PretrainingModel
from him.tasks.base import Evaluation, LossSums, Task

MASKED_SHARE = 0.15  # of the words (Devlin et al. 2018, arXiv:1810.04805)
MLM_WEIGHT = 0.5  # of the masked tokens; the synthetic questions, or the words that follow, count 1
EVALUATION_SEED = 0  # of the words that are hidden in validation texts


class Pretraining:
    """A task that is learned before another one; what is not said here is as with the other one.

    Args:
        task: the other one, with its data.
    """

    best_metric: ClassVar[str] = "Loss"
    shown_metrics: ClassVar[tuple[str, ...]] = ("Accuracy",)
    stages: ClassVar[tuple[str, str]] = ("pretraining", "pretraining")
    train_sampling: ClassVar[None] = None

    def __init__(self, task: Task) -> None:
        self.config = pretraining_config(task.config)
        self.task = task.with_config(self.config)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    @property
    def examples_per_epoch(self) -> int:
        """Examples that are seen in an epoch."""
        return len(self.train_lengths)

    def build_model(self) -> PretrainingModel:
        """The task's model with a head beside it, with weights drawn anew."""
        head = MLMHead(self.config.embed_dim, self.task.tokenizer.get_vocab_size())
        model = PretrainingModel(self.task.build_model(), head)
        initialize(head)
        return model

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> LossSums:
        """That of what the task is about, and that of the masked tokens as if there were as many, times a weight."""
        sums, mlm_loss, num_words, _ = self._read(model, batch, None)
        weight = MLM_WEIGHT * sums.num_targets / max(1, num_words)
        return LossSums(sums.loss + weight * mlm_loss, sums.num_targets, sums.num_correct)

    @abstractmethod
    def evaluate(self, model: nn.Module, compute: Compute, final: bool = False) -> Evaluation:
        """The same loss on the texts of the validation data, and what the task can measure already."""
