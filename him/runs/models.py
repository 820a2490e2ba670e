"""The models that a run's stages left: found by name, checked, and loaded, float or int8."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from him.config import Config
from him.core.compute import Compute
from him.core.errors import CheckpointError
from him.core.files import verify_folder
from him.model.int8 import FORMAT_VERSION, describe, pack, quantize
from him.model.int8_kernels import find_backend
from him.runs.checkpoint import load_weights, save_model
from him.runs.folder import ModelFolder, RunFolder
from him.runs.untrusted import check_files
from him.tasks.base import Task
from him.tasks.building import num_encoder_weights

DESCRIPTION = "quantization.json"  # of an int8 model, beside its weights
FLOAT_BYTES = 4
MOST_TIMES = 8  # that a model is larger in floats than in its file, which may hold int8


def find_model(flag: str, name: str, task_type: str) -> Path:
    """Folder of the model that a flag such as `--init_from` names: the best one of the run `name`, or one of another
    stage such as RUN/compressed/pruned. Raises CheckpointError: it holds no model, or one of another task than
    `task_type`."""
    best = RunFolder(Path(name)).find_best()
    if not best.is_dir() and ModelFolder(Path(name)).is_there:
        best = Path(name)
    if not best.is_dir():
        raise CheckpointError(f"{flag} {name}: no finished model there (no folder best); name a run")
    if (best / DESCRIPTION).is_file():
        raise CheckpointError(f"{flag} {name}: an int8 model cannot be trained, nor teach; name another stage")
    check_files(best)
    found = Config.load(ModelFolder(best).config).task_type
    if found != task_type:
        raise CheckpointError(
            f"{flag} {name}: a {found} model, and --task_type is {task_type}; name a run of {task_type}"
        )
    return best


def load_stage(task: Task, folder: Path, compute: Compute) -> nn.Module:
    """The model of a folder, float or int8, on its device and ready to be used. Raises CheckpointError: a file is
    missing or damaged."""
    check_model(folder)
    _check_size(task.config, folder)
    model = task.build_model()
    is_int8 = (folder / DESCRIPTION).is_file()
    if is_int8:
        _check_description(folder)
        quantize(model)
    load_weights(model, folder)
    model.to(compute.device).eval()
    if is_int8:
        pack(model, find_backend(compute.device), compute.bf16)
    return model


def _check_size(config: Config, folder: Path) -> None:
    """Refuses a configuration of a much larger model than the weights are of, before memory is taken for it."""
    model = ModelFolder(folder)
    described, there = FLOAT_BYTES * num_encoder_weights(config), model.weights.stat().st_size
    if described > MOST_TIMES * there:
        raise CheckpointError(
            f"{model.config}: is of a model of {described / 1e6:,.0f} MB, and {model.weights.name} has "
            f"{there / 1e6:,.0f} MB; restore both from a copy, or train the run again"
        )


def save_int8(folder: Path, config: Config, model: nn.Module, task: Task, metrics: Mapping[str, Any]) -> None:
    """Writes what `save_model` writes, and `quantization.json` about the numbers in `model.safetensors`."""
    save_model(folder, config, model, task, metrics, more={DESCRIPTION: describe(model)})


def _check_description(folder: Path) -> None:
    """Raises CheckpointError if an int8 model was not written in this format."""
    path = folder / DESCRIPTION
    try:
        version = json.loads(path.read_text(encoding="utf-8"))["format_version"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); make it again with scripts/compress.py") from None
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format {version}, and this HIM reads format {FORMAT_VERSION}; make it again with "
            "scripts/compress.py"
        )


def check_model(folder: Path) -> None:
    """Raises CheckpointError if a file of a model is missing or damaged; says how to fix it."""
    try:
        verify_folder(folder, others_allowed=True)
    except CheckpointError as error:
        fix = "restore it from a copy, or train the run again"
        if ModelFolder(folder).is_compressed:
            fix = "make it again with scripts/compress.py"
        raise CheckpointError(f"{error}; {fix}") from None
