"""Training session: signals, room on the disk and records around the loop, whatever way it ends."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from him.core.signals import SignalListener


class Interrupted(Exception):
    """A signal ended the run after a step; its checkpoint is saved.

    Attributes:
        signal: the signal's number.
        folder: of the run.
    """

    def __init__(self, signal: int, folder: Path) -> None:
        super().__init__(f"{folder}: stopped by signal {signal}")
        self.signal = signal
        self.folder = folder


def session(fit: Callable[..., None]) -> Callable[..., None]:
    """Decorator of `Trainer.fit`: in it, a signal is remembered in `trainer.signals` instead of ending the process;
    after it, what still waits for room on the disk is saved for the last time. In any case the records are closed."""

    @functools.wraps(fit)
    def run(trainer: Any, until: int | None = None) -> None:
        try:
            with SignalListener() as trainer.signals:
                fit(trainer, until)
            trainer.finish()
        finally:
            trainer.progress.close_records()

    return run
