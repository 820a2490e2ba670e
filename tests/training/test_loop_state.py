"""What a checkpoint holds about the loop: it survives JSON, and what is something else is refused."""

import json
import math

import pytest

from him.core.errors import CheckpointError
from him.metrics.running import RunningMean
from him.training.loop_state import LoopState


def a_state() -> LoopState:
    state = LoopState(step=7, best_value=0.1 + 0.2, best_step=4, bad_epochs=1, plateau_reductions=2)
    state.rate_factor, state.most_tokens, state.evaluation_due = 0.5, 384, True
    state.since_log["Loss"].add(1 / 3, 3)
    state.since_epoch["Accuracy"].add(2.0, 3)
    state.epoch_before = {"Loss": 1 / 7, "Accuracy": 0.3}
    return state


@pytest.mark.parametrize("state", [LoopState(), a_state()])
def test_it_survives_json(state):
    assert LoopState.from_dict(json.loads(json.dumps(state.to_dict()))).to_dict() == state.to_dict()


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_best_value_may_be_what_a_metric_may_be(value):
    state = {**a_state().to_dict(), "best_value": value}
    assert str(LoopState.from_dict(json.loads(json.dumps(state))).best_value) == str(value)


def test_states_share_no_sums():
    LoopState().since_log["Loss"].add(1.0, 1)
    assert LoopState().since_log["Loss"].count == 0


@pytest.mark.parametrize("name", LoopState().to_dict())
def test_a_missing_value_is_refused(name):
    """Beginning at its default would be another run."""
    state = a_state().to_dict()
    del state[name]
    with pytest.raises(CheckpointError, match=rf"^not a state of this HIM \({name}\)$"):
        LoopState.from_dict(state)


@pytest.mark.parametrize("name", ["", "steps", "to_dict", "__class__", 3])
def test_an_unknown_value_is_refused(name):
    with pytest.raises(CheckpointError, match="^not a state of this HIM"):
        LoopState.from_dict({**a_state().to_dict(), name: 1})


@pytest.mark.parametrize("data", [None, [], [1], "step", 3, [[]], {}])
def test_what_is_no_state_is_refused(data):
    with pytest.raises(CheckpointError, match="^not a state of this HIM"):
        LoopState.from_dict(data)


HUGE = 10**400
ODD_COUNTS = (-1, 2**53 + 1, HUGE, 1.0, True, "1", [1], {}, math.nan)
ODD = {
    "step": (None, 3, *ODD_COUNTS),  # 3 is before the best step
    "best_step": (None, 8, *ODD_COUNTS),
    "bad_epochs": (None, *ODD_COUNTS),
    "plateau_reductions": (None, *ODD_COUNTS),
    "refused_in_a_row": (None, *ODD_COUNTS),
    "most_tokens": ODD_COUNTS,
    "evaluation_due": (None, 0, 1, "true", []),
    "stopped_early": (None, 0, 1, "true", []),
    "best_value": (HUGE, True, "0.3", [], {}),
    "rate_factor": (None, 0.0, -0.5, 1.5, math.nan, math.inf, HUGE, True, "0.5"),
    "epoch_before": (
        None,
        [],
        "Loss",
        {"Loss": 1.0},
        {"Loss": 1.0, "Accuracy": None},
        {"Loss": math.nan, "Accuracy": 0.5},
        {"Loss": HUGE, "Accuracy": 0.5},
        {"Loss": 1.0, "Accuracy": 0.5, "F1": 1.0},
    ),
}
MEANS = {"total": 1.0, "count": 1.0}
for _name in ("since_log", "since_epoch"):
    ODD[_name] = (
        None,
        [],
        "Loss",
        {},
        {"Loss": MEANS},
        {"Loss": MEANS, "Accuracy": None},
        {"Loss": MEANS, "Accuracy": {"total": 1.0}},
        {"Loss": MEANS, "Accuracy": {**MEANS, "mean": 1.0}},
        {"Loss": MEANS, "Accuracy": {**MEANS, "count": -1}},
        {"Loss": MEANS, "Accuracy": {**MEANS, "count": math.inf}},
        {"Loss": MEANS, "Accuracy": {**MEANS, "total": math.nan}},
        {"Loss": MEANS, "Accuracy": {**MEANS, "total": HUGE}},
        {"Loss": MEANS, "Accuracy": {**MEANS, "total": "1"}},
        {"Loss": MEANS, "Accuracy": MEANS, "F1": MEANS},
    )


@pytest.mark.parametrize(
    "name, value",
    [
        pytest.param(name, value, id=f"{name}-{number}")
        for name, each in ODD.items()
        for number, value in enumerate(each)
    ],
)
def test_odd_values_are_refused_by_name(name, value):
    with pytest.raises(CheckpointError, match=rf"^not a state of this HIM \(.*{name}"):
        LoopState.from_dict({**a_state().to_dict(), name: value})


def test_every_value_is_tried():
    assert set(ODD) == set(LoopState().to_dict())


# -- what happens to it ------------------------------------------------------------------------------------------------


def mean_of(total: float, count: int) -> RunningMean:
    mean = RunningMean()
    mean.add(total, count)
    return mean


def test_updates_are_counted_into_both_means():
    state = LoopState(refused_in_a_row=2)
    state.count_update(mean_of(6.0, 2), mean_of(1.0, 2))
    state.count_update(mean_of(2.0, 2), mean_of(2.0, 2))
    for sums in (state.since_log, state.since_epoch):
        assert (sums["Loss"].mean, sums["Accuracy"].mean) == (2.0, 0.75)
    assert state.epoch_before == {"Loss": 3.0, "Accuracy": 0.5}, "of the first step"
    assert state.refused_in_a_row == 0


@pytest.mark.parametrize(
    ("best_step", "patience", "halves_rate", "expected"),
    [
        (10, 1, True, (0, 2, False)),
        (8, 1, True, (0, 2, False)),  # within the epoch, which has steps 8 to 10
        (7, 3, True, (2, 3, False)),
        (7, 2, True, (2, 3, True)),
        (7, 2, False, (2, 2, True)),
        (7, 0, False, (2, 2, False)),
    ],
)
def test_epochs_without_a_best_model(best_step, patience, halves_rate, expected):
    state = LoopState(step=10, best_step=best_step, bad_epochs=1, plateau_reductions=2)
    state.since_epoch["Loss"].add(4.0, 2)
    state.since_epoch["Accuracy"].add(1.0, 2)
    state.end_epoch(3, patience, halves_rate)
    assert (state.bad_epochs, state.plateau_reductions, state.stopped_early) == expected
    assert state.epoch_before == {"Loss": 2.0, "Accuracy": 0.5}
    assert state.since_epoch["Loss"].count == 0


def test_an_epoch_of_refused_updates_leaves_the_means_of_the_one_before():
    state = LoopState(step=2, epoch_before={"Loss": 1.0, "Accuracy": 0.5})
    state.end_epoch(2, 0, False)
    assert state.epoch_before == {"Loss": 1.0, "Accuracy": 0.5}


def test_it_becomes_another_state_or_says_where_that_was_wrong():
    state = LoopState()
    state.restore(a_state().to_dict(), "run: the checkpoint")
    assert state.to_dict() == a_state().to_dict()
    with pytest.raises(CheckpointError, match=r"^run: the checkpoint: not a state of this HIM \(step\)$"):
        state.restore({**a_state().to_dict(), "step": None}, "run: the checkpoint")
