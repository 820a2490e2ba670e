"""Pretraining for summarization: the documents go on by themselves, and hide words.

A document is cut at a random place; its beginning, with masked tokens, is the document, what follows is the summary.
So masked tokens are predicted from both sides, and the next words from all before them, copied ones too.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from him.core.compute import Compute, in_parts
from him.core.errors import DataError
from him.core.ragged import Ragged
from him.data.batching import evaluation_batches
from him.data.cache import content_digest
from him.data.unlabelled import documents_of
from him.metrics.running import RunningMean, perplexity
from him.model.masked_lm import PretrainingModel, WordNumbers, mask_positions
from him.tasks.base import Evaluation, LossSums
from him.tasks.pretraining import EVALUATION_SEED, MASKED_SHARE, Pretraining
from him.tasks.summarization.features import PairBatches, PairFeatures
from him.text.tokenizer import MASK, encode_ids, piece_texts, special_id

if TYPE_CHECKING:
    from him.tasks.summarization.task import SummarizationTask

EARLIEST, LATEST = 0.3, 0.8  # share of a document that is read before it goes on
LEAST_TOKENS = 16  # of a document that is cut in two
EVALUATION_BATCH = 64


class SummarizationPretraining(Pretraining):
    """Goes on with documents, and predicts their masked tokens.

    Args:
        task: with its training and validation data.
    """

    def __init__(self, task: SummarizationTask) -> None:
        super().__init__(task)
        fields = (self.config.document_field, self.config.summary_field)
        texts = [text for name in self.config.pretrain_files for text in documents_of(name, *fields)]
        documents = task.train_batches.features.documents
        if texts:
            documents = Ragged.from_arrays([*_rows(documents), *_rows(encode_ids(task.tokenizer, texts))])
        self.batches = self._cut(documents, self.config.seed)
        self.validation_batches = self._cut(task.validation_features.documents, EVALUATION_SEED)
        self.mask_id = special_id(task.tokenizer, MASK)
        self.word_numbers = WordNumbers(piece_texts(task.tokenizer))

    def _cut(self, documents: Ragged, seed: int) -> PairBatches:
        """Each document in two, at a random place."""
        shares = np.random.default_rng(seed).uniform(EARLIEST, LATEST, len(documents))
        rows = [row for row in zip(_rows(documents), shares, strict=True) if len(row[0]) >= LEAST_TOKENS]
        if not rows:
            raise DataError(
                f"--pretrain_epochs: no document has {LEAST_TOKENS} tokens, to be cut in two; leave the flag out"
            )
        room = self.task.train_batches.document_room
        places = [min(int(share * len(row)), room) for row, share in rows]
        before = [row[:place] for (row, _), place in zip(rows, places, strict=True)]
        after = [row[place:] for (row, _), place in zip(rows, places, strict=True)]
        features = PairFeatures(Ragged.from_arrays(before), Ragged.from_arrays(after))
        return self.task.batches_of(features)

    @property
    def train_lengths(self) -> np.ndarray:
        return self.batches.lengths

    @cached_property
    def train_digest(self) -> str:
        return content_digest(self.batches.features.documents, self.batches.features.summaries)

    def train_batch(self, examples: np.ndarray) -> dict[str, Tensor]:
        """See `PairBatches.batch`; with the number of the word that each token is part of."""
        batch = self.batches.batch(examples)
        return self._with_words(batch)

    def _with_words(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return batch | {"word_ids": self.word_numbers(batch["input_ids"])}

    def _read(
        self, model: PretrainingModel, batch: dict[str, Tensor], generator: torch.Generator | None
    ) -> tuple[LossSums, Tensor, int, Tensor]:
        """Loss of what follows; of the masked tokens their summed loss, number, and how many were met."""
        ids_BL = batch["input_ids"]
        may_mask_BL = (batch["token_type_ids"] == 0) & (batch["word_ids"] >= 0)
        is_masked_BL = mask_positions(batch["word_ids"], MASKED_SHARE, may_mask_BL, generator)
        masked = {**batch, "input_ids": ids_BL.masked_fill(is_masked_BL, self.mask_id)}
        hidden_BLD = model.model(masked).hidden_BLD
        loss, num_correct = model.model.loss(masked, hidden_BLD=hidden_BLD)
        following = LossSums(loss, self.task.num_targets(batch), num_correct)
        mlm_loss, num_words, num_met = model.mlm_loss(hidden_BLD, ids_BL, is_masked_BL)
        return following, mlm_loss, num_words, num_met

    @torch.inference_mode()
    def evaluate(self, model: nn.Module, compute: Compute, final: bool = False) -> Evaluation:
        """Loss of the words that follow in validation documents, and accuracy of the hidden ones."""
        model.eval()
        loss, accuracy = RunningMean(), RunningMean()
        generator = torch.Generator(compute.device).manual_seed(EVALUATION_SEED)

        def read(numbers: np.ndarray) -> tuple[LossSums, Tensor, int, Tensor]:
            batch = compute.to_device(self._with_words(self.validation_batches.batch(numbers)))
            with compute.autocast():
                return self._read(model, batch, generator)

        cut = evaluation_batches(self.validation_batches.lengths, EVALUATION_BATCH)
        for _, (following, _, num_words, num_met) in (part for whole in cut for part in in_parts(whole, read)):
            loss.add(float(following.loss), following.num_targets)
            accuracy.add(float(num_met), num_words)
        return Evaluation(
            {
                "Loss": loss.mean,
                "Perplexity": perplexity(loss.total, loss.count),
                "Accuracy": 100.0 * accuracy.mean,
            }
        )


def _rows(ragged: Ragged) -> list[np.ndarray]:
    return [ragged[number] for number in range(len(ragged))]
