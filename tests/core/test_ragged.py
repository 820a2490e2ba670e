"""Rows of different lengths in one array."""

import numpy as np
import pytest

from him.core.ragged import Ragged, offsets_of


def test_from_rows_by_hand():
    ragged = Ragged.from_rows([[3, 1], [], [4]], "int32")
    assert ragged.values.tolist() == [3, 1, 4]
    assert ragged.values.dtype == np.int32
    assert ragged.offsets.tolist() == [0, 2, 2, 3]
    assert ragged.offsets.dtype == np.int64
    assert len(ragged) == 3
    assert [ragged[row].tolist() for row in range(3)] == [[3, 1], [], [4]]
    assert ragged.lengths.tolist() == [2, 0, 1]


@pytest.mark.parametrize("rows", [[], [[]], [[], []]])
def test_no_rows_and_empty_rows(rows):
    ragged = Ragged.from_rows(rows, np.uint8)
    assert len(ragged) == len(rows)
    assert ragged.values.shape == (0,)
    assert ragged.lengths.tolist() == [0] * len(rows)


def test_from_arrays_keeps_type_and_width():
    rows = [np.full((2, 3), 7, np.float16), np.zeros((0, 3), np.float16), np.full((1, 3), 9, np.float16)]
    ragged = Ragged.from_arrays(rows)
    assert ragged.values.dtype == np.float16
    assert ragged.values.shape == (3, 3)
    for row, expected in enumerate(rows):
        np.testing.assert_array_equal(ragged[row], expected)


def test_a_row_is_a_view():
    """Rows are read for each batch; a copy of each would cost."""
    ragged = Ragged.from_rows([[1, 2], [3]], "int32")
    assert np.shares_memory(ragged[0], ragged.values)


def test_offsets_are_64_bit_whatever_the_lengths():
    """Sums of 32-bit lengths overflow beyond 2 billion tokens."""
    offsets = offsets_of(np.array([2**31 - 1, 2**31 - 1, 5], np.int32))
    assert offsets.tolist() == [0, 2**31 - 1, 2**32 - 2, 2**32 + 3]
    assert offsets_of(np.zeros(0, np.int64)).tolist() == [0]
