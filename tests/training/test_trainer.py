"""The training loop: learning on real batches, and its decisions on a toy task whose metrics are written out."""

import json
import os
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from him.core.compute import Compute
from him.runs.checkpoint import load_tensors
from him.training.schedule import lr_at
from him.training.trainer import Trainer
from tests.small_runs import new_trainer, records, scalar_series, small_settings
from tests.training.toy import last_checkpoint, toy

CPU = Compute(torch.device("cpu"), bf16=False)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Waiting for the disk would be most of the time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> dict:
    return small_settings(tmp_path_factory.mktemp("data"))


# -- learning --------------------------------------------------------------------------------------------------------

EXACT = {"precision": "fp32", "dropout": 0.0, "word_dropout": 0.0, "batch_size": 8, "learning_rate": 0.01}


def train_losses(trainer: Trainer, num_steps: int) -> list[float]:
    """Makes steps of an epoch; the loss of each."""
    trainer.start_epoch()
    losses = []
    for _ in range(num_steps):
        total = trainer.state.since_epoch["Loss"].total
        count = trainer.state.since_epoch["Loss"].count
        trainer.train_step()
        trainer.state.step += 1
        after = trainer.state.since_epoch["Loss"]
        losses.append((after.total - total) / (after.count - count))
    return losses


def test_first_loss_is_that_of_a_guess_among_the_allowed_positions(settings, tmp_path):
    trainer = new_trainer({**settings, **EXACT}, tmp_path / "run")
    trainer.start_epoch()
    batch = trainer.task.train_batch(trainer.batches[0])
    guess = np.mean([np.log(batch[name].sum(dim=1)).mean() for name in ("may_start", "may_end")])
    (loss,) = train_losses(trainer, 1)
    assert guess > 3.0
    assert loss == pytest.approx(guess, abs=0.1)


@pytest.mark.parametrize("norm_first", [True, False])
def test_one_batch_is_learned_by_heart(settings, tmp_path, norm_first):
    more = {"schedule": "constant", "num_encoder_layers": 2, "norm_first": norm_first, "num_epochs": 100}
    trainer = new_trainer({**settings, **EXACT, **more}, tmp_path / "run")
    trainer.start_epoch()
    batch = trainer.batches[0]
    trainer.batches = [batch] * trainer.steps_per_epoch
    with mock.patch.object(trainer, "start_epoch"):
        losses = train_losses(trainer, 100)
    assert losses[0] > 3.0
    assert losses[-1] < 0.1


@pytest.mark.parametrize("micro_batch_size", [1, 3, 8])
@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
def test_accumulation_gives_the_same_run(settings, tmp_path, micro_batch_size, optimizer):
    """All weights are compared with SGD: where a gradient is 0 but for rounding, Adam makes full steps either way."""
    trainers = []
    for size in (None, micro_batch_size):
        more = {
            "micro_batch_size": size,
            "schedule": "constant",
            "learning_rate": 0.01 if optimizer == "AdamW" else 0.5,
        }
        trainers.append(new_trainer({**settings, **EXACT, **more}, tmp_path / str(size)))
        if optimizer == "SGD":
            trainers[-1].train_state.optimizers = [
                torch.optim.SGD([{"params": list(trainers[-1].model.parameters()), "lr_ratio": 1.0}])
            ]
    curves = [train_losses(trainer, 6) for trainer in trainers]
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)
    assert abs(curves[0][-1] - curves[0][0]) > 0.1
    for (name, one), other in zip(trainers[0].model.named_parameters(), trainers[1].model.parameters(), strict=True):
        if optimizer == "SGD":
            torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5, msg=name)


# -- decisions on a toy task -------------------------------------------------------------------------------------------


def test_tags_steps_and_epochs(tmp_path):
    trainer = toy(tmp_path, [1.0] * 6)
    trainer.fit()
    train_tags = {
        "Loss/train",
        "Accuracy/train",
        "Gradient_Norm/train",
        "Learning_Rate",
        "Throughput/tokens_per_second",
    }
    steps = {tag: [step for step, _ in series] for tag, series in scalar_series(tmp_path).items()}
    # Every ten steps and at the end of each epoch, which has two.
    assert steps == dict.fromkeys(train_tags | {"Loss/val", "F1/val", "Diversity/distinct-1"}, [2, 4, 6, 8, 10, 12])
    assert {(r["step"], r["epoch"], r["stage"]) for r in records(tmp_path)} == {
        (2 * epoch, float(epoch), stage) for epoch in range(1, 7) for stage in ("train", "validation")
    }


def test_a_record_every_ten_steps(tmp_path):
    trainer = toy(tmp_path, [1.0] * 3, batch_size=1, num_epochs=3)
    trainer.fit()
    assert [step for step, _ in scalar_series(tmp_path)["Loss/train"]] == [8, 10, 16, 20, 24]


def test_recorded_loss_is_the_mean_over_all_targets_since_the_last_record(tmp_path):
    """Rows in batches of 3, 3 and 2, without learning: the mean of an epoch is that over its 8 rows."""
    trainer = toy(tmp_path, [1.0], batch_size=3, learning_rate=1e-12)
    with torch.no_grad():
        batch = trainer.task.train_batch(np.arange(8))
        errors = (trainer.model(batch["x"])[:, 0] - batch["y"]).square()
    trainer.fit()
    found = {r["tag"]: r["value"] for r in records(tmp_path)}
    assert found["Loss/train"] == pytest.approx(errors.mean().item(), rel=1e-5)
    assert found["Accuracy/train"] == pytest.approx(100 * (errors < 0.1).float().mean().item())
    assert trainer.progress.tokens_seen == sum(range(2, 10))


def test_rate_and_norm_are_recorded_as_they_were_used(tmp_path):
    trainer = toy(tmp_path, [1.0] * 4, max_grad_norm=0.001)
    norms = []
    original = nn.utils.clip_grads_with_norm_

    def clip(parameters, most, norm):
        parameters = list(parameters)
        norms.append(float(torch.cat([p.grad.flatten() for p in parameters]).norm()))
        return original(parameters, most, norm)

    with mock.patch.object(nn.utils, "clip_grads_with_norm_", clip):
        trainer.fit()
    series = scalar_series(tmp_path)
    assert series["Gradient_Norm/train"] == [(step, pytest.approx(norms[step - 1], rel=1e-5)) for step in (2, 4, 6, 8)]
    assert min(norms) > 0.01, "norms are those before clipping"
    rates = [lr_at(step - 1, trainer.config, 8) for step in (2, 4, 6, 8)]
    assert [rate for _, rate in series["Learning_Rate"]] == pytest.approx(rates)


@pytest.mark.parametrize(("max_steps", "epochs", "last"), [(None, 3, 6), (4, 2, 4), (5, 3, 5), (1, 1, 1), (99, 3, 6)])
def test_the_budget_is_the_smaller_one(tmp_path, max_steps, epochs, last):
    trainer = toy(tmp_path, [1.0] * 3, max_steps=max_steps)
    trainer.fit()
    assert trainer.state.step == last
    assert len(trainer.task.evaluated) == epochs
    assert last_checkpoint(trainer).state["step"] == last


def test_best_is_the_first_of_the_highest(tmp_path):
    trainer = toy(tmp_path, [10.0, 30.0, 20.0, 30.0])
    trainer.fit()
    assert (trainer.state.best_value, trainer.state.best_step, trainer.state.bad_epochs) == (30.0, 4, 2)
    assert torch.equal(load_tensors(tmp_path / "best" / "model.safetensors")["weight"], trainer.task.evaluated[1])
    metrics = json.loads((tmp_path / "best" / "metrics.json").read_text())
    assert metrics == {"step": 4, "epoch": 2.0, "Loss": 1.0, "F1": 30.0, "Diversity/distinct-1": 0.5}


@pytest.mark.parametrize(
    ("patience", "values", "num_epochs"),
    [(1, [1.0, 2.0, 2.0, 9.0], 3), (2, [5.0, 1.0, 6.0, 1.0, 1.0, 9.0], 5), (0, [5.0, 1.0, 1.0, 1.0], 4)],
)
def test_early_stopping(tmp_path, capsys, patience, values, num_epochs):
    trainer = toy(tmp_path, values, early_stopping_epochs=patience)
    trainer.fit()
    assert len(trainer.task.evaluated) == num_epochs
    assert trainer.state.step == 2 * num_epochs
    message = f"stopped early: F1 was best {patience} epochs ago"
    assert (message in capsys.readouterr().out) == (patience > 0)


def test_a_run_that_stopped_early_goes_on_with_more_patience(tmp_path):
    values = [5.0, 1.0, 1.0, 9.0]
    toy(tmp_path, values, early_stopping_epochs=1).fit()
    again = toy(tmp_path, values, last_checkpoint(toy(tmp_path, values)), early_stopping_epochs=1)
    again.fit()
    assert again.state.step == 4, "the same patience: it stays stopped"
    patient = toy(tmp_path, values[2:], last_checkpoint(again), early_stopping_epochs=3, num_epochs=4)
    patient.fit()
    assert (patient.state.step, patient.state.best_value) == (8, 9.0)


def test_plateau_halves_after_each_epoch_that_brings_nothing(tmp_path):
    trainer = toy(tmp_path, [5.0, 6.0, 6.0, 7.0, 1.0, 2.0], schedule="plateau", warmup_ratio=0.0)
    trainer.fit()
    rates = [rate for _, rate in scalar_series(tmp_path)["Learning_Rate"]]
    assert rates == pytest.approx([0.01, 0.01, 0.01, 0.005, 0.005, 0.0025])


def test_ema_weights_are_evaluated_and_kept_and_the_others_trained_on(tmp_path):
    trainer = toy(tmp_path, [1.0, 2.0], ema_decay=0.9)
    plain = toy(tmp_path / "plain", [1.0, 2.0])
    trainer.fit()
    plain.fit()
    assert torch.equal(trainer.model.weight, plain.model.weight), "averaging changes no update"
    ema = trainer.train_state.ema.weights["weight"]
    assert not torch.equal(ema, trainer.model.weight)
    assert torch.equal(trainer.task.evaluated[-1], ema)
    assert torch.equal(load_tensors(tmp_path / "best" / "model.safetensors")["weight"], ema)
    checkpoint = last_checkpoint(trainer)
    assert torch.equal(checkpoint.weights["weight"], trainer.model.weight)
    assert torch.equal(checkpoint.ema["weight"], ema)


def test_lines_after_each_epoch(tmp_path, capsys):
    toy(tmp_path, [12.345, 20.0]).fit()
    first, second = capsys.readouterr().out.splitlines()
    number, percent = r"[\d.]+", r"[\d.]+ %"
    import re

    pattern = f"epoch {{}}/2  loss {number} → {number}  accuracy {percent} → {percent}  Loss/val 1  F1/val {{}}"
    assert re.fullmatch(pattern.format(1, "12.35|12.34"), first) or re.fullmatch(pattern.format(1, "12.3[45]"), first)
    assert re.fullmatch(pattern.format(2, "20"), second)
    after_first = re.search(f"→ ({number})", first)[1]
    assert f"loss {after_first} →" in second
