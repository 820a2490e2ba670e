"""Curves of several runs in one picture, read from their `metrics.jsonl`."""

from collections.abc import Sequence
from pathlib import Path

from him.core.errors import ConfigError
from him.runs.folder import RunFolder
from him.runs.records import read_points

# Of each task, the one that tells most.
TELLING_TAGS = ("F1/val", "ROUGE-L/val", "Bits_Per_Byte/val")


def usual_tags(run: Path) -> list[str]:
    """The tags to compare where none is named: the one that tells most of the run's task, and the loss; for errors see
    `read_curve`."""
    there = {tag for tag, _, _ in read_points(RunFolder(run))}
    return [*[tag for tag in TELLING_TAGS if tag in there], "Loss/val"]


def read_curve(run: Path, tag: str) -> tuple[list[float], list[float]]:
    """Epochs and values of one tag. Raises CheckpointError: the run has no `metrics.jsonl`, or a line of it is not
    JSON; ConfigError: the tag is not in it."""
    found = read_points(RunFolder(run))
    points = [(epoch, value) for name, epoch, value in found if name == tag]
    if not points:
        known = ", ".join(sorted({name for name, _, _ in found})) or "none"
        raise ConfigError(f"{RunFolder(run).metrics}: no value of {tag}; its tags are {known}")
    epochs, values = zip(*[(epoch, float("nan") if value is None else value) for epoch, value in points], strict=True)
    return list(epochs), list(values)


def draw_curves(runs: Sequence[Path], labels: Sequence[str], tags: Sequence[str], path: Path) -> None:
    """Draws one panel for each tag, a line for each run, as a PNG. Raises CheckpointError, ConfigError: as
    `read_curve`."""
    import seaborn
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with seaborn.axes_style("whitegrid"):
        figure = Figure(figsize=(5.2 * len(tags), 3.8), layout="constrained", dpi=120)
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, len(tags), squeeze=False)[0]
    colours = seaborn.color_palette("colorblind", len(runs))
    for axis, tag in zip(axes, tags, strict=True):
        for (run, label), colour in zip(zip(runs, labels, strict=True), colours, strict=True):
            epochs, values = read_curve(run, tag)
            axis.plot(epochs, values, label=label, color=colour, marker="o" if len(epochs) < 40 else None)
        axis.set_title(tag)
        axis.set_xlabel("epoch")
    axes[0].legend()
    figure.savefig(path)
