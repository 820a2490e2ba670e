"""Pretraining for language modelling: the next token, with words of the text before it masked."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import numpy as np
from torch import Tensor, nn

from him.core.compute import Compute
from him.data.cache import content_digest
from him.data.document_files import PRETRAIN_FILES, read_documents
from him.model.masked_lm import PretrainingModel, WordNumbers
from him.tasks.base import Evaluation, LossSums, Task
from him.tasks.lm.corpus import encode_documents
from him.tasks.lm.windows import RandomWindows
from him.tasks.pretraining import Pretraining
from him.text.tokenizer import piece_texts


class LanguageModelingPretraining(Pretraining):
    """Predicts the next token where some of the words before it cannot be read.

    Its training texts are `train_ids`, (tokens,) unsigned integers.
    """

    best_metric: ClassVar[str] = "Bits_Per_Byte"
    shown_metrics: ClassVar[tuple[str, ...]] = ("Accuracy", "Perplexity", "Bits_Per_Byte")

    def __init__(self, task: Task, train_ids: np.ndarray) -> None:
        super().__init__(task)
        ids = [train_ids]
        for name in self.config.pretrain_files:
            with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                text = encode_documents(read_documents(name, PRETRAIN_FILES), self.tokenizer, Path(folder) / "text")
                ids.append(np.array(text.ids))
        self.train_batches = RandomWindows(np.concatenate(ids) if len(ids) > 1 else ids[0], self.config.max_seq_len)
        self.word_numbers = WordNumbers(piece_texts(self.tokenizer))

    @cached_property
    def train_digest(self) -> str:
        return content_digest(self.train_batches.ids)

    def train_batch(self, examples: np.ndarray) -> dict[str, Tensor]:
        """See `RandomWindows.batch`; with the number of the word that each token is part of."""
        batch = super().train_batch(examples)
        return batch | {"word_ids": self.word_numbers(batch["input_ids"])}

    def build_model(self) -> PretrainingModel:
        """The task's model; masked tokens are predicted as the next ones, by its own head."""
        return PretrainingModel(self.task.build_model())

    def loss(self, model: PretrainingModel, batch: dict[str, Tensor]) -> LossSums:
        """Cross-entropy of the next tokens."""
        masked, _ = self.masked(batch, batch["word_ids"] >= 0)
        return self.task.loss(model.model, masked)

    def evaluate(self, model: nn.Module, compute: Compute, final: bool = False) -> Evaluation:
        """The task's own: nothing is masked in validation texts."""
        model.eval()
        return self.task.evaluate(model.model, compute)
