"""The tier of each test: `reliability` by its folder, `run` if it trains, forks or starts a program, else `unit`.

What a test calls is read from its code and that of its fixtures and of the helpers in tests/ that these call.
"""

from collections.abc import Iterator
from functools import cache
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest

TIERS = ("unit", "run", "reliability")
# What trains a model or starts a process, here, in HIM and in Python.
HEAVY_HELPERS = frozenset(
    "call_main call_script run_main start_main ForkedMain in_child trained_run trained_writer compressed_run "
    "new_trainer".split()
)
HEAVY_MODULES = frozenset(
    ("him.workflows.train", "him.workflows.compress", "him.training.trainer", "him.compression.pipeline")
)


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks each test that names no tier itself."""
    for item in items:
        if not any(item.get_closest_marker(tier) for tier in TIERS):
            item.add_marker(tier_of(item))


def tier_of(item: pytest.Item) -> str:
    """The tier of a test."""
    if "reliability" in item.path.parts:
        return "reliability"
    definitions = getattr(item, "_fixtureinfo", None)
    fixtures = [each.func for found in definitions.name2fixturedefs.values() for each in found] if definitions else []
    return "run" if any(is_heavy(each) for each in (getattr(item, "function", None), *fixtures)) else "unit"


def is_heavy(function: Any) -> bool:
    """Whether a function trains or starts a process, itself or through helpers in tests/."""
    function = getattr(function, "__wrapped__", function)
    return isinstance(function, FunctionType) and _is_heavy(function, frozenset())


@cache
def _is_heavy(function: FunctionType, above: frozenset[FunctionType]) -> bool:
    names = set(_names(function.__code__))
    if names & (HEAVY_HELPERS | HEAVY_MODULES):  # a module's name is there where it is imported late
        return True
    for name in names:
        used = function.__globals__.get(name)
        used = getattr(used, "__wrapped__", used)  # what is cached
        if isinstance(used, ModuleType):
            if used.__name__ == "subprocess" or (used.__name__ == "him" and "train" in names):
                return True
        elif getattr(used, "__module__", "") in HEAVY_MODULES:
            return True
        is_helper = isinstance(used, FunctionType) and used.__module__.split(".")[0] == "tests"
        if is_helper and used not in above and _is_heavy(used, above | {function}):
            return True
    return False


def _names(code: CodeType) -> Iterator[str]:
    """What a function's code, and that of the functions in it, refers to."""
    yield from code.co_names
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _names(each)
