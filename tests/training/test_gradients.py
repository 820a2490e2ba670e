"""The gradients of a batch: the same ones in however many passes, with the dropout of their step."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from him.config import Config
from him.core.compute import Compute, is_out_of_memory
from him.core.errors import HimError
from him.tasks.base import LossSums
from him.training import gradients as gradients_module
from him.training.gradients import Gradients, step_seed
from him.training.objective import Objective
from tests.small_runs import new_trainer, small_settings

CPU = Compute(torch.device("cpu"), bf16=False)
EXACT = {"precision": "fp32", "dropout": 0.0, "word_dropout": 0.0, "batch_size": 8}


def test_dropout_depends_on_seed_and_step_only():
    assert step_seed(3, 5) == step_seed(3, 5)
    assert len({step_seed(seed, step) for seed in range(20) for step in range(20)}) == 400
    assert 0 <= step_seed(2**32 - 1, 10**9) < 2**63


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> dict:
    return small_settings(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("micro_batch_size", [1, 3, 8])
def test_accumulated_gradients_are_those_of_the_whole_batch(settings, tmp_path, micro_batch_size):
    """8 rows in parts of 3 are 3 + 3 + 2: a mean of means would give the last part too much weight."""
    gradients = []
    for size in (None, micro_batch_size):
        trainer = new_trainer({**settings, **EXACT, "micro_batch_size": size}, tmp_path / str(size))
        trainer.start_epoch()
        trainer.model.train()
        loss, accuracy, num_tokens = trainer.gradients.accumulate(trainer.batches[0], 0)
        assert num_tokens == trainer.task.train_lengths[trainer.batches[0]].sum()
        assert loss.count == accuracy.count == 16
        gradients.append({name: p.grad for name, p in trainer.model.named_parameters()} | {"": torch.tensor(loss.mean)})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    "given, longest, expected",
    [
        ({}, 100, 8),
        ({"micro_batch_size": 3}, 100, 3),
        ({"micro_batch_tokens": 450}, 100, 4),
        ({"micro_batch_tokens": 450, "micro_batch_size": 3}, 100, 3),
        ({"micro_batch_tokens": 50}, 100, 1),
        ({}, 2000, 3),  # 6144 tokens on a CPU
    ],
)
def test_long_batches_are_cut(given, longest, expected):
    task = SimpleNamespace(train_lengths=np.array([10] * 7 + [longest]))
    gradients = Gradients(task, Objective(task), Config(batch_size=8, **given), CPU, nn.Linear(2, 1), str)
    assert gradients.micro_batch_size(np.arange(8)) == expected


@pytest.mark.parametrize(
    "most_tokens, longest, expected", [(96, 10, 3), (96, 32, 3), (96, 33, 1), (95, 10, 2), (1, 9, 1)]
)
def test_padding_counts_where_memory_ran_out(most_tokens, longest, expected):
    """Rows are padded to a multiple of 32."""
    task = SimpleNamespace(train_lengths=np.array([9] * 7 + [longest]))
    gradients = Gradients(
        task, Objective(task), Config(batch_size=8, max_seq_len=64, doc_stride=16), CPU, nn.Linear(2, 1), str
    )
    gradients.most_tokens = most_tokens
    assert gradients.micro_batch_size(np.arange(8)) == expected


@pytest.fixture(autouse=True)
def no_collecting(monkeypatch):
    """Looking for the garbage of all tests would be most of the time."""
    monkeypatch.setattr(gradients_module, "release_memory", lambda: None)


# -- a toy task ------------------------------------------------------------------------------------------------------


class Toy:
    """Regression on rows of 32 tokens each, on a machine with room for a few; remembers every forward pass.

    Args:
        most_rows: in a pass.
        fails_at: the row with which the memory runs out, whatever the size of the pass.
    """

    train_lengths = np.array([32] * 8)

    def __init__(self, most_rows: int = 8, fails_at: int | None = None) -> None:
        self.most_rows, self.fails_at = most_rows, fails_at
        self.passes: list[list[int]] = []
        self.outputs: list[Tensor] = []

    def source_indices(self, examples: np.ndarray) -> np.ndarray:
        return examples + 100

    def train_batch(self, examples: np.ndarray) -> dict[str, Tensor]:
        rows = torch.from_numpy(np.asarray(examples)).float()
        mask = torch.ones(len(rows), 32, dtype=torch.bool)
        return {"x": torch.stack((rows, rows.cos()), dim=1), "y": rows.sin(), "attention_mask": mask}

    def num_targets(self, batch: dict[str, Tensor]) -> int:
        return len(batch["x"])

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> LossSums:
        rows = batch["x"][:, 0].int().tolist()
        if len(rows) > self.most_rows or (len(rows) > 1 and self.fails_at in rows):
            raise MemoryError
        self.passes.append(rows)
        output = model(batch["x"])[:, 0]
        self.outputs.append(output.detach())
        errors = (output - batch["y"]).square()
        return LossSums(errors.sum(), len(errors), (errors < 0.1).sum())


def toy(task: Any, model: nn.Module | None = None) -> tuple[Gradients, list[str]]:
    torch.manual_seed(0)
    said: list[str] = []
    model = nn.Linear(2, 1) if model is None else model
    return Gradients(
        task, Objective(task), Config(batch_size=8, max_seq_len=32, doc_stride=16), CPU, model, said.append
    ), said


def gradients_of(gradients: Gradients) -> Tensor:
    return torch.cat([each.grad.flatten() for each in gradients.model.parameters()])


@pytest.mark.parametrize("task", [Toy(2), Toy(fails_at=7)])
def test_halves_of_halves_until_they_fit(task):
    """Also where the last pass of several runs out, when gradients of the others are there: none counts twice."""
    straight, _ = toy(Toy())
    expected = straight.accumulate(np.arange(8), 3)
    limited, said = toy(task)
    loss, accuracy, num_tokens = limited.accumulate(np.arange(8), 3)
    torch.testing.assert_close(gradients_of(limited), gradients_of(straight))
    assert (loss.count, accuracy.total, num_tokens) == (8, expected[1].total, 256)
    assert loss.mean == pytest.approx(expected[0].mean)
    kept = task.passes[-8 // limited.micro_batch_size(np.arange(8)) :]
    assert [row for rows in kept for row in rows] == list(range(8))
    assert [line.split(";")[0] for line in said] == [
        f"step 4: out of memory with {rows} examples of up to 32 tokens in a pass" for rows in (8, 4, 2)[: len(said)]
    ]
    assert limited.most_tokens == 32 * len(kept[0])
    num_passes = len(task.passes)
    limited.accumulate(np.arange(8), 4)
    assert len(task.passes) == num_passes + len(kept), "it is remembered"


def test_what_is_remembered_counts_the_padding():
    """Rows of 30 tokens take the room of 32."""
    task = Toy(4)
    task.train_lengths = np.array([30] * 8)
    gradients, _ = toy(task)
    gradients.accumulate(np.arange(8), 0)
    assert gradients.most_tokens == 4 * 32


def test_a_single_example_without_room():
    gradients, said = toy(Toy(0))
    with pytest.raises(
        HimError, match="^step 4: out of memory with a single example of 32 tokens .MemoryError.; lower --max_seq_len"
    ):
        gradients.accumulate(np.arange(8), 3)
    assert len(said) == 3
    assert all(parameter.grad is None for parameter in gradients.model.parameters())


@pytest.mark.parametrize("error", [RuntimeError("shapes"), ValueError("can't allocate memory"), KeyError("x")])
def test_other_errors_pass(error):
    task = Toy()
    task.loss = lambda *inputs: (_ for _ in ()).throw(error)
    with pytest.raises(type(error)) as raised:
        toy(task)[0].accumulate(np.arange(8), 3)
    assert raised.value is error


@pytest.mark.parametrize(
    "error, expected",
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("DefaultCPUAllocator: can't allocate memory"), False),
    ],
)
def test_what_is_out_of_memory(error, expected):
    assert is_out_of_memory(error) == expected


def test_the_longest_are_tried_and_leave_nothing():
    task = Toy()
    task.train_lengths = np.array([5, 32, 7, 31, 9, 30, 3, 29, 2, 28, 4, 27])
    gradients, _ = toy(task)
    gradients.try_longest_batch(0)
    assert task.passes == [[1, 3, 5, 7, 9, 11, 4, 2]]
    assert all(parameter.grad is None for parameter in gradients.model.parameters())


def test_the_non_finite_source_is_looked_for_with_the_same_dropout_in_the_same_passes():
    task = Toy(3)
    gradients, _ = toy(task, nn.Sequential(nn.Linear(2, 64), nn.Dropout(0.5), nn.Linear(64, 1)))
    gradients.most_tokens = 3 * 32
    gradients.accumulate(np.arange(8), 5)
    before = task.outputs[:]
    gradients.model[2].bias.grad.fill_(math.nan)
    found = gradients.non_finite_source(np.arange(8), 5, loss_is_finite=True)
    assert found == f"the gradient of 2.bias for training examples {', '.join(map(str, range(100, 108)))}"
    assert task.passes == 2 * [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert all(map(torch.equal, before, task.outputs[3:]))
    assert not torch.equal(before[0], task.outputs[1][:3])
