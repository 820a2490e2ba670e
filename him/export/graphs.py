"""What an exported model computes for each task: a function of named tensors, and real inputs to try it on.

# B batch   L length   T targets   D embed_dim   V vocabulary
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from him.core.errors import ConfigError
from him.data.records import Pair, PairData
from him.data.sample import squad_sample, summarization_sample, text_sample
from him.model.generative import GenerativeModel, padded
from him.tasks.base import Task
from him.tasks.squad.batches import SquadBatches
from him.tasks.squad.features import FeatureOptions, build_features
from him.tasks.squad.reader import squad_from_document
from him.tasks.squad.task import SquadTask
from him.tasks.summarization.features import PairBatches, build_pair_features
from him.tasks.summarization.model import SummarizationModel
from him.text.tokenizer import CLS, PAD, SEP, special_id

ONE_A_ROW = ("focus_ids",)  # inputs without places


@dataclass
class Graph:
    """What is exported.

    Attributes:
        module: from a batch, a dict with tensors of the names in `inputs`, to a tuple of tensors (B, L) or (B, L, V).
        inputs, outputs: names of tensors.
        places: for each output, the input that is True at the places which count; None where all do.
        batches: of real inputs, the first one with two rows; batch sizes and lengths differ, and rows are padded.
    """

    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    places: tuple[str | None, ...]
    batches: list[dict[str, Tensor]]

    def feed(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inputs of a batch."""
        return {name: batch[name] for name in self.inputs}

    def dynamic_shapes(self) -> dict[str, dict[int, str]]:
        """Which dimensions of each input are free."""
        return {name: {0: "batch"} | ({} if name in ONE_A_ROW else {1: "length"}) for name in self.inputs}


class SpanLogits(nn.Module):
    """Question answering: logits of start and end, very low where none may be."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Returns two (B, L)."""
        output = self.model(batch)
        return output.start_logits_BL, output.end_logits_BL


class NextTokenLogits(nn.Module):
    """Language modelling: logits of the token behind each place."""

    def __init__(self, model: GenerativeModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor]:
        """Returns (B, L, V)."""
        tokens = self.model.embedding.tokens
        return (tokens.project(self.model(batch).hidden_BLD, self.model.output_bias),)


class NextTokenLogProbabilities(nn.Module):
    """Summarization: log-probabilities of the token behind each place, from the vocabulary or copied.

    The same as `SummarizationModel.recompute` at all places at once. Those within a document, which the model did not
    learn to continue, come along.
    """

    def __init__(self, model: SummarizationModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor]:
        """Returns (B, L, V)."""
        model, ids_BL = self.model, batch["input_ids"]
        hidden_BLD = model(batch).hidden_BLD
        logits_BLV = model.embedding.tokens.project(hidden_BLD, model.output_bias)
        if model.copy is None:
            return (logits_BLV.log_softmax(dim=-1),)
        embedded_BLD = model.embedding.tokens(ids_BL)
        in_prompt_BL = batch["attention_mask"] & (batch["token_type_ids"] == 0)
        source = model.copy.source(hidden_BLD, embedded_BLD, ids_BL, in_prompt_BL)
        log_weights_BLL, gate_BL = model.copy(hidden_BLD, embedded_BLD, source)
        gate_BL1 = gate_BL.sigmoid()[:, :, None]
        vocabulary_BLV = logits_BLV.softmax(dim=-1) * (1.0 - gate_BL1)
        copied_ids_BLL = ids_BL[:, None, :].expand_as(log_weights_BLL)
        mixed_BLV = vocabulary_BLV.scatter_add(2, copied_ids_BLL, gate_BL1 * log_weights_BLL.exp())
        return (mixed_BLV.clamp_min(torch.finfo(mixed_BLV.dtype).tiny).log(),)


def graph_of(task: Task, model: nn.Module) -> Graph:
    """What to export of a model.

    Raises:
        ConfigError: it is of a task that nothing is known of here.
    """
    if task.name == "squad":
        inputs = ("input_ids", "token_type_ids", "attention_mask", "may_start", "may_end")
        if task.config.lexical_features:
            inputs += (*model.embedding.lexical.tables, "scalars", "focus_ids")
        outputs, places = ("start_logits", "end_logits"), ("may_start", "may_end")
        return Graph(SpanLogits(model).eval(), inputs, outputs, places, squad_batches(task))
    if task.name == "lm":
        return Graph(NextTokenLogits(model).eval(), ("input_ids",), ("logits",), (None,), text_batches(task))
    if task.name == "summarization":
        inputs = ("input_ids", "token_type_ids", "attention_mask")
        module = NextTokenLogProbabilities(model).eval()
        return Graph(module, inputs, ("log_probabilities",), ("attention_mask",), pair_batches(task))
    raise ConfigError(f"--task_type {task.name} cannot be exported; squad, summarization and lm can")


# -- real inputs -------------------------------------------------------------------------------------------------------


def squad_batches(task: SquadTask) -> list[dict[str, Tensor]]:
    """Windows of a few built-in questions."""
    config = task.config
    data = squad_from_document(squad_sample(0, 0, 8)[1], "the built-in sample")
    features = build_features(data, task.tokenizer, FeatureOptions(config.max_seq_len, 0), task.frequencies)[0]
    ids = tuple(special_id(task.tokenizer, token) for token in (PAD, CLS, SEP))
    batches = SquadBatches(features, ids, config.max_seq_len, config.lexical_features)
    by_length = np.argsort(batches.lengths, kind="stable")
    return [batches.batch(rows) for rows in _choices(by_length)[:2]] + [
        _without_padding(batches.batch(rows)) for rows in _choices(by_length)[2:]
    ]


def pair_batches(task: Task) -> list[dict[str, Tensor]]:
    """A few built-in documents with their summaries."""
    pairs = (Pair(each["id"], each["document"], (each["summary"],)) for each in summarization_sample(0, 0, 8)[1])
    features = build_pair_features(PairData(tuple(pairs), "the built-in sample"), task.tokenizer)
    ids = (special_id(task.tokenizer, token) for token in (CLS, SEP, PAD))
    batches = PairBatches(features, *ids, task.config.max_seq_len, task.config.max_target_len)
    by_length = np.argsort(batches.lengths, kind="stable")
    return [batches.batch(rows) for rows in _choices(by_length)[:2]] + [
        _without_padding(batches.batch(rows)) for rows in _choices(by_length)[2:]
    ]


def text_batches(task: Task) -> list[dict[str, Tensor]]:
    """Stretches of a built-in text."""
    text = text_sample(0, 0, 1)[1][0]
    ids = [special_id(task.tokenizer, SEP), *task.tokenizer.encode(text, add_special_tokens=False).ids]
    longest = min(task.config.max_seq_len, len(ids) - 2)
    lengths = [longest, max(2, longest // 2), max(2, longest // 3)]
    pad_id = special_id(task.tokenizer, PAD)
    chosen = ([0, 1], [0, 1, 2], [2], [0])
    rows = [[ids[start : start + lengths[start]] for start in starts] for starts in chosen]
    return [{"input_ids": padded(each, torch.device("cpu"), pad_id)[0]} for each in rows]


def _choices(by_length: Sequence[int]) -> list[list[int]]:
    """Two of these examples, three, the shortest and the longest; those together are of different lengths."""
    shortest, middle, longest = by_length[0], by_length[len(by_length) // 2], by_length[-1]
    return [[middle, longest], [longest, shortest, middle], [shortest], [longest]]


def _without_padding(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A batch of one row, cut to its length."""
    width, length = batch["attention_mask"].shape[1], int(batch["attention_mask"].sum())
    return {name: each[:, :length] if each.shape[1:2] == (width,) else each for name, each in batch.items()}
