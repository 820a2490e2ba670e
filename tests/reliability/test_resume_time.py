"""Promise: resume is immediate. Nothing is done again to find the place in an epoch of a million examples."""

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from him.config import Config
from him.core.compute import Compute
from him.data.batching import epoch_batches
from him.runs.checkpoint import Checkpoint
from him.runs.folder import RunFolder
from him.tasks.base import LossSums, Task
from him.training.trainer import LOG_EVERY_STEPS, Trainer

PROMISE = "resume is immediate"
CPU = Compute(torch.device("cpu"), bf16=False)
NUM_EXAMPLES = 1_000_000
MOST_SECONDS = 1.0


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Waiting for the disk is measured elsewhere."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


class LongTask(Task):
    """Regression on a million rows of different lengths; counts the batches that were made."""

    name: ClassVar[str] = "long"
    best_metric: ClassVar[str] = "F1"
    shown_metrics: ClassVar[tuple[str, ...]] = ()
    train_lengths = np.random.default_rng(0).integers(20, 385, NUM_EXAMPLES)

    def __init__(self) -> None:
        self.num_batches = 0

    def build_model(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Linear(2, 1)

    def train_batch(self, examples: np.ndarray) -> dict[str, Tensor]:
        self.num_batches += 1
        rows = torch.from_numpy(examples).float() / NUM_EXAMPLES
        return {"x": torch.stack((rows, rows.cos()), dim=1), "attention_mask": torch.ones(len(rows), 1).bool()}

    def num_targets(self, batch: dict[str, Tensor]) -> int:
        return len(batch["x"])

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> LossSums:
        errors = model(batch["x"])[:, 0].square()
        return LossSums(errors.sum(), len(errors), (errors < 0.1).sum())


LongTask.__abstractmethods__ = frozenset()  # what the trainer does not call is left out


def median_seconds(work: Callable[[], None]) -> float:
    """Of three times."""
    seconds = []
    for _ in range(3):
        started_at = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started_at)
    return statistics.median(seconds)


@pytest.mark.parametrize("batch_size", [32, 16, 1])
@pytest.mark.timing
def test_batches_of_an_epoch(batch_size, reached):
    """All of them, whichever the next one is."""
    seconds = median_seconds(lambda: epoch_batches(LongTask.train_lengths, batch_size, seed=0, epoch=3))
    assert seconds < MOST_SECONDS
    reached(PROMISE, f"the batches of {batch_size} of {NUM_EXAMPLES:,} examples: {seconds:.2f} s")


def checkpoint_at(step: int, folder: Path) -> Checkpoint:
    """Of a run that was at this step, with all its records."""
    trainer = new_trainer(folder)
    checkpoint = trainer.checkpoint()
    checkpoint.state["step"] = checkpoint.state["loop"]["step"] = step
    trainer.progress.close_records()
    tags = ("Gradient_Norm/train", "Learning_Rate", "Loss/train", "Accuracy/train", "Throughput/tokens_per_second")
    rest = [f'"epoch": 0.123456, "stage": "train", "tag": "{tag}", "value": 0.123456789' for tag in tags]
    steps = range(LOG_EVERY_STEPS, step + 1, LOG_EVERY_STEPS)
    lines = [f'{{"step": {each}, {more}}}\n' for each in steps for more in rest]
    (folder / "metrics.jsonl").write_text("".join(lines))
    return checkpoint


def new_trainer(folder: Path, checkpoint: Checkpoint | None = None) -> Trainer:
    task = LongTask()
    config = task.resolve(Config(batch_size=16, num_epochs=2, attention_examples=0))
    return Trainer(task, config, RunFolder(folder), CPU, task.build_model(), checkpoint)


def test_the_first_step_after_a_resume(tmp_path, reached):
    """The time to it is the same early and late in an epoch of 62,500 steps, and only its own batch is made."""
    seconds = {}
    for share in (0.1, 0.5, 0.99):
        step = int(share * NUM_EXAMPLES / 16)
        folder = tmp_path / f"{share}"
        folder.mkdir()
        checkpoint = checkpoint_at(step, folder)

        def resumed_step(folder=folder, checkpoint=checkpoint, step=step) -> None:
            trainer = new_trainer(folder, checkpoint)
            trainer.fit(until=step + 1)
            assert trainer.state.step == step + 1
            assert trainer.task.num_batches == 2, "the longest one, to try the memory, and its own"

        seconds[share] = median_seconds(resumed_step)
        expected = epoch_batches(LongTask.train_lengths, 16, Config().seed, 0)[step]
        trainer = new_trainer(folder, checkpoint)
        trainer.start_epoch()
        assert trainer.batches[step].tolist() == expected.tolist()
    assert max(seconds.values()) < MOST_SECONDS
    assert seconds[0.99] < 1.5 * seconds[0.1] + 0.1
    figures = ", ".join(f"{number:.2f} s at {share:.0%}" for share, number in seconds.items())
    reached(PROMISE, f"to the first step in an epoch of {NUM_EXAMPLES // 16:,}: {figures}")
