"""Pretraining for question answering: synthetic questions and masked tokens, from the contexts alone.

As in Krishna et al. 2022 (arXiv:2209.14389) the text is that of the task itself: it is not more data that helps.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from him.core.compute import Compute, in_parts
from him.core.errors import DataError
from him.data.batching import SamplingWeights, evaluation_batches
from him.data.cache import content_digest
from him.data.unlabelled import contexts_of
from him.metrics.running import RunningMean, perplexity
from him.model.masked_lm import PretrainingModel, mask_positions
from him.tasks.base import Evaluation, LossSums
from him.tasks.pretraining import EVALUATION_SEED, MASKED_SHARE, Pretraining
from him.tasks.squad.answers import EVALUATION_BATCH, span_loss
from him.tasks.squad.batches import SquadBatches
from him.tasks.squad.reader import SquadData
from him.tasks.squad.synthetic_questions import synthetic_questions
from him.text.tokenizer import MASK, special_id

if TYPE_CHECKING:
    from him.tasks.squad.task import SquadTask

QUESTIONS_PER_CONTEXT = 8  # in an epoch
VALIDATION_QUESTIONS = 2  # of each validation context


class SquadPretraining(Pretraining):
    """Answers synthetic questions and predicts masked tokens of their contexts.

    Args:
        task: with its training and validation data.
        train: the training data.
    """

    shown_metrics = ("Accuracy", "F1", "Exact_Match")

    def __init__(self, task: SquadTask, train: SquadData) -> None:
        super().__init__(task)
        contexts = _contexts(train)
        for name in self.config.pretrain_files:
            contexts += contexts_of(name)
        number = QUESTIONS_PER_CONTEXT * max(1, self.config.num_epochs)
        self.batches = self._made(contexts, 2 if self.config.dry_run else number, self.config.seed)
        self.validation_batches = self._made(_contexts(task.validation), VALIDATION_QUESTIONS, EVALUATION_SEED)
        self.mask_id = special_id(task.tokenizer, MASK)

    def _made(self, contexts: list[tuple[str, str]], per_context: int, seed: int) -> SquadBatches:
        made = synthetic_questions(contexts, per_context, seed, "synthetic questions")
        if not made.questions:
            raise DataError("--pretrain_epochs: the contexts are too short to make questions of; leave the flag out")
        return self.task.batches_of(made)

    @property
    def train_lengths(self) -> np.ndarray:
        return self.batches.lengths

    @cached_property
    def train_sampling(self) -> SamplingWeights:
        """Each epoch has a part of the questions, so that few of them are met again."""
        number = len(self.train_lengths)
        return SamplingWeights(np.zeros(number, np.int64), (max(1.0 / self.config.num_epochs, 1.0 / number),))

    @property
    def examples_per_epoch(self) -> int:
        return self.train_sampling.num_examples

    @cached_property
    def train_digest(self) -> str:
        features = self.batches.features
        return content_digest(features.questions.ids, features.contexts.ids, features.answers, features.context_of)

    def places(self, examples: np.ndarray) -> np.ndarray:
        """Numbers of the synthetic questions."""
        return self.batches.features.window_question[examples]

    def train_batch(self, examples: np.ndarray) -> dict[str, Tensor]:
        """See `SquadBatches.batch`."""
        return self.batches.batch(examples)

    def _read(
        self, model: PretrainingModel, batch: dict[str, Tensor], generator: torch.Generator | None
    ) -> tuple[LossSums, Tensor, int, Tensor]:
        """Loss of the spans; of the masked tokens their summed loss, number, and how many were met."""
        ids_BL, word_ids_BL = batch["input_ids"], batch["word_ids"]
        is_masked_BL = mask_positions(word_ids_BL, MASKED_SHARE, word_ids_BL >= 0, generator)
        output = model.model({**batch, "input_ids": ids_BL.masked_fill(is_masked_BL, self.mask_id)})
        mlm_loss, num_words, num_correct = model.mlm_loss(output.hidden_BLD, ids_BL, is_masked_BL)
        return span_loss(output, batch), mlm_loss, num_words, num_correct

    @torch.inference_mode()
    def evaluate(self, model: nn.Module, compute: Compute, final: bool = False) -> Evaluation:
        """Loss and accuracy of masked tokens; F1 and Exact_Match of the real questions."""
        model.eval()
        loss, accuracy = RunningMean(), RunningMean()
        generator = torch.Generator(compute.device).manual_seed(EVALUATION_SEED)

        def read(windows: np.ndarray) -> tuple[LossSums, Tensor, int, Tensor]:
            batch = compute.to_device(self.validation_batches.batch(windows))
            with compute.autocast():
                return self._read(model, batch, generator)

        cut = evaluation_batches(self.validation_batches.lengths, EVALUATION_BATCH)
        for _, (_, mlm_loss, num_words, num_correct) in (part for whole in cut for part in in_parts(whole, read)):
            loss.add(float(mlm_loss), num_words)
            accuracy.add(float(num_correct), num_words)
        metrics = {
            "Loss": loss.mean,
            "Perplexity": perplexity(loss.total, loss.count),
            "Accuracy": 100.0 * accuracy.mean,
        }
        answered = self.task.evaluate(model.model, compute).metrics
        return Evaluation(metrics | {name: answered[name] for name in ("F1", "Exact_Match")})


def _contexts(data: SquadData) -> list[tuple[str, str]]:
    return [(paragraph.title, paragraph.context) for paragraph in data.paragraphs]
