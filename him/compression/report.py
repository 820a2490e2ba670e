"""What each stage brought, in words: the table, the verdicts and the last line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
        said = []
        for better, now, then in (
            ("smaller", stage["file_mb"], first["file_mb"]),
            ("faster", stage[time_of(first)], before),
        ):
            said.append(better if now < (1 - LEAST_SAVING) * then else f"not {better}")
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
        for bf16 in (False, True):
            values = stage if not bf16 else stage.get("bf16", {})
            if not values:
                continue
            cells = [_cell(values, name, form) for _, name, form in columns]
            difference = "" if stage is stages[0] else f"{stage[metric] - stages[0][metric]:+.3g}"
            ends = ["", "", ""] if bf16 else [f"{stage[metric]:.4g}", difference, stage.get("verdict", "")]
            rows.append(["  the same in bf16" if bf16 else f"{stage['stage']} ({stage['precision']})", *cells, *ends])
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = []
    for row in rows:
        aligned = [row[0].ljust(widths[0])]
        aligned += [cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1], strict=True)]
        lines.append("  ".join([*aligned, row[-1]]).rstrip())
    return "\n".join(lines)


def _cell(values: dict[str, Any], name: str, form: str) -> str:
    value = values.get(name)
    return "" if value is None else form.format(value)


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

    Args:
        stages: of the report; int8 is the last. Those between the trained model and it have its shape.
        reason: how int8 is computed here.
    """
    time, int8 = time_of(stages[0]), stages[-1]
    of_its_shape = [stage for stage in stages[1:-1] or stages[:1] if "bf16" in stage]
    fastest = min(of_its_shape, key=lambda stage: stage["bf16"][time], default=None)
    if fastest is None or int8[time] < fastest["bf16"][time]:
        return None
    times = f"{int8[time]:.3g} and {fastest['bf16'][time]:.3g} ms"
    return f"int8 is not faster than {fastest['stage']} in bf16 ({times}): {reason}"


def front_table(points: Sequence[dict[str, Any]], metric: str) -> str:
    """Size, speed and quality by pruning amount, floats first."""
    time = time_of(points[0])
    of_time = "ms " + time.removeprefix("latency_ms_")
    lines = [f"{'pruned':>8}  {'':<10}  {'file MB':>8}  {of_time:>10}  {metric:>13}"]
    for point in sorted(points, key=lambda point: (point["stage"] == "int8", point["pruning_amount"])):
        lines.append(
            f"{point['pruning_amount']:>8g}  {point['stage']:<10}  {point['file_mb']:>8.2f}  {point[time]:>10.2f}  "
            f"{point[metric]:>13.4g}"
        )
    return "\n".join(lines)
