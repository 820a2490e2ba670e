"""Ctrl-C and SIGTERM: the first finishes the step, a second Ctrl-C ends the process at once."""

import os
import signal
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """While entered, remembers the first signal in `.signal` instead of dying of it.

    Only the main thread may handle signals; in another one this does nothing.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Interruption":
        try:
            self._before = {number: signal.signal(number, self._remember) for number in SIGNALS}
        except ValueError:
            self._before = {}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            os._exit(128 + number)
        self.signal = number
