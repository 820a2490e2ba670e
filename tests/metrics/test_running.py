"""Running means and perplexity by hand."""

import json
import math

import pytest

from him.core.errors import CheckpointError
from him.metrics import RunningMean, perplexity


def test_mean_weighs_batches_by_their_count():
    running = RunningMean()
    running.add(10.0, 4)  # a batch mean of 2.5
    running.add(9.0, 1)  # a batch mean of 9; the mean of the two batch means would be 5.75
    assert running.mean == 19 / 5


def test_mean_of_nothing_is_nan():
    running = RunningMean()
    assert math.isnan(running.mean)
    running.add(0.0, 0)
    assert math.isnan(running.mean)


def test_tensors_can_be_added():
    torch = pytest.importorskip("torch")
    running = RunningMean()
    running.add(torch.tensor(3.0), torch.tensor(2))
    assert running.state_dict() == {"total": 3.0, "count": 2.0}
    assert all(type(value) is float for value in running.state_dict().values())


def test_state_survives_json():
    running = RunningMean()
    running.add(0.1, 3)
    running.add(0.2, 4)
    restored = RunningMean()
    restored.load_state_dict(json.loads(json.dumps(running.state_dict())))
    restored.add(1.0, 1)
    running.add(1.0, 1)
    assert restored.state_dict() == running.state_dict()
    assert restored.mean == running.mean


@pytest.mark.parametrize(
    "state", [{}, {"total": 1.0}, {"total": 1.0, "count": "2"}, {"total": 1.0, "count": 1, "x": 0}]
)
def test_load_refuses_another_state(state):
    with pytest.raises(CheckpointError, match="^running mean: expected the numbers 'total' and 'count', found {"):
        RunningMean().load_state_dict(state)


@pytest.mark.parametrize("count", [-1, math.nan])
def test_load_refuses_a_bad_count(count):
    with pytest.raises(CheckpointError, match=f"^running mean: count {count} must be 0 or more"):
        RunningMean().load_state_dict({"total": 1.0, "count": count})


def test_a_count_cannot_be_negative():
    with pytest.raises(AssertionError, match="a count cannot be negative: -1.0"):
        RunningMean().add(1.0, -1)


def test_perplexity_by_hand():
    assert perplexity(0.0, 7) == 1.0
    assert perplexity(3 * math.log(8), 3) == pytest.approx(8.0)  # a uniform guess among 8
    assert perplexity(2.0, 4) == pytest.approx(math.sqrt(math.e))


def test_perplexity_edges():
    assert perplexity(709.0, 1) < math.inf
    assert perplexity(710.0, 1) == math.inf
    assert perplexity(math.inf, 1) == math.inf
    assert math.isnan(perplexity(math.nan, 1))
    assert math.isnan(perplexity(0.0, 0))
