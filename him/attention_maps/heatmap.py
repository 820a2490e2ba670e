"""The heatmap of one head, with its colour scale, marks and token labels.

Shapes:  H heads of the layer   L tokens of the example   S slots, the rows and columns of the drawn heatmap
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from him.attention_maps.example import AttentionExample, slot_span
from him.attention_maps.layout import Layout
from him.attention_maps.text import drawable, font_families, points, text_width

if TYPE_CHECKING:  # matplotlib and seaborn take 1.3 s to import, so they are imported where they are used
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

TOP_WEIGHTS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # where a colour scale may end; few, so that sheets compare

INK, FAINT, GAP = "#1a1a1a", "#606060", "#dcdcdc"
SPECIAL, ANSWER = "#0072b2", "#d55e00"  # blue and vermilion of Okabe and Ito, distinct under all colour blindness
COLORMAP = "mako_r"  # seaborn's, light to dark in even steps of lightness, so that it also reads in grey


def draw_heatmap(
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
    ax.set_title(title, fontsize=points(12.5), color=INK, family=font_families(), pad=4)
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


def color_scale(weights_HLL: np.ndarray, slots: list[range]) -> PowerNorm:
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


def _draw_marks(ax: Axes, slots: list[range], example: AttentionExample) -> None:
    """Draws the lines between sections and the frames around the rows and columns of the predicted answer."""
    from matplotlib.patches import Rectangle

    count = len(slots)
    edges = {edge for _, first, last in example.sections for edge in slot_span(slots, first, last)} - {0, count}
    if edges:
        ax.hlines(sorted(edges), 0, count, color=FAINT, linewidth=0.6)
        ax.vlines(sorted(edges), 0, count, color=FAINT, linewidth=0.6)
    if example.answer:
        start, end = slot_span(slots, *example.answer)
        frame = dict(fill=False, edgecolor=ANSWER, linewidth=1.2, clip_on=False, zorder=3)
        ax.add_patch(Rectangle((0, start), count, end - start, **frame))
        ax.add_patch(Rectangle((start, 0), end - start, count, **frame))


def draw_labels(
    ax: Axes, labels: list[str], slots: list[range], example: AttentionExample, layout: Layout, along: str
) -> None:
    """Writes the token labels left of the rows or below the columns, and a bracket with its name for each section."""
    rows = along == "rows"
    cell = layout.panel / len(slots)  # pixels per data unit, to place labels at a distance from the heatmap in pixels
    edge = -5 / cell if rows else len(slots) + 5 / cell
    bracket = -(layout.label_width + 11) / cell if rows else len(slots) + (layout.label_width + 11) / cell
    name_at = bracket + (-5 / cell if rows else 5 / cell)
    answer = range(0) if example.answer is None else range(example.answer[0], example.answer[1] + 1)
    style = dict(family=font_families(), parse_math=False, clip_on=False)
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
        ax.text(x, y, label, color=color, weight=weight, fontsize=points(layout.font), **turned, **style)
    for name, first, last in example.sections:
        start, end = slot_span(slots, first, last)
        name = drawable(name, "□")
        line = ([bracket, bracket], [start + 0.15, end - 0.15])
        ax.plot(*(line if rows else line[::-1]), color=FAINT, linewidth=1.4, clip_on=False, solid_capstyle="butt")
        if text_width(name, 12) > (end - start) * cell:
            continue  # the name would run into its neighbour's
        middle = (start + end) / 2
        if rows:
            turned = dict(ha="right", va="center", rotation=90)
            ax.text(name_at, middle, name, color=FAINT, fontsize=points(12), **turned, **style)
        else:
            ax.text(middle, name_at, name, color=FAINT, fontsize=points(12), ha="center", va="top", **style)


def draw_color_bar(figure: Figure, ax: Axes, mesh: QuadMesh) -> None:
    """Draws the colour scale of `mesh` in `ax`, pointed if a shown weight exceeds it."""
    top = mesh.norm.vmax
    clipped = bool(np.nanmax(mesh.get_array().filled(0)) > top)
    bar = figure.colorbar(mesh, cax=ax, extend="max" if clipped else "neither", extendfrac=0.03)
    ticks = [top * share for share in (0, 0.05, 0.2, 0.5, 1)]
    bar.set_ticks(ticks, labels=[f"{tick:.3g}" for tick in ticks])
    bar.ax.tick_params(labelsize=points(12), length=3, color=FAINT, labelcolor=INK)
    bar.outline.set_linewidth(0)
