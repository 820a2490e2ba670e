"""Extractive question answering in the format of SQuAD 1.1 and 2.0.

Rajpurkar et al. 2016 (arXiv:1606.05250), 2018 (arXiv:1806.03822).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

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
from him.data.cache import cache_folder, content_digest
from him.metrics.bertscore import BertScorer, find_scorer_model
from him.metrics.diversity import distinct_n
from him.metrics.running import perplexity
from him.model.embeddings import LexicalEmbedding
from him.model.initialization import initialize
from him.tasks.base import Evaluation, LossSums, Task
from him.tasks.building import (
    bertscore_notes,
    build_embedding,
    build_encoder,
    check_sampling,
    given_tokenizer,
    sampling_of,
)
from him.tasks.squad.answers import Answer, Answers, answer_all, distilled_span_loss, span_loss
from him.tasks.squad.attention import attention_example, choose_windows
from him.tasks.squad.augmentation import augment
from him.tasks.squad.batches import SquadBatches
from him.tasks.squad.features import SquadFeatures, build_features, count_articles
from him.tasks.squad.lexical import SCALARS, SIZES, DocumentFrequencies
from him.tasks.squad.metrics import best_no_answer_threshold, squad_scores, squad_v2_scores
from him.tasks.squad.model import QuestionAnsweringModel, SpanOutput
from him.tasks.squad.prepared import prepare_features, prepare_squad
from him.tasks.squad.pretraining import SquadPretraining
from him.tasks.squad.reader import SquadData, read_squad, squad_from_document
from him.tasks.squad.sources import SquadSplits, first_questions, load_squad
from him.text.tokenizer import (
    CLS,
    PAD,
    SEP,
    parse_tokenizer,
    special_id,
)


class SquadTask(Task):
    """Finds the answer to a question as a span of its context."""

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
        self.train: SquadData | None = None
        self.train_batches: SquadBatches | None = None
        self._features_of_train: SquadFeatures | None = None
        self._source_ids = np.zeros(0, np.int64)
        self.validation: SquadData | None = None
        self.validation_features: SquadFeatures | None = None
        self._notes: tuple[str, ...] = ()
        self._scorer: BertScorer | None = None

    # -- data ----------------------------------------------------------------------------------------------------------

    @classmethod
    def prepare(cls, config: Config, tokenizer_folder: Path | None = None) -> SquadTask:
        """Reads the data, trains or loads the tokenizer, and builds features or takes them from the cache."""
        check_sampling(config)
        splits = load_splits(config)
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
            config.max_seq_len,
            config.doc_stride,
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
        return SquadPretraining(self, self.train)

    def batches_of(self, data: SquadData) -> SquadBatches:
        """Windows of what is made of training data: a word is as rare in it as if its own article were not there."""
        config = self.config
        lengths = (config.max_seq_len, config.doc_stride)
        counted = (self.frequencies, self._articles)
        return self._batches(prepare_features(data, self.tokenizer, *lengths, *counted, cache_folder(config)))

    def _batches(self, features: SquadFeatures) -> SquadBatches:
        special_ids = tuple(special_id(self.tokenizer, token) for token in (PAD, CLS, SEP))
        return SquadBatches(features, special_ids, self.config.max_seq_len, self.config.lexical_features)

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
        return _digest_of(self.train_batches.features)

    @cached_property
    def validation_digest(self) -> str:
        """By the same of the validation data."""
        return _digest_of(self.validation_features)

    def places(self, examples: np.ndarray) -> np.ndarray:
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

    # -- files ---------------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Writes `tokenizer.json`, and `task.json` with word idf_of_contexts and the no-answer threshold."""
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
            taught = teacher(batch)
        smoothing = self.config.label_smoothing if model.training else 0.0
        return distilled_span_loss(model(batch), taught, batch, share, smoothing)

    def dummy_batch(self, batch_size: int, length: int) -> dict[str, Tensor]:
        """Any place may start and end an answer."""
        shape = (batch_size, length)
        everywhere_BL = torch.ones(shape, dtype=torch.bool)
        batch = {
            "input_ids": torch.randint(self.tokenizer.get_vocab_size(), shape),
            "token_type_ids": (torch.arange(length) >= length // 10).long().expand(shape),
            "attention_mask": everywhere_BL,
            "may_start": everywhere_BL,
            "may_end": everywhere_BL,
            "start_targets": torch.full(shape, 1.0 / length),
            "end_targets": torch.full(shape, 1.0 / length),
        }
        if self.config.lexical_features:
            batch |= {name: torch.randint(size, shape) for name, size in SIZES.items()}
            batch |= {"scalars": torch.randn(*shape, len(SCALARS)), "focus_ids": batch["input_ids"][:, 0]}
        return batch

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def evaluate(self, model: nn.Module, compute: Compute, final: bool = False) -> Evaluation:
        """F1 and Exact_Match of all validation questions; BERTScore of `--bertscore_samples` of them unless `final`."""
        num_scored = None if final and self.config.bertscore_samples else self.config.bertscore_samples
        return self._evaluate(model, compute, self.validation, self.validation_features, num_scored, tune=True)

    def evaluate_file(self, model: nn.Module, compute: Compute, path: str) -> Evaluation:
        """All metrics on another SQuAD file, with the no-answer threshold that was tuned on the validation file."""
        data = read_squad(path)
        num_scored = None if self.config.bertscore_samples else 0
        return self._evaluate(model, compute, data, self._features(data), num_scored, tune=False)

    def _features(self, data: SquadData) -> SquadFeatures:
        config = self.config
        return build_features(data, self.tokenizer, config.max_seq_len, config.doc_stride, self.frequencies)[0]

    def _evaluate(
        self,
        model: nn.Module,
        compute: Compute,
        data: SquadData,
        features: SquadFeatures,
        num_scored: int | None,
        tune: bool,
    ) -> Evaluation:
        found = self._answer_all(model, compute, data, features)
        answers = dict(zip((question.id for question in data.questions), found.answers, strict=True))
        references = {question.id: [answer.text for answer in question.answers] for question in data.questions}
        texts = {id: answer.text for id, answer in answers.items()}
        predictions: dict[str, Any] = {"predictions.json": texts}
        if data.has_impossible:
            probabilities = {id: answer.no_answer_probability for id, answer in answers.items()}
            if tune:
                self.no_answer_threshold = best_no_answer_threshold(texts, references, probabilities).f1_threshold
            scores = squad_v2_scores(texts, references, probabilities, self.no_answer_threshold)
            texts = {id: "" if probabilities[id] > self.no_answer_threshold else text for id, text in texts.items()}
            predictions = {"predictions.json": texts, "no_answer_probabilities.json": probabilities}
        else:
            scores = squad_scores(texts, references)
        metrics = {
            "Loss": found.loss.mean,
            "Perplexity": perplexity(found.loss.total, found.loss.count),
            "Accuracy": 100.0 * found.accuracy.mean,
            **scores,
            **self._text_metrics(texts, references, num_scored, compute),
        }
        return Evaluation(metrics, predictions)

    def _answer_all(self, model: nn.Module, compute: Compute, data: SquadData, features: SquadFeatures) -> Answers:
        threshold = self.no_answer_threshold if self.has_impossible else None
        return answer_all(model, compute, self._batches(features), data, self.config.max_answer_words, threshold)

    def _text_metrics(
        self, texts: dict[str, str], references: dict[str, list[str]], num_scored: int | None, compute: Compute
    ) -> dict[str, float]:
        """Diversity of the answers, and BERTScore of `num_scored` of them, spread evenly; None is all."""
        metrics = {f"Diversity/distinct-{n}": distinct_n(list(texts.values()), n) for n in (1, 2)}
        ids = list(texts)
        if num_scored is not None:
            ids = [ids[place] for place in np.linspace(0, len(ids) - 1, min(num_scored, len(ids))).astype(int)]
        name = find_scorer_model(self.config.bertscore_model) if ids else None
        if name is not None:
            self._scorer = self._scorer or BertScorer(name, device=str(compute.device))
            metrics["BERTScore_F1"] = self._scorer.f1([texts[id] for id in ids], [references[id] or [""] for id in ids])
        return metrics

    # -- use -----------------------------------------------------------------------------------------------------------

    def predict(self, model: nn.Module, compute: Compute, *, question: str, context: str) -> Answer:
        """Answers a question about a context."""
        document = {"data": [{"paragraphs": [{"context": context, "qas": [{"id": "0", "question": question}]}]}]}
        data = squad_from_document(document, "question and context", answers_required=False)
        return self.predict_all(model, compute, data)["0"]

    def line(self, answer: Answer) -> str:
        """The answer with its score and its place."""
        said = answer.text if answer.answerable else f"no answer, or at best: {answer.text}"
        return (
            f"{said}  (score {answer.score:.3f}, characters {answer.start} to {answer.end}, "
            f"no answer {answer.no_answer_probability:.3f})"
        )

    def predict_file(self, model: nn.Module, compute: Compute, path: str) -> dict[str, Answer]:
        """Answers the questions of a SQuAD file, by id; the file needs no answers."""
        return self.predict_all(model, compute, read_squad(path, answers_required=False))

    def predict_all(self, model: nn.Module, compute: Compute, data: SquadData) -> dict[str, Answer]:
        """Answers by question id."""
        answers = self._answer_all(model, compute, data, self._features(data)).answers
        return {question.id: answer for question, answer in zip(data.questions, answers, strict=True)}

    def example_inputs(self) -> dict[str, str]:
        """A question of the built-in validation data with its context."""
        paragraph = load_squad(dataset="sample").validation.paragraphs[0]
        return {"question": paragraph.questions[0].text, "context": paragraph.context}

    def attention_examples(self, model: nn.Module, compute: Compute, num_examples: int) -> list[AttentionExample]:
        """Attention of validation windows spread over the shorter half."""
        batches = self._batches(self.validation_features)
        windows = choose_windows(batches.lengths, num_examples)
        return [
            attention_example(
                str(number),
                model,
                compute,
                batches,
                window,
                self.validation,
                self.tokenizer,
                self.config.max_answer_words,
            )
            for number, window in enumerate(windows, start=1)
        ]


def _digest_of(features: SquadFeatures) -> str:
    parts = (features.questions.ids, features.contexts.ids, features.answers, features.context_of)
    return content_digest(*parts, features.window_question, features.window_start, features.window_end)


def load_splits(config: Config) -> SquadSplits:
    """The data that the settings name."""
    return load_squad(
        train_files=config.train_file,
        validation_file=config.validation_file,
        dataset=config.dataset,
        dataset_config=config.dataset_config,
        seed=config.seed,
        sample_size=config.sample_size,
    )
