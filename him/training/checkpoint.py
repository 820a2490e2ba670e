"""Checkpoints: folders of safetensors and JSON that hold all that an exact resume needs. No pickle anywhere."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from him.config import Config
from him.errors import CheckpointError
from him.training.files import find_folder, verify_folder, write_folder, write_json

MOMENTS = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")  # of AdamW and Muon
FORMAT_VERSION = 1


@dataclass
class Checkpoint:
    """What a training run needs to go on.

    Attributes:
        state: plain data of the loop, of the machine and of the format.
        weights: the model.
        moments: the optimizer's moments and step counts, by parameter name: `NAME.exp_avg` and so on.
        averaged: the averaged weights, or empty.
    """

    state: dict[str, Any]
    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    averaged: dict[str, Tensor]


class Checkpoints:
    """The checkpoints of a run, in `checkpoints/step_00000120/`; the last `num_kept` are kept."""

    def __init__(self, folder: Path, num_kept: int) -> None:
        self.folder = folder
        self.num_kept = num_kept

    def save(self, checkpoint: Checkpoint, step: int) -> None:
        """Writes a checkpoint, then removes the ones that are too many.

        Raises:
            CheckpointError: a tensor is not finite, or there is no space.
        """
        for tensors in (checkpoint.weights, checkpoint.moments, checkpoint.averaged):
            check_finite(tensors, f"checkpoint at step {step}")

        def fill(folder: Path) -> None:
            save_tensors(checkpoint.weights, folder / "model.safetensors")
            save_tensors(checkpoint.moments, folder / "optimizer.safetensors")
            if checkpoint.averaged:
                save_tensors(checkpoint.averaged, folder / "averaged.safetensors")
            state = {"format_version": FORMAT_VERSION, "step": step, **checkpoint.state}
            write_json(folder / "state.json", state)

        write_folder(self.folder / f"step_{step:08d}", fill)
        self.remove_surplus()

    def remove_surplus(self) -> None:
        """Removes the checkpoints that are too many, and what killed writers left."""
        for old in [*self.list()[: -self.num_kept], *self.folder.glob(".step_*")]:
            shutil.rmtree(old, ignore_errors=True)

    def list(self) -> list[Path]:
        """Folders of whole checkpoints, oldest first."""
        return sorted(path for path in self.folder.glob("step_*") if path.is_dir() and path.suffix != ".old")

    def load_newest(self) -> Checkpoint:
        """The newest checkpoint.

        Raises:
            CheckpointError: there is none, it is damaged, or of another format.
        """
        found = self.list()
        if not found:
            raise CheckpointError(
                f"{self.folder}: no checkpoint to resume from; start the run again under another name"
            )
        newest = found[-1]
        try:
            verify_folder(newest)
        except CheckpointError as error:
            mend = f"remove {newest} to go on from {found[-2].name}" if len(found) > 1 else "start the run again"
            raise CheckpointError(f"{error}; {mend}") from None
        try:
            state = json.loads((newest / "state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{newest / 'state.json'}: cannot be read ({error})") from None
        if state.get("format_version") != FORMAT_VERSION:
            raise CheckpointError(
                f"{newest}: format {state.get('format_version')}, and this HIM reads format {FORMAT_VERSION}; use the "
                "HIM that wrote it"
            )
        averaged = newest / "averaged.safetensors"
        return Checkpoint(
            state=state,
            weights=load_tensors(newest / "model.safetensors"),
            moments=load_tensors(newest / "optimizer.safetensors"),
            averaged=load_tensors(averaged) if averaged.exists() else {},
        )


def optimizer_tensors(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The optimizers' state by parameter name and kind of moment."""
    return {
        f"{name}.{key}": value
        for optimizer in optimizers
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizers(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], tensors: Mapping[str, Tensor]
) -> None:
    """Puts back what `optimizer_tensors` took."""
    for optimizer in optimizers:
        owned = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for name, parameter in model.named_parameters():
            keys = [key for key in MOMENTS if f"{name}.{key}" in tensors]
            if keys and id(parameter) in owned:
                state = {key: tensors[f"{name}.{key}"] for key in keys}
                optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in state.items()}


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raises CheckpointError that names the first tensor with a NaN or an infinity."""
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{where}: {name} is not finite and is not saved; lower --learning_rate")


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes tensors as safetensors."""
    # Not `save_file`: on a full disk it raises an error of its own, which is no OSError and has no errno.
    path.write_bytes(to_bytes({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Reads safetensors.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        return load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); train the run again") from None


def save_model(
    folder: Path,
    config: Config,
    model: nn.Module,
    task: Any,
    metrics: Mapping[str, Any],
    more: Mapping[str, Any] | None = None,
) -> None:
    """Writes a model that can be used: `config.json`, `model.safetensors`, `metrics.json` and the task's files.

    Args:
        more: JSON files beside them, by name.
    """
    weights = model.state_dict()
    check_finite(weights, f"{folder}")

    def fill(aside: Path) -> None:
        config.save(aside / "config.json")
        save_tensors(weights, aside / "model.safetensors")
        for name, content in {"metrics.json": metrics, **(more or {})}.items():
            write_json(aside / name, content)
        task.save(aside)

    write_folder(folder, fill)


def load_weights(model: nn.Module, folder: Path) -> None:
    """Loads `model.safetensors` into a model.

    Raises:
        CheckpointError: it is missing or damaged, or the model has another shape.
    """
    path = find_folder(folder) / "model.safetensors"
    put_weights(model, load_tensors(path), f"{path}", "give the model flags of that run")


def put_weights(model: nn.Module, weights: Mapping[str, Tensor], where: str, mend: str) -> None:
    """Puts weights into a model; a CheckpointError names the first one that does not fit."""
    expected = model.state_dict()
    for name in sorted(set(expected) | set(weights)):
        shapes = [list(tensors[name].shape) if name in tensors else None for tensors in (weights, expected)]
        if shapes[0] != shapes[1]:
            theirs, ours = ("none" if shape is None else shape for shape in shapes)
            raise CheckpointError(f"{where}: {name} has shape {theirs}, this model has {ours}; {mend}")
    model.load_state_dict(weights)
