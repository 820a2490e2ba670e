"""Pretraining: a run within the run, before it, whose weights many runs may begin from."""

import json
import math
import shutil
from pathlib import Path

import torch
from torch import nn

from him.config import Config
from him.config.options import PRETRAINED_PREFIX
from him.config.resolve import pretraining_settings
from him.core.compute import Compute
from him.core.errors import CheckpointError
from him.core.files import add_folder, cannot_write, verify_folder
from him.data.cache import cache_folder, cached_folder, content_digest, fingerprint
from him.runs.checkpoint import Checkpoint, Checkpoints, load_weights, save_tensors
from him.runs.folder import ModelFolder, RunFolder
from him.runs.records import MetricWriter
from him.tasks.base import PretrainableTask, Task
from him.training.trainer import Trainer

PRETRAINING_VERSION = 2  # counted up when pretraining with the same settings and data comes out differently


def pretrain(model: nn.Module, task: Task, config: Config, compute: Compute, run: RunFolder) -> None:
    """Pretrains a task's model for `--pretrain_epochs` epochs, or takes the weights from the cache.

    The curves are in `pretraining` in the run's folder, under the usual tags. A pretraining that was stopped goes on
    from its last checkpoint.

    Raises Interrupted: a signal ended it, named after the run within the run; HimError: it cannot go on.
    """
    if not config.pretrain_epochs:
        return
    assert isinstance(task, PretrainableTask), f"{task.name} has no pretraining"
    pretraining = task.pretraining()
    settings = [(name, getattr(pretraining.config, name)) for name in pretraining_settings()]
    begins_with = content_digest(*(tensor.float().cpu().numpy() for tensor in model.state_dict().values()))
    # The curves are of the validation data, too.
    digests = (pretraining.train_digest, task.validation_digest, begins_with)
    digest = fingerprint(PRETRAINING_VERSION, settings, task.tokenizer.to_str(), *digests)
    kept = cached_folder(cache_folder(config), f"{PRETRAINED_PREFIX}-{digest}")
    if _is_whole(kept):
        print(f"pretraining: taken from {kept}", flush=True)
        _copy_records(kept, run.pretraining)
    else:
        _train(pretraining, model, compute, run, kept)
    load_weights(model, kept)


def begun_pretraining(run: RunFolder) -> Checkpoint | None:
    """Where a pretraining of a run stands that was stopped."""
    return Checkpoints(run.pretraining.checkpoints, 1).load_newest()


def _check_settings(run: RunFolder, checkpoint: Checkpoint, config: Config) -> None:
    """Raises CheckpointError if the run's settings were changed by hand since."""
    if changed := sorted(checkpoint.changed_settings(config).keys() & pretraining_settings()):
        begun = "changed since the pretraining was begun; restore it, or start a new run"
        raise CheckpointError(f"{run.config}: {', '.join(changed)} {begun}")


def _is_whole(kept: Path) -> bool:
    try:
        verify_folder(kept)
    except CheckpointError:
        return False
    return True


def _train(pretraining: Task, begins_with: nn.Module, compute: Compute, run: RunFolder, kept: Path) -> None:
    """The usual trainer in a folder of its own; its last weights are kept for this run and for others."""
    folder, checkpoint = run.pretraining, begun_pretraining(run)
    if checkpoint is None:
        folder.begin_anew()
    else:
        _check_settings(run, checkpoint, pretraining.config)
    torch.manual_seed(pretraining.config.seed)
    model = pretraining.build_model().to(compute.device)
    model.model.load_state_dict(begins_with.state_dict())
    trainer = Trainer(pretraining, pretraining.config, folder, compute, model, checkpoint)
    trainer.restore_best()
    examples = f"{pretraining.examples_per_epoch:,} examples an epoch without labels"
    print(f"pretraining: {examples}, {trainer.max_steps:,} steps", flush=True)
    trainer.fit()
    _keep(model.model, folder, kept)
    for path in (folder.checkpoints, folder.best):
        shutil.rmtree(path, ignore_errors=True)


def _keep(model: nn.Module, pretraining: RunFolder, kept: Path) -> None:
    """Puts weights and curves into the cache, where another run may be putting the same ones at the same time."""

    def fill(folder: Path) -> None:
        save_tensors(model.state_dict(), ModelFolder(folder).weights)
        shutil.copyfile(pretraining.metrics, RunFolder(folder).metrics)

    if not _is_whole(kept):
        shutil.rmtree(kept, ignore_errors=True)
    try:
        is_new = add_folder(kept, fill)
    except OSError as error:
        raise cannot_write(error, kept) from None
    if not is_new and not _is_whole(kept):
        raise CheckpointError(f"{kept}: damaged, and cannot be replaced; remove it, then go on with --resume")


def _copy_records(kept: Path, folder: RunFolder) -> None:
    """Writes the curves of an earlier pretraining into the records of this run."""
    folder.begin_anew()
    writer = MetricWriter(folder.path)
    for line in RunFolder(kept).metrics.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        value = math.nan if record["value"] is None else record["value"]
        writer.write({record["tag"]: value}, record["step"], record["epoch"], record["stage"])
    writer.close()
