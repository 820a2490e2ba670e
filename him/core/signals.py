"""Ctrl-C and SIGTERM: the first ends the work where nothing is lost by it, a second Ctrl-C ends the process at once."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
Handler = Callable[[int, FrameType | None], None]
_came: list[int] = []  # the signal that `stopping` has raised `Stopped` for


class Stopped(KeyboardInterrupt):
    """A signal came where nothing has to be saved first.

    Attributes:
        signal: its number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by signal {number}")
        self.signal = number


def signal_of(error: KeyboardInterrupt) -> int:
    """The signal that an exception tells of."""
    return getattr(error, "signal", signal.SIGINT)


def raise_if_stopped() -> None:
    """Raises `Stopped` again if it was lost on its way, as in C code that clears errors; called between the stages."""
    if _came:
        raise Stopped(_came[0])


def exit_at_once(number: int, frame: FrameType | None = None) -> None:
    """Ends the process with the status that a shell gives to the signal."""
    os._exit(128 + number)


def send_to(handler: Handler) -> dict[int, Any]:
    """Sends signals that are not ignored to `handler` and returns who had them; only the main thread may do that."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heard}


@contextmanager
def handled_by(handler: Handler) -> Iterator[None]:
    """While entered, signals go to `handler`."""
    before = send_to(handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextmanager
def stopping() -> Iterator[None]:
    """While entered, the first signal raises `Stopped`; a second Ctrl-C ends the process."""

    def stop(number: int, frame: FrameType | None) -> None:
        if _came and number == signal.SIGINT:
            exit_at_once(number)
        if not _came:
            _came.append(number)
            raise Stopped(number)

    def send_again(unraisable: Any) -> None:
        """Where Python drops errors, as in callbacks of its import system, the signal comes once more."""
        if isinstance(unraisable.exc_value, Stopped):
            _came.clear()
            again = threading.Timer(0.05, os.kill, (os.getpid(), unraisable.exc_value.signal))
            again.daemon = True
            again.start()
        else:
            before(unraisable)

    before, sys.unraisablehook = sys.unraisablehook, send_again
    try:
        with handled_by(stop):
            yield
    except Exception:
        if not _came:
            raise
        raise Stopped(_came[0]) from None  # a module that was stopped in its import fails in ways of its own
    finally:
        sys.unraisablehook = before
        _came.clear()


class SignalListener(ExitStack):
    """While entered, remembers the first signal in `.signal` instead of dying of it; a second Ctrl-C still kills."""

    def __init__(self) -> None:
        super().__init__()
        self.signal: int | None = _came[0] if _came else None
        self._may_cut = False

    def __enter__(self) -> "SignalListener":
        self.enter_context(handled_by(self._remember))
        return super().__enter__()

    @contextmanager
    def cutting_short(self) -> Iterator[None]:
        """While entered, a signal raises `Stopped` at once: for long work that can be done again."""
        self._may_cut = True
        try:
            if self.signal is not None:
                raise Stopped(self.signal)
            yield
        finally:
            self._may_cut = False

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            if number == signal.SIGINT:
                exit_at_once(number)
            return
        self.signal = number
        if self._may_cut:
            raise Stopped(number)
