"""What the sources of all tasks ask of the flags that name them."""

import re
from collections.abc import Sequence
from pathlib import Path

from him.core.errors import ConfigError
from him.core.messages import shown

SAMPLE = "sample"
HUB_NAME = r"\w[\w.-]*/\w[\w.-]*"
LOCAL_WAYS = "--train_file FILE --validation_file FILE, or the built-in sample with --dataset sample"


def check_source_flags(
    train_files: Sequence[str],
    validation_file: str | None,
    dataset: str | None,
    dataset_config: str | None,
    sample_size: int | None,
    *,
    example: str,
) -> None:
    """Refuses flags that choose the data and contradict each other or are out of range.

    Args:
        train_files: `--train_file`.
        validation_file: `--validation_file`.
        dataset: `--dataset`.
        dataset_config: `--dataset_config`.
        sample_size: `--sample_size`.
        example: the full name of a hub set, for messages.

    Raises:
        ConfigError: they do.
    """
    if dataset and (train_files or validation_file):
        flag = "--train_file" if train_files else "--validation_file"
        raise ConfigError(f"--dataset {shown(dataset)} and {flag} name two sources of data; leave one of them out")
    if validation_file and not train_files:
        raise ConfigError("--validation_file is given without --train_file; add --train_file FILE, or drop both")
    if dataset_config and (train_files or dataset == SAMPLE):
        source = "--train_file" if train_files else f"--dataset {SAMPLE}"
        raise ConfigError(
            f"--dataset_config {shown(dataset_config)} chooses among configurations of a hub set, and {source} has "
            "none; leave it out"
        )
    if sample_size is not None and sample_size < 1:
        raise ConfigError(f"--sample_size {sample_size} leaves nothing to train on; use 1 or more")
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
