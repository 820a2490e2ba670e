"""What the steps of an ablation brought: their numbers as data, as a table and as a picture."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from him.core.errors import CheckpointError, ConfigError
from him.core.files import write_file, write_json
from him.runs.checkpoint import load_tensors
from him.runs.folder import ModelFolder, RunFolder
from him.tasks.squad.metrics import squad_scores, squad_v2_scores
from him.tasks.squad.reader import SquadData
from him.workflows.compare import read_curve

NUM_RESAMPLES = 1000


@dataclass(frozen=True)
class TrainedStep:
    """A step of which a run is finished.

    Attributes:
        name: of its config.
        adds: what it has that the step before it has not, in words.
        config: its settings.
        folders: of its finished runs, by seed.
    """

    name: str
    adds: str
    config: Mapping[str, Any]
    folders: Mapping[int, Path]


def write_report(steps: Sequence[TrainedStep], validation: SquadData, folder: Path) -> dict[str, Any]:
    """Writes `ablation.json`, `ablation.md` and `ablation.png` and returns what `report_of` does, with the table."""
    report = {"num_questions": validation.num_questions, "steps": [report_of(step, validation) for step in steps]}
    table = report_table(report)
    write_json(folder / "ablation.json", report)
    write_file(folder / "ablation.md", f"{table}\n".encode())
    write_file(folder / "ablation.png", draw_report(report))
    return {**report, "table": table, "picture": str(folder / "ablation.png")}


def report_of(step: TrainedStep, validation: SquadData) -> dict[str, Any]:
    """The numbers of a step.

    Returns:
        `step`, `adds`, `config`, `seeds`, `parameters`, the means `F1`, `Exact_Match` and `minutes`, `F1_spread` (half
        of the largest difference between seeds, or None), `F1_interval` (of a single seed, or None), and `runs`: what
        `result_of` says of each seed.

    Raises:
        CheckpointError: a file of a run is damaged, or of other validation data.
    """
    runs = [{"seed": seed, **result_of(folder, validation)} for seed, folder in step.folders.items()]
    scores = [run["F1"] for run in runs]
    return {
        "step": step.name,
        "adds": step.adds,
        "config": dict(step.config),
        "seeds": list(step.folders),
        "parameters": runs[0]["parameters"],
        **{name: float(np.mean([run[name] for run in runs])) for name in ("F1", "Exact_Match", "minutes")},
        "F1_spread": (max(scores) - min(scores)) / 2 if len(runs) > 1 else None,
        "F1_interval": runs[0]["F1_interval"] if len(runs) == 1 else None,
        "runs": runs,
    }


def result_of(run: Path, validation: SquadData) -> dict[str, Any]:
    """The numbers of a finished run, from what is in its folder.

    Raises:
        CheckpointError: a file is damaged, or of other validation data.
    """
    try:
        best = ModelFolder(RunFolder(run).find_best())
        metrics = json.loads(best.metrics.read_text(encoding="utf-8"))
        weights = load_tensors(best.weights)
        predictions = json.loads(RunFolder(run).predictions.read_text(encoding="utf-8"))
        found = {name: float(metrics[name]) for name in ("F1", "Exact_Match", "epoch")}
        if set(predictions) != {question.id for question in validation.questions}:
            raise CheckpointError("it answers other questions than those of --validation_file")
        epochs, values = read_curve(run, "F1/val")
        interval = bootstrap_interval(question_f1(predictions, validation))
    except (OSError, ValueError, KeyError, TypeError, RecursionError, CheckpointError, ConfigError) as error:
        raise CheckpointError(f"{run}: cannot be used ({error}); remove it, and it is trained again") from None
    return {
        "F1": found["F1"],
        "F1_interval": list(interval),
        "Exact_Match": found["Exact_Match"],
        "best_epoch": found["epoch"],
        "minutes": minutes_of(run),
        "parameters": sum(tensor.numel() for tensor in weights.values()),
        "curve": {"epoch": epochs, "F1": values},
    }


def question_f1(predictions: Mapping[str, str], data: SquadData) -> list[float]:
    """F1 of each question in percent, whose mean is the F1 of the whole."""
    score = squad_v2_scores if data.has_impossible else squad_scores
    return [
        score({question.id: predictions[question.id]}, {question.id: [answer.text for answer in question.answers]})[
            "F1"
        ]
        for question in data.questions
    ]


def bootstrap_interval(
    scores: Sequence[float], num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of the mean of `scores`: quantiles of the means of samples drawn with replacement.

    Efron and Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3. It knows which questions happened to be
    asked, not what another seed would bring; and questions on one text, which are alike, make it too narrow.
    """
    values, random = np.asarray(scores, np.float64), np.random.default_rng(seed)
    means = [values[random.integers(len(values), size=len(values))].mean() for _ in range(num_resamples)]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def minutes_of(run: Path) -> float:
    """From the first record to the last, of each process that trained the run: pretraining, training and evaluations.

    What a killed process did counts, as far as it was recorded, also where it had to be done again. A pretraining that
    was taken from the cache does not.
    """
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    seconds = 0.0
    for path in run.rglob("events.out.tfevents.*"):
        times = [event.wall_time for event in LegacyEventFileLoader(str(path)).Load()]
        seconds += max(times, default=0.0) - min(times, default=0.0)
    return seconds / 60.0


def f1_text(step: Mapping[str, Any]) -> str:
    """F1 with its spread over seeds, or with the interval of a single seed."""
    if step["F1_spread"] is not None:
        return f"{step['F1']:.1f} ± {step['F1_spread']:.1f}"
    low, high = step["F1_interval"]
    return f"{step['F1']:.1f} ({low:.1f} to {high:.1f})"


def report_table(report: Mapping[str, Any]) -> str:
    """The steps as a Markdown table, with a line that explains it."""
    lines = ["| step | what it adds | F1 | Exact_Match | minutes |", "|---|---|---|---|---|"]
    for step in report["steps"]:
        numbers = f"{f1_text(step)} | {step['Exact_Match']:.1f} | {step['minutes']:.1f}"
        lines.append(f"| {step['step']} | {step['adds']} | {numbers} |")
    notes = [f"Best epoch by F1, on {report['num_questions']:,} validation questions."]
    several = sorted({seed for step in report["steps"] if step["F1_spread"] is not None for seed in step["seeds"]})
    if several:
        named = ", ".join(map(str, several))
        notes.append(f"Means over seeds {named}; F1 ± half of the largest difference between seeds.")
    if any(step["F1_interval"] is not None for step in report["steps"]):
        notes.append(
            f"In brackets, for a single seed: 95 % interval over {NUM_RESAMPLES:,} resamples of the questions."
        )
    notes.append("Minutes of one run: pretraining, training and evaluations.")
    return "\n".join([*lines, "", " ".join(notes)])


def draw_report(report: Mapping[str, Any]) -> bytes:
    """F1 of each step, and how each run came to it; a PNG."""
    import seaborn
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    steps = report["steps"]
    figure = Figure(figsize=(13.0, max(3.6, 1.4 + 0.52 * len(steps))), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    bars, curves = figure.subplots(1, 2, width_ratios=(1.1, 1.0))
    colours = seaborn.color_palette("colorblind", len(steps))
    ends = []
    for row, (step, colour) in enumerate(zip(steps, colours, strict=True)):
        low, high = step["F1_interval"] or (step["F1"] - step["F1_spread"], step["F1"] + step["F1_spread"])
        ends.append(max(step["F1"], high))
        spread = [[max(0.0, step["F1"] - low)], [max(0.0, high - step["F1"])]]
        bars.barh(row, step["F1"], height=0.62, color=colour, alpha=0.8)
        bars.errorbar(step["F1"], row, xerr=spread, color="#222222", capsize=3, lw=1.2)
        bars.annotate(f1_text(step), (ends[-1], row), (6, 0), textcoords="offset points", va="center", fontsize=9)
        for number, run in enumerate(step["runs"]):
            label = step["step"].replace("_", " ") if number == 0 else None
            points = (run["curve"]["epoch"], run["curve"]["F1"])
            curves.plot(*points, color=colour, marker="o", ms=3, lw=1.4, alpha=0.85, label=label)
    names = [f"{step['step'].replace('_', ' ')}\n{step['adds']}" for step in steps]
    bars.set_yticks(range(len(steps)), names)
    bars.invert_yaxis()
    bars.set_xlim(0, 1.45 * max(ends) or 1.0)  # room for the numbers
    bars.set_title("F1 of the best epoch", loc="left", fontsize=11)
    curves.set_title("F1/val by epoch, a line for each seed", loc="left", fontsize=11)
    curves.set_xlabel("epoch", fontsize=9)
    curves.set_ylim(bottom=0)
    curves.xaxis.set_major_locator(MaxNLocator(integer=True))
    curves.grid(alpha=0.25)
    curves.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    for axes in (bars, curves):
        axes.tick_params(labelsize=9, length=0)
        axes.spines[["top", "right"]].set_visible(False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()
