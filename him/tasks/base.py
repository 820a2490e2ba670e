"""The protocol of a task, in three parts: training, evaluation and inference, and what only some tasks can do.

`TrainingTask` is what the training loop uses, `Task` what everybody else may count on, and each class below `Task` is a
capability: whoever uses one asks first, with `isinstance`, and goes another way where a task has it not.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from him.config import Config
from him.config.resolve import resolve
from him.core.errors import ConfigError

if TYPE_CHECKING:  # so that looking up a task's name does not load PyTorch
    import numpy as np
    from tokenizers import Tokenizer
    from torch import Tensor, nn

    from him.attention_maps import AttentionExample
    from him.core.compute import Compute
    from him.data.batching import SamplingWeights
    from him.tasks.evaluation import Batches
    from him.tasks.exporting import Graph, Outputs, StockExport

# The other metrics are better when they are higher.
LOWER_IS_BETTER = frozenset({"Loss", "Perplexity", "Bits_Per_Byte"})


@dataclass
class LossSums:
    """Loss of a batch as sums, so that batches of any size add up.

    Attributes:
        loss: sum over all targets; a scalar tensor with a gradient.
        num_targets: number of targets.
        num_correct: how many of them the model's first choice met; a scalar tensor.
    """

    loss: Tensor
    num_targets: int
    num_correct: Tensor


@dataclass
class Evaluation:
    """Result of an evaluation.

    Attributes:
        metrics: by TensorBoard tag without its `/val`.
        predictions: file name -> plain data, written beside the run's metrics.
        samples: Markdown with a few things that the model wrote, or none.
    """

    metrics: dict[str, float]
    predictions: dict[str, Any] = field(default_factory=dict)
    samples: str = ""


class TrainingTask(ABC):
    """What the training loop uses: examples, batches, their loss, and an evaluation.

    Attributes:
        best_metric: the metric by which the best model is chosen.
        shown_metrics: the metrics in the line after each epoch, those that the evaluation has.
        stages: names in the records of what is measured while training and in evaluations.
        config: all settings.
        tokenizer: makes the token ids of the batches.
        train_batches: makes the batches of the training examples; None before the data are prepared.
    """

    best_metric: ClassVar[str]
    shown_metrics: ClassVar[tuple[str, ...]]
    stages: ClassVar[tuple[str, str]] = ("train", "validation")
    config: Config
    tokenizer: Tokenizer
    train_batches: Batches | None = None

    @abstractmethod
    def build_model(self) -> nn.Module:
        """A new model; its weights come from torch's global generator."""

    @property
    def train_lengths(self) -> np.ndarray:
        """(N,) tokens of each training example."""
        return self.train_batches.lengths

    @property
    def train_sampling(self) -> SamplingWeights | None:
        """How often the examples of several training files are seen in an epoch; None where each is seen once."""
        return None

    @property
    def examples_per_epoch(self) -> int:
        """Training examples seen in an epoch."""
        return len(self.train_lengths) if self.train_sampling is None else self.train_sampling.num_examples

    @cached_property
    def train_digest(self) -> str:
        """Tells training data from other data; here by the lengths of all examples, in their order."""
        from him.data.cache import content_digest

        return content_digest(self.train_lengths)

    @cached_property
    def validation_digest(self) -> str:
        """Tells validation data from other data."""
        return ""

    def source_indices(self, examples: np.ndarray) -> np.ndarray:
        """Where in the training data, counted from 0, these training examples are from: to name them to the user."""
        return examples

    def train_batch(self, examples: np.ndarray) -> dict[str, Tensor]:
        """The training examples of these numbers as one batch, a row each, with an `attention_mask` (B, L)."""
        return self.train_batches.batch(examples)

    @abstractmethod
    def num_targets(self, batch: dict[str, Tensor]) -> int:
        """How many targets a batch's loss is summed over."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> LossSums:
        """Forward pass and loss of a batch."""

    @abstractmethod
    def evaluate(self, model: nn.Module, compute: Compute, final: bool = False) -> Evaluation:
        """Measures the model on the whole validation set; slow metrics on a fixed part of it unless `final`."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes what is needed beside the weights of the best model, such as the tokenizer."""


class Task(TrainingTask):
    """A task with its data: training, evaluation and inference.

    Attributes:
        name: as in `--task_type`.
        inputs: keywords of `predict`, which are flags of `scripts/predict.py`.
        notes: lines about the data that the user should read.
    """

    name: ClassVar[str]
    inputs: ClassVar[tuple[str, ...]]
    notes: Sequence[str] = ()

    @classmethod
    def resolve(cls, config: Config) -> Config:
        """The configuration with this task's defaults where nothing was said; see `him.config.resolve`."""
        return resolve(config)

    @classmethod
    @abstractmethod
    def prepare(cls, config: Config, tokenizer_folder: Path | None = None) -> Task:
        """Loads the data and everything that training needs.

        Args:
            config: with the task's defaults.
            tokenizer_folder: folder written by `save`, whose tokenizer is used instead of a new one.

        Raises:
            DataError, ConfigError: the data or a setting is not usable.
        """

    @classmethod
    @abstractmethod
    def restore(cls, config: Config, folder: Path) -> Task:
        """The task as `save` left it, without training data: for predicting.

        Raises:
            CheckpointError: a file is missing or damaged.
        """

    def with_config(self, config: Config) -> Task:
        """The same data under other settings, which change nothing about how the data are read."""
        other = copy.copy(self)
        other.config = config
        return other

    @abstractmethod
    def evaluate_file(self, model: nn.Module, compute: Compute, path: str) -> Evaluation:
        """Measures the model on another file of the task's format, all metrics on all of it."""

    def forward(self, model: nn.Module, batch: dict[str, Tensor]) -> Any:
        """All that has to be computed to know what the model says about a batch."""
        return self.loss(model, batch)

    @abstractmethod
    def dummy_batch(self, batch_size: int, length: int) -> dict[str, Tensor]:
        """A batch of random tokens without padding, that `loss` takes: to measure how fast a model is."""

    @abstractmethod
    def predict(self, model: nn.Module, compute: Compute, **inputs: Any) -> Any:
        """Answers one input; the task says which keywords it takes."""

    @abstractmethod
    def line(self, answer: Any) -> str:
        """What `predict` returned, for people."""

    @abstractmethod
    def predict_file(self, model: nn.Module, compute: Compute, path: str) -> dict[str, Any]:
        """Answers a file of the task's format, by id."""

    @abstractmethod
    def example_inputs(self) -> dict[str, str]:
        """Keywords for `predict` from the built-in data, of a kind that training does not show."""


class PretrainableTask(Task):
    """A task that can learn from texts without labels first (`--pretrain_epochs`)."""

    @abstractmethod
    def pretraining(self) -> TrainingTask:
        """What is learned before: the same texts, and those of `--pretrain_files`, without their labels.

        Its model is a `PretrainingModel` around one of this task.
        """


class DistillableTask(Task):
    """A task that can learn from a teacher: knowledge distillation (Hinton et al. 2015, arXiv:1503.02531)."""

    @abstractmethod
    def distillation_loss(
        self, model: nn.Module, teacher: nn.Module, batch: dict[str, Tensor], share: float
    ) -> LossSums:
        """The loss of a student: (1 - share) * `loss` + share * divergence from the predictions of its teacher."""


class StreamingTask(Task):
    """A task that can answer piece by piece."""

    @abstractmethod
    def stream(self, model: nn.Module, compute: Compute, **inputs: Any) -> Iterator[str] | None:
        """Answers one input piece by piece; None where the settings let nothing be known before all is."""


class AttentionTask(Task):
    """A task that can show what its model attends to (`--attention_examples`)."""

    @abstractmethod
    def attention_examples(self, model: nn.Module, compute: Compute, num_examples: int) -> list[AttentionExample]:
        """Attention of a few validation examples, the same ones at each call."""


class ExportableTask(Task):
    """A task whose model other programs can run (`scripts/export.py`).

    Attributes:
        export_settings: for evaluating an exported model, which has its outputs and nothing else.
    """

    export_settings: ClassVar[dict[str, Any]] = {}

    @abstractmethod
    def export_graph(self, model: nn.Module) -> Graph:
        """What is exported of a model, with real inputs."""

    @abstractmethod
    def exported_model(self, outputs: Outputs) -> nn.Module:
        """An exported model in the place of a trained one, for evaluations with `export_settings`.

        What `export_graph` says is computed by `outputs`.
        """

    def stock_export(self) -> StockExport:
        """How stock classes of `transformers` compute what the model does.

        Raises:
            ConfigError: none does.
        """
        raise ConfigError(f"--format transformers: no stock class for --task_type {self.name}; use --format onnx")
