"""Settings from a command line, and the YAML file that it names."""

import argparse
import dataclasses
import re
import sys
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import pairwise
from typing import Any

from him.config.names import NAMES, named_twice, unknown
from him.config.options import OPTIONS, SECTIONS, TASKS, choices_of, readers_of, task_defaults
from him.config.values import kind_of, raise_together
from him.config.yaml_file import read_yaml
from him.core.errors import ConfigError

NUMBER = re.compile(r"-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are `ConfigError`s, and that takes one name of a setting at a time."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:
        raise_together(_named_twice(sys.argv[1:] if args is None else args))
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> typing.NoReturn:
        raise ConfigError(f"{message}; see --help")


def build_parser(description: str, task: str | None = None) -> Parser:
    """A parser with a flag for each setting, in groups; only flags that were given appear in its result. The defaults
    shown are those of `task`, or of all tasks."""
    parser = Parser(
        prog="main.py",
        description=description,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings; flags win over it")
    parser.add_argument("--resume", metavar="RUN", help="go on with an interrupted run, exactly")
    parser.add_argument(
        "--allow_inexact_resume",
        action="store_true",
        help="go on where the bits will be others: another device, PyTorch, instruction set or number of threads",
    )
    for section in SECTIONS:
        group = parser.add_argument_group(section.__doc__.rstrip(".").lower())
        for each in fields(section):
            default = flag_default(each.name, task)
            # Values stay text here: `Config` converts and checks all of them at once.
            group.add_argument(*flag_names(each), **_form(each, f" [{default}]" if default else ""))
    return parser


def named_task(arguments: Sequence[str]) -> str | None:
    """The task that a command line names, to show its defaults; None where it names none, or one that there is not."""
    joined = [argument.removeprefix("--task_type=") for argument in arguments if argument.startswith("--task_type=")]
    apart = [value for flag, value in pairwise(arguments) if flag == "--task_type"]
    return next((name for name in (*joined, *apart) if name in TASKS), None)


def flag_names(each: dataclasses.Field) -> list[str]:
    """The flag of a field, then its aliases."""
    return [f"--{name}" for name in (each.name, *each.metadata["aliases"])]


def flag_default(name: str, task: str | None = None) -> str:
    """A setting's default as a user would type it: `squad: 3; summarization, lm: 10` where tasks differ; an empty text
    where there is none. If `task` reads the setting, only its default is wanted."""
    readers = (task,) if task in readers_of(name) else readers_of(name)
    found: dict[str, list[str]] = {}
    for each in readers:
        value = task_defaults(each).get(name, OPTIONS[name].default)
        found.setdefault(_typed(name, value), []).append(each)
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{', '.join(tasks)}: {typed}" for typed, tasks in found.items())


def _typed(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return "" if value in (None, ()) else str(value)


def _form(each: dataclasses.Field, default: str = "", help: str | None = None) -> dict[str, Any]:
    """How argparse reads and shows a setting's flag, with `default` after its help, or after `help` in its place."""
    kind, _ = kind_of(each)
    text = ((help or each.metadata["help"]) + default).replace("%", "%%")
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction, "help": text}
    if choices := choices_of(each.name):
        metavar = f"{{{','.join(choices)}}}"
    else:
        item = typing.get_args(each.type)[0] if kind is tuple else kind
        metavar = each.metadata.get("metavar", "NAME" if item is str else "N")
    return {"metavar": metavar, "nargs": "+" if kind is tuple else None, "help": text}


def add_settings(parser: Any, names: Sequence[str], own_help: Mapping[str, str] | None = None) -> None:
    """Adds flags for a few settings to the parser of a script; only those that were given appear in its result.

    Args:
        parser: a parser, or a group of one.
        names: of settings; `Config` converts and checks their values.
        own_help: help where the script means something else.
    """
    for name in names:
        form = _form(OPTIONS[name], help=(own_help or {}).get(name))
        parser.add_argument(*flag_names(OPTIONS[name]), default=argparse.SUPPRESS, **form)


def given_settings(arguments: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """Those of some settings that were given on a command line."""
    return {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}


def parse_command_line(parser: Parser, arguments: Sequence[str]) -> tuple[dict[str, Any], str | None, bool]:
    """Reads flags and the YAML file that they name.

    Returns:
        The settings that were named, by field name; the run to resume, if any; and whether that may be inexact.

    Raises:
        ConfigError: a flag is unknown or lacks its value, or the YAML file is not sound.
    """
    joined: list[str] = []
    for argument in arguments:
        # argparse takes -1e-3 for a flag; as --learning_rate=-1e-3 it reaches the range check.
        if NUMBER.fullmatch(argument) and joined and joined[-1].startswith("--") and "=" not in joined[-1]:
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    found, rest = parser.parse_known_args(joined)
    booleans = [name for name, each in OPTIONS.items() if kind_of(each)[0] is bool]
    names = [*NAMES, "config", "resume", "allow_inexact_resume", *(f"no-{name}" for name in booleans)]
    faults = []
    for before, argument in pairwise(["", *rest]):
        if argument.startswith("--"):
            faults.append(unknown(argument[2:].split("=")[0], names))
        elif not before.startswith("--"):  # else it is the value of an unknown flag
            faults.append(f"{argument}: not a flag; see --help")
    raise_together(faults)
    flags = vars(found)
    config_file, resume = flags.pop("config", None), flags.pop("resume", None)
    allow_inexact = flags.pop("allow_inexact_resume", False)
    if allow_inexact and resume is None:
        raise ConfigError("--allow_inexact_resume without --resume: name the run to go on with, or leave it out")
    return (read_yaml(config_file) if config_file else {}) | flags, resume, allow_inexact


def _named_twice(arguments: Sequence[str]) -> list[str]:
    """A message for each setting that has two names in a command line; the same flag may be there twice, as a user
    adds flags to a line that is there."""
    names = [argument[2:].split("=")[0] for argument in arguments if argument.startswith("--")]
    return named_twice([name if name in NAMES else name.removeprefix("no-") for name in names], "--")
