"""Extractive question answering in the format of SQuAD 1.1 and 2.0.

Rajpurkar et al. 2016 (arXiv:1606.05250), 2018 (arXiv:1806.03822).
"""

from __future__ import annotations

import dataclasses
import json
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
from him.core.errors import CheckpointError
from him.data.batching import SamplingWeights
from him.data.cache import cache_folder
from him.data.sample import squad_sample
from him.model.embeddings import LexicalEmbedding
from him.model.initialization import initialize
from him.tasks.base import AttentionTask, DistillableTask, Evaluation, ExportableTask, LossSums, PretrainableTask
from him.tasks.building import (
    bertscore_notes,
    build_embedding,
    build_encoder,
    check_sampling,
    given_tokenizer,
    sampling_of,
)
from him.tasks.evaluation import BertScores, TargetMeans, diversity
from him.tasks.exporting import Batch, Graph, Outputs, few_batches
from him.tasks.squad.answers import Answer, answer_all, score_answers
from him.tasks.squad.attention import attention_example, choose_windows, first_to_last
from him.tasks.squad.augmentation import augment
from him.tasks.squad.batches import SquadBatches, dummy_batch
from him.tasks.squad.export import ExportedSpans, SquadStock, span_graph
from him.tasks.squad.features import FeatureOptions, SquadFeatures, build_features, count_articles
from him.tasks.squad.lexical import SCALARS, SIZES, DocumentFrequencies
from him.tasks.squad.loss import distilled_span_loss, span_loss
from him.tasks.squad.model import QuestionAnsweringModel, SpanOutput
from him.tasks.squad.prepared import prepare_features, prepare_squad
from him.tasks.squad.pretraining import SquadPretraining
from him.tasks.squad.reader import SquadData, read_squad, squad_from_document
from him.tasks.squad.sources import first_questions, load_squad
from him.text.tokenizer import CLS, PAD, SEP, parse_tokenizer, special_id


class SquadTask(PretrainableTask, DistillableTask, AttentionTask, ExportableTask):
    """Finds the answer to a question as a span of its context.

    Args:
        config, tokenizer: all settings, and the model's tokenizer.
        frequencies: of words in the training contexts.
        has_impossible: whether questions may have no answer.
    """

    name: ClassVar[str] = "squad"
    inputs: ClassVar[tuple[str, ...]] = SPEC.inputs
    best_metric: ClassVar[str] = SPEC.best_metric
    shown_metrics: ClassVar[tuple[str, ...]] = SPEC.shown_metrics

    def __init__(
        self, config: Config, tokenizer: Tokenizer, frequencies: DocumentFrequencies, has_impossible: bool
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.frequencies = frequencies
        self.has_impossible = has_impossible
        self.no_answer_threshold = 1.0
        self._bertscores = BertScores(config.bertscore_model)
        self.train: SquadData | None = None
        self._features_of_train: SquadFeatures | None = None
        self._source_ids = np.zeros(0, np.int64)
        self.validation: SquadData | None = None
        self.validation_features: SquadFeatures | None = None

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
            task._source_ids = np.array(splits.source_ids)[task.source_indices(np.arange(len(task.train_lengths)))]
        task.validation = splits.validation
        task.validation_features = prepared.validation
        task.notes = (*splits.notes, *bertscore_notes(config))
        return task

    def pretraining(self) -> SquadPretraining:
        return SquadPretraining(self, self.train, self.validation, self.batches_of)

    def batches_of(self, data: SquadData) -> SquadBatches:
        """Windows of what is made of training data: a word is as rare in it as if its own article were not there."""
        counted = (self.frequencies, self._articles)
        options, cache_dir = FeatureOptions.of(self.config), cache_folder(self.config)
        return self._batches(prepare_features(data, self.tokenizer, options, *counted, cache_dir))

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
        """The training questions of which the windows are parts, or of which their questions are augmented copies."""
        return self.train_batches.features.window_question[examples] % self.train.num_questions

    @cached_property
    def _articles(self) -> dict[str, DocumentFrequencies]:
        return count_articles(self.train, self._features_of_train)

    def save(self, folder: Path) -> None:
        """Writes `tokenizer.json`, and `task.json` with document frequencies and the no-answer threshold."""
        (folder / "tokenizer.json").write_text(self.tokenizer.to_str(), encoding="utf-8")
        state = {
            "has_impossible": self.has_impossible,
            "no_answer_threshold": self.no_answer_threshold,
            "rarity": self.frequencies.to_json(),
        }
        (folder / "task.json").write_text(json.dumps(state), encoding="utf-8")

    @classmethod
    def restore(cls, config: Config, folder: Path) -> SquadTask:
        """The task as `save` left it."""
        path = folder / "task.json"
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            frequencies = DocumentFrequencies.from_json(state["rarity"])
            task = cls(config, parse_tokenizer(folder / "tokenizer.json"), frequencies, bool(state["has_impossible"]))
            task.no_answer_threshold = float(state["no_answer_threshold"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{path}: cannot be read ({error}); train the run again") from None
        return task

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
        with torch.no_grad():
            targets = teacher(batch)
        smoothing = self.config.label_smoothing if model.training else 0.0
        return distilled_span_loss(model(batch), targets, batch, share, smoothing)

    def dummy_batch(self, batch_size: int, length: int) -> dict[str, Tensor]:
        return dummy_batch(batch_size, length, self.tokenizer.get_vocab_size(), self.config.lexical_features)

    def evaluate(self, model: nn.Module, compute: Compute, final: bool = False) -> Evaluation:
        """F1 and Exact_Match of all validation questions; BERTScore of `--bertscore_samples` of them unless `final`."""
        num_scored = None if final and self.config.bertscore_samples else self.config.bertscore_samples
        return self.measure(model, compute, self.validation, self.validation_features, num_scored, tune=True)

    def evaluate_file(self, model: nn.Module, compute: Compute, path: str) -> Evaluation:
        """All metrics on another SQuAD file, with the no-answer threshold that was tuned on the validation file."""
        data = read_squad(path)
        num_scored = None if self.config.bertscore_samples else 0
        return self.measure(model, compute, data, self._features(data), num_scored, tune=False)

    def measure(
        self,
        model: nn.Module,
        compute: Compute,
        data: SquadData,
        features: SquadFeatures,
        num_scored: int | None,
        tune: bool,
    ) -> Evaluation:
        """All metrics of a model on some data.

        Args:
            data, features: the questions.
            num_scored: answers that BERTScore looks at, spread evenly; None is all.
            tune: whether to tune the no-answer threshold on them.
        """
        answers, means = self._answer_all(model, compute, data, features)
        scored = score_answers(answers, data, self.no_answer_threshold, tune)
        self.no_answer_threshold = scored.threshold
        ids = list(scored.texts)
        chosen = ids if num_scored is None else [ids[index] for index in first_to_last(len(ids), num_scored)]
        texts, references = ([each[id] for id in chosen] for each in (scored.texts, scored.references))
        metrics = {
            **means.metrics(),
            **scored.metrics,
            **diversity(list(scored.texts.values())),
            **self._bertscores.metrics(texts, [accepted or [""] for accepted in references], compute),
        }
        return Evaluation(metrics, scored.predictions)

    def _answer_all(
        self, model: nn.Module, compute: Compute, data: SquadData, features: SquadFeatures
    ) -> tuple[list[Answer], TargetMeans]:
        threshold = self.no_answer_threshold if self.has_impossible else None
        return answer_all(model, compute, self._batches(features), data, self.config.max_answer_words, threshold)

    def _batches(self, features: SquadFeatures) -> SquadBatches:
        special_ids = tuple(special_id(self.tokenizer, token) for token in (PAD, CLS, SEP))
        return SquadBatches(features, special_ids, self.config.max_seq_len, self.config.lexical_features)

    def _features(self, data: SquadData) -> SquadFeatures:
        return build_features(data, self.tokenizer, FeatureOptions.of(self.config), self.frequencies)[0]

    def attention_examples(self, model: nn.Module, compute: Compute, num_examples: int) -> list[AttentionExample]:
        """Attention of validation windows spread over the shorter half."""
        batches = self._batches(self.validation_features)
        windows = choose_windows(batches.lengths, num_examples)
        data = (self.validation, self.tokenizer, self.config.max_answer_words)
        return [
            attention_example(str(number), model, compute, batches, window, *data)
            for number, window in enumerate(windows, start=1)
        ]

    def predict(self, model: nn.Module, compute: Compute, *, question: str, context: str) -> Answer:
        """Answers a question about a context."""
        document = {"data": [{"paragraphs": [{"context": context, "qas": [{"id": "0", "question": question}]}]}]}
        data = squad_from_document(document, "question and context", answers_required=False)
        return self._predict(model, compute, data)["0"]

    def line(self, answer: Answer) -> str:
        """The answer with its score and its position."""
        said = answer.text if answer.answerable else f"no answer, or at best: {answer.text}"
        return (
            f"{said}  (score {answer.score:.3f}, characters {answer.start} to {answer.end}, "
            f"no answer {answer.no_answer_probability:.3f})"
        )

    def predict_file(self, model: nn.Module, compute: Compute, path: str) -> dict[str, Answer]:
        """Answers the questions of a SQuAD file, by id; the file needs no answers."""
        return self._predict(model, compute, read_squad(path, answers_required=False))

    def _predict(self, model: nn.Module, compute: Compute, data: SquadData) -> dict[str, Answer]:
        answers, _ = self._answer_all(model, compute, data, self._features(data))
        return {question.id: answer for question, answer in zip(data.questions, answers, strict=True)}

    def example_inputs(self) -> dict[str, str]:
        """A question of the built-in validation data with its context."""
        paragraph = load_squad(Config(task_type="squad", dataset="sample")).validation.paragraphs[0]
        return {"question": paragraph.questions[0].text, "context": paragraph.context}

    def export_graph(self, model: nn.Module) -> Graph:
        return span_graph(model, self.config.lexical_features, self._example_batches())

    def exported_model(self, outputs: Outputs) -> ExportedSpans:
        return ExportedSpans(outputs)

    def stock_export(self) -> SquadStock:
        return SquadStock(self.config, self.tokenizer, self._example_batches())

    def _example_batches(self) -> list[Batch]:
        """Windows of a few built-in questions."""
        data = squad_from_document(squad_sample(0, 0, 8)[1], "the built-in sample")
        options = FeatureOptions(self.config.max_seq_len, 0)
        batches = self._batches(build_features(data, self.tokenizer, options, self.frequencies)[0])
        return few_batches(batches.lengths, batches.batch)
