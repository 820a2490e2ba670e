"""Documents and summaries as token ids, and batches of them.

A row is `[CLS] document [SEP] summary [SEP] padding`; what is too long for its part of the row is cut at its end.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from him.config.options.summarization import SPEC
from him.core.ragged import Ragged
from him.data.batching import bucket_length
from him.data.cache import Columns, cached_folder, content_digest, fingerprint, load_cached, load_columns, save_columns
from him.data.records import PairData
from him.text.tokenizer import encode_ids, parse_tokenizer
from him.text.training import train_tokenizer

FEATURES_VERSION = 1  # counted up when features of the same data come out differently


@dataclass(frozen=True)
class PairFeatures:
    """Token ids, int32, without special tokens, uncut: of the document and the first summary of each pair, a row each;
    empty rows if there is no summary."""

    documents: Ragged
    summaries: Ragged

    def __len__(self) -> int:
        return len(self.documents)

    @property
    def digest(self) -> str:
        """Tells these pairs from other ones, by all their tokens."""
        return content_digest(self.documents, self.summaries)


def build_pair_features(data: PairData, tokenizer: Tokenizer) -> PairFeatures:
    """Encodes all documents and first summaries."""
    documents = encode_ids(tokenizer, [pair.document for pair in data.pairs])
    summaries = encode_ids(tokenizer, [pair.summaries[0] if pair.summaries else "" for pair in data.pairs])
    return PairFeatures(documents, summaries)


@dataclass(frozen=True)
class PreparedPairs:
    """Everything that is made from the data before training: the given tokenizer or a trained one, and features."""

    tokenizer: Tokenizer
    train: PairFeatures
    validation: PairFeatures


def prepare_pairs(
    train: PairData, validation: PairData, given: Tokenizer | None, kind: str, vocab_size: int, cache_dir: Path
) -> PreparedPairs:
    """Builds features, or takes them from the cache; a damaged cache is built anew.

    Args:
        given: the tokenizer to use; None trains one of this `kind` and `vocab_size`, lower-casing, so that a word at
            the beginning of a sentence is the word that a summary copies.
        kind, vocab_size: see `train_tokenizer`.
        cache_dir: where prepared data is kept, under a hash of all that made it.
    """
    settings = given.to_str() if given is not None else (kind, vocab_size)
    digest = fingerprint(FEATURES_VERSION, settings, train.pairs, validation.pairs)
    folder = cached_folder(cache_dir, f"{SPEC.cache_prefix}-{digest}")
    if (prepared := load_cached(folder, _load, last="train")) is not None:
        return prepared
    texts = (text for pair in train.pairs for text in (pair.document, *pair.summaries[:1]))
    tokenizer = given or train_tokenizer(list(texts), vocab_size, kind)
    features = {
        "validation": build_pair_features(validation, tokenizer),
        "train": build_pair_features(train, tokenizer),
    }
    for name, part in features.items():
        texts = {"tokenizer.json": tokenizer.to_str()} if name == "train" else {}
        save_columns(folder / name, vars(part), texts)
    return PreparedPairs(tokenizer, features["train"], features["validation"])


def _load(folder: Path) -> PreparedPairs:
    columns: dict[str, Columns] = {name: load_columns(folder / name) for name in ("train", "validation")}
    tokenizer = parse_tokenizer(folder / "train" / "tokenizer.json")
    return PreparedPairs(tokenizer, PairFeatures(**columns["train"]), PairFeatures(**columns["validation"]))


class PairBatches:
    """Rows and batches of pairs.

    Args:
        features: of the pairs.
        cls_id, sep_id, pad_id: special tokens.
        max_seq_len: longest row in tokens.
        max_target_len: tokens of it that are kept for a summary and the [SEP] that ends it.
    """

    def __init__(
        self, features: PairFeatures, cls_id: int, sep_id: int, pad_id: int, max_seq_len: int, max_target_len: int
    ) -> None:
        self.features = features
        self.cls_id, self.sep_id, self.pad_id = cls_id, sep_id, pad_id
        self.max_seq_len, self.max_target_len = max_seq_len, max_target_len
        self.document_room = document_room(max_seq_len, max_target_len)
        self.summary_room = max_target_len - 1
        self.document_lengths = np.minimum(features.documents.lengths, self.document_room)
        self.summary_lengths = np.minimum(features.summaries.lengths, self.summary_room)

    def of(self, features: PairFeatures) -> "PairBatches":
        """Rows of other pairs, made in the same way."""
        ids = (self.cls_id, self.sep_id, self.pad_id)
        return PairBatches(features, *ids, self.max_seq_len, self.max_target_len)

    @property
    def lengths(self) -> np.ndarray:
        """(N,) tokens of each row."""
        return self.document_lengths + self.summary_lengths + 2

    @property
    def num_cut_documents(self) -> int:
        """Documents that are longer than their room."""
        return int((self.features.documents.lengths > self.document_room).sum())

    @property
    def num_cut_summaries(self) -> int:
        """Summaries that are longer than their room."""
        return int((self.features.summaries.lengths > self.summary_room).sum())

    def prompt(self, number: int) -> list[int]:
        """`[CLS] document [SEP]` of a pair."""
        return [self.cls_id, *self.features.documents[number][: self.document_room].tolist(), self.sep_id]

    def batch(self, numbers: np.ndarray) -> dict[str, Tensor]:
        """Pairs as one batch.

        Returns:
            `input_ids` int64 (B, L); `token_type_ids` int64 (B, L), 0 in `[CLS] document [SEP]` and 1 behind it;
            `attention_mask` boolean (B, L), True at tokens; `labels` int64 (B, T), the summary and [SEP], then -1; and
            `label_positions` int64 (B, T), the position of the token before each label.
        """
        prompt_lengths = self.document_lengths[numbers] + 2
        summary_lengths = self.summary_lengths[numbers]
        row_lengths = prompt_lengths + summary_lengths
        length = bucket_length(int(row_lengths.max()), self.max_seq_len)
        ids = np.full((len(numbers), length), self.pad_id, np.int64)
        longest = bucket_length(int(summary_lengths.max()) + 1, self.summary_room + 1, multiple=8)
        labels = np.full((len(numbers), longest), -1, np.int64)
        for row, number in enumerate(numbers):
            prompt, end = self.prompt(number), int(row_lengths[row])
            summary = self.features.summaries[number][: self.summary_room]
            ids[row, : len(prompt)] = prompt
            ids[row, len(prompt) : end] = summary
            labels[row, : len(summary)] = summary
            labels[row, len(summary)] = self.sep_id
        positions = np.arange(length)
        label_positions = np.minimum(prompt_lengths[:, None] - 1 + np.arange(labels.shape[1]), length - 1)
        return {
            "input_ids": torch.from_numpy(ids),
            "token_type_ids": torch.from_numpy((positions >= prompt_lengths[:, None]).astype(np.int64)),
            "attention_mask": torch.from_numpy(positions < row_lengths[:, None]),
            "labels": torch.from_numpy(labels),
            "label_positions": torch.from_numpy(label_positions),
        }


def document_room(max_seq_len: int, max_target_len: int) -> int:
    """Tokens of a document that fit into a row beside [CLS], [SEP] and the longest summary; may be below 1."""
    return max_seq_len - max_target_len - 1
