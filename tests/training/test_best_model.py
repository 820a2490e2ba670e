"""Best model: which one it is, where there is no room for it, and where it is damaged."""

import math
import os
from unittest import mock

import pytest
import torch

from him.core.errors import CheckpointError
from him.core.files import CannotWrite
from him.runs.checkpoint import load_tensors, save_model
from him.tasks.base import Evaluation
from him.training import best_model as room
from tests.training.toy import ToyTask, last_checkpoint, toy


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Waiting for the disk would be most of the time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [
        ("F1", [10.0, 30.0, 20.0, 30.0], [True, True, False, False]),
        ("Loss", [3.0, 1.0, 2.0, 1.0], [True, True, False, False]),
        ("F1", [math.nan, 1.0, math.nan, 0.5], [True, True, False, False]),
        ("Loss", [math.nan, math.nan, 5.0, math.nan], [True, True, True, False]),
    ],
)
def test_the_best_is_the_first_of_the_best(tmp_path, monkeypatch, metric, values, best):
    """And anything is better than what is not a number."""
    monkeypatch.setattr(ToyTask, "best_metric", metric)
    trainer = toy(tmp_path, [1.0])
    found = []
    for step, value in enumerate(values, start=1):
        trainer.state.step = step
        found.append(trainer.best_model.consider(trainer.model, Evaluation({metric: value}), epoch=step / 2))
    assert found == best
    last = max(step for step, is_best in enumerate(best, start=1) if is_best)
    assert trainer.state.best_step == last
    assert trainer.state.best_value == values[last - 1]


def test_a_model_without_room_waits_as_it_was(tmp_path, capsys):
    """The model itself is trained on in the meantime."""
    trainer = toy(tmp_path, [1.0])
    trainer.state.step = 4
    evaluated = trainer.model.weight.detach().clone()
    full = mock.Mock(side_effect=CannotWrite("no space"))
    with mock.patch.object(room, "save_model", full):
        assert trainer.best_model.consider(trainer.model, Evaluation({"F1": 5.0}), epoch=2.0)
        with torch.no_grad():
            trainer.model.weight.add_(1.0)
        with pytest.raises(CannotWrite):
            trainer.best_model.write()
    assert capsys.readouterr().out == "step 4: no space; training goes on and tries again\n"
    assert not trainer.folder.best.exists()
    trainer.best_model.write()
    assert torch.equal(load_tensors(trainer.folder.best / "model.safetensors")["weight"], evaluated)
    with mock.patch.object(room, "save_model", full):
        trainer.best_model.write()  # nothing waits any more


def test_a_damaged_one_is_made_again_from_its_checkpoint(tmp_path, capsys):
    trainer = toy(tmp_path, [1.0, 2.0], ema_decay=0.5)
    trainer.fit()
    path = trainer.folder.best / "model.safetensors"
    before = load_tensors(path)["weight"].clone()
    path.write_bytes(path.read_bytes()[:-1])
    again = toy(tmp_path, [1.0, 2.0], last_checkpoint(trainer), ema_decay=0.5)
    trained_on = again.model.weight.detach().clone()
    capsys.readouterr()
    again.restore_best()
    (line,) = capsys.readouterr().out.splitlines()
    assert "; it is made again from " in line and line.endswith("and what is there is quarantined as best.damaged")
    assert torch.equal(load_tensors(path)["weight"], before)
    assert torch.equal(again.model.weight, trained_on) and not torch.equal(trained_on, before)


def test_a_damaged_one_without_its_checkpoint_is_an_error(tmp_path):
    trainer = toy(tmp_path, [1.0, 2.0])
    trainer.fit()
    checkpoint = last_checkpoint(trainer)
    for folder in (trainer.folder.best, trainer.checkpoints.path_of(trainer.state.best_step)):
        (folder / "model.safetensors").unlink()
    again = toy(tmp_path, [1.0, 2.0], checkpoint)
    with pytest.raises(
        CheckpointError, match="and so is its checkpoint; restore it from a copy, or start the run again"
    ):
        again.restore_best()


def test_what_is_saved_is_the_model_with_its_metrics(tmp_path):
    trainer = toy(tmp_path, [1.0])
    with mock.patch.object(room, "save_model", wraps=save_model) as saved:
        trainer.state.step = 3
        trainer.best_model.consider(trainer.model, Evaluation({"F1": 5.0, "Loss": 2.0}), epoch=1.5)
    folder, config, model, task, metrics = saved.call_args.args
    assert (folder, config, model, task) == (trainer.folder.best, trainer.config, trainer.model, trainer.task)
    assert metrics == {"step": 3, "epoch": 1.5, "F1": 5.0, "Loss": 2.0}
