"""Run folders with models that nobody trained, whose weights are large enough for every input to be felt."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from him.config import Config
from him.data.sample import squad_sample, summarization_sample, text_sample
from him.runs.checkpoint import save_model
from him.tasks import task_class
from him.tasks.base import Task
from him.tasks.squad.lexical import DocumentFrequencies
from him.text.training import train_tokenizer
from him.workflows.predict import Predictor, load

SETTINGS: dict[str, Any] = {
    "embed_dim": 64,
    "num_encoder_layers": 1,
    "num_heads": 4,
    "dim_feedforward": 96,
    "max_seq_len": 160,
    "vocab_size": 600,
    "num_threads": 1,
}
OF_TASK: dict[str, dict[str, Any]] = {
    "squad": {"doc_stride": 32},
    "summarization": {"max_target_len": 32},
    "lm": {},
}


def make_run(folder: Path, task_type: str, **settings: Any) -> Path:
    """A finished run with this model."""
    cls = task_class(task_type)
    config = cls.resolve(Config(task_type=task_type, **{**SETTINGS, **OF_TASK[task_type], **settings}))
    task = _task(config)
    torch.manual_seed(5)
    model = task.build_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    save_model(folder / "best", config, model, task, {})
    return folder


def opened(run: Path) -> Predictor:
    """The run's model, as it is exported."""
    return load(run, device="cpu", precision="fp32")


def _task(config: Config) -> Task:
    cls = task_class(config.task_type)
    if config.task_type == "lm":
        return cls(config, _tokenizer(text_sample(0, 8, 0)[0], config, "bpe", lowercase=False))
    if config.task_type == "summarization":
        texts = [record["document"] for record in summarization_sample(0, 60, 0)[0]]
        return cls(config, _tokenizer(texts, config, "bpe"))
    texts = [part["context"] for each in squad_sample(0, 60, 0)[0]["data"] for part in each["paragraphs"]]
    rarity = DocumentFrequencies.count([text.split() for text in texts])
    return cls(config, _tokenizer(texts, config, "wordpiece"), rarity, False)


def _tokenizer(texts: list[str], config: Config, kind: str, lowercase: bool = True) -> Tokenizer:
    return train_tokenizer(texts, config.vocab_size, kind, lowercase)
