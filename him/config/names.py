"""The names that settings go by: their own, and aliases, which are short forms and what they were called before."""

import difflib
import sys
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from him.config.options import OPTIONS
from him.config.values import raise_together
from him.core.errors import ConfigError

# Every name that a setting may be given by, aliases included, and the setting that it stands for: the one map of
# renamed keys.
NAMES: dict[str, str] = {name: name for name in OPTIONS}
NAMES |= {alias: name for name, each in OPTIONS.items() for alias in each.metadata["aliases"]}

SHOWN_UNKNOWN = 10  # names in one message; a file of other things has thousands


def renamed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that were stored, by their names of today; what is no setting stays as it is.

    All of them are read through this: a run's config.json, a checkpoint's state.json, and the progress.json and
    report.json of a compression.

    Raises ConfigError: two names of one setting are there.
    """
    raise_together(named_twice(settings))
    return {NAMES.get(name, name): value for name, value in settings.items()}


def current(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of a Python call, by their names of today, with a DeprecationWarning for each alias. Raises ConfigError:
    two names of one setting are there."""
    for name in settings:
        if NAMES.get(name, name) != name:
            warnings.warn(f"{name} is called {NAMES[name]}", DeprecationWarning, stacklevel=_level_of_caller())
    return renamed(settings)


def _level_of_caller() -> int:
    """How far up the stack, for `warnings.warn` in the function that asks, the first call from outside of HIM is: only
    warnings about a user's own lines are shown by default."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] == "him":
        frame, level = frame.f_back, level + 1
    return level


def named_twice(names: Iterable[str], dashes: str = "") -> list[str]:
    """A message for each setting that is there by two names or more."""
    found: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        if name in NAMES:
            found.setdefault(NAMES[name], []).append(f"{dashes}{name}")
    return [
        f"{' and '.join(each)} are names of one setting; keep one of them" for each in found.values() if len(each) > 1
    ]


def known(settings: Any, where: str) -> dict[str, Any]:
    """Settings of a file by their names of today. Raises ConfigError: they are not a mapping, a name is unknown (the
    nearest known one is given), or two are of one setting."""
    if not isinstance(settings, Mapping):
        raise ConfigError(f"{where}: not a list of `name: value` settings")
    strange = [name for name in settings if name not in NAMES]
    raise_together([f"{where}: {unknown(str(name), NAMES, '')}" for name in strange[:SHOWN_UNKNOWN]])
    raise_together([f"{where}: {fault}" for fault in named_twice(settings)])
    return renamed(settings)


def unknown(name: str, names: Iterable[str], dashes: str = "--") -> str:
    """Message for a name that is not known, with the nearest one that is."""
    near = difflib.get_close_matches(name, list(names), 1, 0.6)
    return f"unknown setting {dashes}{name}" + (f"; did you mean {dashes}{near[0]}?" if near else "; see --help")
