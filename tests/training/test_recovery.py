"""Recovery from what is not finite: an update that is refused, and a run that goes back once."""

import dataclasses
import math
import os
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from him.core.errors import HimError
from him.runs.checkpoint import load_tensors
from him.training.trainer import RolledBack, Trainer
from tests.small_runs import records, scalar_series
from tests.training.toy import toy


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Waiting for the disk would be most of the time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def snapshot(trainer: Trainer) -> Iterator[Tensor]:
    yield from (tensor.clone() for tensor in trainer.model.state_dict().values())
    for state in trainer.train_state.optimizers[0].state.values():
        yield from (tensor.clone() for tensor in state.values())
    yield from (tensor.clone() for tensor in trainer.train_state.ema.weights.values())


@pytest.mark.parametrize("factor", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_changes_nothing(tmp_path, capsys, factor):
    trainer = toy(tmp_path, [1.0] * 4, ema_decay=0.5)
    trainer.task.bad_steps = {3: factor}
    trainer.start_epoch()
    for _ in range(2):
        trainer.train_step()
        trainer.state.step += 1
    before = list(snapshot(trainer))
    capsys.readouterr()
    trainer.train_step()
    assert all(torch.equal(one, other) for one, other in zip(before, snapshot(trainer), strict=True))
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"step 3: loss {factor:.4g}, gradient norm ")
    assert line.endswith("; first not finite: the loss for training examples 0, 1, 2, 3; the update is not made")
    assert trainer.state.refused_in_a_row == 1
    trainer.state.step += 1
    trainer.train_step()
    assert trainer.state.refused_in_a_row == 0
    assert not torch.equal(before[0], next(iter(snapshot(trainer))))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(tmp_path, capsys, value):
    """The loss may be finite where its gradient is not."""
    trainer = toy(tmp_path, [1.0], ema_decay=0.5)
    before = list(snapshot(trainer))
    hook = trainer.model.bias.register_hook(lambda gradient: gradient * value)
    trainer.start_epoch()
    trainer.train_step()
    hook.remove()
    assert all(torch.equal(one, other) for one, other in zip(before, snapshot(trainer), strict=True))
    said = f"gradient norm {value:.4g}; first not finite: the gradient of bias for training "
    assert said in capsys.readouterr().out
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


@pytest.mark.parametrize("key", ["max_exp_avg_sq", "a_number"])
def test_whatever_an_optimizer_holds_has_to_be_finite(tmp_path, capsys, key):
    """An infinite `max_exp_avg_sq` stops a weight for ever, and nothing else shows it: the weights stay finite."""
    trainer = toy(tmp_path, [1.0] * 2)
    trainer.train_state.optimizers = [torch.optim.AdamW(trainer.model.parameters(), amsgrad=True, fused=True)]
    trainer.train_state.optimizers[0].param_groups[0]["lr_ratio"] = 1.0
    trainer.save()
    trainer.start_epoch()
    trainer.train_step()
    trainer.state.step += 1
    state = trainer.train_state.optimizers[0].state[trainer.model.weight]
    if key == "a_number":
        state[key] = math.inf
    else:
        state[key].view(-1)[0] = math.inf
    capsys.readouterr()
    with pytest.raises(RolledBack):
        trainer.train_step()
    first, second = capsys.readouterr().out.splitlines()
    named = key if key == "max_exp_avg_sq" else f"{key}.number"
    assert first.endswith(f"first not finite: the optimizer state weight.{named}")
    assert second.startswith("back to step 0; ")


def test_refused_steps_count_in_no_mean_and_are_null_in_the_records(tmp_path):
    trainer = toy(tmp_path, [1.0] * 2)
    trainer.task.bad_steps = {2: math.nan}
    trainer.fit()
    found = {(r["step"], r["tag"]): r["value"] for r in records(tmp_path)}
    assert found[2, "Gradient_Norm/train"] is None
    assert math.isfinite(found[2, "Loss/train"])
    assert math.isfinite(found[4, "Gradient_Norm/train"])


def test_five_in_a_row_go_back_once_then_end_the_run_and_no_file_holds_a_nan(tmp_path, capsys):
    trainer = toy(tmp_path, [1.0] * 9, ema_decay=0.5, save_every_steps=4, keep_checkpoints=100)
    trainer.task.bad_steps = {2: math.nan} | dict.fromkeys(range(9, 20), math.nan)
    message = (
        r"^step 17: the loss for training examples [0-7, ]+ is not finite, again after going back once with a lower "
        r"rate; lower --learning_rate \(0\.01\), raise --warmup_ratio, or use --precision fp32; the checkpoints in .* "
        r"are finite$"
    )
    trainer.config = dataclasses.replace(trainer.config, schedule="constant", warmup_ratio=0.0)
    with pytest.raises(HimError, match=message):
        trainer.fit()
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "back" in line] == ["back to step 12; from here on 0.5 of the learning rate"]
    rates = dict(scalar_series(tmp_path)["Learning_Rate"])
    assert (rates[12], rates[14]) == (pytest.approx(0.01), pytest.approx(0.005))
    files = list(tmp_path.rglob("*.safetensors"))
    assert len(files) >= 3 * 7 + 1
    for path in files:
        assert all(torch.isfinite(tensor).all() for tensor in load_tensors(path).values()), path
    # What was recorded up to then is on the disk: it shows why.
    assert [r["value"] for r in records(tmp_path) if r["tag"] == "Gradient_Norm/train"][-1] is None


def test_four_in_a_row_do_not(tmp_path):
    trainer = toy(tmp_path, [1.0] * 6)
    trainer.task.bad_steps = dict.fromkeys([1, 2, 3, 4, 6, 7, 8, 9], math.nan)
    trainer.fit()
    assert trainer.state.step == 12
