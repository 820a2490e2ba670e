"""The one source of truth for settings: a field is a flag, a YAML key, an argument and a line of `--help`.

Flags win over a YAML file, which wins over the task's own defaults, which win over the defaults here. `Config` is
frozen and checks itself; its JSON form beside the weights is all that resuming and predicting need.
"""

import argparse
import dataclasses
import difflib
import json
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from him.errors import CheckpointError, ConfigError

NUMBER = re.compile(r"-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def option(default: Any, help: str, **checks: Any) -> Any:
    """A dataclass field that is also a flag.

    Args:
        default: its value when nobody names one; None stands for "the task's own" or "none".
        help: its line in `--help`.
        **checks: `choices`, `low` and `high` (inclusive), `above` and `below` (exclusive), `aliases` (other flags).
    """
    return field(default=default, metadata={"help": help, **checks})


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The network."""

    num_encoder_layers: int = option(4, "encoder layers", low=1, aliases=("num_layers",))
    embed_dim: int = option(256, "width of the encoder", low=1)
    num_heads: int = option(8, "attention heads; divides --embed_dim", low=1)
    dim_feedforward: int = option(1024, "width of the feed-forward layers", low=1, aliases=("ff_dim",))
    conv_width: int | None = option(
        None,
        "neighbours that a convolution before each attention mixes; odd, 0 is off [the task's own]",
        low=0,
        high=63,
    )
    norm_first: bool = option(True, "pre-LN; --no-norm_first is post-LN")
    positions: str = option("rotary", "how the model knows places", choices=("rotary", "learned"))
    dropout: float | None = option(
        None, "dropout on embeddings and residual branches [the task's own]", low=0.0, below=1.0
    )
    attention_dropout: float = option(0.0, "dropout on attention weights; slow", low=0.0, below=1.0)
    word_dropout: float | None = option(
        None, "share of tokens hidden while training [the task's own]", low=0.0, below=1.0
    )
    lexical_features: bool = option(True, "question answering: feed in word matches, shapes and rarity")


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The data."""

    task_type: str = option("squad", "what to learn: squad")
    dataset: str | None = option(None, "hub name, or `sample` for the built-in data (none: the task's public set)")
    train_file: tuple[str, ...] = option((), "local training files")
    validation_file: str | None = option(None, "local validation file")
    corpus_dir: str | None = option(None, "folder of text files, for language modelling")
    sample_size: int | None = option(None, "use only the first N training examples", low=1)
    tokenizer: str | None = option(None, "tokenizer to load: folder, file or hub name (none: train one on the data)")
    vocab_size: int = option(8000, "pieces of the trained tokenizer", low=300, high=1_000_000)
    max_seq_len: int = option(384, "longest sequence, in tokens", low=16, high=8192)
    doc_stride: int = option(128, "tokens that neighbouring windows of a long context share", low=0)
    max_answer_words: int = option(15, "longest answer, in words", low=1)
    cache_dir: str | None = option(None, "where prepared data is kept (none: .cache in --output_dir)")


@dataclass(frozen=True, kw_only=True)
class OptimizationOptions:
    """Optimization."""

    learning_rate: float = option(1e-3, "highest learning rate", above=0.0, high=10.0)
    schedule: str = option(
        "cosine", "learning rate after the warm-up", choices=("cosine", "linear", "constant", "plateau")
    )
    warmup_share: float = option(0.1, "share of all steps in which the rate rises", low=0.0, below=1.0)
    weight_decay: float = option(0.01, "AdamW's decay, on matrices only", low=0.0, high=10.0)
    beta1: float = option(0.9, "AdamW's first moment decay", low=0.0, below=1.0)
    beta2: float = option(0.98, "AdamW's second moment decay", low=0.0, below=1.0)
    max_grad_norm: float = option(1.0, "gradient norm to clip to", above=0.0)
    label_smoothing: float | None = option(
        None, "share of the target spread over all classes [the task's own]", low=0.0, below=1.0
    )
    ema_decay: float | None = option(
        None,
        "decay per step of the averaged weights that are evaluated and kept; 0 is off [the task's own]",
        low=0.0,
        below=1.0,
    )


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Training."""

    num_epochs: int | None = option(
        None, "passes over the training data [the task's own]", low=1, aliases=("epochs", "epoch")
    )
    max_steps: int | None = option(None, "stop after this many optimizer steps", low=1)
    batch_size: int | None = option(None, "examples per optimizer step [the task's own]", low=1)
    micro_batch_size: int | None = option(None, "examples per forward pass; the rest is accumulated", low=1)
    eval_every_steps: int | None = option(None, "also evaluate every N steps (always: each epoch)", low=1)
    micro_batch_tokens: int | None = option(
        None, "tokens per forward pass, padding included; the rest is accumulated (none: 6144 on a CPU)", low=1
    )
    early_stopping_epochs: int = option(0, "stop when the best epoch is this many epochs ago; 0 is off", low=0)
    save_every_steps: int | None = option(None, "also save a checkpoint every N steps (always: each epoch)", low=1)
    keep_checkpoints: int = option(2, "checkpoints kept for resuming", low=1)
    init_from: str | None = option(None, "start from the weights and tokenizer of this run")
    seed: int = option(0, "decides weights, order, dropout and the built-in data", low=0, high=2**32 - 1)
    precision: str = option("auto", "auto is bf16 where the hardware has it", choices=("auto", "bf16", "fp32"))
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    num_threads: int | None = option(None, "CPU threads (none: PyTorch's choice)", low=1, high=1024)
    dry_run: bool = option(False, "two steps of everything, to see that it works")


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """What is written."""

    output_dir: str = option("runs", "folder of all runs")
    run_name: str | None = option(None, "name of this run's folder (none: task and time)")
    attention_dir: str = option("attention_visualizations", "folder of the attention pictures")
    attention_examples: int = option(
        2, "validation examples whose attention is drawn at each evaluation", low=0, high=50
    )
    bertscore_model: str | None = option(None, "folder or hub name of BERTScore's encoder (none: the installed MiniLM)")
    bertscore_samples: int = option(200, "predictions that BERTScore reads at each evaluation; 0 is off", low=0)


@dataclass(frozen=True, kw_only=True)
class Config(ModelOptions, DataOptions, OptimizationOptions, TrainingOptions, OutputOptions):
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
        """The same with every field that is None set from `defaults`, if it is there."""
        missing = {name: value for name, value in defaults.items() if getattr(self, name) is None}
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


SECTIONS = (ModelOptions, DataOptions, OptimizationOptions, TrainingOptions, OutputOptions)


def raise_together(faults: Sequence[str]) -> None:
    """Raises one ConfigError that names all faults, if there are any."""
    if faults:
        raise ConfigError("; ".join(faults))


def _conflicts(config: Config) -> list[str]:
    """What is wrong between settings that are sound one by one."""
    faults = []
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
    if config.conv_width and config.conv_width % 2 == 0:
        faults.append(f"--conv_width {config.conv_width} is even; use {config.conv_width + 1}, or 0 for none")
    if config.micro_batch_size and config.batch_size and config.micro_batch_size > config.batch_size:
        faults.append(
            f"--micro_batch_size {config.micro_batch_size} is larger than --batch_size {config.batch_size}; lower it"
        )
    if config.doc_stride >= config.max_seq_len:
        faults.append(f"--doc_stride {config.doc_stride} is not below --max_seq_len {config.max_seq_len}; lower it")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", config.device):
        faults.append(f"--device {config.device} is not known; use auto, cpu, cuda or cuda:N")
    if config.run_name is not None and (config.run_name in ("", "..") or Path(config.run_name).name != config.run_name):
        faults.append(f"--run_name {config.run_name!r} is not a plain folder name; use --output_dir for the place")
    return faults


def _checked(each: dataclasses.Field, value: Any) -> Any:
    """The value in its field's type.

    Raises:
        ConfigError: it has another type, or is out of range.
    """
    value = _converted(each, value)
    checks = each.metadata
    if value is None or not isinstance(value, int | float | str) or isinstance(value, bool):
        return value
    if (choices := checks.get("choices")) and value not in choices:
        hint = difflib.get_close_matches(str(value), choices, 1)
        raise ConfigError(
            f"--{each.name} {value} is not known; use {' or '.join(choices)}" + (f" ({hint[0]}?)" if hint else "")
        )
    limits = (
        ("low", "at least", lambda limit: value >= limit),
        ("above", "more than", lambda limit: value > limit),
        ("high", "at most", lambda limit: value <= limit),
        ("below", "less than", lambda limit: value < limit),
    )
    if any(name in checks and not holds(checks[name]) for name, _, holds in limits):
        allowed = " and ".join(f"{words} {checks[name]:.10g}" for name, words, _ in limits if name in checks)
        raise ConfigError(f"--{each.name} {value} is out of range; use {allowed}")
    return value


def _converted(each: dataclasses.Field, value: Any) -> Any:
    kind, optional = _kind(each)
    if value is None:
        if optional:
            return None
        raise ConfigError(f"--{each.name} needs a value")
    if kind is tuple:
        values = [value] if isinstance(value, str | Path) else value
        if not isinstance(values, list | tuple) or not all(isinstance(item, str | Path) for item in values):
            raise ConfigError(f"--{each.name} {value!r} is not a list of file names")
        return tuple(str(item) for item in values)
    if kind is str and isinstance(value, Path):
        return str(value)
    wanted = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}[kind]
    try:
        return _scalar(kind, value)
    except (ValueError, OverflowError):
        raise ConfigError(f"--{each.name} {value} is not {wanted}") from None


def _scalar(kind: type, value: Any) -> Any:
    """`value` as a `kind`; text is read as a number or a truth value. ValueError where that would lose something."""
    if kind is bool and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if kind in (bool, str):
        if not isinstance(value, kind):
            raise ValueError
        return value
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError
    number = kind(value)
    if not math.isfinite(number) or (isinstance(value, float) and number != value):
        raise ValueError
    return number


def _kind(each: dataclasses.Field) -> tuple[type, bool]:
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
    raise_together([f"{where}: {unknown(str(name), names, '')}" for name in settings if name not in names])
    return {names[name]: value for name, value in settings.items()}


def unknown(name: str, names: Iterable[str], dashes: str = "--") -> str:
    """Message for a name that is not known, with the nearest one that is."""
    near = difflib.get_close_matches(name, list(names), 1, 0.6)
    return f"unknown setting {dashes}{name}" + (f"; did you mean {dashes}{near[0]}?" if near else "; see --help")


def read_yaml(path: str) -> dict[str, Any]:
    """Settings of a YAML file, by field name.

    Raises:
        ConfigError: the file is missing, is not YAML, or names an unknown setting.
    """
    import yaml

    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}; name a YAML file") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"--config {path}: not YAML ({' '.join(str(error).split())})") from None
    return known({} if settings is None else settings, f"--config {path}")


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
    kind, _ = _kind(each)
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


def parse_command_line(parser: Parser, arguments: Sequence[str]) -> tuple[dict[str, Any], str | None]:
    """Reads flags and the YAML file that they name.

    Returns:
        The settings that were named, by field name, and the run to resume, if any.

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
    names = [*field_names(), "config", "resume", *(f"no-{each.name}" for each in fields(Config) if each.type is bool)]
    faults, flag_before = [], False
    for argument in rest:
        is_flag = argument.startswith("--")
        if is_flag:
            faults.append(unknown(argument[2:].split("=")[0], names))
        elif not flag_before:  # else it is the value of an unknown flag
            faults.append(f"{argument}: not a flag; see --help")
        flag_before = is_flag
    raise_together(faults)
    flags = vars(found)
    config_file, resume = flags.pop("config", None), flags.pop("resume", None)
    return (read_yaml(config_file) if config_file else {}) | flags, resume


assert not [each.name for each in fields(Config) if each.default is MISSING], "every setting has a default"
