"""Where exports go, what they need, and how other packages are kept from talking meanwhile."""

import glob
import importlib.util
import json
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from him.core.errors import ConfigError
from him.core.files import CHECKSUMS, write_json

REPORT = "export.json"


def check_output(folder: Path) -> None:
    """Sees to it that writing a folder removes nothing but an earlier export.

    Raises:
        ConfigError: there is something else at this place.
    """
    fix = "name another --output, or move it away"
    if folder.is_dir() and any(folder.iterdir()):
        foreign = _foreign_files(folder)
        if foreign:
            raise ConfigError(f"{folder} holds {foreign}, which is no part of an export; {fix}")
    elif folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; {fix}")
    # `write_folder` takes these for its own leftovers.
    old = folder.with_name(f"{folder.name}.old")
    in_the_way = [old] if old.exists() and (not old.is_dir() or _foreign_files(old)) else []
    own = re.compile(rf"\.{re.escape(folder.name)}-[0-9a-f]{{8}}")
    in_the_way += [
        path
        for path in folder.parent.glob(f".{glob.escape(folder.name)}-*")
        if path.is_dir() and not own.fullmatch(path.name)
    ]
    if in_the_way:
        raise ConfigError(f"{in_the_way[0]} is in the way of writing {folder}; {fix}")


def _foreign_files(folder: Path) -> str:
    """What is in a folder that no export wrote there, or an empty string."""
    present = {path.name for path in folder.iterdir()}
    try:
        written = set(json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))) if REPORT in present else set()
    except (OSError, ValueError, TypeError, RecursionError):
        written = set()
    return ", ".join(sorted(present - written - ({CHECKSUMS} if written else set()))[:3])


def check_packages(names: Sequence[str], use: str) -> None:
    """Raises ConfigError if one of these packages is not installed, of which `use` says what for."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"{use} needs {', '.join(missing)}; pip install -r requirements.txt")


def check_floats(model: nn.Module) -> None:
    """Raises ConfigError if the model is an int8 one, whose products no exporter knows."""
    if not isinstance(model.embedding.tokens, nn.Embedding):
        raise ConfigError("this model is int8 already; export the stage that it was made from, such as --stage trained")


def write_report(folder: Path, report: dict[str, Any]) -> None:
    """Writes `export.json`."""
    write_json(folder / REPORT, report)


def size_mb(path: Path) -> float:
    """Megabytes of a file."""
    return path.stat().st_size / 1e6


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps warnings and log messages of other packages away; errors are raised as ever."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
