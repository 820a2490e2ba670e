"""Pretraining for summarization: the documents go on by themselves, with masked tokens.

A document is cut at a random position; its beginning, with masked tokens, is the document, what follows is the summary.
So masked tokens are predicted from both sides, and the next words from all before them, copied ones too.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from him.core.compute import Compute
from him.core.errors import DataError
from him.core.ragged import Ragged
from him.data.document_files import is_text, read_texts
from him.data.records import read_pairs
from him.model.masked_lm import PretrainingModel, WordNumbers
from him.tasks.base import Evaluation, LossSums, Task
from him.tasks.evaluation import TargetMeans
from him.tasks.pretraining import EVALUATION_SEED, MaskedPretraining
from him.tasks.summarization.features import PairBatches, PairFeatures
from him.text.tokenizer import encode_ids, piece_texts

EARLIEST, LATEST = 0.3, 0.8  # share of a document that is read before it goes on
LEAST_TOKENS = 16  # of a document that is cut in two


class SummarizationPretraining(MaskedPretraining):
    """Goes on with the documents of `train` and `validation`, and predicts their masked tokens."""

    def __init__(self, task: Task, train: PairBatches, validation: PairBatches) -> None:
        super().__init__(task)
        fields = (self.config.document_field, self.config.summary_field)
        texts = [text for name in self.config.pretrain_files for text in documents_of(name, *fields)]
        documents = train.features.documents
        if texts:
            documents = Ragged.from_arrays([*_rows(documents), *_rows(encode_ids(self.tokenizer, texts))])
        word_numbers = WordNumbers(piece_texts(self.tokenizer))
        self.train_batches = ContinuedDocuments(train, documents, self.config.seed, word_numbers)
        held_out = validation.features.documents
        self.validation_batches = ContinuedDocuments(validation, held_out, EVALUATION_SEED, word_numbers)

    @cached_property
    def train_digest(self) -> str:
        return self.train_batches.features.digest

    def losses(
        self, model: PretrainingModel, batch: dict[str, Tensor], generator: torch.Generator | None = None
    ) -> tuple[LossSums, LossSums]:
        """The loss of what follows, and that of the masked tokens."""
        masked, is_masked_BL = self.masked(batch, (batch["token_type_ids"] == 0) & (batch["word_ids"] >= 0), generator)
        hidden_BLD = model.model(masked).hidden_BLD
        loss, num_correct = model.model.loss(masked, hidden_BLD=hidden_BLD)
        following = LossSums(loss, self.task.num_targets(batch), num_correct)
        return following, LossSums(*model.mlm_loss(hidden_BLD, batch["input_ids"], is_masked_BL))

    @torch.inference_mode()
    def evaluate(self, model: nn.Module, compute: Compute, final: bool = False) -> Evaluation:
        """Loss of the words that follow in validation documents, and accuracy of the masked ones."""
        means = TargetMeans()
        for following, masked in self.validation_losses(model, compute):
            means.add(following, masked)
        return Evaluation(means.metrics())


class ContinuedDocuments:
    """Documents cut in two at random positions, the second part in the place of a summary.

    Args:
        pairs: how rows are made.
        documents: to cut; those of less than `LEAST_TOKENS` are left out.
        seed: of the positions.

    Raises:
        DataError: all are too short.
    """

    def __init__(self, pairs: PairBatches, documents: Ragged, seed: int, word_numbers: WordNumbers) -> None:
        shares = np.random.default_rng(seed).uniform(EARLIEST, LATEST, len(documents))
        rows = [row for row in zip(_rows(documents), shares, strict=True) if len(row[0]) >= LEAST_TOKENS]
        if not rows:
            raise DataError(
                f"--pretrain_epochs: no document has {LEAST_TOKENS} tokens, to be cut in two; leave the flag out"
            )
        cuts = [min(int(share * len(row)), pairs.document_room) for row, share in rows]
        before = [row[:cut] for (row, _), cut in zip(rows, cuts, strict=True)]
        after = [row[cut:] for (row, _), cut in zip(rows, cuts, strict=True)]
        self.features = PairFeatures(Ragged.from_arrays(before), Ragged.from_arrays(after))
        self.pairs = pairs.of(self.features)
        self.word_numbers = word_numbers
        self.lengths = self.pairs.lengths

    def batch(self, numbers: np.ndarray) -> dict[str, Tensor]:
        """See `PairBatches.batch`; with `word_ids` int64 (B, L), the number of the word that each token is part of."""
        batch = self.pairs.batch(numbers)
        return batch | {"word_ids": self.word_numbers(batch["input_ids"])}


def documents_of(name: str, document_field: str | None, summary_field: str | None) -> list[str]:
    """Texts of a name in `--pretrain_files`, or the documents of a file of pairs, whose summaries are not read.

    Raises:
        DataError: it cannot be read.
    """
    if is_text(name):
        return read_texts(name)
    data = read_pairs(name, document_field, summary_field, summaries_required=False)
    return [pair.document for pair in data.pairs]


def _rows(ragged: Ragged) -> list[np.ndarray]:
    return [ragged[number] for number in range(len(ragged))]
