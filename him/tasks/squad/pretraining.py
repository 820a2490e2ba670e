"""Pretraining for question answering: synthetic questions and masked tokens, from the contexts alone.

As in Krishna et al. 2022 (arXiv:2209.14389) the text is that of the task itself: it is not more data that helps.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from him.core.compute import Compute
from him.core.errors import DataError
from him.data.batching import SamplingWeights
from him.data.cache import content_digest
from him.data.document_files import is_text, read_texts
from him.model.masked_lm import PretrainingModel
from him.tasks.base import Evaluation, LossSums, Task
from him.tasks.evaluation import TargetMeans
from him.tasks.pretraining import EVALUATION_SEED, MaskedPretraining
from him.tasks.squad.batches import SquadBatches
from him.tasks.squad.loss import span_loss
from him.tasks.squad.reader import SquadData, read_squad
from him.tasks.squad.synthetic_questions import synthetic_questions

QUESTIONS_PER_CONTEXT = 8  # in an epoch
VALIDATION_QUESTIONS = 2  # of each validation context
CONTEXT_WORDS = 120  # of a context that is made of a text file: that of a paragraph of SQuAD

BatchesOf = Callable[[SquadData], SquadBatches]


class SquadPretraining(MaskedPretraining):
    """Answers synthetic questions and predicts masked tokens of their contexts.

    The contexts are those of `train` and `validation`; the own questions of `task` measure its model.
    """

    shown_metrics: ClassVar[tuple[str, ...]] = ("Accuracy", "F1", "Exact_Match")

    def __init__(self, task: Task, train: SquadData, validation: SquadData, batches_of: BatchesOf) -> None:
        super().__init__(task)
        contexts = _contexts(train)
        for name in self.config.pretrain_files:
            contexts += contexts_of(name)
        number = 2 if self.config.dry_run else QUESTIONS_PER_CONTEXT * max(1, self.config.num_epochs)
        self.train_batches = _asked(contexts, number, self.config.seed, batches_of)
        self.validation_batches = _asked(_contexts(validation), VALIDATION_QUESTIONS, EVALUATION_SEED, batches_of)

    @cached_property
    def train_sampling(self) -> SamplingWeights:
        """Each epoch has a part of the questions, so that few of them are met again."""
        number = len(self.train_lengths)
        return SamplingWeights(np.zeros(number, np.int64), (max(1.0 / self.config.num_epochs, 1.0 / number),))

    @cached_property
    def train_digest(self) -> str:
        features = self.train_batches.features
        return content_digest(features.questions.ids, features.contexts.ids, features.answers, features.context_of)

    def source_indices(self, examples: np.ndarray) -> np.ndarray:
        """Numbers of the synthetic questions."""
        return self.train_batches.features.window_question[examples]

    def losses(
        self, model: PretrainingModel, batch: dict[str, Tensor], generator: torch.Generator | None = None
    ) -> tuple[LossSums, LossSums]:
        """The loss of the spans, and that of the masked tokens."""
        masked, is_masked_BL = self.masked(batch, batch["word_ids"] >= 0, generator)
        output = model.model(masked)
        mlm = LossSums(*model.mlm_loss(output.hidden_BLD, batch["input_ids"], is_masked_BL))
        return span_loss(output, batch), mlm

    @torch.inference_mode()
    def evaluate(self, model: nn.Module, compute: Compute, final: bool = False) -> Evaluation:
        """Loss and accuracy of masked tokens; F1 and Exact_Match of the real questions."""
        means = TargetMeans()
        for _, masked in self.validation_losses(model, compute):
            means.add(masked)
        answered = self.task.evaluate(model.model, compute).metrics
        return Evaluation(means.metrics() | {name: answered[name] for name in ("F1", "Exact_Match")})


def _asked(contexts: list[tuple[str, str]], per_context: int, seed: int, batches_of: BatchesOf) -> SquadBatches:
    """Batches of the synthetic questions of contexts."""
    made = synthetic_questions(contexts, per_context, seed, "synthetic questions")
    if not made.questions:
        raise DataError("--pretrain_epochs: the contexts are too short to make questions of; leave the flag out")
    return batches_of(made)


def contexts_of(name: str) -> list[tuple[str, str]]:
    """(title, context) of a SQuAD file in `--pretrain_files`, whose questions are not read, or of parts of texts.

    Raises:
        DataError: it cannot be read.
    """
    if not is_text(name):
        return _contexts(read_squad(name, answers_required=False))
    return [(f"{name}-{number}", each) for number, text in enumerate(read_texts(name)) for each in _parts(text)]


def _contexts(data: SquadData) -> list[tuple[str, str]]:
    return [(paragraph.title, paragraph.context) for paragraph in data.paragraphs]


def _parts(text: str) -> Iterator[str]:
    """Neighbouring paragraphs together, until they have `CONTEXT_WORDS` words; parts of one that is too long."""
    gathered: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        gathered += paragraph.split()
        while len(gathered) >= 2 * CONTEXT_WORDS:  # there may be no blank line in the whole text
            yield " ".join(gathered[:CONTEXT_WORDS])
            del gathered[:CONTEXT_WORDS]
        if len(gathered) >= CONTEXT_WORDS:
            yield " ".join(gathered)
            gathered = []
    if gathered:
        yield " ".join(gathered)
