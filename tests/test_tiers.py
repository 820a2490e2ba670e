"""The tiers are found out from code: what trains or starts a program, at any depth, is not `unit`."""

import subprocess
import sys

import pytest

import him
from tests import small_runs
from tests.small_runs import ForkedMain, call_main, trained_run
from tests.tiers import is_heavy


def calls_main():
    return call_main("--help")


def calls_one_that_does():
    return [calls_main() for _ in range(2)]


def has_it_in_a_function():
    def inside():
        return ForkedMain([], print)

    return inside


def calls_a_cached_one():
    return trained_run()


def calls_it_by_its_module():
    return small_runs.run_main()


def trains():
    return him.train(him.Config())


def starts_a_program():
    return subprocess.run([sys.executable, "-c", ""])


def imports_late():
    from him.workflows.train import resume

    return resume


def counts(model=None):
    model.train()
    return sum(range(3))


@pytest.mark.parametrize(
    "function",
    [
        calls_main,
        calls_one_that_does,
        has_it_in_a_function,
        calls_a_cached_one,
        calls_it_by_its_module,
        trains,
        starts_a_program,
        imports_late,
    ],
    ids=lambda function: function.__name__,
)
def test_what_trains_or_starts_a_program_is_heavy(function):
    assert is_heavy(function)


def test_what_only_counts_is_not():
    """Not even where a model's `train()` is called."""
    assert not is_heavy(counts)


def test_a_test_has_one_tier(request):
    """This one trains nothing."""
    assert [mark.name for mark in request.node.iter_markers() if mark.name in ("unit", "run", "reliability")] == [
        "unit"
    ]
