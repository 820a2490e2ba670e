"""Ragged arrays: rows of different lengths in one flat array."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths: row i is `values[offsets[i]:offsets[i + 1]]`.

    Attributes:
        values: (total,) or (total, width), any dtype.
        offsets: (rows + 1,) int64, starting with 0 and never falling.
    """

    values: np.ndarray
    offsets: np.ndarray

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence], dtype: np.dtype | type) -> "Ragged":
        """Builds from lists of numbers."""
        lengths = np.fromiter((len(row) for row in rows), np.int64, len(rows))
        flat = np.fromiter(chain.from_iterable(rows), dtype, int(lengths.sum()))
        return cls(flat, offsets_of(lengths))

    @classmethod
    def from_arrays(cls, rows: Sequence[np.ndarray]) -> "Ragged":
        """Builds from arrays that agree in dtype and width; at least one row."""
        return cls(np.concatenate(rows), offsets_of(np.array([len(row) for row in rows], np.int64)))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """(rows,) int64."""
        return np.diff(self.offsets)


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """(rows + 1,) int64 positions at which rows of these lengths start and the last one ends."""
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)))
