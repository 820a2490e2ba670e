"""What a task is to the trainer, the predictor and the pictures: everything that they must not know themselves."""

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

if TYPE_CHECKING:  # so that looking up a task's name does not load PyTorch
    import numpy as np
    from torch import Tensor, nn

    from him.attention_maps import AttentionExample
    from him.core.compute import Compute
    from him.data.batching import SamplingWeights

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


class Task(ABC):
    """A task with its data.

    Attributes:
        name: as in `--task_type`.
        inputs: keywords of `predict`, which are flags of `scripts/predict.py`.
        best_metric: the metric by which the best model is chosen.
        shown_metrics: the metrics in the line after each epoch, those that the evaluation has.
        stages: names in the records of what is measured while training and in evaluations.
    """

    name: ClassVar[str]
    inputs: ClassVar[tuple[str, ...]]
    best_metric: ClassVar[str]
    shown_metrics: ClassVar[tuple[str, ...]]
    stages: ClassVar[tuple[str, str]] = ("train", "validation")

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

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes what `restore` needs beside the weights."""

    @property
    @abstractmethod
    def notes(self) -> Sequence[str]:
        """Lines about the data that the user should read."""

    @abstractmethod
    def build_model(self) -> nn.Module:
        """A new model; its weights come from torch's global generator."""

    @property
    @abstractmethod
    def train_lengths(self) -> np.ndarray:
        """(N,) tokens of each training example."""

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

    def places(self, examples: np.ndarray) -> np.ndarray:
        """Where in the training data, counted from 0, these training examples are from: to name them to the user."""
        return examples

    @abstractmethod
    def train_batch(self, examples: np.ndarray) -> dict[str, Tensor]:
        """The training examples of these numbers as one batch, a row each."""

    @abstractmethod
    def num_targets(self, batch: dict[str, Tensor]) -> int:
        """How many targets a batch's loss is summed over."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> LossSums:
        """Forward pass and loss of a batch."""

    @abstractmethod
    def pretraining(self) -> Task:
        """What is learned before: the same texts, and those of `--pretrain_files`, without their labels.

        Its model is a `PretrainingModel` around one of this task.
        """

    @abstractmethod
    def distillation_loss(
        self, model: nn.Module, teacher: nn.Module, batch: dict[str, Tensor], share: float
    ) -> LossSums:
        """The loss of a student: (1 - share) * `loss` + share * divergence from the predictions of its teacher."""

    @abstractmethod
    def dummy_batch(self, batch_size: int, length: int) -> dict[str, Tensor]:
        """A batch of random tokens without padding, that `loss` takes: to measure how fast a model is."""

    def forward(self, model: nn.Module, batch: dict[str, Tensor]) -> Any:
        """All that has to be computed to know what the model says about a batch."""
        return self.loss(model, batch)

    def with_config(self, config: Config) -> Task:
        """The same data under other settings, which change nothing about how the data are read."""
        other = copy.copy(self)
        other.config = config
        return other

    @abstractmethod
    def evaluate(self, model: nn.Module, compute: Compute, final: bool = False) -> Evaluation:
        """Measures the model on the whole validation set; slow metrics on a fixed part of it unless `final`."""

    @abstractmethod
    def evaluate_file(self, model: nn.Module, compute: Compute, path: str) -> Evaluation:
        """Measures the model on another file of the task's format, all metrics on all of it."""

    @abstractmethod
    def predict(self, model: nn.Module, compute: Compute, **inputs: Any) -> Any:
        """Answers one input; the task says which keywords it takes."""

    def stream(self, model: nn.Module, compute: Compute, **inputs: Any) -> Iterator[str] | None:
        """Answers one input piece by piece; None from a task that knows nothing before it knows all."""
        return None

    @abstractmethod
    def line(self, answer: Any) -> str:
        """What `predict` returned, for people."""

    @abstractmethod
    def predict_file(self, model: nn.Module, compute: Compute, path: str) -> dict[str, Any]:
        """Answers a file of the task's format, by id."""

    @abstractmethod
    def example_inputs(self) -> dict[str, str]:
        """Keywords for `predict` from the built-in data, of a kind that training does not show."""

    @abstractmethod
    def attention_examples(self, model: nn.Module, compute: Compute, num_examples: int) -> list[AttentionExample]:
        """Attention of a few validation examples, the same ones at each call."""
