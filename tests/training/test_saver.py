"""Checkpoint saver: when one is due, and a disk that is full for a while."""

import os
import time
from unittest import mock

import pytest

from him.core.files import CannotWrite
from him.runs.checkpoint import Checkpoints
from tests.training.toy import last_checkpoint, toy


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Waiting for the disk would be most of the time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.mark.parametrize(
    ("step", "settings", "best_step", "waits", "expected"),
    [
        (3, {}, 0, False, False),
        (4, {}, 0, False, True),  # the end of an epoch
        (3, {}, 3, False, True),  # a new best model
        (3, {"save_every_steps": 3}, 0, False, True),
        (5, {"save_every_steps": 3}, 0, False, False),
        (23, {"max_steps": 23}, 0, False, True),  # the end of the run
        (9, {}, 0, True, False),
        (10, {"batch_size": 8}, 0, True, True),  # tried again
        (15, {"batch_size": 1}, 0, True, False),
        (10, {"batch_size": 1}, 0, True, True),
        (10, {"batch_size": 1}, 0, False, False),
    ],
)
def test_when_it_is_due(tmp_path, step, settings, best_step, waits, expected):
    """Two steps an epoch in batches of 4, one in batches of 8, eight in batches of 1."""
    trainer = toy(tmp_path, [1.0] * 12, save_every_minutes=0.0, **settings)
    trainer.state.step, trainer.state.best_step, trainer.saver.waits_for_room = step, best_step, waits
    assert trainer.saver.is_due() is expected


def test_it_is_due_after_so_many_minutes(tmp_path, monkeypatch):
    now = time.monotonic()
    trainer = toy(tmp_path, [1.0] * 12, save_every_minutes=2.0)
    trainer.state.step, trainer.state.best_step = 3, 2
    for seconds, expected in ((100.0, False), (121.0, True)):
        monkeypatch.setattr(time, "monotonic", lambda seconds=seconds: now + seconds)
        assert trainer.saver.is_due() is expected
    trainer.save()
    assert not trainer.saver.is_due()


def test_a_full_disk_is_told_once_and_when_it_is_over(tmp_path, capsys):
    trainer = toy(tmp_path, [1.0] * 4)
    original, refused = Checkpoints.save, []

    def save(checkpoints, checkpoint, step, best_step=None):
        if 2 <= step <= 4:
            refused.append(step)
            raise CannotWrite("no space")
        original(checkpoints, checkpoint, step, best_step)

    with mock.patch.object(Checkpoints, "save", save):
        trainer.fit()
    assert refused == [2, 4]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert lines == ["step 2: no space; training goes on and tries again", "step 6: saved, there is room again"]
    assert last_checkpoint(trainer).step == 8


@pytest.mark.parametrize("saved", [True, False])
def test_what_was_never_saved_is_told_at_the_end(tmp_path, capsys, saved):
    trainer = toy(tmp_path, [1.0] * 2)
    original = Checkpoints.save

    def save(checkpoints, checkpoint, step, best_step=None):
        if step > 0 or not saved:
            raise CannotWrite("no space")
        original(checkpoints, checkpoint, step, best_step)

    with mock.patch.object(Checkpoints, "save", save):
        trainer.fit()
    last = "step_00000000" if saved else "the beginning"
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"step 4: not saved for lack of room; --resume would go back to {last}"
    )
    assert (trainer.folder.best / "model.safetensors").is_file()
