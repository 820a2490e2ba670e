"""Sequences cut from a stream of tokens: random windows to train on, and windows that score every token once.

# B batch   L length
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


class RandomWindows:
    """Crops of one length; crop number i starts somewhere in the i-th stretch of that length.

    So an epoch of all numbers passes over nearly every token about once, and each epoch cuts elsewhere.

    Args:
        ids: (tokens,) unsigned integers, mapped into memory: a batch reads its slices only.
        length: L, at most one less than there are tokens.
    """

    def __init__(self, ids: np.ndarray, length: int) -> None:
        assert len(ids) > length
        self.ids = ids
        self.length = length

    def __len__(self) -> int:
        return max(1, (len(self.ids) - 1) // self.length)

    def batch(self, numbers: np.ndarray) -> dict[str, Tensor]:
        """Crops of these numbers.

        Where each starts is drawn from torch's global generator, which the trainer seeds by step.

        Returns:
            `input_ids` and `labels`, the same one token later, int64 (B, L); `attention_mask` boolean (B, L), all True.
        """
        shifts = torch.randint(self.length, (len(numbers),)).numpy()
        starts = np.minimum(np.asarray(numbers) * self.length + shifts, len(self.ids) - 1 - self.length)
        return _batch(self.ids, starts, self.length)


def scoring_windows(ids: np.ndarray, length: int, stride: int, batch_size: int) -> Iterator[dict[str, Tensor]]:
    """Windows over the whole stream in which each token but the first is a target exactly once.

    The first window scores all its tokens, each later one the `stride` tokens after those, seen with the
    `length - stride` tokens before them; the last one may score fewer. A stream shorter than a window is one window.

    Args:
        ids: (tokens,) unsigned integers, at least two.
        length: L.
        stride: 1 to L; L makes windows that do not overlap, but for the last one, which ends with the stream.
        batch_size: windows in a batch; the results do not depend on it.

    Yields:
        `input_ids` and `labels` int64 (B, L); `attention_mask`, all True, and `is_target`, boolean (B, L).
    """
    num_targets = len(ids) - 1
    length = min(length, num_targets)
    stops = np.minimum(length + stride * np.arange(1 + -(-(num_targets - length) // stride)), num_targets)
    scored = np.diff(stops, prepend=0)
    for first in range(0, len(stops), batch_size):
        rows = slice(first, first + batch_size)
        batch = _batch(ids, stops[rows] - length, length)
        yield batch | {"is_target": torch.from_numpy(np.arange(length) >= length - scored[rows, None])}


def _batch(ids: np.ndarray, starts: np.ndarray, length: int) -> dict[str, Tensor]:
    rows = np.stack([ids[start : start + length + 1] for start in starts]).astype(np.int64)
    inputs, labels = torch.from_numpy(rows[:, :-1]), torch.from_numpy(rows[:, 1:])
    return {"input_ids": inputs, "labels": labels, "attention_mask": torch.ones_like(inputs, dtype=torch.bool)}
