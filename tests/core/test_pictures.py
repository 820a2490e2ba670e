"""Figures as pixels, and pixels as a PNG that gives them back."""

import io

import numpy as np
from matplotlib import pyplot
from matplotlib.figure import Figure
from PIL import Image

from him.core.pictures import encode_png, pixels_of


def test_pixels_of_a_figure():
    figure = Figure(figsize=(2, 1), dpi=50, facecolor=(1, 0, 0))
    image = pixels_of(figure)
    assert image.shape == (50, 100, 3) and image.dtype == np.uint8
    assert (image == (255, 0, 0)).all()
    assert pyplot.get_fignums() == []


def test_a_png_gives_its_pixels_and_its_title_back():
    image = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
    content = encode_png(image, title="früher \ud800 人")
    assert content.startswith(b"\x89PNG")
    with Image.open(io.BytesIO(content)) as opened:
        assert (np.asarray(opened) == image).all()
        assert opened.info["Title"] == "früher ? 人"
    with Image.open(io.BytesIO(encode_png(image))) as opened:
        assert "Title" not in opened.info
