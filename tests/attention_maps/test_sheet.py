"""What a sheet looks like for any number of heads, and that nothing but a picture comes of drawing it."""

import re

import numpy as np
import pytest

from him.attention_maps import draw_sheet


def test_is_an_rgb_picture_of_a_screen(make_example):
    image = draw_sheet(make_example(length=300, heads=(8,)), 1, epoch=3)
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    assert 1600 <= image.shape[1] <= 1920 and 900 <= image.shape[0] <= 1100


def test_same_input_same_picture(make_example, plain_sheet):
    assert np.array_equal(draw_sheet(make_example(), 1), plain_sheet)


def test_each_layer_is_its_own_picture_and_may_have_its_own_heads(make_example):
    example = make_example(heads=(1, 3, 8))
    sizes = [draw_sheet(example, layer).shape for layer in (1, 2, 3)]
    assert len(set(sizes)) == 3
    assert sizes[0][1] < sizes[2][1]


@pytest.mark.parametrize("count", [0, 5, 6, 16])
def test_any_number_of_heads(count, make_example):
    image = draw_sheet(make_example(length=60, heads=(count,)), 1)
    assert image.shape[1] <= 1920


def test_every_row_and_column_of_heatmaps_has_its_labels(make_example):
    """Labels are drawn for the first row and column of heatmaps and copied as pixels to the others."""
    image = draw_sheet(make_example(length=20, heads=(6,)), 1)  # 2 rows and 3 columns
    dark = image.min(axis=-1) < 130
    # The brackets of the two sections are the leftmost ink, and the long dark lines below the heatmaps.
    lines = dark[70:-70, 5:40]
    brackets = lines[:, lines.sum(axis=0).argmax()]
    starts = 70 + np.flatnonzero(np.diff(brackets.astype(int)) == 1)
    assert len(starts) == 4
    first, second = (image[start : start + 150, 5:60] for start in (starts[0], starts[2]))
    assert np.array_equal(first, second)
    long_runs = [re.findall(b"\x01{50,}", line.tobytes()) for line in dark[-110:]]
    assert max(map(len, long_runs)) == 6


def test_leaves_no_figure_behind(make_example):
    import matplotlib.pyplot as plt

    draw_sheet(make_example(), 1)
    assert plt.get_fignums() == []
