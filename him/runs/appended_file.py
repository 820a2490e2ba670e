"""Append-only file, which a full disk leaves as it was."""

import os
from contextlib import suppress
from pathlib import Path

from him.core.files import cannot_write, sync


class AppendedFile:
    """Collects what is written and appends it at `flush`: all of it, or nothing until a later flush.

    Python's own buffered files lose or double a part of what the disk did not take.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)
        sync(path.parent)  # or a power cut could take its name, whatever is flushed into it
        self._size = path.stat().st_size
        self._waiting = bytearray()

    def write(self, data: bytes) -> int:
        """Collects bytes; returns their number."""
        self._waiting += data
        return len(data)

    def flush(self, to_disk: bool = False) -> None:
        """Appends what was collected.

        Args:
            to_disk: whether to wait until the disk has it.

        Raises:
            CannotWrite: there is no space, or the disk fails; the file is as it was, and what was collected stays.
        """
        try:
            if os.fstat(self._file.fileno()).st_size > self._size:  # what an earlier call could not take back
                self._file.truncate(self._size)
            written = 0
            while written < len(self._waiting):
                written += os.write(self._file.fileno(), memoryview(self._waiting)[written:])
            if to_disk:
                os.fsync(self._file.fileno())
        except OSError as error:
            with suppress(OSError):  # of a disk that fails altogether
                self._file.truncate(self._size)
            raise cannot_write(error, self.path, len(self._waiting)) from None
        self._size += len(self._waiting)
        self._waiting = bytearray()

    def close(self) -> None:
        """Flushes and closes the file, which is closed even where the disk is full."""
        try:
            self.flush()
        finally:
            self._file.close()
