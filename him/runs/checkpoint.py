"""Checkpoints: folders of safetensors and JSON that hold all that an exact resume needs. No pickle anywhere."""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from torch.optim import Optimizer

from him.config import Config
from him.config.names import renamed
from him.core.errors import CheckpointError, ConfigError
from him.core.files import find_folder, quarantine, remove_leftovers, verify_folder, write_folder, write_json
from him.runs.folder import ModelFolder
from him.tasks.base import Task

NUMBER = ".number"  # ends the names of what an optimizer holds as a Python number, not as a tensor
FORMAT_VERSION = 2
MOST_THREADS = 1024
SLACK = 100_000  # bytes of the files beside the tensors


@dataclass
class Checkpoint:
    """What a training run needs to go on.

    Attributes:
        state: plain data of the loop, of the machine and of the format.
        weights: the model.
        optimizer_state: all that the optimizers hold, by parameter name: `NAME.exp_avg`, `NAME.step` and so on.
        ema: the EMA weights, or empty.
    """

    state: dict[str, Any]
    weights: dict[str, Tensor]
    optimizer_state: dict[str, Tensor]
    ema: dict[str, Tensor]

    @property
    def step(self) -> int:
        """Updates made before it."""
        return self.state["step"]

    def changed_settings(self, config: Config) -> dict[str, tuple[Any, Any]]:
        """What has another value now than the checkpoint was made under: its value then and now, as in JSON."""
        then, now = self.state["config"], json.loads(json.dumps(config.to_dict()))
        return {name: (then[name], value) for name, value in now.items() if then.get(name, value) != value}


class NotFinite(CheckpointError):
    """A tensor that was to be saved holds a NaN or an infinity."""


class Checkpoints:
    """The checkpoints of a run, in `checkpoints/step_00000120/`; the last `num_kept` are kept, and that of the best
    model."""

    def __init__(self, folder: Path, num_kept: int) -> None:
        self.folder = folder
        self.num_kept = num_kept

    def save(self, checkpoint: Checkpoint, step: int, best_step: int | None = None) -> None:
        """Writes the checkpoint after a step, then removes the ones that are too many, but for that of the best model
        so far. Raises NotFinite: a tensor is not finite; CannotWrite: there is no space, or the disk fails."""
        parts = {"model": checkpoint.weights, "optimizer": checkpoint.optimizer_state, "averaged": checkpoint.ema}
        for tensors in parts.values():
            check_finite(tensors, f"checkpoint at step {step}")

        def fill(folder: Path) -> None:
            for name, tensors in parts.items():
                if tensors or name != "averaged":
                    save_tensors(tensors, folder / f"{name}.safetensors")
            state = {"format_version": FORMAT_VERSION, "step": step, **checkpoint.state}
            write_json(folder / "state.json", state)

        num_bytes = SLACK + sum(tensor.nbytes for tensors in parts.values() for tensor in tensors.values())
        write_folder(self.path_of(step), fill, num_bytes)
        self.remove_surplus(best_step)

    def path_of(self, step: int) -> Path:
        """Folder of the checkpoint at a step."""
        return self.folder / f"step_{step:08d}"

    def remove_surplus(self, best_step: int | None = None) -> None:
        """Removes the checkpoints that are too many, and what killed writers left."""
        for path in self.list()[: -self.num_kept]:
            if path != self.path_of(best_step or 0):
                with suppress(OSError):  # the next save tries again
                    os.rename(path, path.with_name(f".{path.name}-surplus"))  # a part of one would look damaged
        for left in self.folder.glob(".step_*"):
            if not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)

    def list(self) -> list[Path]:
        """Folders of whole checkpoints, oldest first."""
        found = self.folder.glob("step_" + 8 * "[0-9]")
        return sorted(path for path in found if path.is_dir() and not path.is_symlink())

    def load_newest(self, say: Callable[[str], None] = print) -> Checkpoint | None:
        """The newest whole checkpoint; damaged ones are quarantined, and `say` is told so. None if there never was one.
        Raises CheckpointError: all are damaged, or it is of another format."""
        for old in self.folder.glob("step_*.old"):  # killed between the two renames of a save
            remove_leftovers(old.with_suffix(""))
        found = self.list()
        for path in reversed(found):
            try:
                return self.load(path)
            except DamagedCheckpoint as error:
                say(f"{error}; it is quarantined as {quarantine(path).name}")
        if found or list(self.folder.glob("step_*.damaged")):
            raise CheckpointError(
                f"{self.folder}: no whole checkpoint is left; start the run again under another name, with --init_from "
                f"{self.folder.parent} if its best model is whole"
            )
        return None

    def load(self, path: Path) -> Checkpoint:
        """One checkpoint. Raises DamagedCheckpoint: a file is missing or damaged; CheckpointError: it is of another
        format."""
        try:
            verify_folder(path)
            state = _read_state(path / "state.json")
        except CheckpointError as error:
            raise DamagedCheckpoint(str(error)) from None
        if state["format_version"] != FORMAT_VERSION:
            raise CheckpointError(
                f"{path}: format {state['format_version']}, and this HIM reads format {FORMAT_VERSION}; use the HIM "
                "that wrote it"
            )
        files = [path / f"{name}.safetensors" for name in ("model", "optimizer", "averaged")]
        try:
            tensors = [load_tensors(file) if file != files[-1] or file.exists() else {} for file in files]
            for each in tensors:
                check_finite(each, f"{path}")
        except CheckpointError as error:
            raise DamagedCheckpoint(str(error)) from None
        return Checkpoint(state, *tensors)


class DamagedCheckpoint(CheckpointError):
    """A file of a checkpoint is missing, cut, changed or unreadable."""


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        if _is_state(state):
            is_ours = state["format_version"] == FORMAT_VERSION
            return {**state, "config": renamed(state["config"])} if is_ours else state
    except (OSError, ValueError, RecursionError, ConfigError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None
    raise CheckpointError(f"{path}: not the state of a checkpoint")


def _is_state(state: Any) -> bool:
    """Whether all is there that this or another format has; the loop looks into its own part."""
    if not isinstance(state, dict) or "format_version" not in state or state["format_version"] != FORMAT_VERSION:
        return isinstance(state, dict) and "format_version" in state
    machine = state.get("machine")
    return (
        isinstance(state.get("step"), int)
        and all(isinstance(state.get(name), dict) for name in ("loop", "machine", "config"))
        and isinstance(machine.get("num_threads"), int)
        and 1 <= machine["num_threads"] <= MOST_THREADS
    )


def optimizer_tensors(model: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Tensor]:
    """All that the optimizers hold, by parameter name and key; a Python number is a tensor `NAME.KEY.number`. Raises
    TypeError: one of them holds something else, which would be lost."""
    return {
        f"{name}.{key}{'' if isinstance(value, Tensor) else NUMBER}": _as_tensor(f"{name}.{key}", value)
        for optimizer in optimizers
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if value is not None  # as good as absent: torch.optim reads what may be None with `get`
    }


def _as_tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if not isinstance(value, bool | int | float):
        raise TypeError(f"{name}: an optimizer's {type(value).__name__} cannot be saved")
    return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)


def restore_optimizers(model: nn.Module, optimizers: Sequence[Optimizer], tensors: Mapping[str, Tensor]) -> None:
    """Puts back what `optimizer_tensors` took."""
    parameters = dict(model.named_parameters())
    states: dict[str, dict[str, Tensor | float]] = {}
    for full_name, value in tensors.items():
        name = _parameter_of(full_name, parameters)
        if name is None:
            continue
        key, device = full_name.removeprefix(f"{name}."), parameters[name].device
        # Copies: what is loaded is mapped from the file, which may be removed or fail later.
        is_number = key.endswith(NUMBER) and value.dim() == 0
        states.setdefault(name, {})[key.removesuffix(NUMBER) if is_number else key] = (
            value.item() if is_number else value.to(device, copy=True)
        )
    for optimizer in optimizers:
        optimizer.state.clear()
        owned = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for name, parameter in parameters.items():
            if name in states and id(parameter) in owned:
                optimizer.state[parameter] = states[name]


def _parameter_of(name: str, parameters: Mapping[str, nn.Parameter]) -> str | None:
    """The longest parameter name that, with a dot, begins a tensor's name; both it and the key may have dots."""
    while "." in name:
        name = name.rpartition(".")[0]
        if name in parameters:
            return name
    return None


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raises NotFinite, naming the first tensor with a NaN or an infinity."""
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise NotFinite(f"{where}: {name} is not finite and is not saved; lower --learning_rate")


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes tensors as safetensors."""
    # Not `save_file`: on a full disk it raises an error of its own, which is no OSError and has no errno.
    path.write_bytes(to_bytes({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Reads safetensors. Raises CheckpointError: the file is missing or damaged."""
    try:
        return load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); train the run again") from None


def save_model(
    folder: Path,
    config: Config,
    model: nn.Module,
    task: Task,
    metrics: Mapping[str, Any],
    more: Mapping[str, Any] | None = None,
) -> None:
    """Writes a model that can be used: `config.json`, `model.safetensors`, `metrics.json` and the task's files.

    The one that is there stays until this one is whole. Its `metrics` are those on the validation data, and the step it
    is of; `more` are JSON files beside them, by name.

    Raises NotFinite: a weight is not finite; CannotWrite: there is no space, or the disk fails.
    """
    weights = model.state_dict()
    check_finite(weights, f"{folder}")

    def fill(aside: Path) -> None:
        saved = ModelFolder(aside)
        config.save(saved.config)
        save_tensors(weights, saved.weights)
        for name, content in {saved.metrics.name: metrics, **(more or {})}.items():
            write_json(aside / name, content)
        task.save(aside)

    write_folder(folder, fill, SLACK + sum(tensor.nbytes for tensor in weights.values()))


def load_weights(model: nn.Module, folder: Path) -> None:
    """Loads `model.safetensors` into a model. Raises CheckpointError: it is missing or damaged, or the model has
    another shape."""
    path = ModelFolder(find_folder(folder)).weights
    put_weights(model, load_tensors(path), f"{path}", "give the model flags of that run")


def put_weights(model: nn.Module, weights: Mapping[str, Tensor], where: str, fix: str) -> None:
    """Puts weights into a model; a CheckpointError names the first one that does not fit."""
    expected = model.state_dict()
    for name in sorted(set(expected) | set(weights)):
        shapes = [list(tensors[name].shape) if name in tensors else None for tensors in (weights, expected)]
        if shapes[0] != shapes[1]:
            theirs, ours = ("none" if shape is None else shape for shape in shapes)
            raise CheckpointError(f"{where}: {name} has shape {theirs}, this model has {ours}; {fix}")
    model.load_state_dict(weights)
