"""Progress of a compression: which stages are done, so that a call after a kill or a signal goes on from there."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from him.config.names import renamed
from him.core.errors import CheckpointError, ConfigError
from him.core.files import remove_leftovers, verify_folder, write_json
from him.core.signals import raise_if_stopped
from him.runs.folder import FINE_TUNED, PRUNED, TRAINED, CompressionFolder

# What reading a file that was damaged or changed by hand raises.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, CheckpointError, ConfigError)


def read_with_settings(path: Path) -> dict[str, Any]:
    """A report, or how far a compression is, with its settings by their names of today.

    Raises:
        one of `UNREADABLE`: it is damaged or missing.
    """
    found = json.loads(path.read_text(encoding="utf-8"))
    return {**found, "settings": renamed(found["settings"])}


class Progress:
    """The stages that are done, each whole, and their metrics; kept in `progress.json`.

    Goes on with what an interrupted call with the same settings left whole, or begins anew.

    Args:
        part: where the stages' models are.
        settings: all that decides the result.

    Attributes:
        metrics: by stage, in their order.
    """

    def __init__(self, part: CompressionFolder, settings: dict[str, Any]) -> None:
        self.part = part
        self.settings = settings
        found = self._read()
        self.metrics: dict[str, dict[str, float]] = {} if found is None else found
        if found is None:
            shutil.rmtree(part.path, ignore_errors=True)
            part.path.mkdir(parents=True)
            self._write()

    def _read(self) -> dict[str, dict[str, float]] | None:
        try:
            progress = read_with_settings(self.part.progress)
            if progress["settings"] != self.settings:
                return None
            for stage in progress["metrics"]:
                if stage != TRAINED:
                    verify_folder(self.part.model(stage), others_allowed=True)
            return progress["metrics"]
        except UNREADABLE:
            return None

    def _write(self) -> None:
        write_json(self.part.progress, {"settings": self.settings, "metrics": self.metrics})

    def once(self, stage: str, work: Callable[[], dict[str, float]]) -> None:
        """Does a stage, unless it is done, and notes the metrics that `work` returns. Raises Stopped: a signal came."""
        raise_if_stopped()
        if stage in self.metrics:
            return
        remove_leftovers(self.part.path / stage)
        self.metrics[stage] = work()
        self._write()

    @property
    def last_float(self) -> str:
        """The last stage before int8."""
        return [stage for stage in (TRAINED, PRUNED, FINE_TUNED) if stage in self.metrics][-1]
