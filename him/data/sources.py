"""What the sources of all tasks ask of the flags that name them."""

import re
from pathlib import Path

from him.config import Config
from him.core.errors import ConfigError
from him.core.messages import shown

SAMPLE = "sample"
HUB_NAME = r"\w[\w.-]*/\w[\w.-]*"
LOCAL_WAYS = "--train_file FILE --validation_file FILE, or the built-in sample with --dataset sample"


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
