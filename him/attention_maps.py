"""Pictures of attention: one labelled sheet per layer with all its heads, and a page to browse them.

After an evaluation the trainer hands over a few fixed validation examples with their attention weights. `write_sheets`
draws each layer once, writes `epoch<e>_<example>_layer<i>.png` and an `index.html` that needs no server and no network,
and returns the same pictures for TensorBoard.

Each PNG carries its example's title in a text chunk and the index is made from the PNGs alone. So there is no second
file that could go stale: a resumed run, a deleted or a copied sheet all give a right index at the next writing.

Shapes:  H heads of the layer   L tokens of the example   S slots, the rows and columns of the drawn heatmap
"""

from __future__ import annotations

import html
import json
import math
import os
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:  # matplotlib and seaborn take 1.3 s to import, so they are imported where they are used
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

MAX_SLOTS = 38  # rows and columns of a heatmap, gap marks included: 10.8 pixels each when 8 heads fill a 1920 px screen
GAP_MARK = "⋯"  # "…" at the height of the letters' middle
LABEL_CHARS = 13  # of a token label, longer ones are cut
SHEET_WIDTH, SHEET_HEIGHT = (
    1900,
    1060,
)  # pixels a sheet tries to fill: a full screen with a little browser left around it
MIN_PANEL, MAX_PANEL = 240, 800  # pixels of one heatmap's side
MIN_CELL = 10.5  # pixels of a slot, below which its label cannot be read; sheets of many heads grow beyond the screen
DPI = 100
TOP_WEIGHTS = (
    0.01,
    0.02,
    0.05,
    0.1,
    0.2,
    0.5,
    1.0,
)  # where a colour scale may end; few, so that sheets stay comparable

INK, FAINT, GAP = "#1a1a1a", "#606060", "#dcdcdc"
SPECIAL, ANSWER = "#0072b2", "#d55e00"  # blue and vermilion of Okabe and Ito, distinct under all colour blindness
COLORMAP = "mako_r"  # seaborn's, light to dark in even steps of lightness, so that it also reads in grey

# For scripts that matplotlib's own DejaVu Sans lacks; those of the machine are used, in this order.
FALLBACK_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "PingFang SC", "Hiragino Sans", "Microsoft YaHei", "MS Gothic",
    "Malgun Gothic", "WenQuanYi Micro Hei", "Noto Sans Devanagari", "Noto Sans Bengali", "Noto Sans Thai",
    "Nirmala UI", "Arial Unicode MS", "Noto Sans Symbols", "Segoe UI Symbol", "Apple Symbols", "Unifont",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class AttentionExample:
    """One example and the attention that a model paid on it.

    Attributes:
        name: short and safe in a file name (letters, digits, `.`, `_`, `-`), such as "1".
        title: one line for people, such as question, predicted and gold answer.
        tokens: the L tokens as the model read them, without padding.
        weights: per layer an array (H, L, L), row = the token that looks, column = the token looked at; H may differ
            per layer, as it does after pruning.
        special: L flags, True where the token is one of the tokenizer's own, such as [CLS] and [SEP].
        answer: first and last token of the predicted answer, both inclusive, or None.
        sections: (label, first token, last token), both inclusive and in order, such as
            (("question", 1, 9), ("context", 11, 60)).
    """

    name: str
    title: str
    tokens: list[str]
    weights: list[np.ndarray]
    special: list[bool]
    answer: tuple[int, int] | None = None
    sections: Sequence[tuple[str, int, int]] = ()

    def __post_init__(self) -> None:
        length = len(self.tokens)
        assert re.fullmatch(r"[\w.-]+", self.name, re.ASCII), f"{self.name!r} is not safe in a file name"
        assert length > 0 and len(self.special) == length, (length, len(self.special))
        for weights_HLL in self.weights:
            assert weights_HLL.ndim == 3 and weights_HLL.shape[1:] == (length, length), (weights_HLL.shape, length)
        for _, first, last in [*self.sections, *([("answer", *self.answer)] if self.answer else [])]:
            assert 0 <= first <= last < length, (first, last, length)


class Sheet(NamedTuple):
    """One drawn sheet: its TensorBoard tag, the picture as uint8 (height, width, 3), and the file it was written to."""

    tag: str
    image: np.ndarray
    path: Path


def write_sheets(folder: str | Path, epoch: int, examples: Sequence[AttentionExample]) -> list[Sheet]:
    """Draws every layer of every example, writes the PNGs and renews `index.html`.

    Files are written aside and renamed, so that an interrupted run leaves no half picture. Sheets of other epochs in
    `folder` stay and are listed too.

    Args:
        folder: made if missing.
        epoch: as in the file names.
        examples: their layers count from 1 in names and tags.

    Returns:
        The sheets in order of examples and layers; the tag is `Attention/<example>/layer<i>`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sheets = []
    for example in examples:
        for layer in range(1, len(example.weights) + 1):
            image = draw_sheet(example, layer, epoch=epoch)
            path = folder / f"epoch{epoch}_{example.name}_layer{layer}.png"
            _write_png(path, image, example.title)
            sheets.append(Sheet(f"Attention/{example.name}/layer{layer}", image, path))
    write_index(folder)
    return sheets


def choose_slots(example: AttentionExample, max_slots: int = MAX_SLOTS) -> list[range]:
    """Chooses which tokens a heatmap shows when not all fit.

    In this order: special tokens, the predicted answer, every section but the longest (the question, or the summary of
    a document), and from the longest the tokens nearest to the answer, or its beginning when there is none. Each step
    leaves room for the next, so that a very long question does not push the answer's surroundings out.

    Args:
        example: its weights are not looked at, so that the choice is the same for every layer.
        max_slots: most rows and columns, gap marks included.

    Returns:
        At most `max_slots` ranges that cover all L tokens in order. A range of one token is shown, a longer one is a
        gap.
    """
    ranked = _rank_tokens(example, max_slots)
    # Gap marks need room as well, and how many there are follows from the choice: take fewer tokens until all fits.
    # One slot at the least remains: a gap over everything.
    for num_tokens in range(min(max_slots, len(ranked)), -1, -1):
        slots = _slots_around(sorted(ranked[:num_tokens]), len(example.tokens))
        if len(slots) <= max_slots:
            break
    return slots


def _rank_tokens(example: AttentionExample, max_slots: int) -> list[int]:
    """Orders all token positions by how much a reader wants to see them, the most wanted first."""
    length = len(example.tokens)
    if length <= max_slots:
        return list(range(length))

    ranked: dict[int, None] = {}  # a set that keeps its order

    def take(positions: Sequence[int], at_most: int) -> None:
        fresh = [position for position in positions if position not in ranked]
        ranked.update(dict.fromkeys(fresh[: max(0, at_most)]))

    take([position for position in range(length) if example.special[position]], max_slots // 4)
    if example.answer:
        take(_from_both_ends(*example.answer), max_slots // 3)
    sections = sorted(example.sections, key=lambda section: section[2] - section[1])
    room_around_answer = max_slots // 4
    for _, first, last in sections[:-1]:
        take(_from_both_ends(first, last), max_slots - room_around_answer - len(ranked))
    first, last = sections[-1][1:] if sections else (0, length - 1)
    centre_first, centre_last = example.answer or (first, first)

    def distance(position: int) -> int:
        return max(centre_first - position, position - centre_last, 0)

    take(sorted(range(first, last + 1), key=distance), length)
    take(sorted(range(length), key=distance), length)
    return list(ranked)


def _from_both_ends(first: int, last: int) -> list[int]:
    """Orders `first..last` as first, last, second, last but one, ...: cut anywhere, both ends remain."""
    return sorted(range(first, last + 1), key=lambda position: min(position - first, last - position))


def _slots_around(shown: list[int], length: int) -> list[range]:
    """Makes slots of sorted positions. A hole of one token is shown: its gap mark would need as much room."""
    slots: list[range] = []
    next_position = 0
    for position in [*shown, length]:
        if position > next_position:
            slots.append(range(next_position, position))
        if position < length:
            slots.append(range(position, position + 1))
        next_position = position + 1
    return slots


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
    # `_write_png` adds 0.04, so a whole evaluation of 2 examples × 4 layers takes 2.4.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    assert 1 <= layer <= len(example.weights), (layer, len(example.weights))
    weights_HLL = np.asarray(example.weights[layer - 1], dtype=np.float32)
    num_heads, length = weights_HLL.shape[:2]
    slots = choose_slots(example)
    labels = [_label(example, slot) for slot in slots]
    layout = _Layout.of(num_heads, len(slots), labels)
    heading = f"Example {example.name} · layer {layer} of {len(example.weights)} · {_count(num_heads, 'head')}"
    if epoch is not None:
        heading = f"Epoch {epoch} · {heading[0].lower()}{heading[1:]}"
    title_lines = _wrap(_drawable(" ".join(example.title.split()), "□"), layout.width - 40, 13, max_lines=2)
    caption_lines = _wrap(_caption(num_heads, length, slots), layout.width - 40, 12)
    top = 46 + 18 * len(title_lines) + 32
    bottom = layout.below + 14 + 17 * len(caption_lines)
    height = top + layout.rows * layout.panel + (layout.rows - 1) * layout.row_gap + bottom

    # `seaborn.heatmap` draws the whole figure at each call to see whether tick labels overlap. The do-nothing canvas
    # that a new Figure has skips that, which is why the Agg canvas comes only at the end.
    # Agg cuts the fraction of a pixel off, so the size stays a little above the whole number.
    size = ((layout.width + 0.01) / DPI, (height + 0.01) / DPI)
    figure = Figure(figsize=size, dpi=DPI, facecolor="white")
    _text(figure, 20, height - 14, heading, 17, layout.width, height, weight="bold", va="top")
    _draw_key(figure, layout.width, height, {SPECIAL: any(example.special), ANSWER: example.answer is not None})
    for index, line in enumerate(title_lines):
        _text(figure, 20, height - 42 - 18 * index, line, 13, layout.width, height, va="top")
    for index, line in enumerate(reversed(caption_lines)):
        _text(figure, 20, 10 + 17 * index, line, 12, layout.width, height, color=FAINT, va="bottom")

    norm = _color_scale(weights_HLL, slots)
    mesh = None
    for head in range(num_heads):
        x, y = layout.place(head)
        ax = _add_axes(figure, x, top + y, layout.panel, layout.panel, layout.width, height)
        mesh = _draw_head(ax, weights_HLL[head], head, slots, example, norm)
        if head == 0:
            _draw_labels(ax, labels, slots, example, layout, along="rows")
        if head == layout.lowest(0):
            _draw_labels(ax, labels, slots, example, layout, along="columns")
    if mesh is not None:
        bar = _add_axes(figure, layout.width - layout.right + 18, top, 14, min(layout.panel, 400), layout.width, height)
        _draw_color_bar(figure, bar, mesh)

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = np.asarray(canvas.buffer_rgba())[:, :, :3].copy()
    assert image.shape == (height, layout.width, 3), image.shape
    _copy_labels(image, layout, top)
    return image


def _copy_labels(image: np.ndarray, layout: _Layout, top: int) -> None:
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


@dataclass(frozen=True)
class _Layout:
    """Where things are on a sheet, in pixels."""

    num_heads: int
    rows: int
    columns: int
    panel: int  # side of a heatmap
    font: float  # height of a token label
    label_width: int  # of the widest token label
    left: int
    right: int
    below: int  # from the lowest heatmap to the caption
    width: int
    column_gap: int = 16
    row_gap: int = 28

    @classmethod
    def of(cls, num_heads: int, num_slots: int, labels: list[str]) -> _Layout:
        """Makes the heatmaps as large as a screen allows, and never so small that a label cannot be read."""
        columns = {0: 1, 5: 3, 6: 3, 9: 3}.get(num_heads, min(num_heads, 4))
        rows = max(1, math.ceil(num_heads / columns))
        right = 80
        # Labels and panels need each other's size; a first guess of the font is near enough to fix the margins.
        font = 10.0
        for _ in range(2):
            label_width = math.ceil(max(_text_width(label, font, bold=True) for label in labels))
            left = below = label_width + 38
            wide = (SHEET_WIDTH - left - right - (columns - 1) * cls.column_gap) / columns
            high = (SHEET_HEIGHT - 96 - 48 - below - (rows - 1) * cls.row_gap) / rows
            panel = int(min(MAX_PANEL, max(min(wide, high), num_slots * MIN_CELL, MIN_PANEL)))
            panel = panel if num_heads else 0
            font = min(14.0, max(9.5, 0.92 * panel / num_slots))
        width = max(left + columns * panel + (columns - 1) * cls.column_gap + right, 900)
        return cls(num_heads, rows, columns, panel, font, label_width, left, right, below, width)

    def place(self, head: int) -> tuple[int, int]:
        """Upper left corner of a heatmap: x from the left of the sheet, y from the top of the first heatmap."""
        row, column = divmod(head, self.columns)
        return self.left + column * (self.panel + self.column_gap), row * (self.panel + self.row_gap)

    def lowest(self, column: int) -> int:
        """The last head in a column of heatmaps; the last row may be short."""
        return (self.num_heads - 1 - column) // self.columns * self.columns + column


def _draw_head(
    ax: Axes, weights_LL: np.ndarray, head: int, slots: list[range], example: AttentionExample, norm: PowerNorm
) -> QuadMesh:
    """Draws one heatmap with its title and marks, gaps left grey, and returns its mesh for the colour bar."""
    import seaborn

    # vmin and vmax are the norm's business; given, they keep seaborn from seeking the minimum of weights all NaN.
    scale = dict(norm=norm, vmin=norm.vmin, vmax=norm.vmax)
    off = dict(cbar=False, xticklabels=False, yticklabels=False)  # drawn once per sheet
    seaborn.heatmap(_cut(weights_LL, slots), ax=ax, cmap=COLORMAP, **scale, **off)
    mesh = ax.collections[0]
    title = _head_title(head, weights_LL, example.special)
    ax.set_title(title, fontsize=_points(12.5), color=INK, family=_families(), pad=4)
    _draw_marks(ax, slots, example)
    return mesh


def _cut(weights_LL: np.ndarray, slots: list[range]) -> np.ndarray:
    """Keeps the shown rows and columns of (..., L, L) as (..., S, S); gaps are NaN."""
    starts = [slot.start for slot in slots]
    gaps = [len(slot) > 1 for slot in slots]
    cut_SS = weights_LL[..., starts, :][..., starts].copy()
    cut_SS[..., gaps, :] = np.nan
    cut_SS[..., gaps] = np.nan
    return cut_SS


def _color_scale(weights_HLL: np.ndarray, slots: list[range]) -> PowerNorm:
    """Square-root colour scale from 0 to a round weight that 99 in 100 shown cells do not exceed.

    Most weights of a long input are small, and on a linear scale all but the largest look alike.
    """
    from matplotlib.colors import PowerNorm

    shown = _cut(weights_HLL, slots)
    shown = shown[np.isfinite(shown)]
    typical_top = np.quantile(shown, 0.99) if shown.size else 1.0
    top = next((weight for weight in TOP_WEIGHTS if weight >= typical_top), 1.0)
    return PowerNorm(0.5, vmin=0.0, vmax=top)


def _head_title(head: int, weights_LL: np.ndarray, special: list[bool]) -> str:
    """Names the head and says over all L tokens, not only the shown ones, how spread and how idle its attention is."""
    weights_LL = weights_LL.astype(np.float64)
    entropy = -np.sum(weights_LL * np.log(np.maximum(weights_LL, 1e-30)), axis=-1).mean()
    on_special = weights_LL[:, np.asarray(special, dtype=bool)].sum(axis=-1).mean()
    return f"head {head + 1} · {entropy:.2f} nats · {100 * on_special:.0f} % special"


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
            _text(figure, x, height - 16, label, 13, width, height, color=color, weight="bold", ha="right", va="top")
            x -= _text_width(label, 13, bold=True) + 22


def _draw_marks(ax: Axes, slots: list[range], example: AttentionExample) -> None:
    """Draws the lines between sections and the frames around the rows and columns of the predicted answer."""
    from matplotlib.patches import Rectangle

    count = len(slots)
    edges = {edge for _, first, last in example.sections for edge in _span(slots, first, last)} - {0, count}
    if edges:
        ax.hlines(sorted(edges), 0, count, color=FAINT, linewidth=0.6)
        ax.vlines(sorted(edges), 0, count, color=FAINT, linewidth=0.6)
    if example.answer:
        start, end = _span(slots, *example.answer)
        frame = dict(fill=False, edgecolor=ANSWER, linewidth=1.2, clip_on=False, zorder=3)
        ax.add_patch(Rectangle((0, start), count, end - start, **frame))
        ax.add_patch(Rectangle((start, 0), end - start, count, **frame))


def _draw_labels(
    ax: Axes, labels: list[str], slots: list[range], example: AttentionExample, layout: _Layout, along: str
) -> None:
    """Writes the token labels left of the rows or below the columns, and a bracket with its name for each section."""
    rows = along == "rows"
    cell = layout.panel / len(slots)  # pixels per data unit, to place labels at a distance from the heatmap in pixels
    edge = -5 / cell if rows else len(slots) + 5 / cell
    bracket = -(layout.label_width + 11) / cell if rows else len(slots) + (layout.label_width + 11) / cell
    name_at = bracket + (-5 / cell if rows else 5 / cell)
    answer = range(0) if example.answer is None else range(example.answer[0], example.answer[1] + 1)
    style = dict(family=_families(), parse_math=False, clip_on=False)
    # Turned about its end and set on the baseline, so that labels line up whatever letters they hold.
    turned = dict(ha="right", va="center_baseline", rotation=0 if rows else 90, rotation_mode="anchor")
    for index, (label, slot) in enumerate(zip(labels, slots, strict=True)):
        color, weight = INK, "normal"
        if len(slot) > 1:
            weight = "bold"
        elif slot.start in answer:
            color, weight = ANSWER, "bold"
        elif example.special[slot.start]:
            color, weight = SPECIAL, "bold"
        x, y = (edge, index + 0.5) if rows else (index + 0.5, edge)
        ax.text(x, y, label, color=color, weight=weight, fontsize=_points(layout.font), **turned, **style)
    for name, first, last in example.sections:
        start, end = _span(slots, first, last)
        name = _drawable(name, "□")
        line = ([bracket, bracket], [start + 0.15, end - 0.15])
        ax.plot(*(line if rows else line[::-1]), color=FAINT, linewidth=1.4, clip_on=False, solid_capstyle="butt")
        if _text_width(name, 12) > (end - start) * cell:
            continue  # the name would run into its neighbour's
        middle = (start + end) / 2
        if rows:
            turned = dict(ha="right", va="center", rotation=90)
            ax.text(name_at, middle, name, color=FAINT, fontsize=_points(12), **turned, **style)
        else:
            ax.text(middle, name_at, name, color=FAINT, fontsize=_points(12), ha="center", va="top", **style)


def _draw_color_bar(figure: Figure, ax: Axes, mesh: QuadMesh) -> None:
    top = mesh.norm.vmax
    clipped = bool(np.nanmax(mesh.get_array().filled(0)) > top)
    bar = figure.colorbar(mesh, cax=ax, extend="max" if clipped else "neither", extendfrac=0.03)
    ticks = [top * share for share in (0, 0.05, 0.2, 0.5, 1)]
    bar.set_ticks(ticks, labels=[f"{tick:.3g}" for tick in ticks])
    bar.ax.tick_params(labelsize=_points(12), length=3, color=FAINT, labelcolor=INK)
    bar.outline.set_linewidth(0)


def _span(slots: list[range], first: int, last: int) -> tuple[int, int]:
    """First slot that holds one of the tokens first..last, and the one after the last such slot."""
    inside = [index for index, slot in enumerate(slots) if slot.start <= last and slot.stop > first]
    return inside[0], inside[-1] + 1


# Text


def _label(example: AttentionExample, slot: range) -> str:
    if len(slot) > 1:
        return GAP_MARK
    label = _drawable(example.tokens[slot.start])
    return label if len(label) <= LABEL_CHARS else label[: LABEL_CHARS - 1] + "…"


def _drawable(text: str, unknown: str | None = None) -> str:
    """Replaces what cannot be drawn: line ends and tabs by arrows, what has no glyph by `unknown` or its U+XXXX."""
    text = text.replace("\n", "↵").replace("\r", "↵").replace("\t", "⇥")
    if text.isascii() and text.isprintable():
        return text if text.strip() else "␣" * max(1, len(text))
    return "".join(c if c.isprintable() and _has_glyph(c) else unknown or f"U+{ord(c):04X}" for c in text)


@lru_cache(maxsize=1)
def _families() -> list[str]:
    from matplotlib.font_manager import fontManager

    installed = set(fontManager.get_font_names())
    return ["DejaVu Sans", *(name for name in FALLBACK_FONTS if name in installed)]


@lru_cache(maxsize=4)
def _fonts(bold: bool) -> list:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    weight = "bold" if bold else "normal"
    return [get_font(findfont(FontProperties(family=family, weight=weight))) for family in _families()]


@lru_cache(maxsize=10_000)
def _has_glyph(character: str) -> bool:
    return any(font.get_char_index(ord(character)) for font in _fonts(bold=False))


@lru_cache(maxsize=10_000)
def _text_width(text: str, pixels: float, bold: bool = False) -> float:
    """Width in pixels, in DejaVu Sans; a character of another font counts as one em, which none exceeds by much."""
    font = _fonts(bold)[0]
    known = "".join(c for c in text if font.get_char_index(ord(c)))
    font.set_size(_points(pixels), DPI)
    font.set_text(known)
    return font.get_width_height()[0] / 64 + pixels * (len(text) - len(known))


def _wrap(text: str, width: float, pixels: float, max_lines: int | None = None) -> list[str]:
    """Breaks `text` into lines no wider than `width` pixels; what does not fit into `max_lines` ends in “…”."""
    chars = max(20, int(width * len(text) / max(_text_width(text, pixels), 1.0)))
    while True:
        lines = textwrap.wrap(text, chars, max_lines=max_lines, placeholder=" …")
        if chars <= 20 or all(_text_width(line, pixels) <= width for line in lines):
            return lines
        chars = int(chars * 0.97)


def _add_axes(figure: Figure, x: int, y: int, wide: int, high: int, width: int, height: int) -> Axes:
    """Adds axes whose upper left corner is at pixel (x, y), counted from the upper left corner of the sheet."""
    return figure.add_axes((x / width, (height - y - high) / height, wide / width, high / height), facecolor=GAP)


def _text(figure: Figure, x: float, y: float, text: str, pixels: float, width: int, height: int, **style) -> None:
    """Writes on the sheet at pixel (x, y), counted from the lower left corner."""
    style = {"color": INK, "family": _families(), **style}
    figure.text(x / width, y / height, text, fontsize=_points(pixels), parse_math=False, **style)


def _points(pixels: float) -> float:
    return pixels * 72 / DPI


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


# Files


def _write_png(path: Path, image: np.ndarray, title: str) -> None:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    # A title is text from a data set: a lone surrogate in it must not stop a training.
    info.add_itxt("Title", title.encode("utf-8", errors="replace"))
    aside = path.with_name(f".{path.name}.{os.getpid()}.aside")
    # Measured on a sheet of 1813 × 1059: level 1 35 ms and 189 kB, 4 44 ms and 174 kB, 6 47 ms and 168 kB.
    Image.fromarray(image).save(aside, format="PNG", pnginfo=info, compress_level=4)
    os.replace(aside, path)


def _read_title(path: Path) -> str:
    """Title of a sheet, or "" for a picture that is not one of ours. Only the head of the file is read."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return str(image.info.get("Title", ""))
    except (UnidentifiedImageError, OSError):
        return ""


def write_index(folder: str | Path) -> Path:
    """Writes `index.html` for the sheets that `folder` holds now, and returns its path."""
    folder = Path(folder)
    found = []
    for path in folder.glob("epoch*_layer*.png"):
        match = re.fullmatch(r"epoch(\d+)_([\w.-]+)_layer(\d+)\.png", path.name, re.ASCII)
        if match:
            found.append((int(match[1]), match[2], int(match[3]), path))
    # Natural order of names: example 10 after example 9.
    found.sort(key=lambda sheet: (sheet[0], [(len(p), p) for p in re.split(r"(\D+)", sheet[1])], sheet[2]))
    titles: dict[tuple[int, str], str] = {}  # one per epoch and example, since a title names the answer predicted then
    for epoch, example, _, path in found:
        if (epoch, example) not in titles:
            titles[epoch, example] = _read_title(path)

    sheets, links, previous = [], [], None
    for epoch, example, layer, path in found:
        title = titles[epoch, example]
        sheets.append({"epoch": epoch, "example": example, "layer": layer, "title": title, "file": path.name})
        if (epoch, example) != previous:
            heading = html.escape(f"Epoch {epoch}, example {example}: {title}")
            links.append(f"</p>\n<p>{heading}<br>" if previous else f"<p>{heading}<br>")
            previous = (epoch, example)
        links.append(f'<a href="{html.escape(path.name)}">layer {layer}</a>')
    links.append("</p>" if previous else "<p>No sheets yet.</p>")
    # JSON inside <script>: only "<" can end the element early.
    data = json.dumps(sheets, ensure_ascii=False).replace("<", "\\u003c")
    page = _PAGE_START + "\n".join(links) + _PAGE_MIDDLE + data + _PAGE_END
    path = folder / "index.html"
    aside = folder / f".index.html.{os.getpid()}.aside"
    aside.write_text(page, encoding="utf-8")
    os.replace(aside, path)
    return path


_PAGE_START = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Attention</title>
<style>
body { font: 15px/1.4 system-ui, sans-serif; margin: 0; color: #1a1a1a; background: #fff; }
#bar { position: sticky; top: 0; display: flex; flex-wrap: wrap; gap: 4px 18px; align-items: center; padding: 6px 14px;
  background: #f4f4f4; border-bottom: 1px solid #ccc; }
select, button { font: inherit; }
#title { flex-basis: 100%; }
kbd { border: 1px solid #aaa; border-radius: 3px; padding: 0 4px; background: #fff; font-size: 13px; }
.help { color: #555; margin-left: auto; font-size: 13px; }
#picture { display: block; max-width: 100%; margin: 0 auto; }
details { margin: 14px; }
[hidden] { display: none !important; }
</style>
</head>
<body>
<div id="bar" hidden>
<label>Epoch <select id="epoch"></select></label>
<label>Example <select id="example"></select></label>
<label>Layer <select id="layer"></select></label>
<span class="help"><kbd>←</kbd> <kbd>→</kbd> epoch &nbsp; <kbd>↑</kbd> <kbd>↓</kbd> layer &nbsp;
<kbd>e</kbd> example</span>
<div id="title"></div>
</div>
<a id="link" hidden><img id="picture" alt="attention weights of all heads of the chosen layer"></a>
<details id="all" open>
<summary>All sheets</summary>
"""

_PAGE_MIDDLE = """
</details>
<script type="application/json" id="sheets">"""

_PAGE_END = """</script>
<script>
"use strict";
const sheets = JSON.parse(document.getElementById("sheets").textContent);
const keys = ["epoch", "example", "layer"];
const get = id => document.getElementById(id);
const values = key => [...new Set(sheets.map(sheet => String(sheet[key])))];
const find = chosen => sheets.find(sheet => keys.every(key => String(sheet[key]) === chosen[key]));
const chosen = {};

function show() {
  const sheet = find(chosen);
  for (const key of keys) get(key).value = chosen[key];
  get("title").textContent = sheet ? sheet.title : "There is no such sheet.";
  get("link").hidden = !sheet;
  if (!sheet) return;
  get("picture").src = get("link").href = encodeURIComponent(sheet.file);
  // Survives a reload, which is how a running training's new epochs appear. (history.replaceState may refuse file://.)
  location.replace("#" + new URLSearchParams(chosen));
  for (const key of ["epoch", "layer"]) for (const by of [-1, 1]) {  // fetch the neighbours, so that keys flip at once
    const near = find({...chosen, [key]: step(key, by)});
    if (near) new Image().src = encodeURIComponent(near.file);
  }
}

function step(key, by, wrap = false) {
  const all = values(key), place = all.indexOf(chosen[key]) + by;
  return all[wrap ? place % all.length : Math.min(Math.max(place, 0), all.length - 1)];
}

if (sheets.length) {
  const asked = new URLSearchParams(location.hash.slice(1));
  for (const key of keys) {
    const all = values(key);
    // The newest epoch, the first example and layer, unless the address says otherwise.
    chosen[key] = all.includes(asked.get(key)) ? asked.get(key) : key === "epoch" ? all[all.length - 1] : all[0];
    for (const value of all) get(key).add(new Option(value, value));
    get(key).addEventListener("change", event => { chosen[key] = event.target.value; event.target.blur(); show(); });
  }
  const moves = {ArrowLeft: ["epoch", -1], ArrowRight: ["epoch", 1], ArrowUp: ["layer", -1], ArrowDown: ["layer", 1],
    e: ["example", 1, true]};
  addEventListener("keydown", event => {
    const move = moves[event.key];
    if (!move || event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    chosen[move[0]] = step(...move);
    show();
  });
  get("bar").hidden = false;
  get("all").open = false;
  show();
}
</script>
</body>
</html>
"""
