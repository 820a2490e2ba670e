"""A fourth task, as small as one can be: the class of a text, from files with `text` and `class` in each line.

It has none of the optional capabilities, and keeps no prepared data.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from him.config import Config
from him.config.options.toy import SPEC
from him.core.compute import Compute
from him.core.errors import DataError
from him.model.embeddings import InputEmbedding
from him.model.encoder import Encoder
from him.model.generative import padded
from him.model.initialization import initialize
from him.tasks.base import Evaluation, LossSums, Task
from him.tasks.building import build_embedding, build_encoder, given_tokenizer
from him.tasks.evaluation import mean_loss
from him.text.tokenizer import CLS, PAD, parse_tokenizer, special_id
from him.text.training import train_tokenizer


class Classifier(nn.Module):
    """Logits of the classes, from the first token."""

    def __init__(self, embedding: InputEmbedding, encoder: Encoder, embed_dim: int, num_classes: int) -> None:
        super().__init__()
        self.embedding = embedding
        self.encoder = encoder
        self.head = nn.Linear(embed_dim, num_classes)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """(B, classes)."""
        return self.head(self.encoder(self.embedding(batch), batch["attention_mask"]).hidden_BLD[:, 0]).float()


@dataclass
class Labelled:
    """Texts as token ids, with their classes."""

    texts: Sequence[str]
    classes: Sequence[int]
    rows: Sequence[Sequence[int]]
    pad_id: int

    @property
    def lengths(self) -> np.ndarray:
        """(N,) tokens of each."""
        return np.array([len(row) for row in self.rows])

    def batch(self, numbers: np.ndarray) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` (B, L), `labels` (B,)."""
        ids, mask = padded([self.rows[number] for number in numbers], torch.device("cpu"), self.pad_id)
        labels = torch.tensor([self.classes[number] for number in numbers])
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@dataclass
class Label:
    """What the model says."""

    number: int
    probability: float


class ToyTask(Task):
    """Tells the class of a text."""

    name: ClassVar[str] = "toy"
    inputs: ClassVar[tuple[str, ...]] = SPEC.inputs
    best_metric: ClassVar[str] = SPEC.best_metric
    shown_metrics: ClassVar[tuple[str, ...]] = SPEC.shown_metrics

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.validation: Labelled | None = None

    @classmethod
    def prepare(cls, config: Config, tokenizer_folder: Path | None = None) -> ToyTask:
        texts, classes = read(config.train_file[0])
        tokenizer = given_tokenizer(config, tokenizer_folder) or train_tokenizer(texts, config.vocab_size)
        task = cls(config, tokenizer)
        task.train_batches = task.labelled(texts, classes)
        task.validation = task.labelled(*read(config.validation_file))
        return task

    def labelled(self, texts: Sequence[str], classes: Sequence[int]) -> Labelled:
        """Texts cut to `--max_seq_len`, behind a [CLS]."""
        cls_id, room = special_id(self.tokenizer, CLS), self.config.max_seq_len - 1
        encodings = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        rows = [[cls_id, *encoding.ids[:room]] for encoding in encodings]
        return Labelled(texts, classes, rows, special_id(self.tokenizer, PAD))

    @classmethod
    def restore(cls, config: Config, folder: Path) -> ToyTask:
        return cls(config, parse_tokenizer(folder / "tokenizer.json"))

    def save(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text(self.tokenizer.to_str(), encoding="utf-8")

    def build_model(self) -> Classifier:
        config = self.config
        embedding = build_embedding(config, self.tokenizer, num_segments=0)
        encoder = build_encoder(config, causal=False)
        model = Classifier(embedding, encoder, config.embed_dim, config.num_classes)
        initialize(model)
        return model

    def num_targets(self, batch: dict[str, Tensor]) -> int:
        return len(batch["labels"])

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> LossSums:
        logits, labels = model(batch), batch["labels"]
        loss = F.cross_entropy(logits, labels, reduction="sum")
        return LossSums(loss, len(labels), (logits.argmax(dim=-1) == labels).sum())

    def dummy_batch(self, batch_size: int, length: int) -> dict[str, Tensor]:
        ids = torch.randint(self.tokenizer.get_vocab_size(), (batch_size, length))
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids, dtype=torch.bool),
            "labels": torch.zeros(batch_size, dtype=torch.int64),
        }

    def evaluate(self, model: nn.Module, compute: Compute, final: bool = False) -> Evaluation:
        return self._evaluate(model, compute, self.validation)

    def evaluate_file(self, model: nn.Module, compute: Compute, path: str) -> Evaluation:
        return self._evaluate(model, compute, self.labelled(*read(path)))

    def _evaluate(self, model: nn.Module, compute: Compute, data: Labelled) -> Evaluation:
        metrics = mean_loss(model, data, 64, compute, self.loss).metrics()
        said = [answer.number for answer in self._answers(model, compute, data)]
        return Evaluation(metrics, {"predictions.json": dict(zip(data.texts, said, strict=True))})

    @torch.inference_mode()
    def _answers(self, model: nn.Module, compute: Compute, data: Labelled) -> list[Label]:
        with compute.autocast():
            probabilities = model(compute.to_device(data.batch(np.arange(len(data.rows))))).softmax(dim=-1)
        return [Label(int(row.argmax()), float(row.max())) for row in probabilities]

    def predict(self, model: nn.Module, compute: Compute, *, text: str) -> Label:
        return self._answers(model, compute, self.labelled([text], [0]))[0]

    def line(self, answer: Label) -> str:
        return f"class {answer.number} ({answer.probability:.2f})"

    def predict_file(self, model: nn.Module, compute: Compute, path: str) -> dict[str, Label]:
        texts, classes = read(path)
        answers = self._answers(model, compute, self.labelled(texts, classes))
        return {str(number): answer for number, answer in enumerate(answers)}

    def example_inputs(self) -> dict[str, str]:
        return {"text": "two four two"}


def read(path: str) -> tuple[list[str], list[int]]:
    """Texts and classes of a file."""
    try:
        records = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a file of texts with classes ({error}); give JSON Lines") from None
    return [record["text"] for record in records], [record["class"] for record in records]
