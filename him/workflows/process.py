"""What holds for every run that a process trains: one at a time, and a signal names the run to go on with."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from him.core.errors import ConfigError
from him.core.signals import signal_of
from him.runs.folder import RunFolder
from him.training.trainer import Interrupted

_ALONE = threading.Lock()


@contextmanager
def alone() -> Iterator[None]:
    """Keeps a second run from drawing from the same generator in another thread: neither could be repeated. Raises
    ConfigError: another one trains in this process."""
    if not _ALONE.acquire(blocking=False):
        raise ConfigError("another run trains in this process; train this one after it, or in a process of its own")
    try:
        yield
    finally:
        _ALONE.release()


@contextmanager
def naming(folder: RunFolder) -> Iterator[None]:
    """Turns a signal outside of the training loop into one that names the run to go on with."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        raise Interrupted(signal_of(stopped), folder.path) from None
