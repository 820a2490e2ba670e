"""What a heatmap shows: weights, answer, special tokens, sections and gaps."""

import dataclasses
import warnings

import numpy as np

from him.attention_maps import draw_sheet


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
