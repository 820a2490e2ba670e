"""What the sources of all tasks have in common: checks of the flags that name them, holding out, notes for the user.

Local files, the Hugging Face hub, or the sample that HIM generates: exactly one of the three serves a run, and never
another one in its place: a source that fails is an error. What the user should know about a choice made there (what is
held out, dropped or left out, a copy from the cache) is a note of one line, which the caller prints.
"""

import random
import re
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from him.config import Config
from him.core.errors import ConfigError
from him.core.messages import fail, shown

SAMPLE = "sample"
SAMPLE_SPLITS = ("the built-in sample, train", "the built-in sample, validation")
HUB_NAME = r"\w[\w.-]*/\w[\w.-]*"
LOCAL_WAYS = "--train_file FILE --validation_file FILE, or the built-in sample with --dataset sample"
T = TypeVar("T")


@dataclass(frozen=True)
class Splits(Generic[T]):
    """Data to train on and to validate on, and lines that tell the user what was decided on the way.

    Attributes:
        source_ids: (N,) of each training example, the number of the file that it is from; empty for other sources.
    """

    train: T
    validation: T
    notes: tuple[str, ...] = ()
    source_ids: tuple[int, ...] = ()


def check_source_flags(config: Config, example: str) -> None:
    """Refuses settings that choose the data and contradict each other, or name a data set that cannot be one.

    Args:
        config: `train_file`, `validation_file`, `dataset` and `dataset_config` are read.
        example: the full name of a hub set, for messages.

    Raises:
        ConfigError: they do.
    """
    dataset = config.dataset
    if dataset and (config.train_file or config.validation_file):
        flag = "--train_file" if config.train_file else "--validation_file"
        raise ConfigError(f"--dataset {shown(dataset)} and {flag} name two sources of data; leave one of them out")
    if config.validation_file and not config.train_file:
        raise ConfigError("--validation_file is given without --train_file; add --train_file FILE, or drop both")
    if config.dataset_config and (config.train_file or dataset == SAMPLE):
        source = "--train_file" if config.train_file else f"--dataset {SAMPLE}"
        raise ConfigError(
            f"--dataset_config {shown(config.dataset_config)} chooses among configurations of a hub set, and {source} "
            "has none; leave it out"
        )
    if dataset and Path(dataset).is_file():
        raise ConfigError(f"--dataset {shown(dataset)} is a file; give it as --train_file")
    # `datasets` takes "json", "text" and the like for readers, and then reads every file below the working folder.
    if dataset and dataset != SAMPLE and not Path(dataset).is_dir() and not re.fullmatch(HUB_NAME, dataset):
        raise ConfigError(
            f"--dataset {shown(dataset)} is not {SAMPLE}, a folder, or owner/name on the Hugging Face hub; "
            f"write such a name in full, as {example}"
        )


def note_shortage(flag: str, asked: int, found: int, what: str, notes: list[str]) -> None:
    """Adds a note where a flag asks for more examples than there are."""
    if asked > found:
        notes.append(f"{flag} {asked:,}: there are only {found:,} {what}")


class HeldOut(NamedTuple, Generic[T]):
    """What is left to train on, what is held out for validation, and the share of it for a note: "3 of 30 articles"."""

    train: list[T]
    validation: list[T]
    share: str


def split_off(items: Sequence[T], groups: Sequence[Hashable], num_held: int, seed: int | str, kind: str) -> HeldOut[T]:
    """Draws groups of items for validation, such as whole articles, because what is in one group is much alike.

    Args:
        items: what to split; both parts keep its order.
        groups: of each item, the group that it is in.
        num_held: how many of the groups to hold out.
        seed: decides which, with the groups and their order; nothing else does.
        kind: what a group is, in the plural.
    """
    drawn_from = list(dict.fromkeys(groups))
    held = set(random.Random(seed).sample(drawn_from, num_held))
    parts: tuple[list[T], list[T]] = ([], [])
    for item, group in zip(items, groups, strict=True):
        parts[group in held].append(item)
    return HeldOut(*parts, f"{len(held):,} of {len(drawn_from):,} {kind}")


def num_held_out(num_groups: int, share: float, source: str, kind: str) -> int:
    """A share of the groups, rounded, but at least one and never all.

    Args:
        num_groups: how many different ones there are.
        share: more than 0, less than 1.
        source: of the data, for messages.
        kind: what a group is, in the singular.

    Raises:
        DataError: there is one group only.
    """
    if num_groups < 2:
        fault = f"there is only one {kind}, so that none can be held out for validation"
        fail(source, fault, "give --validation_file FILE")
    return min(num_groups - 1, max(1, round(share * num_groups)))


def note_held_out(what: str, notes: list[str]) -> None:
    """Adds a note of what is held out where no `--validation_file` is named."""
    notes.append(f"no --validation_file: {what} are held out for validation")


def note_leakage(train: Iterable[Hashable], validation: Collection[Hashable], fault: str, notes: list[str]) -> None:
    """Says so when validation is partly a test of memory; refused it is not, because it may be what the user wants.

    Args:
        train: contents to train on; only those that are in `validation` too are kept in memory.
        validation: contents to validate on, each counted as often as it is there.
        fault: the warning, with `{shared}` and `{total}` where the counts go.
        notes: gets it.
    """
    held = set(validation)
    seen = {content for content in train if content in held}
    if shared := sum(content in seen for content in validation):
        counts = fault.format(shared=f"{shared:,}", total=f"{len(validation):,}")
        notes.append(f"warning: {counts}; validation scores will be too good")
