"""Compressing a finished run, once or for several pruning amounts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from him.compression.pipeline import compress, finished_report
from him.compression.pruning import check_amount
from him.compression.report import draw_front, pareto_table
from him.config import Config
from him.config.resolve import with_changes
from him.core.compute import Compute, choose_compute, keep_freed_memory
from him.core.errors import ConfigError
from him.core.files import write_json
from him.core.pictures import encode_png
from him.runs.folder import ModelFolder, RunFolder
from him.runs.models import check_model
from him.runs.untrusted import check_places, check_writable
from him.tasks import task_class
from him.tasks.base import Task


def compress_run(run: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Does the stage after training on a finished run, in the place of what is there, with `changes` of its settings;
    returns what `him.compression.pipeline.compress` does.

    Raises HimError: a setting, the run or its data do not allow it.
    """
    folder = RunFolder(run)
    config = _config(folder, changes)
    with folder.locked():
        folder.compressed.remove_leftovers()
        return compress(folder, config, *_prepare(folder, config))


def sweep(run: Path, changes: Mapping[str, Any], amounts: Sequence[str | float]) -> dict[str, Any]:
    """Compresses a run once for each pruning amount, each in a folder of its own below `sweep`.

    Amounts that were done before, with the same settings, are taken as they are.

    Returns:
        `points` (the stages of all reports, each with its `pruning_amount`), `table`, `summary`, `picture`: what is
        also written to `sweep/sweep.json` and `sweep/sweep.png`. For errors see `compress_run`.
    """
    if "pruning_amount" in changes:
        raise ConfigError("--pruning_amount beside --sweep: name all amounts after --sweep")
    folder = RunFolder(run)
    configs = [_config(folder, {**changes, "pruning_amount": amount}) for amount in amounts]
    if len({f"{config.pruning_amount:g}" for config in configs}) < len(configs):
        raise ConfigError("--sweep names an amount twice; name each once")
    with folder.locked():
        return _sweep(folder, configs)


def _sweep(run: RunFolder, configs: Sequence[Config]) -> dict[str, Any]:
    task, compute = _prepare(run, configs[0])
    model = task.build_model()
    for config in configs:
        if config.pruning_method == "taylor":
            check_amount(model, config.pruning_amount)
    points, metric = [], ""
    for config in configs:
        target = run.at_amount(config.pruning_amount)
        target.remove_leftovers()
        report = finished_report(run, config, task, compute, target)
        if report is None:
            print(f"--pruning_amount {config.pruning_amount:g}", flush=True)
            report = compress(run, config, task, compute, target)
        metric = report["metric"]
        # The last float stage and int8.
        points += [{"pruning_amount": config.pruning_amount, **stage} for stage in report["stages"][-2:]]
    picture = run.sweep_picture
    picture.write_bytes(encode_png(draw_front(points, metric)))
    table, summary = pareto_table(points, metric), f"picture: {picture}"
    result = {"points": points, "metric": metric, "table": table, "picture": str(picture), "summary": summary}
    write_json(run.sweep_report, result)
    return result


def _config(run: RunFolder, changes: Mapping[str, Any]) -> Config:
    run.check_trained()
    check_writable(run.path)
    best = run.find_best()
    check_model(best)
    config = with_changes(Config.load(ModelFolder(best).config), changes)
    check_places(run.path, config, changes)
    return config


def _prepare(run: RunFolder, config: Config) -> tuple[Task, Compute]:
    compute = choose_compute(config.device, config.precision, config.num_threads)
    keep_freed_memory()
    if not run.predictions.is_file():  # written when training has ended
        print(f"{run}: its training has not ended; this is its best model so far", flush=True)
    task = task_class(config.task_type).prepare(config, tokenizer_folder=run.find_best())
    for note in task.notes:
        print(note, flush=True)
    return task, compute
