"""Train state: what a checkpoint gives back, and of what it is refused."""

import os
from unittest import mock

import numpy as np
import pytest
import torch

from him.core.errors import CheckpointError
from tests.training.toy import ToyTask, last_checkpoint, toy


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Waiting for the disk would be most of the time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def test_other_training_data_is_refused(tmp_path):
    trainer = toy(tmp_path, [1.0] * 2)
    trainer.fit()
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with (
        mock.patch.object(ToyTask, "train_lengths", np.arange(3, 11)),
        pytest.raises(CheckpointError, match="was made with other training data; restore the data, or start a new run"),
    ):
        toy(tmp_path, [1.0] * 4, last_checkpoint(trainer))
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_weights_of_another_shape_are_refused(tmp_path):
    trainer = toy(tmp_path, [1.0] * 2)
    trainer.fit()
    checkpoint = last_checkpoint(trainer)
    checkpoint.weights["weight"] = torch.zeros(3, 3)
    with pytest.raises(
        CheckpointError, match=r"the checkpoint: weight has shape \[3, 3\], this model has \[1, 2\]; restore"
    ):
        toy(tmp_path, [1.0] * 4, checkpoint)


def test_other_validation_data_are_refused(tmp_path):
    trainer = toy(tmp_path, [1.0] * 2)
    trainer.fit()
    with (
        mock.patch.object(ToyTask, "validation_digest", "other"),
        pytest.raises(CheckpointError, match="was made with other validation data, by which its best model was chosen"),
    ):
        toy(tmp_path, [1.0] * 4, last_checkpoint(trainer))


def test_all_of_it_comes_back_into_the_same_objects(tmp_path):
    """The parts of a trainer share one place in the loop, also after a checkpoint was put into it."""
    trainer = toy(tmp_path, [1.0, 2.0], ema_decay=0.5)
    trainer.fit()
    saved = last_checkpoint(trainer)
    again = toy(tmp_path, [1.0, 2.0], saved, ema_decay=0.5)
    for name, tensor in trainer.train_state.tensors().items():
        assert torch.equal(again.train_state.tensors()[name], tensor), name
    loop = again.train_state.loop
    assert loop.to_dict() == trainer.state.to_dict()
    assert all(part.loop is loop for part in (again.progress, again.best_model, again.saver))
    assert again.state is loop
