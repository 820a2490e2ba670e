"""Sees what a hostile file might make a program do: an audit hook, set once in a process, that is switched on and off.

It sees what goes through Python; what compiled code writes is seen by comparing folders (`tests.small_runs.tree`).
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import CodeType
from typing import Any

MARK = "hostile_mark"  # in every piece of code that must not run, and in the names of its modules
RUNS_PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pty.spawn")
LOADS = ("ctypes.dlopen", "import")
NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg")
# What changes files, with the places of the paths among its arguments and of the folders' descriptors beside them.
CHANGES = {
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.mkdir": ((0, 2),),
    "os.truncate": ((0, None),),
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
    "os.utime": ((0, 3),),
    "os.mkfifo": ((0, 2),),
}
FOLLOWS_LINKS = ("os.truncate", "os.chmod", "os.chown", "os.utime")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
FREE = ("/dev/null", "/dev/tty", "/dev/shm", "/proc/self")


class Recorder:
    """Notes deeds while it is on.

    Attributes:
        deeds: one line each, which begins with its kind: code, module, program, pickle, network, write or change.
    """

    def __init__(self) -> None:
        self.deeds: list[str] = []
        self._is_on = False
        self._hostile: tuple[str, ...] = ()
        self._allowed: tuple[str, ...] = ()
        sys.addaudithook(self._hear)

    @contextmanager
    def on(self, hostile: Sequence[Path], allowed: Sequence[Path]) -> Iterator[list[str]]:
        """Records within; yields the deeds, which stay after it.

        Args:
            hostile: folders out of which no code may come.
            allowed: folders in which files may be made and changed.
        """
        assert not self._is_on
        self.deeds = []
        self._hostile, self._allowed = (tuple(os.path.realpath(each) for each in part) for part in (hostile, allowed))
        before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
        self._is_on = True
        try:
            yield self.deeds
        finally:
            self._is_on = False
            sys.dont_write_bytecode = before

    def _hear(self, event: str, arguments: tuple) -> None:
        if not self._is_on:
            return
        if event in ("compile", "exec"):
            self._hear_code(event, arguments)
        elif event == "pickle.find_class":
            self.deeds.append(f"pickle: {arguments}")
        elif event in RUNS_PROGRAMS:
            self.deeds.append(f"program: {event} {arguments}")
        elif event in LOADS:
            self._hear_module(event, arguments)
        elif event in NETWORK:
            if not (isinstance(arguments[1:], tuple) and event == "socket.connect" and isinstance(arguments[1], str)):
                self.deeds.append(f"network: {event} {arguments[-5:]}")
        elif event == "open":
            self._hear_open(*arguments)
        elif event in CHANGES:
            for path, folder in CHANGES[event]:
                at = arguments[folder] if folder is not None else -1
                self._check_place("change", event, arguments[path], at, event in FOLLOWS_LINKS)

    def _hear_code(self, event: str, arguments: tuple) -> None:
        """Code that comes from a hostile file, or that holds the mark."""
        source, name = arguments if event == "compile" else (None, None)
        if isinstance(arguments[0], CodeType):
            source, name = repr((arguments[0].co_consts, arguments[0].co_names)), arguments[0].co_filename
        if isinstance(source, bytes):
            source = source.decode("utf-8", "replace")
        if self._is_hostile(name) or isinstance(source, str) and MARK in source:
            self.deeds.append(f"code: {event} of {name}")

    def _hear_module(self, event: str, arguments: tuple) -> None:
        name, file = arguments[0], arguments[1] if event == "import" else arguments[0]
        if MARK in str(name) or self._is_hostile(file):
            self.deeds.append(f"module: {event} {name}")

    def _hear_open(self, path: Any, mode: str | None, flags: int) -> None:
        writes = flags & WRITES if isinstance(flags, int) else set(mode or "r") & set("wax+")
        if writes and not isinstance(path, int):
            self._check_place("write", f"open {mode or flags}", path, -1, follows=True)

    def _check_place(self, kind: str, what: str, path: Any, folder: int, follows: bool) -> None:
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        named = os.fsdecode(path)
        if isinstance(folder, int) and folder >= 0:
            named = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), named)
        parent, name = os.path.split(os.path.abspath(named))
        place = os.path.realpath(named) if follows else os.path.join(os.path.realpath(parent), name)
        if not place.startswith(FREE) and not _is_in(place, self._allowed):
            self.deeds.append(f"{kind}: {what} {place}")

    def _is_hostile(self, name: Any) -> bool:
        """Whether a file is one of a hostile folder; "<string>" and names that the linker looks up are no files."""
        return isinstance(name, str) and os.path.exists(name) and _is_in(os.path.realpath(name), self._hostile)


def _is_in(place: str, folders: Sequence[str]) -> bool:
    return any(place == folder or place.startswith(f"{folder}{os.sep}") for folder in folders)
