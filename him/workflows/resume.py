"""Resuming a run: what may have changed since it was stopped, and going on from its newest whole checkpoint."""

from pathlib import Path
from typing import Any

import torch

from him.compression.pipeline import naming
from him.config import Config
from him.config.names import current
from him.config.options import with_role
from him.config.resolve import with_changes
from him.config.values import raise_together
from him.core.compute import Compute, choose_compute
from him.core.errors import CheckpointError, ConfigError
from him.core.files import write_json
from him.runs.checkpoint import Checkpoint, Checkpoints
from him.runs.environment import describe_environment, differences
from him.runs.folder import RunFolder
from him.runs.untrusted import check_places, check_writable
from him.training.trainer import Trainer
from him.workflows.finish import OnResult, alone, train_to_the_end
from him.workflows.prepare import build, load_initial
from him.workflows.pretrain import begun_pretraining, pretrain

# What may change when a run goes on: budgets, records and the machine, nothing that a trained weight depends on.
MAY_CHANGE = frozenset(with_role("budget", "machine", "report", "cache", "compression"))

# Where things are; the content of the training data is compared by itself.
MAY_MOVE = frozenset(with_role("path")) - MAY_CHANGE


@alone()
def resume(
    folder: Path, changes: dict[str, Any], on_result: OnResult | None = None, allow_inexact: bool = False
) -> dict[str, Any]:
    """Goes on with an interrupted run from its newest whole checkpoint, as if it had never stopped.

    Args:
        folder: of the run.
        changes: settings that were given beside `--resume`.
        on_result, returns: see `train`.
        allow_inexact: whether it may go on where the bits of the result will be others: on another device, say.

    Raises:
        HimError: the run cannot go on, or a change would make it another run.
    """
    run = RunFolder(folder)
    run.check_begun("--resume ")
    check_writable(folder)
    with run.locked(), naming(run):
        return _resume(run, changes, on_result, allow_inexact)


def _resume(run: RunFolder, changes: dict[str, Any], on_result: OnResult | None, allow_inexact: bool) -> dict[str, Any]:
    changes = current(changes)
    before = Config.load(run.config)
    config = _changed(before, changes)
    check_places(run.path, config, changes)
    checkpoint = Checkpoints(run.checkpoints, 1).load_newest()
    compute = choose_compute(config.device, config.precision, config.num_threads)
    if checkpoint is not None:
        _check_settings(run, checkpoint, before)
    if (begun := checkpoint or begun_pretraining(run)) is not None:
        _check_environment(run, begun, config, compute, allow_inexact)
    task, objective, model = build(config, compute, run)
    if checkpoint is None:
        load_initial(model, config)
        pretrain(model, task, config, compute, run)
    model.to(compute.device)
    trainer = Trainer(task, config, run, compute, model, checkpoint, objective)
    if trainer.state.best_value is None and trainer.state.step >= trainer.max_steps:
        raise ConfigError(
            f"--resume {run}: the run is at step {trainer.state.step} of {trainer.max_steps} without an evaluation; "
            "give it more with --num_epochs or --max_steps"
        )
    trainer.restore_best()
    trainer.checkpoints.remove_surplus(trainer.state.best_step)
    if config != before:
        write_json(run.config, config.to_dict())
    print(f"resuming {run} at step {trainer.state.step} of {trainer.max_steps}", flush=True)
    # A finished run may have been compressed in another way since, which stays unless a flag asks for something else.
    compression = {*with_role("compression"), "compress"}
    if not config.compress and (unread := sorted(compression & changes.keys() - {"compress"})):
        raise ConfigError(f"--{unread[0]} with --resume: the run has --no-compress; add --compress")
    keep_report = trainer.state.step >= trainer.max_steps and not compression & changes.keys()
    return train_to_the_end(trainer, on_result, keep_report)


def _changed(before: Config, changes: dict[str, Any]) -> Config:
    """The run's configuration with the changes that are allowed. Raises ConfigError: a setting would make it another
    run."""
    after = with_changes(before, changes)
    different = [name for name in changes if getattr(after, name) != getattr(before, name)]
    fix = "leave the flag out, or start a new run with --init_from"
    raise_together(
        [
            f"--{name} {getattr(after, name)} with --resume: the run has {getattr(before, name)}; {fix}"
            for name in different
            if name not in MAY_CHANGE | MAY_MOVE - {"output_dir", "run_name"}
        ]
    )
    for name in different:
        print(f"--{name}: {getattr(before, name)} → {getattr(after, name)}", flush=True)
    return after


def _check_settings(run: RunFolder, checkpoint: Checkpoint, config: Config) -> None:
    """Compares the settings in the run's folder with those that the checkpoint was made under. Raises CheckpointError:
    one that the weights depend on was changed by hand."""
    different = checkpoint.changed_settings(config)
    for name in sorted(MAY_CHANGE & different.keys()):
        then, now = different[name]
        print(f"config.json: --{name} {then} → {now} since the checkpoint was made", flush=True)
    if changed := [name for name in different if name not in MAY_CHANGE | MAY_MOVE]:
        raise CheckpointError(
            f"{run.config}: {', '.join(changed)} changed since the checkpoint was made; restore it, or "
            f"start a new run with --init_from {run}"
        )


def _check_environment(run: RunFolder, checkpoint: Checkpoint, config: Config, compute: Compute, allowed: bool) -> None:
    """Takes over the number of threads; what else differs from where the checkpoint was made is said, and has to be
    allowed. Raises CheckpointError: it is not."""
    before = checkpoint.state["machine"]
    if config.num_threads is None and before["num_threads"] != torch.get_num_threads():
        torch.set_num_threads(before["num_threads"])  # the number of threads changes the bits of every sum
    found = ", ".join(differences(before, describe_environment(compute)))
    if found and not allowed:
        raise CheckpointError(
            f"--resume {run}: another machine than before ({found}), on which the result may differ in its last "
            "bits; add --allow_inexact_resume to go on all the same"
        )
    if found:
        print(f"resuming on another machine: {found}; the result may differ in its last bits", flush=True)
