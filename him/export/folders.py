"""What exports share: where they go, what they need, whether they compute what the model computes, and quiet."""

import glob
import importlib.util
import json
import logging
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from him.core.errors import CheckpointError, ConfigError
from him.core.files import CHECKSUMS
from him.tasks.base import ExportableTask
from him.workflows.predict import Predictor

REPORT = "export.json"
# Between two exact ways to compute the same there is rounding only, which grows with the numbers that are rounded.
TOLERANCE = 1e-5


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


def exportable(predictor: Predictor) -> ExportableTask:
    """A model's task; ConfigError if it has no export, or if the model is int8, whose products no exporter knows."""
    if not isinstance(predictor.model.embedding.tokens, nn.Embedding):
        raise ConfigError("this model is int8 already; export the stage that it was made from, such as --stage trained")
    if not isinstance(predictor.task, ExportableTask):
        raise ConfigError(f"--task_type {predictor.task.name} cannot be exported; train another task")
    return predictor.task


class Differences:
    """The largest difference over all that was compared.

    Attributes:
        largest: of |found - expected|; NaN if either is.
        largest_output: of |expected|.
        shapes: what was tried, as [B, L].
    """

    def __init__(self) -> None:
        self.largest = 0.0
        self.largest_output = 0.0
        self.shapes: list[list[int]] = []

    def add(self, expected: Tensor, found: Tensor) -> None:
        """Compares two outputs of the same shape."""
        assert expected.shape == found.shape and expected.numel() > 0
        difference = float((found - expected).abs().max())
        # Python's `max` would let a NaN pass.
        self.largest = math.nan if math.isnan(difference + self.largest) else max(self.largest, difference)
        self.largest_output = max(self.largest_output, float(expected.abs().max()))

    def check(self, what: str) -> None:
        """Raises CheckpointError if `what` was more than rounding away from the trained model."""
        allowed = TOLERANCE * max(1.0, self.largest_output)
        if not self.largest <= allowed:
            raise CheckpointError(
                f"{what}: its outputs differ from the trained model's by {self.largest:.2g}, allowed are "
                f"{allowed:.2g}; nothing was written"
            )

    def to_dict(self) -> dict[str, Any]:
        """For `export.json`."""
        return {"max_difference": self.largest, "largest_output": self.largest_output, "checked_shapes": self.shapes}


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
