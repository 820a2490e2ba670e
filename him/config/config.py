"""The settings of a run, each checked by itself. `him.config.resolve` fills in what was not given, and checks the rest.

Flags win over a YAML file, which wins over an earlier model's, which win over the task's own defaults, which win over
those of `him.config.options`. `Config` is frozen; its JSON form beside the weights is all that resuming and predicting
need.
"""

import dataclasses
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from him.config.names import current, known
from him.config.options import OPTIONS, SECTIONS, readers_of
from him.config.values import checked, raise_together
from him.core.errors import CheckpointError, ConfigError


@dataclass(frozen=True, kw_only=True, init=False)
class Config(*SECTIONS):
    """Every setting of a run, by the name of its flag: `Config(task_type="squad", num_epochs=3)`.

    An alias of a name is taken with a DeprecationWarning.

    Raises ConfigError: names every value that is not sound by itself, and settings that are given by two names;
    TypeError: there is no such setting.
    """

    def __init__(self, **settings: Any) -> None:
        given = current(settings)
        if strange := given.keys() - OPTIONS.keys():
            raise TypeError(f"Config() got an unexpected keyword argument {min(strange)!r}")
        faults = []
        for each in fields(self):
            try:
                object.__setattr__(self, each.name, checked(each, given.get(each.name, each.default)))
            except ConfigError as fault:
                faults.append(str(fault))
        raise_together(faults)
        object.__setattr__(self, "_given", frozenset(given))

    @property
    def given(self) -> frozenset[str]:
        """The settings that were named, whatever their values; after `load`, all."""
        return self._given

    def replace(self, **changes: Any) -> "Config":
        """The same with other values, which count as given. Raises ConfigError: a value is not sound by itself."""
        changes = current(changes)
        return self._with(changes, self.given | changes.keys())

    def with_values(self, **changes: Any) -> "Config":
        """The same with other values, which do not count as given."""
        return self._with(changes, self.given)

    def filled(self, values: Mapping[str, Any]) -> "Config":
        """The same with other values of what was not given; they do not count as given."""
        return self._with({name: value for name, value in values.items() if name not in self.given}, self.given)

    def with_defaults(self, defaults: Mapping[str, Any]) -> "Config":
        """The same with every field that is None, and that the task reads, set from `defaults`, if it is there."""
        missing = [name for name in defaults if getattr(self, name) is None and self.task_type in readers_of(name)]
        return self._with({name: defaults[name] for name in missing}, self.given)

    def _with(self, changes: Mapping[str, Any], given: Collection[str]) -> "Config":
        other = dataclasses.replace(self, **changes)
        object.__setattr__(other, "_given", frozenset(given))
        return other

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        values = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def save(self, path: Path) -> None:
        """Writes `config.json`."""
        path.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Config":
        """Reads `config.json`, in whose settings nothing is missing. Raises CheckpointError: it is missing, damaged, or
        from a version with other settings."""
        try:
            config = cls(**known(json.loads(path.read_text(encoding="utf-8")), str(path)))
            raise_together(conflicts(config))
        except FileNotFoundError:
            raise CheckpointError(f"{path}: no such file; {path.parent} is not a run of HIM") from None
        except (OSError, ValueError, TypeError, ConfigError, RecursionError) as error:
            raise CheckpointError(f"{path}: not a configuration of HIM ({error}); restore it or train again") from None
        return config._with({}, OPTIONS.keys())


assert not [each.name for each in fields(Config) if each.default is dataclasses.MISSING], "every setting has a default"


def conflicts(config: Config) -> list[str]:
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
    for each in fields(config):  # what was set and only other tasks read
        if config.task_type not in readers_of(each.name) and getattr(config, each.name) != each.default:
            readers = " or ".join(readers_of(each.name))
            faults.append(f"--{each.name} is for --task_type {readers}, not {config.task_type}; leave it out")
    return faults
