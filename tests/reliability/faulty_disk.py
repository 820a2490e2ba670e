"""A disk that fails: before any one call that changes files, the process dies, the power goes, or the call fails.

It meets what goes through Python's own functions, which is everything that HIM writes into a run.
"""

import builtins
import errno
import io
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
ERRORS = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC}


@dataclass(frozen=True)
class Fault:
    """What happens at the call.

    Attributes:
        kind: "kill", "cut" (of the power), "EIO" or "ENOSPC"; "none" only counts.
        halfway: whether half of the bytes of a write arrive before.
        lasts: whether later calls fail too.
        undone: share of the latest changes of names that a power cut takes back, of those that it can.
        content: what it leaves of bytes that were not flushed: "nothing", "half", "zeros" in their place, or "all".
    """

    kind: str
    halfway: bool = False
    lasts: bool = False
    undone: float = 0.0
    content: str = "nothing"


class FaultyDisk:
    """Counts the calls that change something below a folder, and has a fault at one of them; heals when it is off.

    What a power cut leaves: the content of a file as far as it was flushed, and more or less of the rest; names as
    they were at the last flush of a folder, and more or less of the changes since, in their order, as by a journal.

    Args:
        folder: where files are met.
        at: number of the call that meets the fault, from 1.
        fault: what happens then.

    Attributes:
        calls: kinds of the calls so far: open, write, fsync, rename, replace, unlink, rmdir, mkdir, truncate.
    """

    def __init__(self, folder: Path, at: int = 0, fault: Fault | None = None) -> None:
        self.calls: list[str] = []
        self.folder = os.path.realpath(folder)
        self.at = at
        self.fault = fault or Fault("none")
        self._keeps_lost = self.fault.kind == "cut"
        self._lost = f"{self.folder}.lost"  # files that were removed, until their removal is flushed
        self._flushed: dict[int, int] = {}  # file: how much of it is on the disk, if that is not all
        self._changes: list[tuple[set[int], Callable[[], None]]] = []  # of names: folders, how to take it back
        self._real = {name: getattr(os, name) for name in HOOKED}

    @contextmanager
    def on(self) -> Iterator["FaultyDisk"]:
        """Meets all calls within."""
        with ExitStack() as patches:
            for name in HOOKED:
                patches.enter_context(mock.patch.object(os, name, getattr(self, f"_{name}")))
            for owner in (io, builtins):
                patches.enter_context(mock.patch.object(owner, "open", self._open_file))
            try:
                yield self
            finally:
                self.fault = Fault("none")  # for files that are still open

    # -- faults --------------------------------------------------------------------------------------------------------

    def _meet(self, kind: str, path: str | None, half: Callable[[], None] | None = None) -> None:
        """Counts a call; the fault comes before it, or after half of a write."""
        self.calls.append(kind)
        number = len(self.calls)
        if self.fault.kind == "none" or number < self.at or (number > self.at and not self.fault.lasts):
            return
        if half is not None and self.fault.halfway:
            half()
        if self.fault.kind in ERRORS:
            code = ERRORS[self.fault.kind]
            raise OSError(code, os.strerror(code), *([] if path is None else [path]))
        if self.fault.kind == "cut":
            self.cut_power()
        os.kill(os.getpid(), signal.SIGKILL)

    def cut_power(self) -> None:
        """Leaves what the disk would have now."""
        number = round(self.fault.undone * len(self._changes))
        for _, take_back in reversed(self._changes[len(self._changes) - number :]):
            take_back()
        for parent, _, names in os.walk(self.folder):
            for name in names:
                path = os.path.join(parent, name)
                there = os.stat(path)
                flushed = self._flushed.get(there.st_ino, there.st_size)
                if self.fault.content == "all" or flushed >= there.st_size:
                    continue
                kept = (flushed + there.st_size) // 2 if self.fault.content == "half" else flushed
                os.truncate(path, kept)
                if self.fault.content == "zeros":
                    os.truncate(path, there.st_size)

    # -- what changes --------------------------------------------------------------------------------------------------

    def _place(self, path: Any, folder: int | None = None) -> str | None:
        """The path of a file below the folder, or None."""
        if isinstance(path, int):
            named = os.readlink(f"/proc/self/fd/{path}")
        else:
            named = os.fsdecode(path)
            if folder is not None:
                named = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), named)
            parent, name = os.path.split(os.path.abspath(named))
            named = os.path.join(os.path.realpath(parent), name)
        return named if named == self.folder or named.startswith(f"{self.folder}{os.sep}") else None

    def _note(self, take_back: Callable[[], None], *paths: str) -> None:
        if self._keeps_lost:
            self._changes.append(({os.stat(os.path.dirname(path)).st_ino for path in paths}, take_back))

    def _keep(self, path: str) -> str:
        """Another name for a file that goes, so that it can come back."""
        os.makedirs(self._lost, exist_ok=True)
        kept = os.path.join(self._lost, str(len(os.listdir(self._lost))))
        os.link(path, kept)
        return kept

    def _before_opening(self, path: str, empties: bool) -> None:
        self._meet("open", path)
        if not os.path.exists(path):
            self._note(lambda: self._real["unlink"](path), path)
        elif empties:
            self._flushed[os.stat(path).st_ino] = 0

    def _write_to(self, place: str, data: Any, write: Callable[[Any], int]) -> int:
        there = os.stat(place)
        self._flushed.setdefault(there.st_ino, there.st_size)
        self._meet("write", None, lambda: write(data[: len(data) // 2]))
        return write(data)

    # -- the calls -----------------------------------------------------------------------------------------------------

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & WRITES and (place := self._place(path, dir_fd)):
            self._before_opening(place, bool(flags & os.O_TRUNC))
        return self._real["open"](path, flags, mode, dir_fd=dir_fd)

    def _open_file(self, file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        place = None if isinstance(file, int) or not set(mode) & set("wax+") else self._place(file)
        if place is None:
            return REAL_OPEN(file, mode, *args, **options)
        self._before_opening(place, "w" in mode)
        return _File(REAL_OPEN(file, mode, *args, **options), place, self)

    def _write(self, handle: int, data: Any) -> int:
        place = self._place(handle) if os.path.isfile(f"/proc/self/fd/{handle}") else None
        write = self._real["write"]
        return write(handle, data) if place is None else self._write_to(place, data, lambda part: write(handle, part))

    def _fsync(self, handle: int) -> None:
        """Waits for nothing: what it brings to the disk is noted."""
        if (place := self._place(handle)) is None:
            return
        self._meet("fsync", None)
        number = os.fstat(handle).st_ino
        self._flushed.pop(number, None)
        if os.path.isdir(place):
            held = [index for index, (folders, _) in enumerate(self._changes) if number in folders]
            del self._changes[: held[-1] + 1 if held else 0]

    def _rename(self, source: Any, target: Any, kind: str = "rename") -> None:
        places = self._place(source), self._place(target)
        if None not in places:
            self._meet(kind, places[0])
            kept = self._keep(places[1]) if self._keeps_lost and os.path.isfile(places[1]) else None

            def take_back() -> None:
                self._real["rename"](places[1], places[0])
                if kept is not None:
                    self._real["rename"](kept, places[1])

            self._note(take_back, *places)
        self._real[kind](source, target)

    def _replace(self, source: Any, target: Any) -> None:
        self._rename(source, target, "replace")

    def _unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        if place := self._place(path, dir_fd):
            self._meet("unlink", place)
            if self._keeps_lost:
                kept = self._keep(place)
                self._note(lambda: self._real["rename"](kept, place), place)
        self._real["unlink"](path, dir_fd=dir_fd)

    def _rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        if place := self._place(path, dir_fd):
            self._meet("rmdir", place)
            self._note(lambda: self._real["mkdir"](place), place)
        self._real["rmdir"](path, dir_fd=dir_fd)

    def _mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        place = self._place(path, dir_fd)
        there = place is None or os.path.exists(place) or not os.path.isdir(os.path.dirname(place))
        if not there:
            self._meet("mkdir", place)
            self._note(lambda: self._real["rmdir"](place), place)
        self._real["mkdir"](path, mode, dir_fd=dir_fd)


HOOKED = ("open", "write", "fsync", "rename", "replace", "unlink", "rmdir", "mkdir")
REAL_OPEN = io.open


class _File:
    """A file that is open for writing: each write reaches the disk's cache at once."""

    def __init__(self, file: Any, place: str, disk: FaultyDisk) -> None:
        self._file, self._at, self._disk = file, place, disk

    def write(self, data: Any) -> int:
        def write(part: Any) -> int:
            number = self._file.write(part)
            self._file.flush()
            return number

        return self._disk._write_to(self._at, data, write)

    def truncate(self, size: int) -> int:
        self._disk._meet("truncate", None)
        return self._file.truncate(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
