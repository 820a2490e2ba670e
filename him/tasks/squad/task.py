"""Extractive question answering in the format of SQuAD 1.1 and 2.0.

Rajpurkar et al. 2016 (arXiv:1606.05250), 2018 (arXiv:1806.03822).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from him.attention_maps import AttentionExample
from him.config import Config
from him.config.options.squad import SPEC
from him.core.compute import Compute
from him.data.batching import SamplingWeights
from him.data.cache import cache_folder
from him.model.embeddings import LexicalEmbedding
from him.model.initialization import initialize
from him.tasks.base import AttentionTask, DistillableTask, Evaluation, LossSums, PretrainableTask
from him.tasks.building import (
    bertscore_notes,
    build_embedding,
    build_encoder,
    check_sampling,
    given_tokenizer,
    sampling_of,
)
from him.tasks.squad.attention import attention_examples
from him.tasks.squad.augmentation import augment
from him.tasks.squad.batches import SquadBatches, dummy_batch
from him.tasks.squad.features import FeatureOptions, SquadFeatures, count_articles
from him.tasks.squad.inference import SquadInference
from him.tasks.squad.lexical import SCALARS, SIZES, DocumentFrequencies
from him.tasks.squad.loss import distilled_span_loss, span_loss
from him.tasks.squad.model import QuestionAnsweringModel, SpanOutput
from him.tasks.squad.prepared import prepare_features, prepare_squad
from him.tasks.squad.pretraining import SquadPretraining
from him.tasks.squad.reader import SquadData
from him.tasks.squad.sources import first_questions, load_squad


class SquadTask(SquadInference, PretrainableTask, DistillableTask, AttentionTask):
    """Finds the answer to a question as a span of its context."""

    name: ClassVar[str] = "squad"
    inputs: ClassVar[tuple[str, ...]] = SPEC.inputs
    best_metric: ClassVar[str] = SPEC.best_metric
    shown_metrics: ClassVar[tuple[str, ...]] = SPEC.shown_metrics

    def __init__(
        self, config: Config, tokenizer: Tokenizer, frequencies: DocumentFrequencies, has_impossible: bool
    ) -> None:
        super().__init__(config, tokenizer, frequencies, has_impossible)
        self.train: SquadData | None = None
        self.train_batches: SquadBatches | None = None
        self._features_of_train: SquadFeatures | None = None
        self._source_ids = np.zeros(0, np.int64)
        self.validation: SquadData | None = None
        self.validation_features: SquadFeatures | None = None
        self._notes: tuple[str, ...] = ()

    # -- data ----------------------------------------------------------------------------------------------------------

    @classmethod
    def prepare(cls, config: Config, tokenizer_folder: Path | None = None) -> SquadTask:
        """Reads the data, trains or loads the tokenizer, and builds features or takes them from the cache."""
        check_sampling(config)
        splits = load_squad(config)
        if config.dry_run:
            few = 2 * config.batch_size
            train, validation = (first_questions(data, few, []) for data in (splits.train, splits.validation))
            splits = dataclasses.replace(
                splits, train=train, validation=validation, source_ids=splits.source_ids[: train.num_questions]
            )
        prepared = prepare_squad(
            splits.train,
            splits.validation,
            given_tokenizer(config, tokenizer_folder),
            config.vocab_size,
            FeatureOptions.of(config),
            cache_folder(config),
        )
        has_impossible = splits.train.has_impossible or splits.validation.has_impossible
        task = cls(config, prepared.tokenizer, prepared.frequencies, has_impossible)
        task.train = splits.train
        task._features_of_train = prepared.train
        task.train_batches = task._batches(prepared.train)
        if config.num_augmentations:
            task.train_batches = task.batches_of(augment(splits.train, config.num_augmentations, config.seed))
        if splits.source_ids:
            task._source_ids = np.array(splits.source_ids)[task.questions_of_windows]
        task.validation = splits.validation
        task.validation_features = prepared.validation
        task._notes = (*splits.notes, *bertscore_notes(config))
        return task

    def pretraining(self) -> SquadPretraining:
        """See `SquadPretraining`."""
        return SquadPretraining(self, self.train, self.validation, self.batches_of)

    def batches_of(self, data: SquadData) -> SquadBatches:
        """Windows of what is made of training data: a word is as rare in it as if its own article were not there."""
        counted = (self.frequencies, self._articles)
        options, cache_dir = FeatureOptions.of(self.config), cache_folder(self.config)
        return self._batches(prepare_features(data, self.tokenizer, options, *counted, cache_dir))

    @property
    def notes(self) -> Sequence[str]:
        return self._notes

    @property
    def train_lengths(self) -> np.ndarray:
        return self.train_batches.lengths

    @property
    def train_sampling(self) -> SamplingWeights | None:
        """By `--train_file_weights`, of windows; with `--num_augmentations` each as often as one of them alone."""
        sampling = sampling_of(self.config, self._source_ids)
        if not self.config.num_augmentations:
            return sampling
        sampling = sampling or SamplingWeights(np.zeros(len(self.train_lengths), np.int64), (1.0,))
        return SamplingWeights(
            sampling.source_ids, tuple(weight / (1 + self.config.num_augmentations) for weight in sampling.weights)
        )

    @cached_property
    def train_digest(self) -> str:
        """By the pieces of all questions and contexts, and by the answers."""
        return self.train_batches.features.digest

    @cached_property
    def validation_digest(self) -> str:
        """By the same of the validation data."""
        return self.validation_features.digest

    def source_indices(self, examples: np.ndarray) -> np.ndarray:
        """Questions, of which a window is a part."""
        return self.questions_of_windows[examples]

    @cached_property
    def _articles(self) -> dict[str, DocumentFrequencies]:
        return count_articles(self.train, self._features_of_train)

    @property
    def questions_of_windows(self) -> np.ndarray:
        """(W,) number of the training question that each window, or the question that it is a variant of, is from."""
        return self.train_batches.features.window_question % self.train.num_questions

    def train_batch(self, examples: np.ndarray) -> dict[str, Tensor]:
        """See `SquadBatches.batch`."""
        return self.train_batches.batch(examples)

    # -- model ---------------------------------------------------------------------------------------------------------

    def build_model(self) -> QuestionAnsweringModel:
        """Builds the model that the configuration describes, with weights drawn anew."""
        config = self.config
        lexical = LexicalEmbedding(SIZES, len(SCALARS), config.embed_dim) if config.lexical_features else None
        embedding = build_embedding(config, self.tokenizer, num_segments=2, lexical=lexical)
        encoder = build_encoder(config, causal=False)
        model = QuestionAnsweringModel(embedding, encoder, config.embed_dim)
        initialize(model)
        return model

    def num_targets(self, batch: dict[str, Tensor]) -> int:
        """A start and an end in each row."""
        return 2 * len(batch["input_ids"])

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> LossSums:
        """Cross-entropy of start and end against all annotators' answers; two targets a row."""
        return span_loss(model(batch), batch, self.config.label_smoothing if model.training else 0.0)

    def forward(self, model: nn.Module, batch: dict[str, Tensor]) -> SpanOutput:
        """The logits of start and end."""
        return model(batch)

    def distillation_loss(
        self, model: nn.Module, teacher: nn.Module, batch: dict[str, Tensor], share: float
    ) -> LossSums:
        """See `distilled_span_loss`."""
        with torch.no_grad():
            targets = teacher(batch)
        smoothing = self.config.label_smoothing if model.training else 0.0
        return distilled_span_loss(model(batch), targets, batch, share, smoothing)

    def dummy_batch(self, batch_size: int, length: int) -> dict[str, Tensor]:
        """See `dummy_batch`."""
        return dummy_batch(batch_size, length, self.tokenizer.get_vocab_size(), self.config.lexical_features)

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def evaluate(self, model: nn.Module, compute: Compute, final: bool = False) -> Evaluation:
        """F1 and Exact_Match of all validation questions; BERTScore of `--bertscore_samples` of them unless `final`."""
        num_scored = None if final and self.config.bertscore_samples else self.config.bertscore_samples
        return self.measure(model, compute, self.validation, self.validation_features, num_scored, tune=True)

    def attention_examples(self, model: nn.Module, compute: Compute, num_examples: int) -> list[AttentionExample]:
        """Attention of validation windows spread over the shorter half."""
        batches = self._batches(self.validation_features)
        words = self.config.max_answer_words
        return attention_examples(model, compute, batches, self.validation, self.tokenizer, words, num_examples)
