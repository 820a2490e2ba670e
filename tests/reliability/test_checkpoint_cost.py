"""What saving costs: less than 1 % of the training time at a checkpoint a minute, for a model of 20 MB."""

import statistics
import time

import pytest
import torch
from torch import nn

from him.config import Config
from him.runs.checkpoint import Checkpoint, Checkpoints, optimizer_tensors
from him.training.optimizers import build_optimizers

MEGABYTES = 20
STATE = {"loop": {}, "machine": {"num_threads": 1}, "config": {}}


def test_checkpoints_cost_less_than_one_percent(tmp_path, amount, reached):
    """Weights and optimizer state, checksums and waiting for the disk included."""
    num_saves = amount(0, 15)
    if not num_saves:
        pytest.skip("only in the full form: it measures the machine")
    model = nn.Sequential(*(nn.Linear(500, 500, bias=False) for _ in range(MEGABYTES)))
    assert sum(parameter.nbytes for parameter in model.parameters()) == MEGABYTES * 1_000_000
    optimizers = build_optimizers(model, Config())
    model(torch.randn(4, 500)).square().sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    checkpoints, seconds = Checkpoints(tmp_path, 2), []
    for step in range(1, num_saves + 1):
        begun_at = time.perf_counter()
        checkpoint = Checkpoint(STATE, model.state_dict(), optimizer_tensors(model, optimizers), {})
        checkpoints.save(checkpoint, step, best_step=1)
        seconds.append(time.perf_counter() - begun_at)
    median = statistics.median(seconds)
    reached(
        "checkpoints cost little",
        f"{MEGABYTES} MB of weights: {median:.2f} s a checkpoint (median of {num_saves}, at most {max(seconds):.2f}), "
        f"{100 * median / 60:.2f} % of the time at one a minute",
    )
    assert median < 0.01 * 60
