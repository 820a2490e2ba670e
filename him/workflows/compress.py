"""Compressing a finished run, once or for several pruning amounts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from him.compression.pipeline import compress, finished_report, tidy
from him.compression.plots import as_png, draw_front
from him.compression.pruning import check_amount
from him.compression.report import front_table
from him.config import Config
from him.config.resolve import with_changes
from him.core.compute import Compute, choose_compute, keep_freed_memory
from him.core.errors import CheckpointError, ConfigError
from him.core.files import find_folder, locked, write_json
from him.runs.models import SWEEP, TRAINED, check_model, stage_folder
from him.runs.untrusted import check_places, check_writable
from him.tasks import task_class
from him.tasks.base import Task


def compress_run(run: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Does the stage after training on a finished run, in the place of what is there.

    Args:
        run: its folder.
        changes: settings that differ from the run's.

    Returns:
        See `him.compression.pipeline.compress`.

    Raises:
        HimError: a setting, the run or its data do not allow it.
    """
    config = _config(run, changes)
    with locked(run):
        tidy(run)
        task, compute = _prepare(run, config)
        return compress(run, config, task, compute)


def sweep(run: Path, changes: Mapping[str, Any], amounts: Sequence[str | float]) -> dict[str, Any]:
    """Compresses a run once for each pruning amount, each in a folder of its own below `sweep`.

    Amounts that were done before, with the same settings, are taken as they are.

    Returns:
        `points` (the stages of all reports, each with its `pruning_amount`), `table`, `summary`, `picture`: what is
        also written to `sweep/sweep.json` and `sweep/sweep.png`.

    Raises:
        HimError: see `compress_run`.
    """
    if "pruning_amount" in changes:
        raise ConfigError("--pruning_amount beside --sweep: name all amounts after --sweep")
    configs = [_config(run, {**changes, "pruning_amount": amount}) for amount in amounts]
    if len({f"{config.pruning_amount:g}" for config in configs}) < len(configs):
        raise ConfigError("--sweep names an amount twice; name each once")
    with locked(run):
        return _sweep(run, configs)


def _sweep(run: Path, configs: Sequence[Config]) -> dict[str, Any]:
    task, compute = _prepare(run, configs[0])
    model = task.build_model()
    for config in configs:
        if config.pruning_method == "taylor":
            check_amount(model, config.pruning_amount)
    points, metric = [], ""
    for config in configs:
        place = f"{SWEEP}/{config.pruning_amount:g}"
        tidy(run, place)
        report = finished_report(run, config, task, compute, place)
        if report is None:
            print(f"--pruning_amount {config.pruning_amount:g}", flush=True)
            report = compress(run, config, task, compute, place)
        metric = report["metric"]
        # The last float stage and int8.
        points += [{"pruning_amount": config.pruning_amount, **stage} for stage in report["stages"][-2:]]
    picture = run / SWEEP / "sweep.png"
    picture.write_bytes(as_png(draw_front(points, metric)))
    result = {"points": points, "metric": metric, "table": front_table(points, metric), "picture": str(picture)}
    result["summary"] = f"picture: {picture}"
    write_json(run / SWEEP / "sweep.json", result)
    return result


def _config(run: Path, changes: Mapping[str, Any]) -> Config:
    if not run.is_dir():
        raise CheckpointError(f"{run}: no such run; name its folder, such as runs/NAME")
    if not (find_folder(run / "best") / "model.safetensors").is_file():
        raise CheckpointError(f"{run}: no finished model there; train the run first, or go on with --resume")
    check_writable(run)
    best = stage_folder(run, TRAINED)
    check_model(best)
    config = with_changes(Config.load(best / "config.json"), changes)
    check_places(run, config, changes)
    return config


def _prepare(run: Path, config: Config) -> tuple[Task, Compute]:
    best = stage_folder(run, TRAINED)
    compute = choose_compute(config.device, config.precision, config.num_threads)
    keep_freed_memory()
    if not (run / "predictions.json").is_file():  # written when training has ended
        print(f"{run}: its training has not ended; this is its best model so far", flush=True)
    task = task_class(config.task_type).prepare(config, tokenizer_folder=best)
    for note in task.notes:
        print(note, flush=True)
    return task, compute
