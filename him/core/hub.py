"""The Hugging Face hub: one client for data sets, models and tokenizers, and what happens without a network.

The hub is asked for a sign of life first, once and briefly: its own client would try six times, over 24 s and with 13
lines on stderr. Where none comes, only the cache is looked at. The libraries take up to 0.6 s to import: everything
here imports them only when it is called.
"""

import logging
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from him.core.errors import DataError
from him.core.messages import cause_of, one_line, shown, shown_names

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

CARDS = ("README.md", ".huggingface.yaml")  # where a data set says of which files it consists
HUB_SECONDS = 8.0  # the longest wait for a sign of life; a slow line answers a HEAD request within two


@contextmanager
def hub_client(path: str | None, libraries: Sequence[str] = ("huggingface_hub",)) -> Iterator[str | None]:
    """The state in which a library asks the hub: quiet, and offline where the hub is out of reach.

    Args:
        path: what will be asked for, below the hub's address; None where nothing is, such as for a local folder.
        libraries: that ask, for `quiet`. Their progress bars stay on a terminal: a download can take minutes.

    Yields:
        Why the hub is out of reach; None where it answers.
    """
    import huggingface_hub

    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True  # nothing is asked for, or told, beyond the files
    unreachable = None if path is None else _why_unreachable(path)
    with ExitStack() as states:
        states.enter_context(quiet(*libraries, bars=sys.stderr.isatty()))
        if unreachable:
            states.enter_context(offline())
        yield unreachable


def hub_file(name: str, file: str) -> Path:
    """A file of a model's repository; a copy in the cache is taken without asking whether there is a newer one.

    Raises:
        OSError, ValueError: it cannot be had, or there can be no such name; one line.
    """
    import huggingface_hub

    cached = huggingface_hub.try_to_load_from_cache(name, file)
    if isinstance(cached, str):
        return Path(cached)
    with hub_client(f"{name}/resolve/main/{file}") as unreachable, _explained(unreachable):
        return Path(huggingface_hub.hf_hub_download(name, file))


def hub_folder(name: str, patterns: Sequence[str]) -> Path:
    """A folder with the newest files of a model's repository; those in the cache if the hub is out of reach.

    Args:
        name: of the repository.
        patterns: of the names of the files that are needed.

    Raises:
        OSError, ValueError: it cannot be had, or there can be no such name; one line.
    """
    import huggingface_hub

    huggingface_hub.utils.validate_repo_id(name)
    with hub_client(f"api/models/{name}") as unreachable, _explained(unreachable):
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(patterns)))


@contextmanager
def _explained(unreachable: str | None) -> Iterator[None]:
    """Names the reason where the client only says that it may not ask."""
    try:
        yield
    except Exception as error:
        if unreachable is None:
            raise
        raise OSError(f"the hub is out of reach, {unreachable}, and it is not in the cache") from error


def _why_unreachable(path: str) -> str | None:
    """None when the hub answers, whatever it says about `path`; otherwise the reason."""
    import huggingface_hub

    if any(switch.HF_HUB_OFFLINE for switch in _switches()):
        return "HF_HUB_OFFLINE is set"
    reason: list[str | None] = [f"no answer within {HUB_SECONDS:.0f} s"]

    def ask() -> None:
        try:
            url = f"{huggingface_hub.constants.ENDPOINT}/{path}"
            status = huggingface_hub.get_session().head(url, timeout=HUB_SECONDS).status_code
            reason[0] = f"it answers {status}" if status >= 500 else None
        except Exception as error:  # any fault of name look-up, proxy, certificate or connection means the same here
            reason[0] = cause_of(error)

    # A thread, because a time-out of the client holds for each of several addresses and not for the name look-up.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_SECONDS)
    return reason[0]


def _switches() -> list[Any]:
    """The modules in which the libraries that are loaded note that they are offline."""
    names = ("huggingface_hub.constants", "datasets.config")
    return [import_module(name) for name in names if name.partition(".")[0] in sys.modules]


@contextmanager
def offline() -> Iterator[None]:
    """Makes the hub's client refuse every request at once, so that only the cache and local files are looked at."""
    import huggingface_hub  # noqa: F401  so that its switch is there

    before = [(switch, switch.HF_HUB_OFFLINE) for switch in _switches()]
    for switch, _ in before:
        switch.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for switch, was in before:
            switch.HF_HUB_OFFLINE = was


@contextmanager
def quiet(*libraries: str, bars: bool = False) -> Iterator[None]:
    """No log messages of libraries of Hugging Face, whose errors are raised as well, and no progress bars.

    Args:
        libraries: datasets, huggingface_hub, transformers.
        bars: leaves the progress bars as they are.
    """
    with ExitStack() as undo:
        for library in libraries:
            log = import_module(f"{library}.utils.logging")
            undo.callback(log.set_verbosity, log.get_verbosity())
            log.set_verbosity(logging.CRITICAL)
            if bars:
                continue
            if library == "transformers":
                if log.is_progress_bar_enabled():
                    log.disable_progress_bar()
                    undo.callback(log.enable_progress_bar)
            elif not (shows := import_module(f"{library}.utils")).are_progress_bars_disabled():
                shows.disable_progress_bars()
                undo.callback(shows.enable_progress_bars)
        yield


def load_hub_dataset(name: str, local_ways: str, notes: list[str], config_name: str | None = None) -> "DatasetDict":
    """A data set of the hub, from its cache when the hub is out of reach, or a local folder of data files.

    Args:
        name: `owner/name`, or a folder.
        local_ways: the flags that do without the hub, for messages.
        notes: gets a line when the copy in the cache is used.
        config_name: which configuration of the set, such as "3.0.0"; None where it has only one.

    Raises:
        DataError: there is no such set, it cannot be read, or the hub is out of reach and the cache empty.
    """
    import datasets

    is_local = Path(name).is_dir()
    if is_local:
        _check_card(name, local_ways)
    path = None if is_local else f"api/datasets/{name}"
    with hub_client(path, ("datasets", "huggingface_hub")) as unreachable:
        try:
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
        for entry in _strings(configs, set()):
            if "://" in entry or Path(entry).is_absolute() or ".." in Path(entry).parts:
                fault = f"its {name} names data that is not in the folder ({shown(entry)})"
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

    cause = cause_of(_root(error))
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
