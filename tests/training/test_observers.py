"""Observers see what a run does, and change nothing of it."""

import math
import os
from unittest import mock

import numpy as np
import pytest
import torch

from him.training import trainer as training
from tests.small_runs import records
from tests.training.toy import last_checkpoint, toy


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Waiting for the disk would be most of the time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


class Recorder:
    """Writes down what it is shown."""

    def __init__(self) -> None:
        self.updates, self.weights, self.gradients, self.evaluations, self.epochs = [], [], [], [], []

    def after_update(self, update) -> None:
        self.updates.append(update)
        self.weights.append(update.model.weight.detach().clone())
        self.gradients.append(float(torch.cat([p.grad.flatten() for p in update.model.parameters()]).norm()))

    def after_evaluation(self, step, evaluation, is_best) -> None:
        self.evaluations.append((step, evaluation.metrics["F1"], is_best))

    def at_epoch_end(self, step, epoch, means) -> None:
        self.epochs.append((step, epoch, means))


VALUES = [1.0, 3.0, 2.0]
SETTINGS = {"ema_decay": 0.5, "max_grad_norm": 1.0, "warmup_ratio": 0.5}


def test_they_see_what_is_recorded(tmp_path):
    recorder = Recorder()
    trainer = toy(tmp_path, VALUES, observers=[recorder], batch_size=8, **SETTINGS)
    trainer.fit()
    found = {(r["step"], r["tag"]): r["value"] for r in records(tmp_path)}
    assert [update.step for update in recorder.updates] == [1, 2, 3]
    for update in recorder.updates:
        assert update.loss == found[update.step, "Loss/train"]
        assert 100 * update.accuracy == found[update.step, "Accuracy/train"]
        assert update.gradient_norm == found[update.step, "Gradient_Norm/train"]
        assert update.learning_rate == found[update.step, "Learning_Rate"]
        assert sorted(update.examples) == list(range(8)), "indices of its examples"
        assert update.model is trainer.model
    assert torch.equal(recorder.weights[-1], trainer.model.weight), "the weights are those after the update"
    norms = [update.gradient_norm for update in recorder.updates]
    assert max(norms) > 1.0
    assert recorder.gradients == pytest.approx([min(norm, 1.0) for norm in norms], rel=1e-4), "clipped, and still there"
    assert recorder.evaluations == [(1, 1.0, True), (2, 3.0, True), (3, 2.0, False)]
    assert [(step, epoch) for step, epoch, _ in recorder.epochs] == [(1, 1), (2, 2), (3, 3)]
    assert [means["Loss"] for _, _, means in recorder.epochs] == [update.loss for update in recorder.updates]


def test_a_refused_update_is_not_shown(tmp_path):
    recorder = Recorder()
    trainer = toy(tmp_path, VALUES, observers=[recorder])
    trainer.task.bad_steps = {2: math.nan}
    trainer.fit()
    assert [update.step for update in recorder.updates] == [1, 3, 4, 5, 6]


def test_an_evaluation_within_an_epoch_is_shown_and_ends_none(tmp_path):
    recorder = Recorder()
    toy(tmp_path, [1.0, 2.0], observers=[recorder], num_epochs=1, eval_every_steps=1).fit()
    assert recorder.evaluations == [(1, 1.0, True), (2, 2.0, True)]
    assert [step for step, _, _ in recorder.epochs] == [2]


def test_they_change_no_bit(tmp_path):
    runs = []
    for name, observers in (("alone", []), ("watched", [Recorder(), Recorder()])):
        trainer = toy(tmp_path / name, VALUES, observers=observers, **SETTINGS)
        trainer.fit()
        kept = [r for r in records(trainer.folder.path) if r["tag"] != "Throughput/tokens_per_second"]
        runs.append((trainer.train_state.tensors(), kept, last_checkpoint(trainer).state))
    (tensors, *rest), (others, *other_rest) = runs
    assert rest == other_rest
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())


def test_nothing_is_computed_for_none(tmp_path):
    with mock.patch.object(training, "Update", side_effect=AssertionError):
        toy(tmp_path / "alone", VALUES).fit()
        with pytest.raises(AssertionError):
            toy(tmp_path / "watched", VALUES, observers=[Recorder()]).fit()


def test_several_see_the_same(tmp_path):
    first, second = Recorder(), Recorder()
    toy(tmp_path, VALUES, observers=[first, second]).fit()
    assert len(first.updates) == 6
    for one, other in zip(first.updates, second.updates, strict=True):
        assert (one.step, one.loss) == (other.step, other.loss) and np.array_equal(one.examples, other.examples)
