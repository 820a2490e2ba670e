"""Runs so small that a test can compress them, and measurements so short that it need not wait for them."""

import dataclasses
import functools
import io
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from safetensors import safe_open
from torch import Tensor, nn

from him.compression import latency, stages
from him.config import Config
from him.core.compute import Compute
from him.runs.models import load_stage
from him.tasks import task_class
from him.tasks.base import Task
from him.tasks.squad.task import SquadTask
from tests.small_runs import small_settings, writing_settings

TASKS = ("squad", "summarization", "lm")
STAGES = ("trained", "pruned", "fine_tuned", "int8")
SHAPE = {"num_encoder_layers": 2, "num_heads": 4, "dim_feedforward": 96, "batch_size": 16, "num_epochs": 1}
OF_TASK: dict[str, dict[str, Any]] = {
    "squad": {"learning_rate": 0.003, "attention_examples": 1},
    "summarization": {"norm_first": False, "max_target_len": 16, "eval_samples": 2},
    "lm": {"max_new_tokens": 6, "learning_rate": 0.003, "eval_samples": 2},
}
IN_FP32 = Compute(torch.device("cpu"), bf16=False)


class Compressed(NamedTuple):
    """A run that `him.train` has trained and compressed: its settings, its folder, and what `him.train` returned."""

    settings: dict[str, Any]
    run: Path
    result: dict[str, Any]


@functools.cache
def _squad_example() -> dict[str, str]:
    """Made once: the whole of the built-in data is written for it."""
    return _example_inputs(None)


_example_inputs = SquadTask.example_inputs


@contextmanager
def quickly() -> Iterator[None]:
    """One short run of each measurement, and few examples to rank units on."""
    shapes = {name: (min(number, 2), length) for name, (number, length) in latency.SHAPES.items()}
    with ExitStack() as stack:
        for owner, name, value in (
            (latency, "ROUNDS", 1),
            (latency, "RUN_SECONDS", 0.0),
            (latency, "SHAPES", shapes),
            (stages, "IMPORTANCE_EXAMPLES", 32),
            (SquadTask, "example_inputs", lambda self: dict(_squad_example())),
        ):
            stack.enter_context(mock.patch.object(owner, name, value))
        yield


@functools.cache
def compressed_run(task_type: str) -> Compressed:
    """One for all test files; squad and lm are pre-LN, summarization is post-LN."""
    import him

    folder = tempfile.TemporaryDirectory()
    weakref.finalize(compressed_run, folder.cleanup)
    settings = settings_of(task_type, Path(folder.name)) | {"run_name": "run", "compress": True}
    with quickly(), redirect_stdout(io.StringIO()):
        result = him.train(Config(**settings))
    return Compressed(settings, Path(result["run"]), result)


def settings_of(task_type: str, place: Path) -> dict[str, Any]:
    """Settings of a tiny run of a task, with its data as files."""
    if task_type == "squad":
        settings = small_settings(place, num_train=40, num_validation=16)
    else:
        settings = writing_settings(task_type, place, num_train=32 if task_type == "summarization" else 20)
    return settings | SHAPE | OF_TASK[task_type] | {"attention_dir": str(place / "pictures")}


def new_model(task_type: str, **changes: Any) -> tuple[Task, nn.Module]:
    """A model with other settings than those of the tiny run, whose weights are so large that every input is felt."""
    run = compressed_run(task_type).run / "best"
    config = dataclasses.replace(Config.load(run / "config.json"), **changes)
    task = task_class(task_type).restore(config, run)
    torch.manual_seed(3)
    model = task.build_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return task, model.eval()


def random_batch(task: Task, batch_size: int = 3, length: int = 24, seed: int = 7) -> dict[str, Tensor]:
    """A batch of random tokens that the task's loss takes."""
    torch.manual_seed(seed)
    return task.dummy_batch(batch_size, length)


def outputs(task: Task, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The logits or log-probabilities that a model gives a batch."""
    with torch.no_grad():
        if task.name == "squad":
            found = model(batch)
            return torch.stack((found.start_logits_BL, found.end_logits_BL))
        rows = batch["input_ids"].tolist()
        if task.name == "lm":
            return model.recompute(rows, [[] for _ in rows])
        return model.recompute([row[:16] for row in rows], [row[16:] for row in rows])


def stage_of(run: Path, stage: str) -> Path:
    """Folder of a stage's model."""
    below = {"trained": "best", "fine_tuned": "compressed/fine_tuned/best"}
    return run / below.get(stage, f"compressed/{stage}")


def loaded(task_type: str, stage: str, compute: Compute = IN_FP32) -> tuple[Task, nn.Module]:
    """A stage of the tiny run, without training data."""
    folder = stage_of(compressed_run(task_type).run, stage)
    task = task_class(task_type).restore(Config.load(folder / "config.json"), folder)
    return task, load_stage(task, folder, compute)


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """What `model.safetensors` holds."""
    with safe_open(str(folder / "model.safetensors"), framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
