"""Learning rates and numbers of steps, worked out by hand."""

from math import cos, pi, sqrt

import pytest

from him.config import Config
from him.training.schedule import StepBudget, lr_at

STEPS = 10


def rates(schedule: str, warmup_ratio: float = 0.2, reductions: int = 0) -> list[float]:
    config = Config(learning_rate=0.5, warmup_ratio=warmup_ratio, schedule=schedule)
    return [lr_at(step, config, STEPS, reductions) for step in range(STEPS)]


@pytest.mark.parametrize(
    ("schedule", "after_warmup"),
    [
        (
            "cosine",
            [
                0.5,
                0.25 * (1 + cos(pi / 8)),
                0.25 * (1 + sqrt(2) / 2),
                0.25 * (1 + cos(3 * pi / 8)),
                0.25,
                0.25 * (1 - cos(3 * pi / 8)),
                0.25 * (1 - sqrt(2) / 2),
                0.25 * (1 - cos(pi / 8)),
            ],
        ),
        ("linear", [8 / 16, 7 / 16, 6 / 16, 5 / 16, 4 / 16, 3 / 16, 2 / 16, 1 / 16]),
        ("constant", [0.5] * 8),
        ("plateau", [0.5] * 8),
    ],
)
def test_rate_of_every_step(schedule, after_warmup):
    assert rates(schedule) == pytest.approx([0.25, 0.5, *after_warmup], rel=1e-12)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "plateau"])
@pytest.mark.parametrize("warmup_ratio", [0.0, 0.01, 0.2, 0.95])
def test_no_update_is_lost(schedule, warmup_ratio):
    """A rate of 0 at the first or at the last step would make an update that changes nothing."""
    found = rates(schedule, warmup_ratio)
    assert min(found) > 0.0
    assert max(found) == 0.5
    if warmup_ratio == 0.0:
        assert found[0] == 0.5


@pytest.mark.parametrize(("reductions", "rate"), [(0, 0.5), (1, 0.25), (3, 0.0625)])
def test_plateau_halves_after_the_warmup_only(reductions, rate):
    assert rates("plateau", reductions=reductions) == [0.25, 0.5] + [rate] * 8


def test_reductions_belong_to_plateau_alone():
    assert rates("cosine", reductions=2) == rates("cosine")


def test_a_run_of_one_step_has_a_rate():
    assert lr_at(0, Config(learning_rate=0.5), max_steps=1) == 0.5


@pytest.mark.parametrize(
    ("max_steps", "expected", "num_epochs"), [(None, 9, 3), (9, 9, 3), (7, 7, 3), (6, 6, 2), (1, 1, 1), (99, 9, 3)]
)
def test_the_budget_is_the_smaller_one(max_steps, expected, num_epochs):
    """10 examples in batches of 4 are 3 steps an epoch."""
    budget = StepBudget.of(10, Config(batch_size=4, num_epochs=3, max_steps=max_steps))
    assert (budget.steps_per_epoch, budget.max_steps, budget.num_epochs) == (3, expected, num_epochs)
    ends = [step for step in range(1, expected + 1) if budget.is_epoch_end(step)]
    assert ends == sorted({3, 6, 9, expected} & set(range(expected + 1)))
    assert budget.epoch(3) == 1.0 and budget.epoch(7) == pytest.approx(7 / 3)


@pytest.mark.parametrize(("step", "begun", "made"), [(1, 1, 1), (3, 1, 3), (4, 2, 1), (6, 2, 3), (7, 3, 1)])
def test_where_an_epoch_stands(step, begun, made):
    budget = StepBudget(steps_per_epoch=3, max_steps=9)
    assert (budget.epochs_begun(step), budget.steps_in_epoch(step)) == (begun, made)
