"""The settings of a run, checked: alone, and against each other.

Flags win over a YAML file, which wins over the task's own defaults, which win over those of `him.config.options`.
`Config` is frozen; its JSON form beside the weights is all that resuming and predicting need.
"""

import dataclasses
import difflib
import json
import math
import os
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from him.config.bert import bert_settings, is_bert
from him.config.options import SECTIONS, TASKS, readers_of, with_role
from him.core.errors import CheckpointError, ConfigError


@dataclass(frozen=True, kw_only=True)
class Config(*SECTIONS):
    """Every setting of a run, by the name of its flag: `Config(task_type="squad", num_epochs=3)`.

    Raises:
        ConfigError: names every value that is out of range and every pair that does not fit together.
    """

    def __post_init__(self) -> None:
        faults = []
        for each in fields(self):
            try:
                object.__setattr__(self, each.name, _checked(each, getattr(self, each.name)))
            except ConfigError as fault:
                faults.append(str(fault))
        raise_together(faults or _conflicts(self))

    def with_defaults(self, defaults: Mapping[str, Any]) -> "Config":
        """The same with every field that is None, and that the task reads, set from `defaults`, if it is there."""
        missing = {
            name: value
            for name, value in defaults.items()
            if getattr(self, name) is None and self.task_type in readers_of(name)
        }
        return dataclasses.replace(self, **missing)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()
        }

    def save(self, path: Path) -> None:
        """Writes `config.json`."""
        path.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Config":
        """Reads `config.json`.

        Raises:
            CheckpointError: it is missing, damaged, or from a version with other settings.
        """
        try:
            return cls(**known(json.loads(path.read_text(encoding="utf-8")), str(path)))
        except FileNotFoundError:
            raise CheckpointError(f"{path}: no such file; {path.parent} is not a run of HIM") from None
        except (OSError, ValueError, TypeError, ConfigError, RecursionError) as error:
            raise CheckpointError(f"{path}: not a configuration of HIM ({error}); restore it or train again") from None


LARGEST_WHOLE = 2**31 - 1
SHOWN_CHARACTERS = 60  # of a value in a message
SHOWN_UNKNOWN = 10  # names in one message; a file of other things has thousands


def with_shape_of_earlier(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the model shape of the run that `init_from` among them names, where they say nothing else, and
    without a pretraining; of a pretrained encoder with what it is best fine-tuned with, too.

    A run of another task, or none, is left to whoever loads its weights.

    Raises:
        CheckpointError: the run's configuration is damaged.
    """
    run = Path(str(settings.get("init_from") or ""))
    if settings.get("init_from") and is_bert(run):
        return bert_settings(run) | dict(settings)
    found = [path for path in (run / "best" / "config.json", run / "config.json") if path.is_file()]
    if not settings.get("init_from") or not found:
        return dict(settings)
    earlier = Config.load(found[0])
    if earlier.task_type != settings.get("task_type", Config().task_type):
        return dict(settings)
    shape = {"pretrain_epochs": 0} | {name: getattr(earlier, name) for name in with_role("shape")}
    if {"num_encoder_layers", "num_heads", "dim_feedforward"} & settings.keys():  # then not the widths of its layers
        shape |= {"layer_heads": (), "layer_feedforward": ()}
    return shape | dict(settings)


def raise_together(faults: Sequence[str]) -> None:
    """Raises one ConfigError that names all faults, if there are any."""
    if faults:
        raise ConfigError("; ".join(faults))


def _conflicts(config: Config) -> list[str]:
    """What is wrong between settings that are sound one by one."""
    faults = []
    if config.train_file_weights and len(config.train_file_weights) != len(config.train_file):
        faults.append(
            f"--train_file_weights names {len(config.train_file_weights)} weights and --train_file "
            f"{len(config.train_file)} files; name a weight for each file"
        )
    if config.train_file_weights and not any(config.train_file_weights):
        faults.append("--train_file_weights are all 0; leave something to train on")
    if config.embed_dim % config.num_heads:
        lower = config.embed_dim // config.num_heads * config.num_heads
        examples = " or ".join(str(width) for width in (lower, lower + config.num_heads) if width)
        faults.append(
            f"--embed_dim {config.embed_dim} is not divisible by --num_heads {config.num_heads}; use a multiple of "
            f"{config.num_heads}, such as {examples}"
        )
    elif config.positions == "rotary" and config.embed_dim // config.num_heads % 2:
        faults.append(
            f"--embed_dim {config.embed_dim} with --num_heads {config.num_heads} makes heads of odd width "
            f"{config.embed_dim // config.num_heads}, which rotary positions cannot turn; use --positions learned"
        )
    for name in ("layer_heads", "layer_feedforward"):
        if (given := getattr(config, name)) and len(given) != config.num_encoder_layers:
            faults.append(
                f"--{name} names {len(given)} layers and --num_encoder_layers is {config.num_encoder_layers}; name each"
            )
    if config.conv_kernel_size and config.conv_kernel_size % 2 == 0:
        faults.append(
            f"--conv_kernel_size {config.conv_kernel_size} is even; use {config.conv_kernel_size + 1}, or 0 for none"
        )
    if config.micro_batch_size and config.batch_size and config.micro_batch_size > config.batch_size:
        faults.append(
            f"--micro_batch_size {config.micro_batch_size} is larger than --batch_size {config.batch_size}; lower it"
        )
    if config.max_seq_len is not None and config.task_type == "squad" and config.doc_stride >= config.max_seq_len:
        faults.append(f"--doc_stride {config.doc_stride} is not below --max_seq_len {config.max_seq_len}; lower it")
    if config.num_beams is not None and config.num_beams > 1 and config.temperature > 0:
        faults.append(
            f"--temperature {config.temperature:g} with --num_beams {config.num_beams}: beam search does not sample; "
            "use --num_beams 1, or leave --temperature out"
        )
    if config.eval_stride and config.max_seq_len and config.eval_stride > config.max_seq_len:
        faults.append(f"--eval_stride {config.eval_stride} is above --seq_len {config.max_seq_len}; lower it")
    faults += _flags_of_other_tasks(config)
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", config.device):
        faults.append(f"--device {config.device} is not known; use auto, cpu, cuda or cuda:N")
    if config.run_name is not None and (config.run_name in ("", "..") or Path(config.run_name).name != config.run_name):
        faults.append(f"--run_name {config.run_name!r} is not a plain folder name; use --output_dir for the place")
    return faults


def _flags_of_other_tasks(config: Config) -> list[str]:
    """What was set and only other tasks read."""
    if config.task_type not in TASKS:
        return []  # refused by whoever looks it up
    return [
        f"--{each.name} is for --task_type {' or '.join(readers_of(each.name))}, not {config.task_type}; leave it out"
        for each in fields(config)
        if config.task_type not in readers_of(each.name) and getattr(config, each.name) != each.default
    ]


def _checked(each: dataclasses.Field, value: Any) -> Any:
    """The value in its field's type.

    Raises:
        ConfigError: it has another type, or is out of range.
    """
    value = _converted(each, value)
    if isinstance(value, tuple):
        return tuple(_in_range(each, item) for item in value)
    return _in_range(each, value)


def _in_range(each: dataclasses.Field, value: Any) -> Any:
    checks = each.metadata
    if value is None or not isinstance(value, int | float | str) or isinstance(value, bool):
        return value
    if isinstance(value, int) and value > LARGEST_WHOLE and "high" not in checks:  # counts overflow beyond this
        raise ConfigError(f"--{each.name} {_shown(value)} is out of range; use at most {LARGEST_WHOLE}")
    if (choices := checks.get("choices")) and value not in choices:
        hint = difflib.get_close_matches(str(value), choices, 1)
        raise ConfigError(
            f"--{each.name} {_shown(value)} is not known; use {' or '.join(choices)}"
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
        raise ConfigError(f"--{each.name} {_shown(value)} is out of range; use {allowed}")
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
        raise ConfigError(f"--{each.name} {_shown(value)} is not {wanted}") from None


def _tuple(each: dataclasses.Field, value: Any) -> tuple[Any, ...]:
    """Several values of one kind: file names, or numbers."""
    kind = typing.get_args(each.type)[0]
    values = list(value) if isinstance(value, list | tuple) else [value]
    try:
        return tuple(str(item) if isinstance(item, Path) else _scalar(kind, item) for item in values)
    except (ValueError, OverflowError):
        what = {int: "whole numbers", float: "numbers", str: "file names"}[kind]
        raise ConfigError(f"--{each.name} {_shown(value, repr)} is not a list of {what}") from None


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


def _shown(value: Any, form: Callable[[Any], str] = str) -> str:
    """A value in a message, short."""
    try:
        text = form(value)
    except (ValueError, RecursionError):  # Python refuses to write out thousands of digits
        return "(too large to be shown)"
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def kind_of(each: dataclasses.Field) -> tuple[type, bool]:
    """Type of a field without its None, and whether None is allowed."""
    parts = typing.get_args(each.type) if isinstance(each.type, types.UnionType) else (each.type,)
    kind = next(part for part in parts if part is not types.NoneType)
    return typing.get_origin(kind) or kind, types.NoneType in parts


def field_names() -> dict[str, str]:
    """Every name that a setting may be given by, aliases included, and the field that it stands for."""
    names = {each.name: each.name for each in fields(Config)}
    return names | {alias: each.name for each in fields(Config) for alias in each.metadata.get("aliases", ())}


def known(settings: Any, where: str) -> dict[str, Any]:
    """Settings by field name.

    Raises:
        ConfigError: they are not a mapping, or a name is unknown; the nearest known one is given.
    """
    if not isinstance(settings, Mapping):
        raise ConfigError(f"{where}: not a list of `name: value` settings")
    names = field_names()
    strange = [name for name in settings if name not in names]
    raise_together([f"{where}: {unknown(str(name), names, '')}" for name in strange[:SHOWN_UNKNOWN]])
    return {names[name]: value for name, value in settings.items()}


def unknown(name: str, names: Iterable[str], dashes: str = "--") -> str:
    """Message for a name that is not known, with the nearest one that is."""
    near = difflib.get_close_matches(name, list(names), 1, 0.6)
    return f"unknown setting {dashes}{name}" + (f"; did you mean {dashes}{near[0]}?" if near else "; see --help")


assert not [each.name for each in fields(Config) if each.default is MISSING], "every setting has a default"
