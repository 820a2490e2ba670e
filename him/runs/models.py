"""The models of a run after each stage, and where they are."""

from pathlib import Path

from torch import nn

from him.compression.quantization import DESCRIPTION, check_description
from him.config import Config
from him.core.compute import Compute
from him.core.errors import CheckpointError, ConfigError
from him.core.files import find_folder, verify_folder
from him.model.int8 import pack, quantize
from him.model.int8_kernels import find_backend
from him.runs.checkpoint import load_weights
from him.tasks.base import Task
from him.tasks.building import num_encoder_weights

TRAINED, PRUNED, FINE_TUNED, INT8 = STAGES = ("trained", "pruned", "fine_tuned", "int8")
COMPRESSED = "compressed"
SWEEP = "sweep"
FLOAT_BYTES = 4
MOST_TIMES = 8  # that a model is larger in floats than in its file, which may hold int8


def stage_folder(run: Path, stage: str) -> Path:
    """Folder of the model that a stage left.

    Args:
        run: folder of a run.
        stage: one of `STAGES`.

    Raises:
        ConfigError: there is no stage of this name.
        CheckpointError: the run has no such model.
    """
    if stage not in STAGES:
        raise ConfigError(f"--stage {stage} is not known; use {', '.join(STAGES[:-1])} or {STAGES[-1]}")
    folders = {each: _place(run, each) for each in STAGES}
    there = [each for each, folder in folders.items() if (folder / "model.safetensors").is_file()]
    if stage not in there:
        fix = "train the run first" if stage == TRAINED else f"make it with scripts/compress.py {run}"
        there = f", only {', '.join(there)}" if there else ""
        raise CheckpointError(f"{run}: no model of the stage {stage} there{there}; {fix}")
    return folders[stage]


def _place(run: Path, stage: str) -> Path:
    if stage == TRAINED:
        return find_folder(run / "best")
    return stage_in(find_folder(run / COMPRESSED), stage)


def stage_in(compressed: Path, stage: str) -> Path:
    """Where the model of a stage after training is, below `compressed` or a folder like it."""
    return compressed / stage / "best" if stage == FINE_TUNED else compressed / stage


def load_stage(task: Task, folder: Path, compute: Compute) -> nn.Module:
    """The model of a folder, float or int8, on its device and ready to be used.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    check_model(folder)
    _check_size(task.config, folder)
    model = task.build_model()
    is_int8 = (folder / DESCRIPTION).is_file()
    if is_int8:
        check_description(folder)
        quantize(model)
    load_weights(model, folder)
    model.to(compute.device).eval()
    if is_int8:
        pack(model, find_backend(compute.device), compute.bf16)
    return model


def _check_size(config: Config, folder: Path) -> None:
    """Refuses a configuration of a much larger model than the weights are of, before memory is taken for it."""
    path = folder / "model.safetensors"
    described, there = FLOAT_BYTES * num_encoder_weights(config), path.stat().st_size
    if described > MOST_TIMES * there:
        raise CheckpointError(
            f"{folder / 'config.json'}: is of a model of {described / 1e6:,.0f} MB, and {path.name} has "
            f"{there / 1e6:,.0f} MB; restore both from a copy, or train the run again"
        )


def check_model(folder: Path) -> None:
    """Raises CheckpointError if a file of a model is missing or damaged; says how to fix it."""
    try:
        verify_folder(folder, others_allowed=True)
    except CheckpointError as error:
        of_run = not {COMPRESSED, SWEEP} & {parent.name for parent in list(folder.parents)[:2]} or folder.name == "best"
        of_run = of_run and folder.parent.name != FINE_TUNED
        fix = "restore it from a copy, or train the run again" if of_run else "make it again with scripts/compress.py"
        raise CheckpointError(f"{error}; {fix}") from None
