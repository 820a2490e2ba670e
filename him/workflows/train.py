"""A training run from its settings to its results: folder, data, loop, final evaluation."""

import json
import os
import shlex
import shutil
import sys
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from him.compression.pipeline import compress, finished_report, report_of, tidy
from him.compression.pruning import check_amount
from him.config import Config
from him.config.bert import check_settings, is_bert, read_bert
from him.config.earlier import read_earlier
from him.config.options import with_role
from him.config.resolve import resolve, with_changes
from him.config.values import raise_together
from him.core.compute import Compute, choose_compute, keep_freed_memory
from him.core.errors import CheckpointError, ConfigError
from him.core.files import CannotWrite, cannot_write, find_folder, locked, sync, sync_folder, write_json
from him.core.signals import raise_if_stopped, signal_of
from him.data.document_files import check_names
from him.runs.checkpoint import Checkpoint, Checkpoints, load_weights, save_model
from him.runs.environment import describe_environment, differences
from him.runs.init_from import find_model
from him.runs.untrusted import check_files, check_places, check_writable
from him.tasks import task_class
from him.tasks.base import Task
from him.tasks.building import check_capabilities
from him.text.tokenizer import parse_tokenizer
from him.training.distillation import taught_by_run, teacher_folder
from him.training.trainer import Interrupted, Trainer
from him.workflows.initial_weights import load_bert
from him.workflows.pretrain import begun_pretraining, pretrain

# What may change when a run goes on: budgets, records and the machine, nothing that a trained weight depends on.
MAY_CHANGE = frozenset(with_role("budget", "machine", "report", "cache", "compression"))

# Where things are; the content of the training data is compared by itself.
MAY_MOVE = frozenset(with_role("path")) - MAY_CHANGE

OnResult = Callable[[dict[str, Any]], None]


_ALONE = threading.Lock()


@contextmanager
def _alone() -> Iterator[None]:
    """Keeps a second run from drawing from the same generator in another thread: neither could be repeated.

    Raises:
        ConfigError: another one trains in this process.
    """
    if not _ALONE.acquire(blocking=False):
        raise ConfigError("another run trains in this process; train this one after it, or in a process of its own")
    try:
        yield
    finally:
        _ALONE.release()


@_alone()
def train(config: Config, on_result: OnResult | None = None, *, announce: OnResult | None = None) -> dict[str, Any]:
    """Trains a new run, then compresses its best model.

    Args:
        config: all settings.
        on_result: called with the result as soon as the model is trained and measured, before it is compressed.
        announce: what `on_result` was called before.

    Returns:
        `run` (its folder), `best_step`, `best_epoch`, `train_seconds`, `tokens_per_second`, `metrics`: those of the
        best model on the whole validation set, by TensorBoard tag without `/val`; and, unless `compress` is off,
        `compression`: the report of what made the model smaller and faster.

    Raises:
        HimError: a setting, the data or the machine does not allow it.
        Interrupted: a signal ended it; `resume` goes on.
    """
    if announce is not None:
        warnings.warn("announce is called on_result", DeprecationWarning, stacklevel=3)  # past `_alone`
        on_result = on_result or announce
    config = resolve(config, read_earlier(config.init_from))
    folder = _run_folder(config)
    compute = choose_compute(config.device, config.precision, config.num_threads)
    keep_freed_memory()
    task = prepare_task(config, compute)
    torch.manual_seed(config.seed)
    model = task.build_model()
    _check_pruning(model, config)
    _load_initial(model, config)
    _open_run(folder, config)
    with locked(folder), _naming(folder):
        pretrain(model, task, config, compute, folder)
        return _run(Trainer(task, config, folder, compute, model.to(compute.device)), on_result)


@_alone()
def resume(
    folder: Path, changes: dict[str, Any], on_result: OnResult | None = None, allow_inexact: bool = False
) -> dict[str, Any]:
    """Goes on with an interrupted run from its newest whole checkpoint, as if it had never stopped.

    Args:
        folder: of the run.
        changes: settings that were given beside `--resume`.
        on_result: see `train`.
        allow_inexact: whether it may go on where the bits of the result will be others: on another device, say.

    Raises:
        HimError: the run cannot go on, or a change would make it another run.
    """
    if not folder.is_dir():
        raise CheckpointError(f"--resume {folder}: no such folder; name a run, such as runs/NAME")
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"--resume {folder}: no run there (it has no config.json); name a run, such as runs/NAME")
    check_writable(folder)
    with locked(folder), _naming(folder):
        return _resume(folder, changes, on_result, allow_inexact)


def _resume(folder: Path, changes: dict[str, Any], on_result: OnResult | None, allow_inexact: bool) -> dict[str, Any]:
    before = Config.load(folder / "config.json")
    config = _changed(before, changes)
    check_places(folder, config, changes)
    checkpoint = Checkpoints(folder / "checkpoints", 1).load_newest()
    compute = choose_compute(config.device, config.precision, config.num_threads)
    if checkpoint is not None:
        _check_settings(folder, checkpoint, before)
    if (begun := checkpoint or begun_pretraining(folder)) is not None:
        _check_machine(folder, begun, config, compute, allow_inexact)
    keep_freed_memory()
    task = prepare_task(config, compute, folder)
    torch.manual_seed(config.seed)
    model = task.build_model()
    _check_pruning(model, config)
    if checkpoint is None:
        _load_initial(model, config)
        pretrain(model, task, config, compute, folder)
    trainer = Trainer(task, config, folder, compute, model.to(compute.device), checkpoint, resumes=True)
    if trainer.state.best_value is None and trainer.state.step >= trainer.max_steps:
        raise ConfigError(
            f"--resume {folder}: the run is at step {trainer.state.step} of {trainer.max_steps} without an evaluation; "
            "give it more with --num_epochs or --max_steps"
        )
    trainer.restore_best()
    trainer.checkpoints.remove_surplus(trainer.state.best_step)
    if config != before:
        write_json(folder / "config.json", config.to_dict())
    print(f"resuming {folder} at step {trainer.state.step} of {trainer.max_steps}", flush=True)
    # A finished run may have been compressed in another way since, which stays unless a flag asks for something else.
    compression = {*with_role("compression"), "compress"}
    if not config.compress and (unread := sorted(compression & changes.keys() - {"compress"})):
        raise ConfigError(f"--{unread[0]} with --resume: the run has --no-compress; add --compress")
    keep_report = trainer.state.step >= trainer.max_steps and not compression & changes.keys()
    return _run(trainer, on_result, keep_report)


def _check_settings(folder: Path, checkpoint: Checkpoint, config: Config) -> None:
    """Compares the settings in the run's folder with those that the checkpoint was made under.

    Raises:
        CheckpointError: one that the weights depend on was changed by hand.
    """
    then, now = checkpoint.state["config"], json.loads(json.dumps(config.to_dict()))
    free = MAY_CHANGE | MAY_MOVE
    for name in sorted(MAY_CHANGE):
        if then.get(name, now[name]) != now[name]:
            print(f"config.json: --{name} {then[name]} → {now[name]} since the checkpoint was made", flush=True)
    changed = [name for name, value in now.items() if name not in free and then.get(name, value) != value]
    if changed:
        raise CheckpointError(
            f"{folder / 'config.json'}: {', '.join(changed)} changed since the checkpoint was made; restore it, or "
            f"start a new run with --init_from {folder}"
        )


def _check_machine(folder: Path, checkpoint: Checkpoint, config: Config, compute: Compute, allowed: bool) -> None:
    """Takes over the number of threads; what else differs from where the checkpoint was made is said, and has to be
    allowed.

    Raises:
        CheckpointError: it is not.
    """
    before = checkpoint.state["machine"]
    if config.num_threads is None and before["num_threads"] != torch.get_num_threads():
        torch.set_num_threads(before["num_threads"])  # the number of threads changes the bits of every sum
    found = ", ".join(differences(before, describe_environment(compute)))
    if found and not allowed:
        raise CheckpointError(
            f"--resume {folder}: another machine than before ({found}), on which the result may differ in its last "
            "bits; add --allow_inexact_resume to go on all the same"
        )
    if found:
        print(f"resuming on another machine: {found}; the result may differ in its last bits", flush=True)


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Turns a signal outside of the training loop into one that names the run to go on with."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        raise Interrupted(signal_of(stopped), folder) from None


def _check_pruning(model: nn.Module, config: Config) -> None:
    """Refuses an amount that cannot be pruned before the hours of training, not after them."""
    if config.compress and config.pruning_method == "taylor":
        check_amount(model, config.pruning_amount)


def _run(trainer: Trainer, on_result: OnResult | None, keep_report: bool = False) -> dict[str, Any]:
    """See `_run_to_its_end`; whatever finds the disk full on the way says so in one line."""
    try:
        return _run_to_its_end(trainer, on_result, keep_report)
    except OSError as error:
        raise cannot_write(error, Path(error.filename or trainer.folder)) from None
    except CannotWrite as error:
        raise CannotWrite(f"{error}; go on with --resume {trainer.folder}") from None


def _run_to_its_end(trainer: Trainer, on_result: OnResult | None, keep_report: bool) -> dict[str, Any]:
    """Trains, measures the best model once more with every metric on the whole validation set, and compresses it."""
    task, config, folder = trainer.task, trainer.config, trainer.folder
    for note in task.notes:
        print(note, flush=True)
    num_parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    precision = "bf16" if trainer.compute.bf16 else "fp32"
    seen = "" if task.train_sampling is None else f" ({task.examples_per_epoch:,} seen an epoch)"
    print(
        f"{folder}: {len(task.train_lengths):,} training examples{seen}, {num_parameters:,} parameters, "
        f"{trainer.max_steps:,} steps, {precision} on {trainer.compute.device} with {torch.get_num_threads()} threads",
        flush=True,
    )
    trainer.writer.hyperparameters(
        {name: value for name, value in config.to_dict().items() if value not in (None, [])},
        [f"{task.best_metric}/val", "Loss/val"],
    )
    trainer.fit()
    raise_if_stopped()
    best = folder / "best"
    load_weights(trainer.model, best)
    evaluation = task.evaluate(trainer.model, trainer.compute, final=True)
    state = trainer.state
    position = {"step": state.best_step, "epoch": round(state.best_step / trainer.steps_per_epoch, 6)}
    save_model(best, config, trainer.model, task, {**position, **evaluation.metrics})
    for name, content in evaluation.predictions.items():
        write_json(folder / name, content)
    speed = trainer.tokens_seen / trainer.train_seconds if trainer.train_seconds else 0.0
    result = {
        "run": str(folder),
        "best_step": position["step"],
        "best_epoch": position["epoch"],
        "train_seconds": round(trainer.train_seconds, 2),
        "tokens_per_second": round(speed, 1),
        "metrics": evaluation.metrics,
    }
    if on_result is not None:
        on_result(result)
    if config.compress:
        tidy(folder)
        done = report_of(folder) if keep_report else finished_report(folder, config, task, trainer.compute)
        result["compression"] = done or compress(
            folder, config, task, trainer.compute, trained_metrics=evaluation.metrics
        )
    return result


def _run_folder(config: Config) -> Path:
    """Where the run will be; nothing is written yet.

    Raises:
        ConfigError: the folder is there already, or cannot be one.
    """
    output = Path(config.output_dir)
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output_dir {output} is a file; name a folder")
    if config.run_name is None:
        name = f"{config.task_type}-{datetime.now():%Y%m%d-%H%M%S}"
        taken = sum(1 for path in output.glob(f"{name}*")) if output.is_dir() else 0
        return output / (f"{name}-{taken + 1}" if taken else name)
    folder = output / config.run_name
    if folder.exists():
        raise ConfigError(f"{folder} exists; choose another --run_name, remove it, or go on with --resume {folder}")
    return folder


def _open_run(folder: Path, config: Config) -> None:
    """Makes the run's folder with its configuration and the command that started it: both, or no folder."""
    aside = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
    try:
        aside.mkdir(parents=True)
        config.save(aside / "config.json")
        command = shlex.join(["python", *sys.argv]) if sys.argv and sys.argv[0] else "python"
        (aside / "command.txt").write_text(command + "\n", encoding="utf-8")
        sync_folder(aside)
        os.rename(aside, folder)
        sync(folder.parent)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        if folder.exists():
            raise ConfigError(f"{folder} exists; choose another --run_name, or go on with --resume {folder}") from None
        raise cannot_write(error, folder) from None


def _load_initial(model: nn.Module, config: Config) -> None:
    """Puts the weights that `--init_from` names into a new model."""
    if (initial := initial_folder(config)) is not None:
        load = load_bert if is_bert(initial) else load_weights
        load(model, initial)


def prepare_task(config: Config, compute: Compute, run: Path | None = None) -> Task:
    """The task with its data, and with the teacher that the settings name.

    Args:
        config: with the task's defaults.
        compute: where the teacher works.
        run: that is gone on with, or None for a new one.

    Raises:
        HimError: a setting, the data or the teacher do not allow it.
    """
    if config.pretrain_files and not config.pretrain_epochs:
        raise ConfigError("--pretrain_files without --pretrain_epochs: nothing would read them; name how many epochs")
    if run is None:
        check_names(config.pretrain_files)
    cls = task_class(config.task_type)
    check_capabilities(cls, config)
    task = cls.prepare(config, tokenizer_folder=_tokenizer_folder(config, run))
    return taught_by_run(task, config, compute)


def _tokenizer_folder(config: Config, run: Path | None) -> Path | None:
    """Where a tokenizer is taken from: the model that the run begins from, its teacher, or else its own best model."""
    if run is not None and config.init_from is not None and not Path(config.init_from).exists():
        if not (own := find_folder(run / "best")).is_dir():
            raise CheckpointError(
                f"--init_from {config.init_from} is gone, and with it the tokenizer; name its new place with the flag"
            )
        return own
    initial, teacher = initial_folder(config), teacher_folder(config)
    if initial is not None and teacher is not None:
        first, second = (parse_tokenizer(folder / "tokenizer.json").to_str() for folder in (initial, teacher))
        if first != second:
            raise ConfigError(
                f"--teacher {config.teacher} has another tokenizer than --init_from {config.init_from}; use models "
                "with the same one"
            )
    return initial or teacher


def initial_folder(config: Config) -> Path | None:
    """The model folder that `--init_from` names.

    Raises:
        CheckpointError: it holds no model, or one of another task.
    """
    if config.init_from is None:
        return None
    if is_bert(Path(config.init_from)):
        check_files(Path(config.init_from))
        check_settings(config, read_bert(Path(config.init_from)))
        return Path(config.init_from)
    return find_model("--init_from", config.init_from, config.task_type)


def _changed(before: Config, changes: dict[str, Any]) -> Config:
    """The run's configuration with the changes that are allowed.

    Raises:
        ConfigError: a setting would make it another run.
    """
    after = with_changes(before, changes)
    different = [name for name in changes if getattr(after, name) != getattr(before, name)]
    raise_together(
        [
            f"--{name} {getattr(after, name)} with --resume: the run has {getattr(before, name)}; leave the flag out, "
            f"or start a new run with --init_from"
            for name in different
            if name not in MAY_CHANGE | MAY_MOVE - {"output_dir", "run_name"}
        ]
    )
    for name in different:
        print(f"--{name}: {getattr(before, name)} → {getattr(after, name)}", flush=True)
    return after
