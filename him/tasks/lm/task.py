"""Language modelling as a task: a corpus of text, the next token, bits per byte."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from him.attention_maps import AttentionExample
from him.config import Config
from him.config.options.lm import SPEC
from him.core.compute import Compute
from him.core.errors import DataError
from him.data.cache import cache_folder
from him.data.document_files import read_documents
from him.model.generation import generate, stream
from him.model.initialization import initialize
from him.tasks.base import AttentionTask, Evaluation, PretrainableTask, StreamingTask
from him.tasks.building import build_embedding, build_encoder, given_tokenizer
from him.tasks.evaluation import diversity, mean_loss
from him.tasks.exporting import Graph
from him.tasks.generation import Generation, GenerationTask, decoder_of, evenly_spread
from him.tasks.lm.corpus import PreparedCorpus, TokenText, encode_documents, prepare_corpus
from him.tasks.lm.export import LanguageModelStock, NextTokenLogits, example_batches
from him.tasks.lm.model import LanguageModel
from him.tasks.lm.pretraining import LanguageModelingPretraining
from him.tasks.lm.sources import load_corpus, read_prompts
from him.tasks.lm.windows import RandomWindows, ScoringWindows
from him.text.tokenizer import SEP, decode, plain_text_tokenizer, special_id

SCORING_TOKENS = 8192  # in a batch of validation windows
MOST_SAMPLES = 8  # continuations written at an evaluation
SAMPLE_PROMPT_TOKENS = 16
SAMPLE_TOKENS = 64
SAMPLE_TEMPERATURE = 0.8  # where none is set: the likeliest tokens repeat themselves without end
ATTENTION_TOKENS = 38  # as many as a sheet shows without gaps
BYTE = re.compile("<0x[0-9A-F]{2}>")


class LanguageModelingTask(GenerationTask, PretrainableTask, StreamingTask, AttentionTask):
    """Predicts the next token of a text, and so continues texts."""

    name: ClassVar[str] = "lm"
    inputs: ClassVar[tuple[str, ...]] = SPEC.inputs
    best_metric: ClassVar[str] = SPEC.best_metric
    shown_metrics: ClassVar[tuple[str, ...]] = SPEC.shown_metrics

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        super().__init__(config, plain_text_tokenizer(tokenizer))
        self.end_id = special_id(tokenizer, SEP)
        self.corpus: PreparedCorpus | None = None

    @classmethod
    def prepare(cls, config: Config, tokenizer_folder: Path | None = None) -> LanguageModelingTask:
        """Finds the texts and makes them a file of token ids, or takes it from the cache."""
        splits = load_corpus(config)
        given = given_tokenizer(config, tokenizer_folder)
        corpus = prepare_corpus(splits, given, config.tokenizer_type, config.vocab_size, cache_folder(config))
        if len(corpus.train.ids) <= config.max_seq_len:
            num_tokens = len(corpus.train.ids) - 1
            shorter = f", or --seq_len {num_tokens // 2} or less" if num_tokens >= 32 else ""
            raise DataError(
                f"{splits.train.source}: {num_tokens:,} tokens to train on are less than one sequence; "
                f"use more text{shorter}"
            )
        task = cls(config, corpus.tokenizer)
        task.corpus = corpus
        task.train_batches = RandomWindows(corpus.train.ids, config.max_seq_len)
        task.notes = (*splits.notes, _size_note(corpus))
        return task

    def pretraining(self) -> LanguageModelingPretraining:
        return LanguageModelingPretraining(self, self.corpus.train.ids)

    @property
    def train_digest(self) -> str:
        return self.corpus.content

    def build_model(self) -> LanguageModel:
        """Builds the model that the configuration describes, with weights drawn anew."""
        embedding = build_embedding(self.config, self.tokenizer, num_segments=0)
        model = LanguageModel(embedding, build_encoder(self.config, causal=True), self.config.max_seq_len)
        initialize(model)
        return model

    def num_targets(self, batch: dict[str, Tensor]) -> int:
        """Tokens that are predicted."""
        return int(batch["is_target"].sum()) if "is_target" in batch else batch["labels"].numel()

    def dummy_batch(self, batch_size: int, length: int) -> dict[str, Tensor]:
        """All tokens are predicted."""
        ids_BL = torch.randint(self.tokenizer.get_vocab_size(), (batch_size, length + 1))
        mask_BL = torch.ones(batch_size, length, dtype=torch.bool)
        return {"input_ids": ids_BL[:, :-1], "labels": ids_BL[:, 1:], "attention_mask": mask_BL}

    def evaluate(self, model: nn.Module, compute: Compute, final: bool = False) -> Evaluation:
        """Scores every token of the validation text once, and continues a few positions of it."""
        return self._evaluate(model, compute, self.corpus.validation)

    def evaluate_file(self, model: nn.Module, compute: Compute, path: str) -> Evaluation:
        """The same on a text file or a folder of them."""
        documents = read_documents(path, "--file")
        if self.config.validation_size is not None:
            documents = documents.take(range(min(self.config.validation_size, len(documents))))
        # Not the run's cache, which may lie on another machine or must not grow; and the run is left as it is.
        with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            text = encode_documents(documents, self.tokenizer, Path(folder) / "text")
            return self._evaluate(model, compute, text)

    def _evaluate(self, model: nn.Module, compute: Compute, text: TokenText) -> Evaluation:
        model.eval()
        length = self.config.max_seq_len
        windows = ScoringWindows(text.ids, length, self.config.eval_stride or length)
        means = mean_loss(model, windows, max(1, SCORING_TOKENS // length), compute, self.loss)
        metrics = means.metrics() | {"Bits_Per_Byte": means.loss.total / math.log(2.0) / text.num_bytes}
        prompts = self._sample_prompts(text.ids)
        if not prompts:
            return Evaluation(metrics)
        with compute.autocast():
            written = generate(model, prompts, decoder_of(self._sampling(), self.tokenizer, SAMPLE_TOKENS))
        beginnings, texts = ([decode(self.tokenizer, ids) for ids in rows] for rows in (prompts, written))
        metrics |= diversity(texts)
        samples = [{"prompt": a, "text": b} for a, b in zip(beginnings, texts, strict=True)]
        shown = (
            f"**{a.strip()}**\n\n" + b.strip().replace("\n", "  \n") for a, b in zip(beginnings, texts, strict=True)
        )
        return Evaluation(metrics, {"predictions.json": samples}, "\n\n---\n\n".join(shown))

    def _sampling(self) -> Config:
        """The settings by which an evaluation writes."""
        if self.config.temperature > 0 or self.config.num_beams > 1:
            return self.config
        return self.config.with_values(temperature=SAMPLE_TEMPERATURE)

    def _sample_prompts(self, ids: np.ndarray) -> list[list[int]]:
        """Beginnings at positions spread over a text, none of them across the end of a document."""
        number = min(self.config.eval_samples, MOST_SAMPLES)
        prompts = []
        for start in evenly_spread(max(1, len(ids) - SAMPLE_PROMPT_TOKENS), number):
            prompt = ids[start : start + SAMPLE_PROMPT_TOKENS].tolist()
            last_end = max((position for position, id in enumerate(prompt) if id == self.end_id), default=0)
            prompts.append(prompt[last_end:])
        return prompts

    def predict(self, model: nn.Module, compute: Compute, *, text: str) -> Generation:
        """Continues a text; an empty one is begun."""
        return self._continue(model, compute, {"0": text})["0"]

    def stream(self, model: nn.Module, compute: Compute, *, text: str) -> Iterator[str] | None:
        """Continues a text, piece by piece; greedy or sampling, because beam search knows nothing before the end."""
        return self._pieces(model, compute, text) if self.config.num_beams == 1 else None

    def _pieces(self, model: nn.Module, compute: Compute, text: str) -> Iterator[str]:
        decoder = decoder_of(self.config, self.tokenizer, self.config.max_new_tokens)
        prompt = self._prompt(text)
        ids, said, tokens = [], "", stream(model, prompt, decoder)
        while True:
            with compute.autocast():  # and not between the pieces, where others may compute
                token = next(tokens, None)
            if token is None:
                break
            ids.append(token)
            now = decode(self.tokenizer, ids)
            # In the middle of a character; the bytes of a character tokenizer are read together with the next ones.
            is_open = now.endswith("\N{REPLACEMENT CHARACTER}") or BYTE.fullmatch(self.tokenizer.id_to_token(token))
            if not is_open:
                yield now[len(said) :]
                said = now
        if rest := decode(self.tokenizer, ids)[len(said) :]:  # a character that was never completed
            yield rest

    def line(self, answer: Generation) -> str:
        """The continuation."""
        return answer.text

    def predict_file(self, model: nn.Module, compute: Compute, path: str) -> dict[str, Generation]:
        """Continues the text of a .txt file, or each prompt of a JSONL file, by id."""
        return self._continue(model, compute, read_prompts(path))

    def _continue(self, model: nn.Module, compute: Compute, texts: dict[str, str]) -> dict[str, Generation]:
        decoder = decoder_of(self.config, self.tokenizer, self.config.max_new_tokens)
        prompts = {id: self._prompt(text) for id, text in texts.items()}
        with compute.autocast():
            written = generate(model, list(prompts.values()), decoder)
        return {
            # The first id of a prompt is the end of text before it.
            id: Generation(decode(self.tokenizer, ids), len(ids), max(0, model.window_start(len(prompts[id])) - 1))
            for id, ids in zip(prompts, written, strict=True)
        }

    def _prompt(self, text: str) -> list[int]:
        """The ids of a prompt, as of the beginning of a document."""
        return [self.end_id, *self.tokenizer.encode(text, add_special_tokens=False).ids]

    def example_inputs(self) -> dict[str, str]:
        """The beginning of a built-in validation document."""
        from him.data.sample import text_sample

        _, (text,) = text_sample(num_train=0, num_validation=1)
        return {"text": text[: text.index(" ", 80)]}

    def attention_examples(self, model: nn.Module, compute: Compute, num_examples: int) -> list[AttentionExample]:
        """Attention over stretches of the validation text."""
        model.eval()
        ids, length = self.corpus.validation.ids, min(ATTENTION_TOKENS, self.config.max_seq_len)
        starts = evenly_spread(max(1, len(ids) - length), num_examples)
        return [
            self._attention(str(name), model, compute, ids[start : start + length].tolist())
            for name, start in enumerate(starts, start=1)
        ]

    @torch.inference_mode()
    def _attention(self, name: str, model: nn.Module, compute: Compute, ids: list[int]) -> AttentionExample:
        with compute.autocast():
            batch = {"input_ids": torch.tensor([ids], device=compute.device)}
            weights = model(batch, return_weights=True).attention_weights
        return AttentionExample(
            name=name,
            title=" ".join(decode(self.tokenizer, ids).split()),
            tokens=[self.tokenizer.decode([id], skip_special_tokens=False) for id in ids],
            weights=[layer[0].float().cpu().numpy() for layer in weights],
            special=[id == self.end_id for id in ids],
            sections=(("text", 0, len(ids) - 1),),
        )

    def export_graph(self, model: nn.Module) -> Graph:
        batches = example_batches(self.config, self.tokenizer)
        return Graph(NextTokenLogits(model).eval(), ("input_ids",), ("logits",), (None,), batches)

    def stock_export(self) -> LanguageModelStock:
        return LanguageModelStock(self.config, self.tokenizer, example_batches(self.config, self.tokenizer))


def _size_note(corpus: PreparedCorpus) -> str:
    """How large the corpus is."""
    train, validation = corpus.train, corpus.validation
    return (
        f"{train.num_documents:,} + {validation.num_documents:,} documents, "
        f"{len(train.ids):,} + {len(validation.ids):,} tokens "
        f"({validation.num_bytes / (len(validation.ids) - 1):.2f} bytes a token) for training + validation"
    )
