"""Promise: out of memory is survived. A pass with too many tokens is made in halves, and the run stays the same."""

import copy
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from him.config import Config
from him.core.compute import Compute
from him.runs.checkpoint import Checkpoints
from him.runs.folder import RunFolder
from him.tasks import task_class
from him.tasks.base import Evaluation, LossSums, Task
from him.training import gradients
from him.training import trainer as training
from him.training.objective import Objective
from him.training.trainer import Trainer
from tests.small_runs import assert_one_line, call_main, exact_records, flags, small_settings, writing_settings

PROMISE = "out of memory is survived"
CPU = Compute(torch.device("cpu"), bf16=False)
TASKS = ("squad", "summarization", "lm")
CPU_ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "274877906944 bytes. Error code 12 (Cannot allocate memory)"
)
ERRORS = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError(),
    RuntimeError(CPU_ALLOCATOR),
)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Waiting for the disk and looking for the garbage of all tests would be most of the time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr(gradients, "release_memory", lambda: None)


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Callable[[str], dict[str, Any]]:
    """Settings of small runs without dropout, by task."""
    made = {}
    for task_type in TASKS:
        folder = tmp_path_factory.mktemp(task_type)
        made[task_type] = small_settings(folder) if task_type == "squad" else writing_settings(task_type, folder)
        made[task_type] |= {"precision": "fp32", "dropout": 0.0, "word_dropout": 0.0, "embed_dim": 16}
        made[task_type] |= {"batch_size": 8, "max_steps": 12, "save_every_steps": 3}
    return made.__getitem__


@pytest.fixture(scope="module")
def prepared(settings) -> dict[str, Task]:
    """The tasks with their data; what an evaluation would measure is not of interest."""
    made = {}
    for task_type in TASKS:
        cls = task_class(task_type)
        made[task_type] = cls.prepare(cls.resolve(Config(**settings(task_type))))
        metrics = {"Loss": 1.0, "F1": 1.0, "ROUGE-L": 1.0, "Bits_Per_Byte": 1.0, "BERTScore_F1": 1.0}
        made[task_type].evaluate = lambda *inputs, metrics=metrics, **options: Evaluation(metrics)
    return made


class Memory:
    """A machine on which a pass of a task may have so many tokens.

    Args:
        task: whose loss needs the memory.
        most_tokens: in a pass, padding included.
        error: raised by a larger one.
        where: `before`, or `backward`, when some of the gradients are there.
    """

    def __init__(self, task: Task, most_tokens: float, error: BaseException, where: str = "before") -> None:
        self.most_tokens, self.error, self.where = most_tokens, error, where
        self.original = task.loss
        self.passes: list[tuple[int, ...]] = []  # shapes that there was room for
        self.num_raised = 0
        self.hook: Any = None
        task.loss = self.loss

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> LossSums:
        shape = tuple(batch["attention_mask"].shape)
        if shape[0] * shape[1] <= self.most_tokens:
            self.passes.append(shape)
            return self.original(model, batch)
        if self.where == "before":
            self._fail(None)
        self.hook = model.embedding.norm.bias.register_hook(self._fail)  # late in the backward pass
        return self.original(model, batch)

    def _fail(self, gradient: Tensor | None) -> None:
        if self.hook is not None:
            self.hook.remove()
        self.num_raised += 1
        raise self.error


def trainer_of(task: Task, folder: Path, checkpoint: Any = None) -> Trainer:
    """A trainer with weights of seed 0 that records each step."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    return Trainer(task, task.config, RunFolder(folder), CPU, task.build_model(), checkpoint)


def losses(folder: Path) -> list[float]:
    """Of the training, step by step."""
    return [value for *_, tag, value in exact_records(folder) if tag == "Loss/train"]


@pytest.fixture
def every_step(monkeypatch):
    """Records each step."""
    monkeypatch.setattr(training, "LOG_EVERY_STEPS", 1)


def check(task: Task, straight: Path, folder: Path, memory: dict[str, Any], capsys) -> tuple[int, float]:
    """Trains with little memory; gives how often it was halved, and the largest difference of the losses."""
    limited = copy.copy(task)
    machine = Memory(limited, **memory)
    trainer = trainer_of(limited, folder)
    trainer.fit()
    assert trainer.state.step == 12
    said = capsys.readouterr().out
    lines = re.findall(r"^step (\d+): out of memory with (\d+) examples .*; from here on (\d+) at a time", said, re.M)
    assert machine.num_raised == len(lines) == said.count("out of memory"), "one line for each halving"
    assert {step for step, *_ in lines} == {"1"}, "the longest batch showed it"
    for number, (_, before, after) in enumerate(lines):
        assert int(after) == int(before) // 2
        assert int(before) == (8 if number == 0 else int(lines[number - 1][2]))
    at_a_time = int(lines[-1][2])
    num_parts = -(-8 // at_a_time)
    assert len(machine.passes) >= num_parts * 12, "more passes before each update"
    assert max(rows for rows, _ in machine.passes[:num_parts]) <= at_a_time
    found, expected = losses(folder), losses(straight)
    assert len(found) == len(expected) == 12
    assert found == pytest.approx(expected, rel=1e-5)
    difference = max(abs(one - other) / other for one, other in zip(found, expected, strict=True))
    assert difference > 0 or num_parts == 1, "the sums were the same ones, in one pass"
    return len(lines), difference


@pytest.mark.parametrize("task_type", TASKS)
def test_passes_are_halved_and_the_losses_stay(prepared, task_type, tmp_path, amount, reached, every_step, capsys):
    task = prepared[task_type]
    trainer = trainer_of(task, tmp_path / "straight")
    trainer.fit()
    assert "memory" not in capsys.readouterr().out
    longest = task.train_batch(np.argsort(-task.train_lengths)[:8])["attention_mask"].numel()
    shift = TASKS.index(task_type)
    cases = [
        {"most_tokens": longest // parts, "error": error, "where": where}
        for where in ("before", "backward")
        for error in (ERRORS[shift:] + ERRORS[:shift])
        for parts in (4, 2, 3, 8)
    ]
    cases = cases[:: amount(9, 1)]
    results = [
        check(task, tmp_path / "straight", tmp_path / f"{number}", case, capsys) for number, case in enumerate(cases)
    ]
    assert {num_halvings for num_halvings, _ in results} >= {2}
    reached(
        PROMISE,
        f"{task_type}: {len(results)} of {len(results)} runs with up to {max(results)[0]} halvings, training losses "
        f"within {max(difference for _, difference in results):.1g} of the straight run",
    )


@pytest.mark.parametrize("task_type", TASKS)
def test_memory_that_gets_short_in_the_middle_of_a_run(prepared, task_type, tmp_path, every_step, capsys):
    """Other programs take it. The gradients that are there already count for nothing."""
    for name in ("straight", "limited"):
        task = copy.copy(prepared[task_type])
        machine = Memory(task, math.inf, ERRORS[0], where="backward")
        trainer = trainer_of(task, tmp_path / name)
        trainer.fit(until=4)
        machine.most_tokens = 2 * task.config.max_seq_len if name == "limited" else math.inf
        trainer = trainer_of(task, tmp_path / name, Checkpoints(trainer.checkpoints.folder, 1).load_newest())
        with mock.patch.object(trainer.gradients, "try_longest_batch"):
            trainer.fit()
    said = capsys.readouterr().out
    assert machine.num_raised == said.count("out of memory") >= 1
    assert set(re.findall(r"^step (\d+): out of memory", said, re.M)) <= {"4", "5", "6"}
    assert losses(tmp_path / "limited") == pytest.approx(losses(tmp_path / "straight"), rel=1e-5)


@pytest.mark.parametrize("task_type", TASKS)
def test_the_longest_batch_is_tried_first(prepared, task_type, tmp_path):
    """Before the first update and the first checkpoint."""
    task = copy.copy(prepared[task_type])
    trainer = trainer_of(task, tmp_path)
    asked = []
    original = task.train_batch

    def train_batch(examples):
        asked.append((trainer.state.step, list(trainer.checkpoints.folder.glob("*")), examples))
        return original(examples)

    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with mock.patch.object(task, "train_batch", train_batch):
        trainer.fit(until=0)
    ((step, checkpoints, examples),) = asked
    assert (step, checkpoints) == (0, [])
    assert sorted(task.train_lengths[examples]) == sorted(task.train_lengths)[-8:]
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


@pytest.mark.parametrize("task_type", TASKS)
def test_a_checkpoint_remembers_it(prepared, task_type, tmp_path, every_step, capsys):
    """No new try after a resume, which is exact."""
    runs = []
    for name in ("straight", "resumed"):
        task = copy.copy(prepared[task_type])
        machine = Memory(task, 3 * task.config.max_seq_len, ERRORS[0])
        trainer = trainer_of(task, tmp_path / name)
        trainer.fit(until=6 if name == "resumed" else None)
        assert machine.num_raised == capsys.readouterr().out.count("out of memory") == 2
        if name == "resumed":
            checkpoint = Checkpoints(trainer.checkpoints.folder, 1).load_newest()
            assert checkpoint.step == 6
            assert checkpoint.state["loop"]["most_tokens"] == trainer.gradients.most_tokens
            trainer = trainer_of(task, tmp_path / name, checkpoint)
            trainer.fit()
            assert machine.num_raised == 2
            assert "out of memory" not in capsys.readouterr().out
        runs.append(trainer.checkpoint())
    for kind in ("weights", "optimizer_state"):
        one, other = (getattr(run, kind) for run in runs)
        assert one.keys() == other.keys()
        assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert exact_records(tmp_path / "straight") == exact_records(tmp_path / "resumed")


def test_what_fits_for_the_longest_fits_for_all(prepared):
    """Rows are padded: of a slightly shorter batch no more rows may go into a pass."""
    task = copy.copy(prepared["squad"])
    trainer = training.Gradients(task, Objective(task), task.config, CPU, task.build_model(), lambda line: None)
    trainer.most_tokens = 4 * 96
    for length in sorted(set(task.train_lengths.tolist())):
        examples = (task.train_lengths == length).nonzero()[0]
        rows = trainer.micro_batch_size(examples.repeat(8))
        assert task.train_batch(examples[:1])["attention_mask"].shape[1] * rows <= trainer.most_tokens


@pytest.mark.parametrize("task_type", TASKS)
def test_an_example_that_is_too_large_ends_in_one_line(settings, task_type, tmp_path, capsys):
    given = settings(task_type) | {"output_dir": str(tmp_path), "run_name": "run"}
    original = task_class(task_type).loss

    def loss(task: Task, model: nn.Module, batch: dict[str, Tensor]) -> LossSums:
        if batch["attention_mask"].shape[1] >= 64:
            raise ERRORS[2]
        return original(task, model, batch)

    with mock.patch.object(task_class(task_type), "loss", loss):
        finished = call_main(*flags(given))
    assert_one_line(finished, "step 1: out of memory with a single example of ", "lower --max_seq_len, --embed_dim or")
    assert finished.out.count("out of memory with") == 3  # 8, 4 and 2 at a time


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied (8x16 and 32x8)"), ValueError("memory")]
)
def test_other_errors_are_not_swallowed(prepared, tmp_path, error, capsys):
    task = copy.copy(prepared["squad"])
    Memory(task, 0, error)
    with pytest.raises(type(error)) as raised:
        trainer_of(task, tmp_path).fit()
    assert raised.value is error
    assert "memory" not in capsys.readouterr().out
