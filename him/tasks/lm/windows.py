"""Sequences cut from a stream of tokens: random windows to train on, and windows that score every token once.

# B batch   L length
"""

import numpy as np
import torch
from torch import Tensor


class RandomWindows:
    """Random windows of one length; number i starts somewhere in the i-th stretch of that length.

    So an epoch of all numbers passes over nearly every token about once, and each epoch cuts elsewhere.

    Attributes:
        lengths: (windows,) tokens of each, all the same.

    Args:
        ids: (tokens,) unsigned integers, mapped into memory: a batch reads its slices only.
        length: L, at most one less than there are tokens.
    """

    def __init__(self, ids: np.ndarray, length: int) -> None:
        assert len(ids) > length
        self.ids = ids
        self.length = length
        self.lengths = np.broadcast_to(np.int64(length), max(1, (len(ids) - 1) // length))

    def batch(self, numbers: np.ndarray) -> dict[str, Tensor]:
        """Windows of these numbers.

        Where each starts is drawn from torch's global generator, which the trainer seeds by step.

        Returns:
            `input_ids` and `labels`, the same one token later, int64 (B, L); `attention_mask` boolean (B, L), all True.
        """
        shifts = torch.randint(self.length, (len(numbers),)).numpy()
        starts = np.minimum(np.asarray(numbers) * self.length + shifts, len(self.ids) - 1 - self.length)
        return _batch(self.ids, starts, self.length)


class ScoringWindows:
    """Windows over the whole stream in which each token but the first is a target exactly once.

    The first window scores all its tokens, each later one the `stride` tokens after those, seen with the
    `length - stride` tokens before them; the last one may score fewer. A stream shorter than a window is one window.

    Attributes:
        lengths: (windows,) tokens of each, all the same.

    Args:
        ids: (tokens,) unsigned integers, at least two.
        length: L.
        stride: 1 to L; L makes windows that do not overlap, but for the last one, which ends with the stream.
    """

    def __init__(self, ids: np.ndarray, length: int, stride: int) -> None:
        num_targets = len(ids) - 1
        self.ids = ids
        self.length = min(length, num_targets)
        num_more = -(-(num_targets - self.length) // stride)
        self.stops = np.minimum(self.length + stride * np.arange(1 + num_more), num_targets)
        self.num_scored = np.diff(self.stops, prepend=0)
        self.lengths = np.full(len(self.stops), self.length)

    def batch(self, numbers: np.ndarray) -> dict[str, Tensor]:
        """Windows of these numbers.

        Returns:
            `input_ids` and `labels` int64 (B, L); `attention_mask`, all True, and `is_target`, boolean (B, L).
        """
        batch = _batch(self.ids, self.stops[numbers] - self.length, self.length)
        is_target = np.arange(self.length) >= self.length - self.num_scored[numbers][:, None]
        return batch | {"is_target": torch.from_numpy(is_target)}


def _batch(ids: np.ndarray, starts: np.ndarray, length: int) -> dict[str, Tensor]:
    rows = np.stack([ids[start : start + length + 1] for start in starts]).astype(np.int64)
    inputs, labels = torch.from_numpy(rows[:, :-1]), torch.from_numpy(rows[:, 1:])
    return {"input_ids": inputs, "labels": labels, "attention_mask": torch.ones_like(inputs, dtype=torch.bool)}
