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
    ("ms/token", "latency_ms_token", "{:.2f}"),
)


def judge(stages: Sequence[dict[str, Any]]) -> None:
    """Says of each stage after the first what it made smaller and faster, as `verdict`."""
    first = stages[0]
    for stage in stages[1:]:
        said = []
        for measure, better in (("file_mb", "smaller"), (time_of(first), "faster")):
            said.append(better if stage[measure] < (1 - LEAST_SAVING) * first[measure] else f"not {better}")
        stage["verdict"] = ", ".join(said)


def time_of(stage: dict[str, Any]) -> str:
    """The latency to judge by: of the long input, or of the short one where the model reaches no further."""
    return "latency_ms_1x384" if stage["latency_ms_1x384"] is not None else "latency_ms_example"


def report_table(stages: Sequence[dict[str, Any]], metric: str) -> str:
    """The stages as lines of text, with the task's metric and its difference from the trained model."""
    columns = [column for column in COLUMNS if any(stage.get(column[1]) is not None for stage in stages)]
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
    figures = (
        f"{first['file_mb']:.1f} → {last['file_mb']:.1f} MB, {first[time]:.1f} → {last[time]:.1f} ms, "
        f"{metric} {first[metric]:.4g} → {last[metric]:.4g}"
    )
    if len(stages) > 1 and last["verdict"] == "smaller, faster":
        return f"compressed: {figures}"
    return f"not a success ({last.get('verdict', 'no stage ran')}): {figures}"


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
