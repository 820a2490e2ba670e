"""Batches of SQuAD windows, gathered from features that lie in flat arrays."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from him.data.batching import bucket_length
from him.tasks.squad.features import NUM_SPECIAL, SquadFeatures, class_shape, first_pieces, last_pieces
from him.tasks.squad.lexical import SCALARS, SIZES


class SquadBatches:
    """Makes batches of windows.

    Args:
        features: the examples.
        special_ids: ids of [PAD], [CLS] and [SEP].
        max_seq_len: longest sequence.
        lexical: whether batches carry the lexical inputs.
    """

    def __init__(
        self, features: SquadFeatures, special_ids: tuple[int, int, int], max_seq_len: int, lexical: bool
    ) -> None:
        self.features = features
        self.pad_id, self.cls_id, self.sep_id = special_ids
        self.max_seq_len = max_seq_len
        self.lexical = lexical
        self.lengths = features.lengths

    def batch(self, windows: Sequence[int] | np.ndarray) -> dict[str, Tensor]:
        """Gathers windows into one batch of B rows, padded to a common length L.

        Returns:
            | field | shape | dtype | meaning |
            |---|---|---|---|
            | `input_ids` | (B, L) | int64 | tokens |
            | `token_type_ids` | (B, L) | int64 | 1 in the context and its [SEP] |
            | `attention_mask` | (B, L) | bool | True = may be attended to |
            | `word_ids` | (B, L) | int64 | word of the context that a piece is part of, -1 elsewhere |
            | `may_start`, `may_end` | (B, L) | bool | first, last piece of a context word; [CLS] for "no answer" |
            | `start_targets`, `end_targets` | (B, L) | float32 | share of the annotators, a row adds up to 1 |
            | `match`, `shape`, `class_shape` | (B, L) | int64 | lexical inputs, if wanted |
            | `scalars` | (B, L, 11) | float32 | lexical inputs, if wanted |
            | `focus_ids` | (B,) | int64 | token of the focus word, if wanted |
        """
        windows = np.asarray(windows)
        length = bucket_length(int(self.lengths[windows].max()), self.max_seq_len)
        shape = (len(windows), length)
        fields: dict[str, np.ndarray] = {
            "input_ids": np.full(shape, self.pad_id, np.int64),
            "token_type_ids": np.zeros(shape, np.int64),
            "attention_mask": np.zeros(shape, bool),
            "word_ids": np.full(shape, -1, np.int64),
            "may_start": np.zeros(shape, bool),
            "may_end": np.zeros(shape, bool),
            "start_targets": np.zeros(shape, np.float32),
            "end_targets": np.zeros(shape, np.float32),
        }
        if self.lexical:
            fields |= {name: np.zeros(shape, np.int64) for name in ("match", "shape", "class_shape")}
            fields["scalars"] = np.zeros((*shape, len(SCALARS)), np.float32)
            fields["focus_ids"] = self.features.focus_ids[self.features.window_question[windows]].astype(np.int64)
        for row, window in enumerate(windows.tolist()):
            self._fill(row, window, fields)
        return {name: torch.from_numpy(values) for name, values in fields.items()}

    def _fill(self, row: int, window: int, fields: dict[str, np.ndarray]) -> None:
        features = self.features
        question = features.window_question[window]
        context = features.context_of[question]
        start, end = features.window_start[window], features.window_end[window]
        question_ids = features.questions.ids[question]
        first = len(question_ids) + 2  # where the context starts in the sequence
        last = first + int(end - start)  # its [SEP]
        words = features.contexts.words[context]

        pieces = ([self.cls_id], question_ids, [self.sep_id], features.contexts.ids[context][start:end], [self.sep_id])
        fields["input_ids"][row, : last + 1] = np.concatenate(pieces)
        fields["token_type_ids"][row, first : last + 1] = 1
        fields["attention_mask"][row, : last + 1] = True
        fields["word_ids"][row, first:last] = words[start:end]
        fields["may_start"][row, 0] = fields["may_end"][row, 0] = True
        fields["may_start"][row, first:last] = first_pieces(words)[start:end]
        fields["may_end"][row, first:last] = last_pieces(words)[start:end]
        self._fill_targets(row, question, words, first, int(start), int(end), fields)
        if self.lexical:
            self._fill_lexical(row, question, context, words[start:end], first, last, fields)

    def _fill_targets(
        self, row: int, question: int, words: np.ndarray, first: int, start: int, end: int, fields: dict
    ) -> None:
        """Spreads the target over the annotators' answers that lie in the window; [CLS] if none does."""
        answers = self.features.answers[question]
        inside = answers[(answers[:, 0] >= start) & (answers[:, 1] < end)]
        weights = {"start_targets": {}, "end_targets": {}}
        for from_piece, to_piece, annotators in inside.tolist():
            # Answers that begin or end inside a word are taken to its border, where logits are allowed.
            whole_start = int(np.searchsorted(words, words[from_piece], side="left"))
            whole_end = int(np.searchsorted(words, words[to_piece], side="right")) - 1
            if whole_start >= start and whole_end < end:
                for name, piece in (("start_targets", whole_start), ("end_targets", whole_end)):
                    weights[name][piece] = weights[name].get(piece, 0) + annotators
        for name, of_piece in weights.items():
            total = sum(of_piece.values())
            for piece, annotators in of_piece.items():
                fields[name][row, first + piece - start] = annotators / total
            if not of_piece:
                fields[name][row, 0] = 1.0

    def _fill_lexical(
        self, row: int, question: int, context: int, words: np.ndarray, first: int, last: int, fields: dict
    ) -> None:
        features = self.features
        question_words = features.questions.words[question]
        num_question_words = len(features.question_shapes[question])
        match, scalars = features.match[question], features.scalars[question]
        context_shapes = features.context_shapes[context]
        asked, read = slice(1, first - 1), slice(first, last)
        fields["match"][row, asked] = match[question_words]
        fields["match"][row, read] = match[num_question_words + words]
        fields["shape"][row, asked] = features.question_shapes[question][question_words]
        fields["shape"][row, read] = context_shapes[words]
        fields["class_shape"][row, read] = class_shape(features.question_classes[question], context_shapes[words])
        fields["scalars"][row, asked] = scalars[question_words]
        fields["scalars"][row, read] = scalars[num_question_words + words]


def dummy_batch(batch_size: int, length: int, vocab_size: int, lexical: bool) -> dict[str, Tensor]:
    """Random tokens, of which any may start and end an answer: as `SquadBatches.batch` gives them, without padding."""
    shape = (batch_size, length)
    everywhere_BL = torch.ones(shape, dtype=torch.bool)
    batch = {
        "input_ids": torch.randint(vocab_size, shape),
        "token_type_ids": (torch.arange(length) >= length // 10).long().expand(shape),
        "attention_mask": everywhere_BL,
        "may_start": everywhere_BL,
        "may_end": everywhere_BL,
        "start_targets": torch.full(shape, 1.0 / length),
        "end_targets": torch.full(shape, 1.0 / length),
    }
    if lexical:
        batch |= {name: torch.randint(size, shape) for name, size in SIZES.items()}
        batch |= {"scalars": torch.randn(*shape, len(SCALARS)), "focus_ids": batch["input_ids"][:, 0]}
    return batch


assert NUM_SPECIAL == 3, "the sequence layout above counts three special tokens"
