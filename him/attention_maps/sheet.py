"""A sheet: all heads of one layer side by side, with heading, title, key and caption.

Shapes:  H heads of the layer   L tokens of the example
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from him.attention_maps.example import AttentionExample, choose_slots
from him.attention_maps.heatmap import (
    ANSWER,
    FAINT,
    GAP,
    INK,
    SPECIAL,
    color_scale,
    draw_color_bar,
    draw_heatmap,
    draw_labels,
)
from him.attention_maps.layout import Layout
from him.attention_maps.text import DPI, GAP_MARK, drawable, font_families, points, text_width, token_label, wrap
from him.core.pictures import pixels_of

if TYPE_CHECKING:  # imported where they are used, as in heatmap.py
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_sheet(example: AttentionExample, layer: int, epoch: int | None = None) -> np.ndarray:
    """Draws all heads of one layer.

    Args:
        example: what to draw.
        layer: counts from 1, as in the file names.
        epoch: for the heading.

    Returns:
        uint8 (height, width, 3), at most about 1900 pixels wide, and 1060 high for up to 8 heads.
    """
    # Seconds on one Zen 5 core for 300 tokens cut to 38 slots:
    #   1 head 0.14, 8 heads 0.23-0.25, 16 heads 0.35-0.42; the first sheet of a process takes 0.8 more for imports
    #   8 heads without any token label 0.17, with every label drawn instead of copied 0.33
    #   8 heads with the Agg canvas from the start 0.95 (see below)
    # Writing the PNG adds 0.04, so a whole evaluation of 2 examples × 4 layers takes 2.4.
    from matplotlib.figure import Figure

    assert 1 <= layer <= len(example.weights), (layer, len(example.weights))
    weights_HLL = np.asarray(example.weights[layer - 1], dtype=np.float32)
    num_heads, length = weights_HLL.shape[:2]
    slots = choose_slots(example)
    labels = [token_label(example, slot) for slot in slots]
    layout = Layout.of(num_heads, len(slots), labels)
    heading = f"Example {example.name} · layer {layer} of {len(example.weights)} · {_count(num_heads, 'head')}"
    if epoch is not None:
        heading = f"Epoch {epoch} · {heading[0].lower()}{heading[1:]}"
    title_lines = wrap(drawable(" ".join(example.title.split()), "□"), layout.width - 40, 13, max_lines=2)
    caption_lines = wrap(_caption(num_heads, length, slots), layout.width - 40, 12)
    top = 46 + 18 * len(title_lines) + 32
    bottom = layout.below + 14 + 17 * len(caption_lines)
    height = top + layout.rows * layout.panel + (layout.rows - 1) * layout.row_gap + bottom

    # `seaborn.heatmap` draws the whole figure at each call to see whether tick labels overlap. The do-nothing canvas
    # that a new Figure has skips that, which is why the Agg canvas comes only at the end.
    # Agg cuts the fraction of a pixel off, so the size stays a little above the whole number.
    size = ((layout.width + 0.01) / DPI, (height + 0.01) / DPI)
    figure = Figure(figsize=size, dpi=DPI, facecolor="white")
    _write(figure, 20, height - 14, heading, 17, layout.width, height, weight="bold", va="top")
    _draw_key(figure, layout.width, height, {SPECIAL: any(example.special), ANSWER: example.answer is not None})
    for index, line in enumerate(title_lines):
        _write(figure, 20, height - 42 - 18 * index, line, 13, layout.width, height, va="top")
    for index, line in enumerate(reversed(caption_lines)):
        _write(figure, 20, 10 + 17 * index, line, 12, layout.width, height, color=FAINT, va="bottom")

    norm = color_scale(weights_HLL, slots)
    mesh = None
    for head in range(num_heads):
        x, y = layout.place(head)
        ax = _add_axes(figure, x, top + y, layout.panel, layout.panel, layout.width, height)
        mesh = draw_heatmap(ax, weights_HLL[head], head, slots, example, norm)
        if head == 0:
            draw_labels(ax, labels, slots, example, layout, along="rows")
        if head == layout.lowest(0):
            draw_labels(ax, labels, slots, example, layout, along="columns")
    if mesh is not None:
        bar = _add_axes(figure, layout.width - layout.right + 18, top, 14, min(layout.panel, 400), layout.width, height)
        draw_color_bar(figure, bar, mesh)

    image = pixels_of(figure)
    assert image.shape == (height, layout.width, 3), image.shape
    _copy_labels(image, layout, top)
    return image


def _copy_labels(image: np.ndarray, layout: Layout, top: int) -> None:
    """Copies the row labels of head 1 to the other rows of heatmaps, and the column labels of column 1 to the others.

    They are the same everywhere and text is most of the cost, while all positions are whole pixels.
    """
    margin = 3  # of a frame's or a label's overhang

    def rows_at(row: int) -> np.ndarray:
        y = top + row * (layout.panel + layout.row_gap)
        return image[y - margin : y + layout.panel + margin, : layout.left - margin]

    def columns_at(column: int) -> np.ndarray:
        x, y = layout.place(layout.lowest(column))
        y += top + layout.panel + margin
        return image[y : y + layout.below - margin, x - margin : x + layout.panel + margin]

    for row in range(1, layout.rows):
        rows_at(row)[:] = rows_at(0)
    for column in range(1, layout.columns):
        columns_at(column)[:] = columns_at(0)


def _caption(num_heads: int, length: int, slots: list[range]) -> str:
    if num_heads == 0:
        return "This layer has no heads left: pruning removed them all."
    shown = sum(len(slot) == 1 for slot in slots)
    parts = [
        "Row: the token that looks; column: the token looked at; colour: the attention weight (square-root scale)."
    ]
    if shown < length:
        parts.append(
            f"{shown} of {length} tokens are shown, a grey “{GAP_MARK}” stands for those left out; weights are as the "
            f"model computed them, not renormalised, so what is shown of a row may add up to less than 1."
        )
    else:
        parts.append(f"All {_count(length, 'token')} shown; every row adds up to 1.")
    parts.append(
        f"Over each heatmap: mean entropy of the rows (0 = one token, ln {length} = {math.log(length):.2f} = spread "
        f"evenly) and share of attention on special tokens (near 100 %: the head does little)."
    )
    return " ".join(parts)


def _draw_key(figure: Figure, width: int, height: int, used: dict[str, bool]) -> None:
    """Says at the top right what the label colours mean."""
    x = width - 20.0
    for label, color in (("predicted answer (framed)", ANSWER), ("special token", SPECIAL)):
        if used[color]:
            _write(figure, x, height - 16, label, 13, width, height, color=color, weight="bold", ha="right", va="top")
            x -= text_width(label, 13, bold=True) + 22


def _add_axes(figure: Figure, x: int, y: int, wide: int, high: int, width: int, height: int) -> Axes:
    """Adds axes whose upper left corner is at pixel (x, y), counted from the upper left corner of the sheet."""
    return figure.add_axes((x / width, (height - y - high) / height, wide / width, high / height), facecolor=GAP)


def _write(figure: Figure, x: float, y: float, text: str, pixels: float, width: int, height: int, **style) -> None:
    """Writes on the sheet at pixel (x, y), counted from the lower left corner."""
    style = {"color": INK, "family": font_families(), **style}
    figure.text(x / width, y / height, text, fontsize=points(pixels), parse_math=False, **style)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
