"""Every setting of a run, as dataclass fields that are flags too; and the registry of tasks.

A task is a name in `TASKS`. All else follows from it: its settings are in `him/config/options/NAME.py`, its code in
`him/tasks/NAME/`.
"""

import difflib
from collections.abc import Sequence
from dataclasses import Field, fields
from importlib import import_module
from typing import Any

from him.config.options.option import ROLES, TaskSpec
from him.config.options.shared import (
    CompressionOptions,
    DataOptions,
    GenerationOptions,
    ModelOptions,
    OptimizationOptions,
    OutputOptions,
    PretrainingOptions,
    TrainingOptions,
)
from him.core.errors import ConfigError

SHARED_SECTIONS = (
    ModelOptions,
    DataOptions,
    OptimizationOptions,
    TrainingOptions,
    PretrainingOptions,
    GenerationOptions,
    CompressionOptions,
    OutputOptions,
)
TASKS = ("squad", "summarization", "lm")
SPECS: dict[str, TaskSpec] = {name: import_module(f"{__name__}.{name}").SPEC for name in TASKS}
PRETRAINED_PREFIX = "pretrained"  # how the folders of pretrained weights begin, beside those of prepared data
SECTIONS = (*SHARED_SECTIONS, *(spec.options for spec in SPECS.values()))
# By name, in the order of `--help`.
OPTIONS: dict[str, Field] = {each.name: each for section in SECTIONS for each in fields(section)}

_OWNERS = {each.name: name for name, spec in SPECS.items() for each in fields(spec.options)}


def spec_of(task: str) -> TaskSpec:
    """What is known of a task. Raises ConfigError: there is none of this name."""
    if task not in SPECS:
        near = difflib.get_close_matches(task, TASKS, 1)
        raise ConfigError(
            f"--task_type {task} is not known; use {' or '.join(TASKS)}" + (f" ({near[0]}?)" if near else "")
        )
    return SPECS[task]


def readers_of(name: str) -> tuple[str, ...]:
    """The tasks that read a setting."""
    return (_OWNERS[name],) if name in _OWNERS else OPTIONS[name].metadata.get("tasks", TASKS)


def choices_of(name: str) -> tuple[str, ...]:
    """What a setting may be, where that is a list."""
    return TASKS if name == "task_type" else OPTIONS[name].metadata.get("choices", ())


def task_defaults(task: str) -> dict[str, Any]:
    """What stands for None in the settings that a task reads, where anything does. Raises ConfigError: there is no such
    task."""
    general = {name: each.metadata["fallback"] for name, each in OPTIONS.items() if "fallback" in each.metadata}
    return {name: value for name, value in (general | spec_of(task).defaults).items() if task in readers_of(name)}


def with_role(*roles: str) -> tuple[str, ...]:
    """The settings that have any of these roles, in the order of `--help`."""
    return tuple(name for name, each in OPTIONS.items() if each.metadata["roles"] & _known(roles))


def only_roles(*roles: str) -> tuple[str, ...]:
    """The settings that have no other role than these, in the order of `--help`."""
    return tuple(name for name, each in OPTIONS.items() if each.metadata["roles"] <= _known(roles))


def _known(roles: Sequence[str]) -> frozenset[str]:
    assert set(roles) <= ROLES.keys(), f"unknown roles {set(roles) - ROLES.keys()}"
    return frozenset(roles)
