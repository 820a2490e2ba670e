"""What each stage brought: the table, the verdicts and the last line, and pictures."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from him.core.pictures import pixels_of
from him.tasks.base import LOWER_IS_BETTER

# A file or a time has to fall by more than that to be called smaller or faster: timings vary by some percent.
LEAST_SAVING = 0.05
COLUMNS = (
    ("parameters", "parameters", "{:,.0f}"),
    ("file MB", "file_mb", "{:.2f}"),
    ("ms 1x128", "latency_ms_1x128", "{:.1f}"),
    ("ms 1x384", "latency_ms_1x384", "{:.1f}"),
    ("ex/s 32x384", "examples_per_second_32x384", "{:.1f}"),
    ("ms example", "latency_ms_example", "{:.1f}"),
    ("ms/token", "latency_ms_token", "{:.2f}"),
)


def judge(stages: Sequence[dict[str, Any]]) -> None:
    """Says of each stage after the first what it made smaller and faster, as `verdict`.

    Times are compared with those of the trained model in fp32, and, where a stage is computed in bf16, with its faster
    one: that bf16 is fast is not what the stage brought.
    """
    first = stages[0]
    for stage in stages[1:]:
        before = first[time_of(first)]
        if "bf16" in stage["precision"] and "bf16" in first:
            before = min(before, first["bf16"][time_of(first)])
        judged = (("smaller", stage["file_mb"], first["file_mb"]), ("faster", stage[time_of(first)], before))
        said = [better if now < (1 - LEAST_SAVING) * then else f"not {better}" for better, now, then in judged]
        stage["verdict"] = ", ".join(said)


def time_of(stage: dict[str, Any]) -> str:
    """The latency to judge by: of the longest input that the model reaches."""
    names = ("latency_ms_1x384", "latency_ms_1x128", "latency_ms_example")
    return next(name for name in names if stage.get(name) is not None)


def report_table(stages: Sequence[dict[str, Any]], metric: str) -> str:
    """The stages as lines of text, with the task's metric and its difference from the trained model."""
    columns = [column for column in COLUMNS if any(stage.get(column[1]) is not None for stage in stages)]
    if time_of(stages[0]) != "latency_ms_example":  # which depends on what each model happens to write
        columns = [column for column in columns if column[1] != "latency_ms_example"]
    rows = [["", *(title for title, _, _ in columns), metric, "±", ""]]
    for stage in stages:
        difference = "" if stage is stages[0] else f"{stage[metric] - stages[0][metric]:+.3g}"
        ends = [f"{stage[metric]:.4g}", difference, stage.get("verdict", "")]
        rows.append([f"{stage['stage']} ({stage['precision']})", *_cells(stage, columns), *ends])
        if "bf16" in stage:
            rows.append(["  the same in bf16", *_cells(stage["bf16"], columns), "", "", ""])
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = []
    for row in rows:
        aligned = [row[0].ljust(widths[0])]
        aligned += [cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1], strict=True)]
        lines.append("  ".join([*aligned, row[-1]]).rstrip())
    return "\n".join(lines)


def _cells(values: dict[str, Any], columns: Sequence[tuple[str, str, str]]) -> list[str]:
    return ["" if values.get(name) is None else form.format(values[name]) for _, name, form in columns]


def summary_line(stages: Sequence[dict[str, Any]], metric: str) -> str:
    """One line: success only if file and latency of the last stage really fell."""
    first, last = stages[0], stages[-1]
    time = time_of(first)
    in_bf16 = f" ({first['bf16'][time]:.3g} in bf16)" if "bf16" in first else ""
    figures = (
        f"{first['file_mb']:.3g} → {last['file_mb']:.3g} MB, {first[time]:.3g}{in_bf16} → {last[time]:.3g} ms, "
        f"{metric} {first[metric]:.4g} → {last[metric]:.4g}"
    )
    if last["verdict"] == "smaller, faster":
        return f"compressed: {figures}"
    return f"not a success ({last['verdict']}): {figures}"


def not_faster_line(stages: Sequence[dict[str, Any]], reason: str) -> str | None:
    """One line that says why int8 takes as long as a float model of its shape in bf16, or None where it is faster.

    Of the stages, int8 is the last, and those between the trained model and it have its shape. `reason` says how int8
    is computed here.
    """
    time, int8 = time_of(stages[0]), stages[-1]
    of_its_shape = [stage for stage in stages[1:-1] or stages[:1] if "bf16" in stage]
    fastest = min(of_its_shape, key=lambda stage: stage["bf16"][time], default=None)
    if fastest is None or int8[time] < fastest["bf16"][time]:
        return None
    times = f"{int8[time]:.3g} and {fastest['bf16'][time]:.3g} ms"
    return f"int8 is not faster than {fastest['stage']} in bf16 ({times}): {reason}"


def pareto_table(points: Sequence[dict[str, Any]], metric: str) -> str:
    """Size, speed and quality by pruning amount, floats first: the points of the Pareto front and those behind it."""
    time = time_of(points[0])
    of_time = "ms " + time.removeprefix("latency_ms_")
    lines = [f"{'pruned':>8}  {'':<10}  {'file MB':>8}  {of_time:>10}  {metric:>13}"]
    for point in sorted(points, key=lambda point: (point["stage"] == "int8", point["pruning_amount"])):
        size = f"{point['pruning_amount']:>8g}  {point['stage']:<10}  {point['file_mb']:>8.2f}"
        lines.append(f"{size}  {point[time]:>10.2f}  {point[metric]:>13.4g}")
    return "\n".join(lines)


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
    """Metric against latency and against file size, a point for each pruning amount; uint8 (height, width, 3). `points`
    are the stages of several reports, each with the `pruning_amount` of its report."""
    from matplotlib.figure import Figure

    time = time_of(points[0])
    figure = Figure(figsize=(10.5, 4.2), dpi=110, layout="constrained")
    panels = ((f"{time.removeprefix('latency_ms_').replace('_', ' ')}: ms", time), ("file: MB", "file_mb"))
    for axes, (label, key) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
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
