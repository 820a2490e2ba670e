"""What a sheet shows, for any number of heads and odd tokens, and that nothing but a picture comes of drawing it."""

import dataclasses
import re
import warnings

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
    image = draw_sheet(make_example(length=20, heads=(6,)), 1)  # 2 rows and 3 columns
    dark = image.min(axis=-1) < 130
    # The brackets of the two sections are the leftmost ink, and the long dark lines below the heatmaps.
    lines = dark[70:-70, 5:40]
    brackets = lines[:, lines.sum(axis=0).argmax()]
    starts = 70 + np.flatnonzero(np.diff(brackets.astype(int)) == 1)
    assert len(starts) == 4
    first, second = (image[start : start + 150, 5:60] for start in (starts[0], starts[2]))
    assert np.allclose(first, second, atol=4)  # of 255, by rounding: what is drawn is the same
    long_runs = [re.findall(b"\x01{50,}", line.tobytes()) for line in dark[-110:]]
    assert max(map(len, long_runs)) == 6


def test_leaves_no_figure_behind(make_example):
    import matplotlib.pyplot as plt

    draw_sheet(make_example(), 1)
    assert plt.get_fignums() == []


def has_color(image: np.ndarray, color: str) -> bool:
    return bool((image == np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)], dtype=np.uint8)).all(-1).any())


def test_one_changed_weight_changes_only_its_head(make_example, plain_sheet):
    """Rows of head 2 are swapped, so that its title (entropy) stays. Any change left of it would be a mix-up."""
    example = make_example()
    weights = example.weights[0].copy()
    weights[1, [5, 6]] = weights[1, [6, 5]]
    after = draw_sheet(dataclasses.replace(example, weights=[weights]), 1)
    changed_columns = (plain_sheet != after).any(axis=(0, 2)).nonzero()[0]
    assert len(changed_columns) > 0
    assert changed_columns.min() > after.shape[1] / 2


def test_answer_and_special_tokens_are_marked_in_their_colors(make_example, plain_sheet):
    example = make_example()
    no_answer = draw_sheet(dataclasses.replace(example, answer=None), 1)
    no_special = draw_sheet(dataclasses.replace(example, special=[False] * 12), 1)
    assert has_color(plain_sheet, "#d55e00") and not has_color(no_answer, "#d55e00")
    assert has_color(plain_sheet, "#0072b2") and not has_color(no_special, "#0072b2")


def test_frame_follows_the_answer(make_example, plain_sheet):
    def rows_of_frame(image):
        image = image[80:]  # below the key
        middle = image[:, image.shape[1] // 4].astype(int)
        return np.abs(middle - [0xD5, 0x5E, 0x00]).sum(-1).argmin()

    assert make_example().answer == (8, 9)
    assert rows_of_frame(draw_sheet(make_example(answer=(2, 3)), 1)) < rows_of_frame(plain_sheet)


def test_what_is_left_out_is_marked_grey(make_example, plain_sheet):
    long = draw_sheet(make_example(length=60), 1)
    grey_long, grey_short = ((image == 0xDC).all(axis=-1).sum() for image in (long, plain_sheet))
    assert grey_long > 10_000 and grey_short < 1_000  # a few pixels of any text have that grey too


def test_sections_are_drawn(make_example, plain_sheet):
    assert not np.array_equal(plain_sheet, draw_sheet(dataclasses.replace(make_example(), sections=()), 1))


def test_weights_that_are_not_numbers_do_not_stop_a_training(make_example):
    example = make_example(weights=[np.full((2, 12, 12), np.nan)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert draw_sheet(example, 1).size


def test_odd_tokens_are_drawn_without_a_warning(make_example):
    """Between two dollar signs matplotlib would parse mathtext and raise; it warns of each missing glyph."""
    mathtext, scripts = ["$x_1^2$", "a_b", "$\\oops$", "$"], ["人工", "😀👍🏽", "مرحبا"]
    odd = ["[CLS]", *mathtext, *scripts, "##ing", "x" * 80, "\n", " ", "", "\x00"]
    example = make_example(length=len(odd), answer=(1, 1), tokens=odd, title="Is $\\frac{ $ 人 <b>\nso?")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = draw_sheet(example, 1)
    plain = draw_sheet(dataclasses.replace(example, tokens=[odd[0], "x12", *odd[2:]]), 1)
    assert not np.array_equal(image, plain)
