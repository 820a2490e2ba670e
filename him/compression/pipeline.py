"""The stage after training: prune, fine-tune, quantize, and say what it brought.

Everything is written into `compressed.part`, stage by stage, each whole or absent; what is finished takes the place of
`compressed` at the end. A process that is killed at any moment goes on from the last whole stage, or from the last
checkpoint of the fine-tuning, to the same weights.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from him.compression.latency import measure_stages
from him.compression.report import draw_report, judge, not_faster_line, report_table, summary_line
from him.compression.stages import Stages, fine_tune, prune, quantize_stage
from him.config import Config
from him.config.names import renamed
from him.config.options import with_role
from him.core.compute import Compute
from him.core.errors import CheckpointError, ConfigError
from him.core.files import checksum, remove_leftovers, verify_folder, write_json
from him.core.pictures import encode_png
from him.core.signals import raise_if_stopped, signal_of
from him.model.int8_kernels import backend_note, find_backend
from him.runs.folder import FINE_TUNED, INT8, PRUNED, TRAINED, CompressionFolder, ModelFolder, RunFolder
from him.runs.records import MetricWriter
from him.tasks.base import Task
from him.training.trainer import Interrupted

# What reading a file that was damaged or changed by hand raises.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, CheckpointError, ConfigError)


def read_with_settings(path: Path) -> dict[str, Any]:
    """A report, or how far a compression is, with its settings by their names of today.

    Raises:
        one of `UNREADABLE`: it is damaged or missing.
    """
    found = json.loads(path.read_text(encoding="utf-8"))
    return {**found, "settings": renamed(found["settings"])}


class Progress:
    """The stages that are done, each whole, and their metrics; kept in `progress.json`.

    Goes on with what an interrupted call with the same settings left whole, or begins anew.

    Args:
        part: where the stages' models are.
        settings: all that decides the result.

    Attributes:
        metrics: by stage, in their order.
    """

    def __init__(self, part: CompressionFolder, settings: dict[str, Any]) -> None:
        self.part = part
        self.settings = settings
        found = self._read()
        self.metrics: dict[str, dict[str, float]] = found or {}
        if found is None:
            shutil.rmtree(part.path, ignore_errors=True)
            part.path.mkdir(parents=True)
            self._write()

    def _read(self) -> dict[str, dict[str, float]] | None:
        try:
            progress = read_with_settings(self.part.progress)
            if progress["settings"] != self.settings:
                return None
            for stage in progress["metrics"]:
                if stage != TRAINED:
                    verify_folder(self.part.model(stage), others_allowed=True)
            return progress["metrics"]
        except UNREADABLE:
            return None

    def _write(self) -> None:
        write_json(self.part.progress, {"settings": self.settings, "metrics": self.metrics})

    def once(self, stage: str, work: Callable[[], dict[str, float]]) -> None:
        """Does a stage, unless it is done, and notes the metrics that `work` returns. Raises Stopped: a signal came."""
        raise_if_stopped()
        if stage in self.metrics:
            return
        remove_leftovers(self.part.path / stage)
        self.metrics[stage] = work()
        self._write()

    @property
    def last_float(self) -> str:
        """The last stage before int8."""
        return [stage for stage in (TRAINED, PRUNED, FINE_TUNED) if stage in self.metrics][-1]


@contextmanager
def naming(run: RunFolder) -> Iterator[None]:
    """Turns a signal, also one that ended a run within the run, into an `Interrupted` that names the run to go on
    with."""
    try:
        yield
    except (KeyboardInterrupt, Interrupted) as stopped:
        raise Interrupted(signal_of(stopped), run.path) from None


def compress(
    run: RunFolder,
    config: Config,
    task: Task,
    compute: Compute,
    target: CompressionFolder | None = None,
    trained_metrics: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Prunes, fine-tunes and quantizes the best model of a run, and measures each stage.

    Args:
        run: with a best model.
        config: of the run, with the compression that is wanted.
        task: with training and validation data.
        compute: device and precision of training and evaluation.
        target: where the result is put; `run.compressed` if None.
        trained_metrics: of the best model on all of these validation data, if they are known.

    Returns:
        The content of `report.json`: `metric`, `stages`, and the settings.

    Raises:
        HimError: a setting or the machine does not allow it.
        Interrupted: a signal ended it; another call goes on.
    """
    with naming(run):
        return _compress(Stages(run, config, task, compute, target or run.compressed), trained_metrics)


def _compress(stages: Stages, trained_metrics: dict[str, float] | None) -> dict[str, Any]:
    """All stages that are not there yet, then the measurements, with the verdicts on them for programs and people."""
    config = stages.config
    progress = Progress(stages.part, _settings(stages.run, config, stages.task, stages.compute))
    progress.once(TRAINED, lambda: trained_metrics or stages.evaluate(stages.task, stages.trained))
    if config.pruning_amount > 0:
        progress.once(PRUNED, lambda: prune(stages))
        if config.fine_tune_epochs != 0:
            progress.once(FINE_TUNED, lambda: fine_tune(stages))
    progress.once(INT8, lambda: quantize_stage(stages, progress.last_float))
    measured = measure_stages(stages, progress.metrics)
    reason = backend_note(find_backend(stages.compute.device), stages.compute.bf16, stages.compute.device)
    judge(measured)
    metric = stages.task.best_metric
    lines = (report_table(measured, metric), not_faster_line(measured, reason))
    report = {
        "settings": progress.settings,
        "metric": metric,
        "stages": measured,
        "table": "\n".join(line for line in lines if line is not None),
        "summary": summary_line(measured, metric),
    }
    _write_report(stages.part, report)
    shutil.rmtree(stages.part.fine_tuning.checkpoints, ignore_errors=True)
    stages.target.put_in_place()
    return report


def _write_report(folder: CompressionFolder, report: dict[str, Any]) -> None:
    """Writes the report, its picture, and both for TensorBoard."""
    write_json(folder.report, report)
    picture = draw_report(report["stages"], report["metric"])
    folder.picture.write_bytes(encode_png(picture))
    records = RunFolder(folder.path).metrics
    for left in (*folder.path.glob("events.out.tfevents.*"), records):
        left.unlink(missing_ok=True)
    writer = MetricWriter(folder.path)
    writer.picture("Compression", picture, 0)
    writer.text("Compression/table", f"```\n{report['table']}\n```\n\n{report['summary']}", 0)
    writer.close()
    records.unlink()  # the numbers are in the report


def finished_report(
    run: RunFolder, config: Config, task: Task, compute: Compute, target: CompressionFolder | None = None
) -> dict[str, Any] | None:
    """The report that is there for this model, these settings, these data and this machine, or None."""
    report = report_of(run, target)
    return report if report and report["settings"] == _settings(run, config, task, compute) else None


def report_of(run: RunFolder, target: CompressionFolder | None = None) -> dict[str, Any] | None:
    """The report that is there for this trained model, with whatever settings, or None; also if a model is damaged."""
    folder = (target or run.compressed).find()
    try:
        report = read_with_settings(folder.report)
        for stage in report["stages"][1:]:
            verify_folder(folder.model(stage["stage"]), others_allowed=True)
        return report if report["settings"]["trained"] == _trained_checksum(run) else None
    except UNREADABLE:
        return None


def _trained_checksum(run: RunFolder) -> str:
    return checksum(ModelFolder(run.find_best()).weights)


def _settings(run: RunFolder, config: Config, task: Task, compute: Compute) -> dict[str, Any]:
    """What decides the result: the trained model, the settings of the stage, the data and the machine."""
    names = (*with_role("compression", "validation"), "seed", "dry_run")
    return {
        "trained": _trained_checksum(run),
        **{name: getattr(config, name) for name in names},
        "data": [task.train_digest, task.validation_digest],
        "machine": [str(compute.device), compute.bf16, torch.get_num_threads()],
    }
