"""What each stage brought, in pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from him.compression.report import time_of
from him.core.pictures import pixels_of
from him.tasks.base import LOWER_IS_BETTER

if TYPE_CHECKING:
    pass


def draw_report(stages: Sequence[dict[str, Any]], metric: str) -> np.ndarray:
    """Bars of file, latency and metric by stage; uint8 (height, width, 3)."""
    from matplotlib.figure import Figure

    time = time_of(stages[0])
    wanted = "lower" if metric in LOWER_IS_BETTER else "higher"
    panels = (
        ("file", "MB, lower is better", "file_mb"),
        ("one input, " + time.removeprefix("latency_ms_"), "ms, lower is better", time),
        (metric, f"on all validation data, {wanted} is better", metric),
    )
    figure = Figure(figsize=(10.5, 3.4), dpi=110, layout="constrained")
    names = [f"{stage['stage'].replace('_', '-')}\n{stage['precision'].replace(' and ', ' + ')}" for stage in stages]
    for axes, (title, unit, key) in zip(figure.subplots(1, 3), panels, strict=True):
        values = [stage[key] for stage in stages]
        bars = axes.bar(names, values, width=0.62, color=["#9aa5b1", *["#2f6f9f"] * (len(stages) - 1)])
        axes.bar_label(bars, [f"{value:.3g}" for value in values], padding=2, fontsize=9)
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_ylabel(unit, fontsize=9)
        axes.tick_params(labelsize=9, length=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(y=0.14)
    return pixels_of(figure)


def draw_front(points: Sequence[dict[str, Any]], metric: str) -> np.ndarray:
    """Metric against latency and against file size, a point for each pruning amount; uint8 (height, width, 3).

    Args:
        points: the stages of several reports, each with the `pruning_amount` of its report.
        metric: the task's.
    """
    from matplotlib.figure import Figure

    time = time_of(points[0])
    figure = Figure(figsize=(10.5, 4.2), dpi=110, layout="constrained")
    for axes, (label, key) in zip(
        figure.subplots(1, 2, sharey=True),
        ((f"{time.removeprefix('latency_ms_').replace('_', ' ')}: ms", time), ("file: MB", "file_mb")),
        strict=True,
    ):
        for kind, color, marker in (("float", "#9aa5b1", "o"), ("int8", "#2f6f9f", "s")):
            chosen = sorted((p for p in points if (p["stage"] == "int8") == (kind == "int8")), key=lambda p: p[key])
            axes.plot([p[key] for p in chosen], [p[metric] for p in chosen], marker, ls="-", color=color, label=kind)
            for point in chosen:
                place = (point[key], point[metric])
                axes.annotate(f"{point['pruning_amount']:g}", place, (5, 4), textcoords="offset points", fontsize=8)
        axes.set_xlabel(label, fontsize=9)
        axes.set_xlim(left=0)
        axes.tick_params(labelsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.axes[0].set_ylabel(metric, fontsize=9)
    figure.axes[0].legend(frameon=False, fontsize=9, title="share of weights removed", title_fontsize=8)
    return pixels_of(figure)
