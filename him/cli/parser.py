"""Settings from a command line and from a YAML file."""

import argparse
import dataclasses
import re
import typing
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from him.config.config import Config
from him.config.names import NAMES, known, named_twice, unknown
from him.config.options import SECTIONS
from him.config.values import kind_of, raise_together
from him.core.errors import ConfigError

LARGEST_YAML = 20_000  # bytes
DEEPEST_YAML = 10
# What the YAML reader raises for values such as `!!bool x`, `!!timestamp x` or a date before the year 1.
FAULTS_OF_VALUES = (ValueError, LookupError, AttributeError, TypeError, OverflowError, RecursionError)
NUMBER = re.compile(r"-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def read_yaml(path: str) -> dict[str, Any]:
    """Settings of a YAML file, by field name.

    Raises:
        ConfigError: the file is missing, is not YAML, sets a name twice, or names an unknown setting.
    """
    import yaml

    where = f"--config {path}"
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST_YAML + 1)
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror}; name a YAML file") from None
    if len(content) > LARGEST_YAML:  # reading takes seconds a megabyte
        raise ConfigError(
            f"{where}: larger than {LARGEST_YAML:,} bytes, so that it holds more than settings; name a YAML file of "
            "`name: value` lines"
        )
    try:
        text = content.decode("utf-8")
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):  # a few lines of them stand for billions of values
                raise ConfigError(f"{where}: has an alias (*name), which is not read; write its value out")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST_YAML:  # reading takes the square of the depth
                raise ConfigError(f"{where}: nested too deeply for settings; write `name: value` lines")
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        names = [str(key.value) for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
        if twice := [name for name, number in Counter(names).items() if number > 1]:  # YAML takes the last one
            raise ConfigError(f"{where}: {twice[0]} is set twice; keep one of the lines")
        settings = None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, *FAULTS_OF_VALUES) as error:
        raise ConfigError(f"{where}: not YAML ({' '.join(str(error).split())})") from None
    return known({} if settings is None else settings, where)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are `ConfigError`s."""

    def error(self, message: str) -> typing.NoReturn:
        raise ConfigError(f"{message}; see --help")


def build_parser(description: str) -> Parser:
    """A parser with a flag for each setting, in groups; only flags that were given appear in its result."""
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
            _add_flag(group, each)
    return parser


def flag_names(each: dataclasses.Field) -> list[str]:
    """The flag of a field, then its aliases."""
    return [f"--{name}" for name in (each.name, *each.metadata.get("aliases", ()))]


def flag_default(each: dataclasses.Field) -> str:
    """Its default as a user would type it; empty if there is none or it is the task's own."""
    if isinstance(each.default, bool):
        return f"--{each.name}" if each.default else f"--no-{each.name}"
    return "" if each.default in (None, ()) else str(each.default)


def _add_flag(group: Any, each: dataclasses.Field) -> None:
    kind, _ = kind_of(each)
    flags = flag_names(each)
    text = each.metadata["help"] + (f" [{flag_default(each)}]" if flag_default(each) else "")
    text = text.replace("%", "%%")
    if choices := each.metadata.get("choices"):
        text = f"{', '.join(choices)}: {text}"
    if kind is bool:
        group.add_argument(*flags, action=argparse.BooleanOptionalAction, help=text)
    else:
        # Values stay text here: `Config` converts and checks all of them at once.
        group.add_argument(*flags, metavar=kind.__name__.upper(), nargs="+" if kind is tuple else None, help=text)


def add_settings(parser: Any, names: Sequence[str], own_help: Mapping[str, str] | None = None) -> None:
    """Adds flags for a few settings to the parser of a script; only those that were given appear in its result.

    Args:
        parser: a parser, or a group of one.
        names: of settings; `Config` converts and checks their values.
        own_help: help where the script means something else.
    """
    options = {each.name: each for each in fields(Config)}
    for name in names:
        text = (own_help or {}).get(name, options[name].metadata["help"]).replace("%", "%%")
        form = {"metavar": "VALUE"} | ({"nargs": "+"} if options[name].default == () else {})
        if kind_of(options[name])[0] is bool:
            form = {"action": argparse.BooleanOptionalAction}
        parser.add_argument(f"--{name}", default=argparse.SUPPRESS, help=text, **form)


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
    booleans = [each.name for each in fields(Config) if kind_of(each)[0] is bool]
    names = [*NAMES, "config", "resume", "allow_inexact_resume", *(f"no-{name}" for name in booleans)]
    faults, flag_before = [], False
    for argument in rest:
        is_flag = argument.startswith("--")
        if is_flag:
            faults.append(unknown(argument[2:].split("=")[0], names))
        elif not flag_before:  # else it is the value of an unknown flag
            faults.append(f"{argument}: not a flag; see --help")
        flag_before = is_flag
    raise_together(faults or _named_twice(joined))
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
