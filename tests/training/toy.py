"""A toy task, whose metrics are written out, and a trainer of it."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from him.config import Config
from him.core.compute import Compute
from him.runs.checkpoint import Checkpoint, Checkpoints
from him.runs.folder import RunFolder
from him.tasks.base import Evaluation, LossSums, Task
from him.training.trainer import Trainer

CPU = Compute(torch.device("cpu"), bf16=False)


class ToyTask(Task):
    """Regression on eight rows, whose validation metric is a list written out in the test."""

    name: ClassVar[str] = "toy"
    best_metric: ClassVar[str] = "F1"
    shown_metrics: ClassVar[tuple[str, ...]] = ("F1",)

    def __init__(self, values: list[float]) -> None:
        self.values = list(values)
        self.evaluated: list[Tensor] = []
        self.bad_steps: dict[int, float] = {}
        self.steps_made = lambda: 0

    def save(self, folder: Path) -> None:
        (folder / "task.json").write_text("{}")

    @property
    def notes(self) -> list[str]:
        return []

    def build_model(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Linear(2, 1)

    @property
    def train_lengths(self) -> np.ndarray:
        return np.arange(2, 10)

    def train_batch(self, examples: np.ndarray) -> dict[str, Tensor]:
        rows = torch.from_numpy(np.asarray(examples)).float()
        mask = torch.from_numpy(np.arange(10)[None] < self.train_lengths[examples][:, None])
        return {"x": torch.stack((rows, rows.cos()), dim=1), "y": rows.sin(), "attention_mask": mask}

    def num_targets(self, batch: dict[str, Tensor]) -> int:
        return len(batch["x"])

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> LossSums:
        errors = (model(batch["x"])[:, 0] - batch["y"]).square()
        factor = self.bad_steps.get(self.steps_made() + 1, 1.0)
        return LossSums(errors.sum() * factor, len(errors), (errors < 0.1).sum())

    def evaluate(self, model: nn.Module, compute: Compute, final: bool = False) -> Evaluation:
        self.evaluated.append(model.weight.detach().clone())
        return Evaluation({"Loss": 1.0, "F1": self.values[len(self.evaluated) - 1], "Diversity/distinct-1": 0.5})


ToyTask.__abstractmethods__ = frozenset()  # what the trainer does not call is left out


def toy(
    folder: Path, values: list[float], checkpoint: Checkpoint | None = None, observers: Any = (), **settings: Any
) -> Trainer:
    """A trainer with two steps an epoch."""
    settings = {"batch_size": 4, "num_epochs": len(values), "attention_examples": 0, "learning_rate": 0.01} | settings
    task = ToyTask(values)
    folder.mkdir(exist_ok=True)
    config = task.resolve(Config(**settings))
    trainer = Trainer(task, config, RunFolder(folder), CPU, task.build_model(), checkpoint, observers=observers)
    task.steps_made = lambda: trainer.state.step
    return trainer


def last_checkpoint(trainer: Trainer):
    return Checkpoints(trainer.folder.checkpoints, 1).load_newest()
