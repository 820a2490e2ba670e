"""EMA weights against numbers worked out by hand."""

import pytest
from torch import nn

from him.training.ema import ExponentialMovingAverage


def test_average_by_hand():
    """The decay is min(0.15, (1 + n) / (10 + n)): 1/10, then 2/11 = 0.18 is above 0.15."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 10.0)
    averaged = ExponentialMovingAverage(model, decay=0.15)
    for num_updates, weight, average in ((0, 20.0, 19.0), (1, 40.0, 0.15 * 19.0 + 0.85 * 40.0)):
        nn.init.constant_(model.weight, weight)
        averaged.update(model, num_updates)
        assert averaged.weights["weight"].item() == pytest.approx(average, rel=1e-6)
    assert model.weight.item() == 40.0


@pytest.mark.parametrize("fails", [False, True])
def test_swapped_in_and_back(fails):
    """Also after an error in between."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 3.0)
    averaged = ExponentialMovingAverage(model, decay=0.9)
    nn.init.constant_(model.weight, 5.0)
    try:
        with averaged.swapped_into(model):
            assert model.weight.item() == 3.0
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert model.weight.item() == 5.0
    assert averaged.weights["weight"].item() == 3.0
