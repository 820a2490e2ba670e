"""A run from its first step to its results: training, final evaluation, compression.

In a process one run trains at a time.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from him.compression.pipeline import compress, finished_report, report_of
from him.core.errors import ConfigError
from him.core.files import CannotWrite, cannot_write, write_json
from him.core.signals import raise_if_stopped
from him.runs.checkpoint import load_weights, save_model
from him.training.trainer import Trainer

OnResult = Callable[[dict[str, Any]], None]
_ALONE = threading.Lock()


@contextmanager
def alone() -> Iterator[None]:
    """Keeps a second run from drawing from the same generator in another thread: neither could be repeated. Raises
    ConfigError: another one trains in this process."""
    if not _ALONE.acquire(blocking=False):
        raise ConfigError("another run trains in this process; train this one after it, or in a process of its own")
    try:
        yield
    finally:
        _ALONE.release()


def train_to_the_end(trainer: Trainer, on_result: OnResult | None, keep_report: bool = False) -> dict[str, Any]:
    """Trains, measures the best model once more with every metric on the whole validation set, and compresses it.

    Args:
        trainer: where the run stands.
        on_result, returns: see `him.workflows.train.train`.
        keep_report: whether the models that were compressed stay, whatever the settings of the compression were.

    Raises:
        CannotWrite: the disk is full, broken or write-protected.
    """
    try:
        return _train_to_the_end(trainer, on_result, keep_report)
    except OSError as error:
        raise cannot_write(error, Path(error.filename or trainer.folder.path)) from None
    except CannotWrite as error:
        raise CannotWrite(f"{error}; go on with --resume {trainer.folder}") from None


def _train_to_the_end(trainer: Trainer, on_result: OnResult | None, keep_report: bool) -> dict[str, Any]:
    _show_start(trainer)
    trainer.fit()
    raise_if_stopped()
    result = _evaluate_best(trainer)
    if on_result is not None:
        on_result(result)
    run, task, config, compute = trainer.folder, trainer.task, trainer.config, trainer.compute
    if config.compress:
        run.compressed.remove_leftovers()
        done = report_of(run) if keep_report else finished_report(run, config, task, compute)
        result["compression"] = done or compress(run, config, task, compute, trained_metrics=result["metrics"])
    return result


def _show_start(trainer: Trainer) -> None:
    """Says what is trained, and records the settings."""
    task, config = trainer.task, trainer.config
    for note in task.notes:
        print(note, flush=True)
    num_parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    precision = "bf16" if trainer.compute.bf16 else "fp32"
    seen = "" if task.train_sampling is None else f" ({task.examples_per_epoch:,} seen an epoch)"
    print(
        f"{trainer.folder}: {len(task.train_lengths):,} training examples{seen}, {num_parameters:,} parameters, "
        f"{trainer.max_steps:,} steps, {precision} on {trainer.compute.device} with {torch.get_num_threads()} threads",
        flush=True,
    )
    trainer.progress.writer.hyperparameters(
        {name: value for name, value in config.to_dict().items() if value not in (None, [])},
        [f"{task.best_metric}/val", "Loss/val"],
    )


def _evaluate_best(trainer: Trainer) -> dict[str, Any]:
    """Measures the best model with every metric on the whole validation set, and saves what the task found by it."""
    run, task, progress = trainer.folder, trainer.task, trainer.progress
    load_weights(trainer.model, run.best)
    evaluation = task.evaluate(trainer.model, trainer.compute, final=True)
    step = trainer.state.best_step
    epoch = round(step / trainer.steps_per_epoch, 6)
    save_model(run.best, trainer.config, trainer.model, task, {"step": step, "epoch": epoch, **evaluation.metrics})
    for name, content in evaluation.predictions.items():
        write_json(run.path / name, content)
    speed = progress.tokens_seen / progress.train_seconds if progress.train_seconds else 0.0
    return {
        "run": str(run),
        "best_step": step,
        "best_epoch": epoch,
        "train_seconds": round(progress.train_seconds, 2),
        "tokens_per_second": round(speed, 1),
        "metrics": evaluation.metrics,
    }
