"""A sheet: all heads of one layer side by side, with heading, title, key and caption.

Lengths are in pixels of the finished picture. matplotlib and seaborn take 1.3 s to import, so they are imported where
they are used.

Shapes:  H heads of the layer   L tokens of the example   S slots, the rows and columns of a heatmap
"""

from __future__ import annotations

import math
import textwrap
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from him.attention_maps.example import AttentionExample, choose_slots, slot_span
from him.core.pictures import pixels_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

SHEET_WIDTH, SHEET_HEIGHT = 1900, 1060  # what a sheet tries to fill: a full screen with a little browser left around it
MIN_PANEL, MAX_PANEL = 240, 800  # of one heatmap's side
MIN_CELL = 10.5  # of a slot, below which its label cannot be read; sheets of many heads grow beyond the screen
COLUMN_GAP, ROW_GAP, RIGHT, EDGE = 16, 28, 80, 20

TOP_WEIGHTS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # where a colour scale may end; few, so that sheets compare
INK, FAINT, GAP = "#1a1a1a", "#606060", "#dcdcdc"
SPECIAL, ANSWER = "#0072b2", "#d55e00"  # blue and vermilion of Okabe and Ito, distinct under all colour blindness
COLORMAP = "mako_r"  # seaborn's, light to dark in even steps of lightness, so that it also reads in grey

DPI = 100
GAP_MARK = "⋯"  # "…" at the height of the letters' middle
LABEL_CHARS = 13  # of a token label, longer ones are cut

# For scripts that matplotlib's own DejaVu Sans lacks; those of the machine are used, in this order.
FALLBACK_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "PingFang SC", "Hiragino Sans", "Microsoft YaHei", "MS Gothic",
    "Malgun Gothic", "WenQuanYi Micro Hei", "Noto Sans Devanagari", "Noto Sans Bengali", "Noto Sans Thai",
    "Nirmala UI", "Arial Unicode MS", "Noto Sans Symbols", "Segoe UI Symbol", "Apple Symbols", "Unifont",
)  # fmt: skip


def draw_sheet(example: AttentionExample, layer: int, epoch: int | None = None) -> np.ndarray:
    """Draws all heads of one layer.

    Args:
        example: what to draw.
        layer: counts from 1, as in the file names.
        epoch: for the heading.

    Returns:
        uint8 (height, width, 3), at most about 1900 pixels wide, and 1060 high for up to 8 heads.
    """
    # CPU seconds for 300 tokens cut to 38 slots: 8 heads 0.30, 16 heads 0.45, most of it text and axes (1 head of 12
    # tokens 0.17); the first sheet of a process takes some seconds more for imports.
    from matplotlib.figure import Figure

    assert 1 <= layer <= len(example.weights), (layer, len(example.weights))
    weights_HLL = np.asarray(example.weights[layer - 1], dtype=np.float32)
    num_heads, length = weights_HLL.shape[:2]
    slots = choose_slots(example)
    labels = [_token_label(example, slot) for slot in slots]
    grid = _grid(num_heads, labels)
    width = max(grid.margin + grid.columns * (grid.panel + COLUMN_GAP) - COLUMN_GAP + RIGHT, 900)
    heading = "Example" if epoch is None else f"Epoch {epoch} · example"
    heading += f" {example.name} · layer {layer} of {len(example.weights)} · {_count(num_heads, 'head')}"
    title = _wrap(_drawable(" ".join(example.title.split()), "□"), width - 2 * EDGE, 13, max_lines=2)
    caption = _wrap(_caption(num_heads, length, slots), width - 2 * EDGE, 12)
    bottom = grid.margin + 14 + 17 * len(caption)
    height = 78 + 18 * len(title) + grid.rows * (grid.panel + ROW_GAP) - ROW_GAP + bottom

    # Agg cuts the fraction of a pixel off, so the size stays a little above the whole number.
    figure = Figure(figsize=((width + 0.01) / DPI, (height + 0.01) / DPI), dpi=DPI, facecolor="white")
    _write(figure, EDGE, height - 14, heading, 17, weight="bold", va="top")
    _draw_key(figure, {SPECIAL: any(example.special), ANSWER: example.answer is not None})
    _write(figure, EDGE, height - 42, "\n".join(title), 13, va="top", linespacing=1.2)
    _write(figure, EDGE, 10, "\n".join(caption), 12, va="bottom", linespacing=1.2, color=FAINT)
    if num_heads == 0:
        return pixels_of(figure)
    corners = [grid.corner(head, bottom) for head in range(num_heads)]
    norm = _color_scale(weights_HLL, slots)
    for head, (left, lower) in enumerate(corners):
        head_title = _head_title(head, weights_HLL[head], example.special)
        _write(figure, left + grid.panel / 2, lower + grid.panel + 5.5, head_title, 12.5, ha="center")
        ax = _axes(figure, left, lower, grid.panel, grid.panel)
        mesh = _draw_heatmap(ax, weights_HLL[head], slots, example, norm)
    _draw_color_bar(figure, corners[min(num_heads, grid.columns) - 1], grid.panel, mesh)
    _draw_labels(figure, corners[0], labels, slots, example, grid, along_rows=True)
    _draw_labels(figure, grid.corner((grid.rows - 1) * grid.columns, bottom), labels, slots, example, grid)
    image = pixels_of(figure)
    _repeat_labels(image, corners, grid)
    return image


def _axes(figure: Figure, x: float, y: float, width: float, height: float) -> Axes:
    """Axes in a rectangle of the sheet, counted from its lower left corner."""
    whole = figure.bbox
    return figure.add_axes((x / whole.width, y / whole.height, width / whole.width, height / whole.height))


class _Grid(NamedTuple):
    """Heatmaps in rows and columns, with the token labels in a margin left of them and below."""

    rows: int
    columns: int
    panel: int  # side of a heatmap
    font: float  # height of a token label
    label_width: int  # of the widest token label
    margin: int

    def corner(self, head: int, bottom: int) -> tuple[int, int]:
        """Where the lower left corner of a heatmap is; the lowest heatmaps are `bottom` pixels above the edge."""
        row, column = divmod(head, self.columns)
        return self.margin + column * (self.panel + COLUMN_GAP), bottom + (self.rows - 1 - row) * (self.panel + ROW_GAP)


def _grid(num_heads: int, labels: list[str]) -> _Grid:
    """Heatmaps as large as a screen allows, and never so small that a label cannot be read."""
    columns = {0: 1, 5: 3, 6: 3, 9: 3}.get(num_heads, min(num_heads, 4))
    rows = max(1, math.ceil(num_heads / columns))
    font = 10.0
    for _ in range(2):  # labels and panels need each other's size
        label_width = math.ceil(max(_text_width(label, font, bold=True) for label in labels))
        margin = label_width + 38
        wide = (SHEET_WIDTH - margin - RIGHT + COLUMN_GAP) / columns - COLUMN_GAP
        high = (SHEET_HEIGHT - 144 - margin + ROW_GAP) / rows - ROW_GAP
        panel = int(min(MAX_PANEL, max(min(wide, high), len(labels) * MIN_CELL, MIN_PANEL))) if num_heads else 0
        font = min(14.0, max(9.5, 0.92 * panel / len(labels)))
    return _Grid(rows, columns, panel, font, label_width, margin)


def _draw_heatmap(
    ax: Axes, weights_LL: np.ndarray, slots: list[range], example: AttentionExample, norm: PowerNorm
) -> QuadMesh:
    """Draws a heatmap with gaps left grey, lines between sections, and frames around the answer."""
    import seaborn
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    # vmin and vmax are the norm's business; given, they keep seaborn from seeking the minimum of weights all NaN.
    scale = dict(norm=norm, vmin=norm.vmin, vmax=norm.vmax, cmap=colormaps[COLORMAP].with_extremes(bad=GAP))
    # With tick labels seaborn would draw the whole figure to see whether they overlap.
    seaborn.heatmap(_cut(weights_LL, slots), ax=ax, cbar=False, xticklabels=False, yticklabels=False, **scale)
    ax.set_axis_off()
    count = len(slots)
    edges = {edge for _, first, last in example.sections for edge in slot_span(slots, first, last)} - {0, count}
    ax.hlines(sorted(edges), 0, count, color=FAINT, linewidth=0.6)
    ax.vlines(sorted(edges), 0, count, color=FAINT, linewidth=0.6)
    if example.answer:
        start, end = slot_span(slots, *example.answer)
        for corner, *size in (((0, start), count, end - start), ((start, 0), end - start, count)):
            frame = dict(fill=False, edgecolor=ANSWER, linewidth=1.2, clip_on=False, zorder=3)
            ax.add_patch(Rectangle(corner, *size, **frame))
    return ax.collections[0]


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
    return PowerNorm(0.5, vmin=0.0, vmax=next((weight for weight in TOP_WEIGHTS if weight >= typical_top), 1.0))


def _head_title(head: int, weights_LL: np.ndarray, special: list[bool]) -> str:
    """Names the head and says over all L tokens, not only the shown ones, how spread and how idle its attention is."""
    weights_LL = weights_LL.astype(np.float64)
    entropy = -np.sum(weights_LL * np.log(np.maximum(weights_LL, 1e-30)), axis=-1).mean()
    on_special = weights_LL[:, np.asarray(special, dtype=bool)].sum(axis=-1).mean()
    return f"head {head + 1} · {entropy:.2f} nats · {100 * on_special:.0f} % special"


def _draw_labels(
    figure: Figure,
    corner: tuple[int, int],
    labels: list[str],
    slots: list[range],
    example: AttentionExample,
    grid: _Grid,
    along_rows: bool = False,
) -> None:
    """Writes the token labels left of the rows or below the columns, and a bracket with its name for each section."""
    from matplotlib.lines import Line2D

    turn = 0 if along_rows else 90
    cell = grid.panel / len(slots)

    def place(slot: float, distance: float) -> tuple[float, float]:
        """The pixel at a slot's position along the heatmap's side, so many pixels away from it."""
        if along_rows:
            return corner[0] - distance, corner[1] + grid.panel - slot * cell
        return corner[0] + slot * cell, corner[1] - distance

    # Turned about its end and set on the baseline, so that labels line up whatever letters they hold.
    turned = dict(ha="right", va="center_baseline", rotation=turn, rotation_mode="anchor")
    answer = range(0) if example.answer is None else range(example.answer[0], example.answer[1] + 1)
    for index, (label, slot) in enumerate(zip(labels, slots, strict=True)):
        is_token = len(slot) == 1
        is_answer, is_special = is_token and slot.start in answer, is_token and example.special[slot.start]
        color = ANSWER if is_answer else SPECIAL if is_special else INK
        weight = "bold" if is_answer or is_special or not is_token else "normal"
        _write(figure, *place(index + 0.5, 5), label, grid.font, color=color, weight=weight, **turned)
    bracket = grid.label_width + 11
    for name, first, last in example.sections:
        start, end = slot_span(slots, first, last)
        line = zip(place(start + 0.15, bracket), place(end - 0.15, bracket), strict=True)
        figure.add_artist(Line2D(*line, color=FAINT, linewidth=1.4, solid_capstyle="butt", transform=None))
        name = _drawable(name, "□")
        if _text_width(name, 12) <= (end - start) * cell:  # otherwise it would run into its neighbour's
            align = dict(ha="right", va="center") if along_rows else dict(ha="center", va="top")
            _write(figure, *place((start + end) / 2, bracket + 5), name, 12, color=FAINT, rotation=90 - turn, **align)


def _repeat_labels(image: np.ndarray, corners: list[tuple[int, int]], grid: _Grid) -> None:
    """Copies the labels of the first row of heatmaps to the other rows, and those of the first column likewise.

    Drawing them again would take nearly the time of all else.
    """
    panel, margin = grid.panel, grid.margin - 2  # two pixels for the frame of the answer
    tops = [len(image) - lower - panel for _, lower in corners]
    for top in tops[grid.columns :: grid.columns]:
        image[top : top + panel, :margin] = image[tops[0] : tops[0] + panel, :margin]
    below = image[tops[-1] + panel + 2 :][:margin, grid.margin : grid.margin + panel].copy()
    for (left, _), top in zip(corners[-grid.columns :], tops[-grid.columns :], strict=True):
        image[top + panel + 2 :][:margin, left : left + panel] = below


def _draw_color_bar(figure: Figure, corner: tuple[int, int], panel: int, mesh: QuadMesh) -> None:
    """Draws the colour scale of `mesh` right of a heatmap, pointed if a shown weight exceeds it."""
    top = mesh.norm.vmax
    clipped = bool(np.nanmax(mesh.get_array().filled(0)) > top)
    high = min(panel, 400)
    ax = _axes(figure, corner[0] + panel + 18, corner[1] + panel - high, 14, high)
    bar = figure.colorbar(mesh, cax=ax, extend="max" if clipped else "neither", extendfrac=0.03)
    ticks = [top * share for share in (0, 0.05, 0.2, 0.5, 1)]
    bar.set_ticks(ticks, labels=[f"{tick:.3g}" for tick in ticks])
    ax.tick_params(labelsize=_points(12), length=3, color=FAINT, labelcolor=INK)
    bar.outline.set_linewidth(0)


def _caption(num_heads: int, length: int, slots: list[range]) -> str:
    if num_heads == 0:
        return "This layer has no heads left: pruning removed them all."
    shown = sum(len(slot) == 1 for slot in slots)
    tokens = f"All {_count(length, 'token')} shown; every row adds up to 1."
    if shown < length:
        tokens = (
            f"{shown} of {length} tokens are shown, a grey “{GAP_MARK}” stands for those left out; weights are as the "
            f"model computed them, not renormalised, so what is shown of a row may add up to less than 1."
        )
    return (
        f"Row: the token that looks; column: the token looked at; colour: the attention weight (square-root scale). "
        f"{tokens} "
        f"Over each heatmap: mean entropy of the rows (0 = one token, ln {length} = {math.log(length):.2f} = spread "
        f"evenly) and share of attention on special tokens (near 100 %: the head does little)."
    )


def _draw_key(figure: Figure, used: dict[str, bool]) -> None:
    """Says at the top right what the label colours mean."""
    x, top = figure.bbox.width - EDGE, figure.bbox.height - 16
    for label, color in (("predicted answer (framed)", ANSWER), ("special token", SPECIAL)):
        if used[color]:
            _write(figure, x, top, label, 13, color=color, weight="bold", ha="right", va="top")
            x -= _text_width(label, 13, bold=True) + 22


def _write(figure: Figure, x: float, y: float, text: str, pixels: float, **style: Any) -> None:
    """Writes on the sheet at pixel (x, y), counted from the lower left corner."""
    style = {"color": INK, "family": _font_families(), "transform": None, **style}
    figure.text(x, y, text, fontsize=_points(pixels), parse_math=False, **style)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _token_label(example: AttentionExample, slot: range) -> str:
    """Names the token of a slot, cut to LABEL_CHARS, or marks a gap."""
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
def _font_families() -> list[str]:
    """Font families that this machine has, in the order in which matplotlib seeks a glyph."""
    from matplotlib.font_manager import fontManager

    installed = set(fontManager.get_font_names())
    return ["DejaVu Sans", *(name for name in FALLBACK_FONTS if name in installed)]


@lru_cache(maxsize=4)
def _fonts(bold: bool) -> list:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    weight = "bold" if bold else "normal"
    return [get_font(findfont(FontProperties(family=family, weight=weight))) for family in _font_families()]


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


def _points(pixels: float) -> float:
    """The unit in which matplotlib takes font sizes."""
    return pixels * 72 / DPI
