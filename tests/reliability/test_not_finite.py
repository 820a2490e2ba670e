"""Promise: NaN and Inf never reach a checkpoint. They are put wherever numbers are, and found within a step."""

import copy
import io
import itertools
import json
import math
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from him.cli.command import run_command
from him.config import Config
from him.core.compute import Compute
from him.runs.checkpoint import load_tensors
from him.runs.folder import RunFolder
from him.tasks import task_class
from him.tasks.base import Evaluation, LossSums, Task
from him.training import trainer as training
from him.training.schedule import lr_at
from him.training.trainer import Trainer
from him.workflows.resume import resume
from him.workflows.train import train
from tests.small_runs import (
    assert_one_line,
    assert_same_run,
    call_main,
    flags,
    in_child,
    records,
    scalar_series,
    small_settings,
    writing_settings,
)

PROMISE = "NaN and Inf never reach a checkpoint"
CPU = Compute(torch.device("cpu"), bf16=False)
TASKS = ("squad", "summarization", "lm")
VALUES = (math.nan, math.inf, -math.inf)
FIRST, LAST = 5, 12  # first bad step, last step; saved every 3
SIZES = {"squad": 8, "summarization": 4, "lm": 8}  # of batches, so that an epoch has 12 steps at least
LASTING = ("weights", "unused row", "exp_avg", "exp_avg_sq", "momentum_buffer", "averaged")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Waiting for the disk would be most of the time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Callable[[str], dict[str, Any]]:
    """Settings of small runs by task."""
    made = {}
    for task_type in TASKS:
        folder = tmp_path_factory.mktemp(task_type)
        made[task_type] = small_settings(folder) if task_type == "squad" else writing_settings(task_type, folder)
        made[task_type] |= {"batch_size": SIZES[task_type], "max_steps": LAST, "save_every_steps": 3}
        made[task_type] |= {"precision": "fp32", "num_encoder_layers": 2, "embed_dim": 16, "ema_decay": 0.9}
    return made.__getitem__


@pytest.fixture(scope="module")
def prepared(settings) -> dict[str, Task]:
    """The tasks with their data."""
    made = {}
    for task_type in TASKS:
        cls = task_class(task_type)
        made[task_type] = cls.prepare(cls.resolve(Config(**settings(task_type))))
    return made


# -- what goes wrong -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """A number that is not finite.

    Attributes:
        kind: what it is put into.
        name: the parameter or layer.
        value: the number.
        lasts: `once`, `few` (three steps) or `good`.
    """

    kind: str
    name: str = ""
    value: float = math.nan
    lasts: str = "once"

    def is_due(self, trainer: Trainer) -> bool:
        """A function of the loop's state, so that it comes again after a kill, and `once` not after going back."""
        step, is_first_time = trainer.state.step + 1, trainer.state.rate_factor == 1.0
        if self.lasts == "good":
            return step >= FIRST
        return is_first_time and FIRST <= step < FIRST + {"once": 1, "few": 3}[self.lasts]

    @contextmanager
    def put_into(self, trainer: Trainer) -> Iterator[str]:
        """Puts it into the next step; gives what the line has to name."""
        examples = trainer.batches[trainer.state.step % trainer.steps_per_epoch]
        places = trainer.task.source_indices(examples)
        all_examples = f"for training examples {', '.join(dict.fromkeys(map(str, places)))}"
        task, model = trainer.task, trainer.model
        if self.kind in LASTING:
            tensor, non_finite_source = self._tensor(trainer, examples)
            with torch.no_grad():
                tensor.view(-1)[0] = self.value
            yield non_finite_source
        elif self.kind == "gradient":
            with _removed(model.get_parameter(self.name).register_hook(self._spoiled)):
                yield f"the gradient of {self.name} {all_examples}"
        elif self.kind == "output":
            target = trainer.gradients._micro_batches(examples)[0][1]
            with _removed(model.get_submodule(self.name).register_forward_hook(lambda *call: self._row(call[-1]))):
                yield f"the output of {self.name} for training example {task.source_indices(target[None])[0]}"
        elif self.kind == "input":
            target = examples[-1]
            with mock.patch.object(task, "train_batch", partial(self._batch, task.train_batch, target)):
                yield f"the input {self.name} of training example {task.source_indices(target[None])[0]}"
        else:
            with mock.patch.object(task, "loss", partial(self._loss, task.loss)):
                yield f"the loss {all_examples}"

    def _tensor(self, trainer: Trainer, examples: np.ndarray) -> tuple[Tensor, str]:
        if self.kind == "averaged":
            return trainer.train_state.ema.weights[self.name], f"the EMA weights {self.name}"
        parameter = trainer.model.get_parameter(self.name)
        if self.kind == "weights":
            return parameter, f"the weights {self.name}"
        if self.kind == "unused row":
            seen = set(trainer.task.train_batch(examples)["input_ids"].flatten().tolist())
            row = max(set(range(len(parameter))) - seen)
            return parameter[row], f"the weights {self.name}"
        (state,) = (each.state[parameter] for each in trainer.train_state.optimizers if parameter in each.state)
        return state[self.kind], f"the optimizer state {self.name}.{self.kind}"

    def _spoiled(self, gradient: Tensor) -> Tensor:
        spoiled = gradient.clone()
        spoiled.view(-1)[-1] = self.value
        return spoiled

    def _row(self, output: Tensor) -> Tensor:
        output = output.clone()
        output[1] = self.value
        return output

    def _batch(self, original: Callable, target: int, examples: np.ndarray) -> dict[str, Tensor]:
        batch = original(examples)
        batch[self.name][torch.from_numpy(examples == target), 0, 0] = self.value
        return batch

    def _loss(self, original: Callable, *inputs: Any) -> LossSums:
        sums = original(*inputs)
        return replace(sums, loss=sums.loss + self.value if self.name == "alone" else sums.loss * self.value)


@contextmanager
def _removed(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def faults_of(task_type: str, norm_first: bool) -> list[Fault]:
    """All places of a model with two layers."""
    block = "encoder.blocks.1"
    last = "encoder.final_norm" if norm_first else f"{block}.feed_forward_norm"
    made = [
        Fault("weights", f"{block}.attention.query_key_value.weight"),
        Fault("gradient", f"{block}.feed_forward.expand.bias"),
        Fault("exp_avg_sq", f"{block}.feed_forward.contract.bias"),
        Fault("output", f"{block}.attention.query_key_value"),
        Fault("loss"),
        Fault("unused row", "embedding.tokens.weight"),
        Fault("averaged", f"{block}.feed_forward.expand.weight"),
        Fault("exp_avg", "embedding.norm.weight"),
        Fault("loss", "alone"),
        Fault("momentum_buffer", "encoder.blocks.0.attention.output.weight"),
        Fault("output", last),
        Fault("weights", "encoder.blocks.0.attention.output.bias"),
        Fault("weights", f"{last}.weight"),
        Fault("gradient", "embedding.tokens.weight"),
        Fault("gradient", f"{last}.weight"),
        Fault("output", "embedding.norm"),
        Fault("output", "encoder.blocks.0.feed_forward.expand"),
    ]
    if task_type == "squad":
        made += [Fault("input", "scalars"), Fault("output", "span")]
    return made


def cases_of(task_type: str, is_full: bool) -> list[tuple[bool, Fault]]:
    """Norm orders and faults; in the short form each place in one task, the orders, values and durations in turn."""
    durations = ("once", "few", "good")
    if is_full:
        return [
            (norm_first, replace(fault, value=value, lasts=lasts))
            for norm_first in (True, False)
            for fault in faults_of(task_type, norm_first)
            for value in VALUES
            for lasts in durations
            if not (fault.kind in LASTING and lasts == "few")  # once is enough to go back
        ]
    shift = TASKS.index(task_type)
    cases = []
    for number, (pre, post) in enumerate(zip(*(faults_of(task_type, first) for first in (True, False)), strict=True)):
        lasts = durations[(number // 3 + number + shift) % 3]
        fault = (pre, post)[(number + shift) % 2]
        lasts = "once" if fault.kind in LASTING and lasts == "few" else lasts
        cases.append(((number + shift) % 2 == 0, replace(fault, value=VALUES[(number + shift) % 3], lasts=lasts)))
    return cases[shift:17:3] + cases[17:]


# -- what has to come of it ------------------------------------------------------------------------------------------


@dataclass
class Expected:
    """What a run has to say and to show.

    Attributes:
        lines: step of each line about a fault.
        back_to: the step that it goes back to, or None.
        stops_at: the step that ends it, or None.
    """

    lines: list[int]
    back_to: int | None = None
    stops_at: int | None = None


def expected_of(fault: Fault) -> Expected:
    """By the rules: bad weights go back at once, five refused updates in a row too; the second time is the end."""
    if fault.kind in LASTING:
        return Expected([FIRST], 3) if fault.lasts == "once" else Expected([FIRST, FIRST], 3, FIRST)
    if fault.lasts == "good":
        return Expected([5, 6, 7, 8, 9, 7, 8, 9, 10, 11], 6, 11)
    return Expected([FIRST] if fault.lasts == "once" else [5, 6, 7])


def state_of(trainer: Trainer) -> list[Tensor]:
    """Weights, optimizer state and EMA weights, copied."""
    tensors = trainer.checkpoint()
    kept = [*tensors.weights.values(), *tensors.optimizer_state.values(), *tensors.ema.values()]
    return [tensor.clone() for tensor in kept]


def one_evaluation(*inputs: Any, **options: Any) -> Evaluation:
    """What a real one would measure is not of interest."""
    return Evaluation({"Loss": 1.0, "F1": 1.0, "ROUGE-L": 1.0, "Bits_Per_Byte": 1.0, "BERTScore_F1": 1.0})


def check(task: Task, norm_first: bool, fault: Fault, folder: Path) -> None:
    """Trains with a fault and looks at all that the promise says."""
    optimizer = "muon" if fault.kind == "momentum_buffer" else "adamw"
    micro_batch_size = 2 if fault.lasts == "few" else None
    config = replace(task.config, norm_first=norm_first, optimizer=optimizer, micro_batch_size=micro_batch_size)
    task = copy.copy(task.with_config(config))
    folder.mkdir()
    torch.manual_seed(0)
    trainer = Trainer(task, config, RunFolder(folder), CPU, task.build_model())
    original, sources = trainer.train_step, []

    def train_step() -> None:
        with ExitStack() as stack:
            if not fault.is_due(trainer):
                return original()
            before = state_of(trainer)
            sources.append(stack.enter_context(fault.put_into(trainer)))
            original()  # if it goes back, it does not return
            assert all(map(torch.equal, before, state_of(trainer))), "a bad update was made"

    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(trainer, "train_step", train_step))
        stack.enter_context(mock.patch.object(task, "evaluate", one_evaluation))
        stack.enter_context(mock.patch.object(training, "LOG_EVERY_STEPS", 1))
        stack.enter_context(redirect_stdout(out))
        stack.enter_context(redirect_stderr(err))
        status = run_command(trainer.fit, "main.py")
    said, error = (stream.buffer.getvalue().decode("utf-8") for stream in (out, err))
    expected = expected_of(fault)
    found = re.findall(r"^step (\d+): loss \S+, gradient norm \S+; first not finite: (.*)$", said, re.M)
    assert [int(step) for step, _ in found] == expected.lines, said
    assert [line.removesuffix("; the update is not made") for _, line in found] == sources
    went_back = [f"back to step {expected.back_to}; from here on 0.5 of the learning rate"]
    assert [line for line in said.splitlines() if "back" in line] == (went_back if expected.back_to else [])
    if expected.stops_at is None:
        assert (status, error) == (0, "")
        assert trainer.state.step == LAST
    else:
        assert status == 2
        (line,) = error.splitlines()
        assert line.startswith(f"main.py: error: step {expected.stops_at}: {sources[-1]} is not finite, again"), line
        assert "; lower --learning_rate (" in line
    assert_series(folder, config, expected)
    assert_finite(folder)


def assert_series(folder: Path, config: Config, expected: Expected) -> None:
    """Every step once in each series, after going back too, and the rate halved from there on."""
    last = LAST if expected.stops_at is None else expected.stops_at - 1
    shown = scalar_series(folder)
    rates = [
        lr_at(step - 1, config, LAST) * (0.5 if expected.back_to and step > expected.back_to else 1.0)
        for step in range(1, last + 1)
    ]
    assert shown["Learning_Rate"] == [(step, pytest.approx(rate)) for step, rate in enumerate(rates, start=1)]
    assert [step for step, _ in shown["Gradient_Norm/train"]] == list(range(1, last + 1))
    written: dict[str, list[int]] = {}
    for record in records(folder):
        written.setdefault(record["tag"], []).append(record["step"])
    assert written == {tag: [step for step, _ in series] for tag, series in shown.items()}


def assert_finite(folder: Path) -> None:
    """No tensor and no JSON of checkpoints and models has a number that is not finite."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in a file of {folder}")

    tensors = list(folder.rglob("*.safetensors"))
    assert tensors
    for path in tensors:
        for name, tensor in load_tensors(path).items():
            assert torch.isfinite(tensor).all(), (path, name)
    for path in (*folder.rglob("*.json"), *folder.rglob("*.jsonl")):
        for line in path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
            json.loads(line, parse_constant=refuse)


@pytest.mark.parametrize("task_type", TASKS)
def test_it_is_found_named_and_kept_out(prepared, task_type, tmp_path, amount, reached):
    cases = cases_of(task_type, bool(amount(0, 1)))
    for number, (norm_first, fault) in enumerate(cases):
        try:
            check(prepared[task_type], norm_first, fault, tmp_path / f"{number}")
        except BaseException as error:
            error.add_note(f"{fault}, norm_first={norm_first}")
            raise
    reached(PROMISE, f"{task_type}: {len(cases)} of {len(cases)} found in their step, named and kept out")


def test_a_first_step_that_is_refused_leaves_no_nan_in_the_state(prepared, tmp_path):
    """The loss of the first step is remembered for the line after the epoch."""
    task = copy.copy(prepared["lm"])
    trainer = Trainer(task, replace(task.config, max_steps=4), RunFolder(tmp_path), CPU, task.build_model())
    original = task.loss
    task.evaluate = one_evaluation
    task.loss = lambda *inputs: replace(original(*inputs), loss=original(*inputs).loss * math.nan)
    trainer.fit()
    assert trainer.state.refused_in_a_row == 4
    assert trainer.state.epoch_before == {}
    assert_finite(tmp_path)


def test_gradients_whose_norm_overflows_are_refused_by_that_name(prepared, tmp_path, capsys):
    task = copy.copy(prepared["lm"])
    trainer = Trainer(task, task.config, RunFolder(tmp_path), CPU, task.build_model())
    trainer.start_epoch()
    before = state_of(trainer)
    hook = trainer.model.output_bias.register_hook(lambda gradient: torch.full_like(gradient, 1e38))
    with _removed(hook):
        trainer.train_step()
    assert "gradient norm inf; first not finite: the norm of all gradients for training examples " in (
        capsys.readouterr().out
    )
    assert all(map(torch.equal, before, state_of(trainer)))


# -- whole runs ------------------------------------------------------------------------------------------------------


@contextmanager
def in_every_trainer(fault: Fault, before: Callable[[Trainer], None] = id) -> Iterator[None]:
    """Puts a fault into all runs of this process; `before` is called before each step."""
    original = Trainer.train_step

    def train_step(trainer: Trainer) -> None:
        before(trainer)
        with fault.put_into(trainer) if fault.is_due(trainer) else ExitStack():
            original(trainer)

    with mock.patch.object(Trainer, "train_step", train_step):
        yield


@pytest.mark.parametrize("task_type", TASKS)
def test_the_command_line_stops_with_one_line_and_again_after_a_resume(settings, task_type, tmp_path, amount):
    run = tmp_path / "run"
    typed = flags(settings(task_type) | {"output_dir": str(tmp_path), "run_name": "run"})
    with in_every_trainer(Fault("loss", value=math.inf, lasts="good")):
        assert_one_line(call_main(*typed), "step 11: the loss for training examples", "lower --learning_rate")
        if amount(task_type == "lm", True):
            assert_one_line(call_main("--resume", run), "is not finite, again after going back once", "--warmup_ratio")
    assert_finite(run)


def test_a_run_that_went_back_resumes_exactly(settings, tmp_path, amount, reached):
    """Killed before and after it goes back, and before and after the next checkpoint."""
    cases = [
        ("squad", Fault("weights", "encoder.blocks.1.attention.output.weight")),
        ("lm", Fault("unused row", "embedding.tokens.weight", math.inf)),
        ("summarization", Fault("averaged", "encoder.blocks.0.feed_forward.expand.bias", -math.inf)),
        ("squad", Fault("exp_avg_sq", "encoder.blocks.1.feed_forward.expand.bias", math.inf)),
        ("lm", Fault("loss", lasts="few")),
    ]
    num_kills = 0
    for number, (task_type, fault) in enumerate(cases[: amount(2, len(cases))]):
        given = settings(task_type) | {"output_dir": str(tmp_path / f"{number}")}
        with in_every_trainer(fault), redirect_stdout(io.StringIO()) as said:
            straight = Path(train(Config(**given, run_name="straight"))["run"])
        assert ("back to step 3; from here on 0.5" in said.getvalue()) == (fault.kind in LASTING)
        for steps_made in amount((5, 9), range(4, 13)):
            run = Path(given["output_dir"]) / f"{steps_made}"
            config = Config(**given, run_name=run.name)
            status = in_child(partial(killed_run, config, fault, steps_made))
            assert status == -signal.SIGKILL
            assert in_child(partial(resumed_run, run, fault)) == 0
            assert_same_run(run, straight)
            assert scalar_series(run) == scalar_series(straight)
            assert_finite(run)
            num_kills += 1
    reached(PROMISE, f"{num_kills} of {num_kills} kills around going back: resumed to the same bits")


def killed_run(config: Config, fault: Fault, most_steps: int) -> None:
    """Trains until so many steps were tried, then dies."""
    numbers = itertools.count(1)

    def count(trainer: Trainer) -> None:
        if next(numbers) == most_steps:
            os.kill(os.getpid(), signal.SIGKILL)

    with in_every_trainer(fault, count), redirect_stdout(io.StringIO()):
        train(config)


def resumed_run(run: Path, fault: Fault) -> None:
    """Goes on to the end."""
    with in_every_trainer(fault), redirect_stdout(io.StringIO()):
        resume(run, {})
