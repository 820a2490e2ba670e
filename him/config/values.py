"""Values of single settings: each as the type of its field, in its range, or refused in one line."""

import dataclasses
import difflib
import math
import os
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from him.config.options import choices_of
from him.core.errors import ConfigError
from him.core.messages import as_given

LARGEST_WHOLE = 2**31 - 1


def raise_together(faults: Sequence[str]) -> None:
    """Raises one ConfigError that names all faults, if there are any."""
    if faults:
        raise ConfigError("; ".join(faults))


def checked(each: dataclasses.Field, value: Any) -> Any:
    """The value in its field's type. Raises ConfigError: it has another type, or is out of range."""
    value = _converted(each, value)
    if isinstance(value, tuple):
        return tuple(_in_range(each, item) for item in value)
    return _in_range(each, value)


def _in_range(each: dataclasses.Field, value: Any) -> Any:
    checks = each.metadata
    if value is None or not isinstance(value, int | float | str) or isinstance(value, bool):
        return value
    if isinstance(value, int) and value > LARGEST_WHOLE and "high" not in checks:  # counts overflow beyond this
        raise ConfigError(f"--{each.name} {as_given(value)} is out of range; use at most {LARGEST_WHOLE}")
    if (choices := choices_of(each.name)) and value not in choices:
        hint = difflib.get_close_matches(str(value), choices, 1)
        raise ConfigError(
            f"--{each.name} {as_given(value)} is not known; use {' or '.join(choices)}"
            + (f" ({hint[0]}?)" if hint else "")
        )
    limits = (
        ("low", "at least", lambda limit: value >= limit),
        ("above", "more than", lambda limit: value > limit),
        ("high", "at most", lambda limit: value <= limit),
        ("below", "less than", lambda limit: value < limit),
    )
    if any(name in checks and not holds(checks[name]) for name, _, holds in limits):
        allowed = " and ".join(f"{words} {checks[name]:.10g}" for name, words, _ in limits if name in checks)
        raise ConfigError(f"--{each.name} {as_given(value)} is out of range; use {allowed}")
    if fault := checks["check"](value) if "check" in checks else "":
        raise ConfigError(f"--{each.name} {fault}")
    return value


def _converted(each: dataclasses.Field, value: Any) -> Any:
    kind, optional = kind_of(each)
    if value is None:
        if optional:
            return None
        raise ConfigError(f"--{each.name} needs a value")
    if kind is tuple:
        return _tuple(each, value)
    if kind is str and isinstance(value, Path):
        return str(value)
    wanted = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}[kind]
    try:
        return _scalar(kind, value)
    except (ValueError, OverflowError):
        raise ConfigError(f"--{each.name} {as_given(value)} is not {wanted}") from None


def _tuple(each: dataclasses.Field, value: Any) -> tuple[Any, ...]:
    """Several values of one kind: file names, or numbers."""
    kind = typing.get_args(each.type)[0]
    values = list(value) if isinstance(value, list | tuple) else [value]
    try:
        return tuple(str(item) if isinstance(item, Path) else _scalar(kind, item) for item in values)
    except (ValueError, OverflowError):
        what = {int: "whole numbers", float: "numbers", str: "file names"}[kind]
        raise ConfigError(f"--{each.name} {as_given(value, repr)} is not a list of {what}") from None


def _scalar(kind: type, value: Any) -> Any:
    """`value` as a `kind`; text is read as a number or a truth value. ValueError where that would lose something."""
    if kind is bool and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if kind in (bool, str):
        if not isinstance(value, kind) or kind is str and not _can_be_a_name(value):
            raise ValueError
        return value
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError
    number = kind(value)
    if not math.isfinite(number) or (isinstance(value, float) and number != value):
        raise ValueError
    return number


def _can_be_a_name(text: str) -> bool:
    """Whether a text may name a file: it has no NUL and no half characters, but those of names that are no UTF-8."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def kind_of(each: dataclasses.Field) -> tuple[type, bool]:
    """Type of a field without its None, and whether None is allowed."""
    parts = typing.get_args(each.type) if isinstance(each.type, types.UnionType) else (each.type,)
    kind = next(part for part in parts if part is not types.NoneType)
    return typing.get_origin(kind) or kind, types.NoneType in parts
