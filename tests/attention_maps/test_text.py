"""Tokens that fonts or matplotlib could trip over."""

import dataclasses
import warnings

import numpy as np

from him.attention_maps import draw_sheet


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
