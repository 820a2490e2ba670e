"""Is a run whole, finite, and what its own data and settings give? `scripts/verify.py` shows the answer."""

import dataclasses
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from him.config import Config
from him.core.compute import choose_compute
from him.core.errors import CheckpointError
from him.core.files import verify_folder
from him.runs.checkpoint import Checkpoint, Checkpoints, check_finite, load_tensors
from him.runs.environment import describe_environment, differences
from him.runs.folder import STAGES, TRAINED, RunFolder
from him.training.trainer import Trainer
from him.workflows.prepare import build


@dataclass(frozen=True)
class Finding:
    """What was looked at, whether it is as it should be, and a word about it."""

    what: str
    is_good: bool
    note: str


def verify_files(run: Path) -> Iterator[Finding]:
    """Checksums and finiteness of all checkpoints and models of a run. Raises CheckpointError: there is no run."""
    folder = RunFolder(run)
    folder.check_begun()
    checkpoints = Checkpoints(folder.checkpoints, 1)
    later = [each.model(stage) for each in folder.compressions() for stage in STAGES if stage != TRAINED]
    models = [path for path in (folder.find_best(), *later) if path.is_dir()]
    saved = checkpoints.list()
    if not saved and not models:
        yield Finding(str(run), False, "nothing saved yet: neither a checkpoint nor a model")
    for path in (*saved, *models):
        yield _verify(path, others_allowed=path in models)
    if _lacks_best(folder, checkpoints):
        yield Finding(folder.best.name, False, "missing; --resume makes it again from its checkpoint")
    for aside in folder.quarantined():
        yield Finding(str(aside.relative_to(run)), False, "quarantined as damaged; remove it if you do not need it")


def _lacks_best(run: RunFolder, checkpoints: Checkpoints) -> bool:
    """Whether the newest checkpoint tells of a best model that is not there."""
    if run.find_best().is_dir() or not checkpoints.list():
        return False
    try:
        return checkpoints.load(checkpoints.list()[-1]).state["loop"].get("best_value") is not None
    except CheckpointError:
        return False  # which is told by itself


def _verify(folder: Path, others_allowed: bool) -> Finding:
    name = f"{folder.parent.name}/{folder.name}"
    try:
        verify_folder(folder, others_allowed)
        num_tensors = 0
        for path in sorted(folder.glob("*.safetensors")):
            tensors = load_tensors(path)
            check_finite({key: tensor for key, tensor in tensors.items() if tensor.is_floating_point()}, str(path))
            num_tensors += len(tensors)
    except CheckpointError as error:
        return Finding(name, False, str(error))
    return Finding(name, True, f"checksums agree, {num_tensors} tensors are finite")


def replay(run: Path) -> Finding:
    """Makes the last steps again, from the checkpoint before the newest one, and compares all bits.

    Nothing is written to the run.

    Raises HimError: the data are gone or have changed, or this is another machine.
    """
    folder = RunFolder(run)
    checkpoints = Checkpoints(folder.checkpoints, 1)
    found = checkpoints.list()
    if len(found) < 2:
        return Finding("replay", True, "left out: there is no checkpoint before the newest one")
    before, newest = (checkpoints.load(path) for path in found[-2:])
    what = f"replay of the steps {before.step + 1} to {newest.step}"
    config = dataclasses.replace(
        Config.load(folder.config),
        num_threads=newest.state["machine"]["num_threads"],
        save_every_minutes=0.0,
        save_every_steps=None,
        attention_examples=0,
    )
    compute = choose_compute(config.device, config.precision, config.num_threads)
    if different := differences(newest.state["machine"], describe_environment(compute)):
        return Finding(what, True, f"left out: another machine than that of the run ({', '.join(different)})")
    task, objective, model = build(config, compute, folder)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            scratch_run = RunFolder(Path(scratch))
            trainer = Trainer(task, config, scratch_run, compute, model.to(compute.device), before, objective)
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(scratch, str(run))) from None
        trainer.fit(until=newest.step)
        other = _first_difference(newest, trainer.checkpoint())
    if other is not None:
        return Finding(what, False, f"the bits differ, first in {other}")
    return Finding(what, True, "all bits agree")


def _first_difference(one: Checkpoint, other: Checkpoint) -> str | None:
    for part in ("weights", "optimizer_state", "ema"):
        tensors = (getattr(one, part), getattr(other, part))
        for name in sorted(set(tensors[0]) | set(tensors[1])):
            pair = [each.get(name) for each in tensors]
            if None in pair or not torch.equal(pair[0], pair[1].cpu()):
                return f"{part.replace('_', ' ')} {name}"
    if one.state["loop"].get("evaluation_due"):  # a signal put it off, and the replay has made it
        return None
    loops = [checkpoint.state["loop"] for checkpoint in (one, other)]
    return next((f"the loop's {name}" for name in loops[0] if loops[0][name] != loops[1].get(name)), None)
