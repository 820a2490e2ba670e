"""The evaluation loop, and the metrics that the tasks have in common: loss, perplexity, accuracy, diversity, BERTScore.

# B batch
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from him.core.compute import Compute, in_parts
from him.data.batching import evaluation_batches
from him.metrics.bertscore import BertScorer, find_scorer_model
from him.metrics.diversity import distinct_n
from him.metrics.running import RunningMean, perplexity
from him.tasks.base import LossSums

T = TypeVar("T")


class Batches(Protocol):
    """Examples that can be put together to batches; `lengths` (N,) are the tokens of each."""

    lengths: np.ndarray

    def batch(self, numbers: np.ndarray) -> dict[str, Tensor]:
        """The examples of these numbers, a row each."""


@dataclass
class TargetMeans:
    """Mean loss in nats and accuracy in [0, 1] over targets, added up batch by batch."""

    loss: RunningMean = field(default_factory=RunningMean)
    accuracy: RunningMean = field(default_factory=RunningMean)

    def add(self, sums: LossSums, predicted: LossSums | None = None) -> None:
        """Adds the sums of a batch; the accuracy is that of `predicted` where it is of other targets than the loss."""
        predicted = predicted or sums
        self.loss.add(sums.loss, sums.num_targets)
        self.accuracy.add(predicted.num_correct, predicted.num_targets)

    def metrics(self) -> dict[str, float]:
        """Loss, Perplexity, and Accuracy in percent."""
        return {
            "Loss": self.loss.mean,
            "Perplexity": perplexity(self.loss.total, self.loss.count),
            "Accuracy": 100.0 * self.accuracy.mean,
        }


def forward_passes(
    batches: Batches, batch_size: int, compute: Compute, forward: Callable[[dict[str, Tensor]], T]
) -> Iterator[tuple[np.ndarray, dict[str, Tensor], T]]:
    """The evaluation loop: every example once, longest first; where memory runs out, half a batch at a time.

    Yields:
        Numbers of `batch_size` examples, their batch on the device, and what `forward` computed of it.
    """

    def work(numbers: np.ndarray) -> tuple[dict[str, Tensor], T]:
        batch = compute.to_device(batches.batch(numbers))
        with compute.autocast():
            return batch, forward(batch)

    for whole in evaluation_batches(batches.lengths, batch_size):
        for numbers, (batch, output) in in_parts(whole, work):
            yield numbers, batch, output


@torch.inference_mode()
def mean_loss(
    model: nn.Module,
    batches: Batches,
    batch_size: int,
    compute: Compute,
    loss: Callable[[nn.Module, dict[str, Tensor]], LossSums],
) -> TargetMeans:
    """Loss and accuracy of a model over all targets of some examples."""
    model.eval()
    means = TargetMeans()
    for _, _, sums in forward_passes(batches, batch_size, compute, lambda batch: loss(model, batch)):
        means.add(sums)
    return means


def diversity(texts: Sequence[str]) -> dict[str, float]:
    """Shares of different words and pairs of words, see `distinct_n`."""
    return {f"Diversity/distinct-{n}": distinct_n(texts, n) for n in (1, 2)}


class BertScores:
    """BERTScore, whose encoder (`wanted`: `--bertscore_model`) is loaded when it is first needed."""

    def __init__(self, wanted: str | None) -> None:
        self.wanted = wanted
        self._scorer: BertScorer | None = None

    def metrics(self, texts: Sequence[str], references: Sequence[Sequence[str]], compute: Compute) -> dict[str, float]:
        """BERTScore_F1 of texts against their references; nothing without texts, or where the encoder is missing."""
        name = find_scorer_model(self.wanted) if texts else None
        if name is None:
            return {}
        self._scorer = self._scorer or BertScorer(name, device=str(compute.device))
        return {"BERTScore_F1": self._scorer.f1(list(texts), [list(each) for each in references])}
