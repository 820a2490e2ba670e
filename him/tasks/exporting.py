"""Export of a model: what a task says about its graph, and about the stock class that computes the same.

Each task has its own in `export.py`; the formats are in `him.export`.

# B batch   L length   N rows at once   T targets   V vocabulary
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from him.config import Config

ROWS_AT_ONCE = 8
OUTPUTS_AT_ONCE = 2**24  # numbers

Batch = dict[str, Tensor]
Outputs = Callable[[Batch], Sequence[Tensor]]


@dataclass
class Graph:
    """What is exported: a function of named tensors, and real inputs to try it on.

    Attributes:
        module: from a batch, a dict with tensors of the names in `inputs`, to a tuple of tensors (B, L) or (B, L, V).
        inputs, outputs: names of tensors.
        masks: for each output, the input that is True at the positions which count; None where all do.
        batches: of real inputs, the first one with two rows; batch sizes and lengths differ, and rows are padded.
        one_a_row: inputs (B,), without positions.
    """

    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    masks: tuple[str | None, ...]
    batches: list[Batch]
    one_a_row: tuple[str, ...] = ()

    def feed(self, batch: Batch) -> Batch:
        """The inputs of a batch."""
        return {name: batch[name] for name in self.inputs}

    def dynamic_shapes(self) -> dict[str, dict[int, str]]:
        """Which dimensions of each input are free."""
        return {name: {0: "batch"} | ({} if name in self.one_a_row else {1: "length"}) for name in self.inputs}


def few_batches(lengths: np.ndarray, batch: Callable[[Sequence[int]], Batch]) -> list[Batch]:
    """Batches to compare models on: two examples, three, the shortest and the longest, these two without padding.

    The examples have `lengths` (N,) tokens, and `batch` puts them together by their numbers.
    """
    by_length = np.argsort(lengths, kind="stable")
    shortest, middle, longest = by_length[0], by_length[len(by_length) // 2], by_length[-1]
    padded = [batch(rows) for rows in ([middle, longest], [longest, shortest, middle])]
    return padded + [_without_padding(batch(rows)) for rows in ([shortest], [longest])]


def _without_padding(batch: Batch) -> Batch:
    """A batch of one row, cut to its length."""
    width, length = batch["attention_mask"].shape[1], int(batch["attention_mask"].sum())
    return {name: each[:, :length] if each.shape[1:2] == (width,) else each for name, each in batch.items()}


def some_rows(batch: Batch, number: int) -> list[Batch]:
    """The batch cut into some of at most so many rows."""
    starts = range(0, len(batch["input_ids"]), number)
    return [{name: each[start : start + number] for name, each in batch.items()} for start in starts]


class ExportedTokens(nn.Module):
    """An exported model in the place of one that writes text, as far as its loss goes.

    `outputs` computes the logits or log-probabilities (B, L, V) of the next tokens; V is `vocab_size`.
    """

    def __init__(self, outputs: Outputs, vocab_size: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.vocab_size = vocab_size

    def loss(self, batch: Batch, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """See `LanguageModel.loss`; without smoothing, which is for training."""
        loss, num_correct = torch.zeros(()), torch.zeros(())
        num_rows = max(1, min(ROWS_AT_ONCE, OUTPUTS_AT_ONCE // (batch["input_ids"].shape[1] * self.vocab_size)))
        for rows in some_rows(batch, num_rows):
            (predicted_NLV,) = self.outputs(rows)
            labels_NT = rows["labels"]
            if "label_positions" in rows:  # of a summary, which has fewer tokens than its row
                positions_NT1 = rows["label_positions"][:, :, None]
                predicted_NLV = predicted_NLV.gather(1, positions_NT1.expand(-1, -1, self.vocab_size))
            counts_NT = rows.get("is_target", labels_NT >= 0)
            predicted_V, labels = predicted_NLV[counts_NT], labels_NT[counts_NT]
            loss += F.cross_entropy(predicted_V, labels, reduction="sum")
            num_correct += (predicted_V.argmax(dim=-1) == labels).sum()
        return loss, num_correct


@dataclass(frozen=True)
class StockClass:
    """A class of `transformers`, which says its configuration; the class that opens its folders; the prefix of the
    encoder's weights."""

    name: str
    auto: str
    prefix: str


class StockExport(ABC):
    """What a task knows about the stock classes of `transformers` that compute what its model does.

    Args:
        config, tokenizer: settings of the model, and the task's tokenizer.
        batches: of real inputs, to compare both models on.

    Attributes:
        classes: by `norm_first` and `positions`.
    """

    classes: ClassVar[Mapping[tuple[bool, str], StockClass]]

    def __init__(self, config: Config, tokenizer: Tokenizer, batches: list[Batch]) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.batches = batches

    @classmethod
    @abstractmethod
    def obstacles(cls, config: Config) -> list[str]:
        """What no class has, beside what none has of any task, each with the flag that avoids it."""

    @abstractmethod
    def settings(self, model: nn.Module) -> dict[str, object]:
        """Arguments of the class's configuration, beside those of all tasks."""

    @abstractmethod
    def head_weights(self, model: nn.Module) -> dict[str, Tensor]:
        """The weights behind the encoder, by the class's names."""

    @abstractmethod
    def templates(self, cls: str, sep: str) -> dict[str, str]:
        """Where special tokens stand, as arguments of `TemplateProcessing`."""

    @abstractmethod
    def tokenizer_settings(self, sep: str) -> dict[str, Any]:
        """Arguments of the tokenizer, `model_input_names` among them."""

    @abstractmethod
    def outputs(self, model: nn.Module, opened: nn.Module, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """The logits of both models, at tokens."""

    @abstractmethod
    def example(self) -> tuple[tuple[str, ...], dict[str, list[int]]]:
        """Texts for the saved tokenizer, and what the model was trained on for them, by name of the input."""
