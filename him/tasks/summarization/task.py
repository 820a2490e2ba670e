"""Summarization as a task: (document, summary) pairs, a prefix language model that copies, ROUGE."""

from __future__ import annotations

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
from him.config.options.summarization import SPEC
from him.core.compute import Compute, in_parts
from him.core.errors import ConfigError
from him.data.batching import SamplingWeights, evaluation_batches
from him.data.cache import cache_folder
from him.data.records import Pair, PairData, read_pairs
from him.data.sample import summarization_sample
from him.metrics.rouge import rouge_scores
from him.model.generation import generate
from him.model.initialization import initialize
from him.tasks.base import AttentionTask, Evaluation, PretrainableTask
from him.tasks.building import (
    bertscore_notes,
    build_embedding,
    build_encoder,
    check_sampling,
    given_tokenizer,
    sampling_of,
)
from him.tasks.evaluation import BertScores, diversity, mean_loss
from him.tasks.exporting import Graph, StockExport, few_batches
from him.tasks.generation import Generation, GenerationTask, decoder_of, evenly_spread
from him.tasks.summarization.export import NextTokenLogProbabilities
from him.tasks.summarization.features import (
    PairBatches,
    PairFeatures,
    build_pair_features,
    document_room,
    prepare_pairs,
)
from him.tasks.summarization.model import SummarizationModel
from him.tasks.summarization.pretraining import SummarizationPretraining
from him.tasks.summarization.sources import load_pairs
from him.text.tokenizer import CLS, PAD, SEP, decode, special_id

GENERATION_BATCH = 32  # documents whose summaries are written side by side
SHOWN_SAMPLES = 8
SPEED_SUMMARY = 16


class SummarizationTask(GenerationTask, PretrainableTask, AttentionTask):
    """Writes a summary of a document."""

    name: ClassVar[str] = "summarization"
    inputs: ClassVar[tuple[str, ...]] = SPEC.inputs
    shown_metrics: ClassVar[tuple[str, ...]] = SPEC.shown_metrics

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        _check_room(config)
        super().__init__(config, tokenizer)
        self._source_ids = np.zeros(0, np.int64)
        self.validation: PairData | None = None
        self.validation_features: PairFeatures | None = None
        self._bertscores = BertScores(config.bertscore_model)

    @property
    def best_metric(self) -> str:
        """ROUGE-L, or the loss where no summary is written during training."""
        return SPEC.best_metric_of(self.config)

    @classmethod
    def prepare(cls, config: Config, tokenizer_folder: Path | None = None) -> SummarizationTask:
        """Reads the data, trains or loads the tokenizer, and builds features or takes them from the cache."""
        _check_room(config)
        check_sampling(config)
        few = 2 * config.batch_size
        few_only = config.with_values(sample_size=few, validation_size=few)
        splits = load_pairs(few_only if config.dry_run else config)
        prepared = prepare_pairs(
            splits.train,
            splits.validation,
            given_tokenizer(config, tokenizer_folder),
            config.tokenizer_type,
            config.vocab_size,
            cache_folder(config),
        )
        task = cls(config, prepared.tokenizer)
        task.train_batches = task.batches_of(prepared.train)
        task._source_ids = np.array(splits.source_ids, np.int64)
        task.validation = splits.validation
        task.validation_features = prepared.validation
        task.notes = (*splits.notes, *_cut_notes(task.train_batches), *bertscore_notes(config))
        return task

    def pretraining(self) -> SummarizationPretraining:
        return SummarizationPretraining(self, self.train_batches, self.batches_of(self.validation_features))

    def batches_of(self, features: PairFeatures) -> PairBatches:
        """Rows of pairs, cut as the settings say."""
        ids = (special_id(self.tokenizer, token) for token in (CLS, SEP, PAD))
        return PairBatches(features, *ids, self.config.max_seq_len, self.config.max_target_len)

    @property
    def train_sampling(self) -> SamplingWeights | None:
        """By `--train_file_weights`."""
        return sampling_of(self.config, self._source_ids)

    @cached_property
    def train_digest(self) -> str:
        """By the tokens of all pairs: where most documents are cut, the lengths of other ones are the same."""
        return self.train_batches.features.digest

    @cached_property
    def validation_digest(self) -> str:
        """By the tokens of all validation pairs."""
        return self.validation_features.digest

    def build_model(self) -> SummarizationModel:
        """Builds the model that the configuration describes, with weights drawn anew."""
        config = self.config
        embedding = build_embedding(config, self.tokenizer, num_segments=2)
        encoder = build_encoder(config, causal=True)
        model = SummarizationModel(embedding, encoder, config.embed_dim, copies=config.copy_head)
        initialize(model)
        return model

    def num_targets(self, batch: dict[str, Tensor]) -> int:
        """Tokens of the summaries, the end included."""
        return int((batch["labels"] >= 0).sum())

    def dummy_batch(self, batch_size: int, length: int) -> dict[str, Tensor]:
        """A document with a summary of `SPEED_SUMMARY` tokens behind it."""
        ids_BL = torch.randint(self.tokenizer.get_vocab_size(), (batch_size, length))
        is_summary_L = torch.arange(length) >= length - SPEED_SUMMARY
        positions_T = is_summary_L.nonzero().squeeze(1)
        return {
            "input_ids": ids_BL,
            "token_type_ids": is_summary_L.long().expand(batch_size, -1),
            "attention_mask": torch.ones(batch_size, length, dtype=torch.bool),
            "labels": ids_BL[:, positions_T],
            "label_positions": (positions_T - 1).expand(batch_size, -1),
        }

    def evaluate(self, model: nn.Module, compute: Compute, final: bool = False) -> Evaluation:
        """Loss of all validation pairs; summaries of `--eval_samples` of them, of all if `final`."""
        config = self.config
        number = None if final and config.eval_samples else config.eval_samples
        num_scored = None if final and config.bertscore_samples else config.bertscore_samples
        return self._evaluate(model, compute, self.validation, self.validation_features, number, num_scored)

    def evaluate_file(self, model: nn.Module, compute: Compute, path: str) -> Evaluation:
        """All metrics on another file of pairs, or on its first `--validation_size`; `--eval_samples 0`: the loss."""
        config = self.config
        data = read_pairs(path, config.document_field, config.summary_field)
        if config.validation_size is not None:
            data = PairData(data.pairs[: config.validation_size], data.source)
        features = build_pair_features(data, self.tokenizer)
        number, num_scored = (None if wanted else 0 for wanted in (config.eval_samples, config.bertscore_samples))
        return self._evaluate(model, compute, data, features, number, num_scored)

    def _evaluate(
        self,
        model: nn.Module,
        compute: Compute,
        data: PairData,
        features: PairFeatures,
        num_written: int | None,
        num_scored: int | None,
    ) -> Evaluation:
        model.eval()
        batches = self.batches_of(features)
        metrics = mean_loss(model, batches, 2 * GENERATION_BATCH, compute, self.loss).metrics()
        numbers = evenly_spread(len(data.pairs), num_written)
        if not numbers:
            return Evaluation(metrics)
        texts = [written.text for written in self._write(model, compute, batches, numbers)]
        references = [data.pairs[number].summaries for number in numbers]
        metrics |= rouge_scores(texts, references) | diversity(texts)
        scored = evenly_spread(len(texts), num_scored)
        chosen = ([each[index] for index in scored] for each in (texts, references))
        metrics |= self._bertscores.metrics(*chosen, compute)
        written = {data.pairs[number].id: text for number, text in zip(numbers, texts, strict=True)}
        samples = [(data.pairs[number], written[data.pairs[number].id]) for number in numbers[:SHOWN_SAMPLES]]
        return Evaluation(metrics, {"predictions.json": written}, _samples_table(samples))

    def _write(
        self, model: nn.Module, compute: Compute, batches: PairBatches, numbers: Sequence[int]
    ) -> list[Generation]:
        """Summaries of the pairs of these numbers, in their order."""
        decoder = decoder_of(self.config, self.tokenizer, self.config.max_target_len)
        uncut = batches.features.documents.lengths
        written: dict[int, Generation] = {}
        lengths = batches.document_lengths[np.asarray(numbers, np.int64)]

        def write(indices: np.ndarray) -> list[list[int]]:
            with compute.autocast():
                return generate(model, [batches.prompt(numbers[index]) for index in indices], decoder)

        cut = evaluation_batches(lengths, GENERATION_BATCH)
        for indices, texts in (part for whole in cut for part in in_parts(whole, write)):
            for number, ids in zip([numbers[index] for index in indices], texts, strict=True):
                text = decode(self.tokenizer, ids).strip()
                written[number] = Generation(text, len(ids), max(0, int(uncut[number]) - batches.document_room))
        return [written[number] for number in numbers]

    def predict(self, model: nn.Module, compute: Compute, *, text: str) -> Generation:
        """Summarizes a document."""
        if not text.strip():
            raise ConfigError("--text is empty; give a document")
        return self._summarize(model, compute, PairData((Pair("0", text, ()),), "text"))["0"]

    def line(self, answer: Generation) -> str:
        """The summary, and what was not read for it."""
        return answer.text + (f"  (the last {answer.num_cut:,} tokens were not read)" if answer.num_cut else "")

    def predict_file(self, model: nn.Module, compute: Compute, path: str) -> dict[str, Generation]:
        """Summarizes the documents of a JSONL, CSV or Parquet file, by id; it needs no summaries."""
        config = self.config
        data = read_pairs(path, config.document_field, config.summary_field, summaries_required=False)
        return self._summarize(model, compute, data)

    def _summarize(self, model: nn.Module, compute: Compute, data: PairData) -> dict[str, Generation]:
        batches = self.batches_of(build_pair_features(data, self.tokenizer))
        texts = self._write(model, compute, batches, range(len(data.pairs)))
        return {pair.id: text for pair, text in zip(data.pairs, texts, strict=True)}

    def example_inputs(self) -> dict[str, str]:
        """A document of the built-in validation data."""
        splits = load_pairs(Config(task_type="summarization", dataset="sample", sample_size=1))
        return {"text": splits.validation.pairs[0].document}

    def attention_examples(self, model: nn.Module, compute: Compute, num_examples: int) -> list[AttentionExample]:
        """Attention over validation documents, spread over the shorter half, and over the summaries written of them."""
        model.eval()
        batches = self.batches_of(self.validation_features)
        by_length = np.argsort(batches.document_lengths, kind="stable")
        shorter = by_length[: max(num_examples, len(by_length) // 2)]
        numbers = [int(shorter[index]) for index in evenly_spread(len(shorter), num_examples)]
        return [self._attention(str(name), model, compute, batches, n) for name, n in enumerate(numbers, start=1)]

    @torch.inference_mode()
    def _attention(
        self, name: str, model: nn.Module, compute: Compute, batches: PairBatches, number: int
    ) -> AttentionExample:
        prompt = batches.prompt(number)
        decoder = decoder_of(self.config, self.tokenizer, self.config.max_target_len)
        with compute.autocast():
            (summary,) = generate(model, [prompt], decoder)
            ids_1L = torch.tensor([[*prompt, *summary]], device=compute.device)
            types_1L = (torch.arange(ids_1L.shape[1], device=compute.device) >= len(prompt)).long()[None]
            batch = {"input_ids": ids_1L, "token_type_ids": types_1L, "attention_mask": torch.ones_like(ids_1L).bool()}
            weights = model(batch, return_weights=True).attention_weights
        ids = ids_1L[0].tolist()
        written = decode(self.tokenizer, summary).strip()
        sections = (("document", 1, len(prompt) - 2), ("summary", len(prompt), len(ids) - 1))
        return AttentionExample(
            name=name,
            title=f"Written: {written or 'nothing'}. Reference: {self.validation.pairs[number].summaries[0]}",
            tokens=[self.tokenizer.decode([id], skip_special_tokens=False) for id in ids],
            weights=[layer[0].float().cpu().numpy() for layer in weights],
            special=[id in (batches.cls_id, batches.sep_id, batches.pad_id) for id in ids],
            sections=tuple(section for section in sections if section[1] <= section[2]),
        )

    def export_graph(self, model: nn.Module) -> Graph:
        """With a few built-in documents and their summaries."""
        pairs = (Pair(each["id"], each["document"], (each["summary"],)) for each in summarization_sample(0, 0, 8)[1])
        data = PairData(tuple(pairs), "the built-in sample")
        batches = self.batches_of(build_pair_features(data, self.tokenizer))
        inputs = ("input_ids", "token_type_ids", "attention_mask")
        module, shown = NextTokenLogProbabilities(model).eval(), few_batches(batches.lengths, batches.batch)
        return Graph(module, inputs, ("log_probabilities",), ("attention_mask",), shown)

    def stock_export(self) -> StockExport:
        """There is none."""
        raise ConfigError(
            f"--format transformers: no stock class for --task_type {self.name}, which reads under a mask of its own; "
            "use --format onnx"
        )


def _check_room(config: Config) -> None:
    if (room := document_room(config.max_seq_len, config.max_target_len)) < 1:
        raise ConfigError(
            f"--max_seq_len {config.max_seq_len} and --max_target_len {config.max_target_len} leave {room} tokens for "
            f"a document; use --max_seq_len {config.max_target_len + 130}"
        )


def _cut_notes(batches: PairBatches) -> tuple[str, ...]:
    """A line each about documents and summaries that are too long."""
    total, notes = len(batches.features), []
    for what, cut, room, flag in (
        ("documents", batches.num_cut_documents, batches.document_room, "--max_seq_len"),
        ("summaries", batches.num_cut_summaries, batches.summary_room, "--max_target_len"),
    ):
        if cut:
            notes.append(
                f"{cut:,} of {total:,} training {what} are longer than {room} tokens and are cut there; "
                f"raise {flag} to keep more"
            )
    return tuple(notes)


def _samples_table(samples: Sequence[tuple[Pair, str]]) -> str:
    """Markdown for people: what was written beside the reference."""
    lines = ["| id | written | reference |", "|---|---|---|"]
    for pair, text in samples:
        cells = (pair.id, text or "(nothing)", pair.summaries[0])
        lines.append("| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |")
    return "\n".join(lines)
