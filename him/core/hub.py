"""Data sets of the Hugging Face hub, or of local folders that its library can read; what happens without a network.

The library `datasets` takes 0.6 s to import: everything here imports it only when it is called.
"""

import logging
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from him.core.errors import DataError
from him.core.messages import one_line, shown, shown_names

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

CAUSE_CHARACTERS = 200
CARDS = ("README.md", ".huggingface.yaml")  # where a data set says of which files it consists
HUB_SECONDS = 8.0  # the longest wait for a sign of life; a slow line answers a HEAD request within two


def load_hub_dataset(name: str, local_ways: str, notes: list[str], config_name: str | None = None) -> "DatasetDict":
    """A data set of the hub, from its cache when the hub is out of reach, or a local folder of data files.

    The hub is asked for a sign of life first: its client would try six times, over 24 s and with 13 lines on stderr.

    Args:
        name: `owner/name`, or a folder.
        local_ways: the flags that do without the hub, for messages.
        notes: gets a line when the copy in the cache is used.
        config_name: which configuration of the set, such as "3.0.0"; None where it has only one.

    Raises:
        DataError: there is no such set, it cannot be read, or the hub is out of reach and the cache empty.
    """
    import datasets
    import huggingface_hub

    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True  # nothing is asked for, or told, beyond the data
    if Path(name).is_dir():
        _check_card(name, local_ways)
    unreachable = None if Path(name).is_dir() else _why_unreachable(name)
    try:
        with ExitStack() as settings:
            settings.enter_context(_quiet())
            if unreachable:
                settings.enter_context(_offline())
            loaded = datasets.load_dataset(name, config_name)
    except Exception as error:  # whatever the readers, the file system or the HTTP client raise
        raise DataError(_hub_message(name, local_ways, unreachable, error)) from error
    if unreachable:
        notes.append(f"the Hugging Face hub is out of reach ({unreachable}): {name} is read from the cache")
    return loaded


def _check_card(folder: str, local_ways: str) -> None:
    """Sees to it that a folder's card names data in the folder only: the library would fetch addresses as well.

    Raises:
        DataError: it names an address, or a file elsewhere.
    """
    import yaml
    from huggingface_hub import DatasetCard

    for name in CARDS:
        path = Path(folder, name)
        try:
            if not path.is_file():
                continue
            if name == "README.md":
                configs = DatasetCard.load(path).data.to_dict().get("configs")
            else:
                configs = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("configs")
        except Exception:  # of whatever the library refuses too, in the same words
            continue
        for place in _strings(configs, set()):
            if "://" in place or Path(place).is_absolute() or ".." in Path(place).parts:
                fault = f"its {name} names data that is not in the folder ({shown(place)})"
                raise DataError(f"--dataset {shown(folder)}: {fault}; put the file there, or use {local_ways}")


def _strings(value: object, seen: set[int]) -> Iterator[str]:
    """All texts in lists and mappings, each of which is looked at once."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict) and id(value) not in seen:
        seen.add(id(value))
        for each in value.values() if isinstance(value, dict) else value:
            yield from _strings(each, seen)


def hub_split(
    splits: "DatasetDict", name: str, split: str, local_ways: str, columns: Sequence[str], fix: str
) -> "Dataset":
    """One split of a set.

    Args:
        splits: the set, as `load_hub_dataset` returns it.
        name: its name, for messages.
        split: such as "train".
        local_ways: the flags that do without the hub, for messages.
        columns: what the split has to have.
        fix: what to do where a column is missing.

    Raises:
        DataError: there is no such split, or it lacks a column.
    """
    if split not in splits:
        fault = f"has no split {split} (there is {', '.join(map(one_line, splits))})"
        raise DataError(f"--dataset {shown(name)} {fault}; name another one, or use {local_ways}")
    found = splits[split].column_names
    missing = [column for column in columns if column not in found]
    if missing:
        fault = f"has no column {shown_names(missing)} (there is {shown_names(found)})"
        raise DataError(f"--dataset {shown(name)} {fault}; {fix}")
    return splits[split]


def _hub_message(name: str, local_ways: str, unreachable: str | None, error: Exception) -> str:
    from datasets.exceptions import DatasetNotFoundError

    cause = one_line(str(_root(error)), CAUSE_CHARACTERS)
    if isinstance(error, ConnectionError | TimeoutError):
        fault = f"the Hugging Face hub is out of reach ({unreachable or cause}) and {shown(name)} is not in its cache"
        return f"{fault}; use files of your own with {local_ways}"
    if isinstance(error, DatasetNotFoundError):
        fault = f"the Hugging Face hub has no data set {shown(name)}, or it is private or gated"
        return f"{fault}; check the name after --dataset, or use {local_ways}"
    if isinstance(error, ValueError) and re.match("Config name is missing|BuilderConfig .* not found", str(error)):
        return f"--dataset {shown(name)}: {cause}; choose a configuration with --dataset_config NAME"
    return f"--dataset {shown(name)} cannot be read ({type(_root(error)).__name__}: {cause}); use {local_ways}"


def _root(error: BaseException) -> BaseException:
    """The first error of a chain; `datasets` hides it behind "An error occurred while generating the dataset"."""
    while error.__cause__:
        error = error.__cause__
    return error


def _why_unreachable(name: str) -> str | None:
    """None when the hub answers, whatever it says about `name`; otherwise the reason."""
    import huggingface_hub
    from datasets import config

    if huggingface_hub.is_offline_mode() or config.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    reason: list[str | None] = [f"no answer within {HUB_SECONDS:.0f} s"]

    def ask() -> None:
        try:
            url = f"{config.HF_ENDPOINT}/api/datasets/{name}"
            status = huggingface_hub.get_session().head(url, timeout=HUB_SECONDS).status_code
            reason[0] = f"it answers {status}" if status >= 500 else None
        except Exception as error:  # any fault of name look-up, proxy, certificate or connection means the same here
            reason[0] = one_line(str(error) or type(error).__name__, CAUSE_CHARACTERS)

    # A thread, because a time-out of the client holds for each of several addresses and not for the name look-up.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_SECONDS)
    return reason[0]


@contextmanager
def _offline() -> Iterator[None]:
    """Makes the hub's client refuse every request at once, so that only the cache is looked at."""
    import huggingface_hub
    from datasets import config

    before = huggingface_hub.constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE = before


@contextmanager
def _quiet() -> Iterator[None]:
    """No logs of the two libraries, whose errors are raised as well, and their progress bars only in a terminal."""
    import datasets
    import huggingface_hub

    logs = [(library.logging, library.logging.get_verbosity()) for library in (datasets, huggingface_hub)]
    bars_off = not sys.stderr.isatty() and not datasets.utils.are_progress_bars_disabled()
    for log, _ in logs:
        log.set_verbosity(logging.CRITICAL)
    if bars_off:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        for log, verbosity in logs:
            log.set_verbosity(verbosity)
        if bars_off:
            datasets.enable_progress_bars()
