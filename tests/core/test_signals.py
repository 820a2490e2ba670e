"""What a signal does where: in copies of this process, whose signal handlers are their own."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from him.core.signals import (
    SignalListener,
    Stopped,
    exit_at_once,
    handled_by,
    raise_if_stopped,
    send_to,
    signal_of,
    stopping,
)
from tests.small_runs import in_child, listen_to_ctrl_c

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and signals")

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PASSED = 7  # exit status of a child that came to its end


def kill(number: int) -> None:
    """Sends this process a signal, whose handler has run when this returns."""
    os.kill(os.getpid(), number)


def passes(work: Callable[[], None]) -> None:
    """Asserts that `work` comes to its end in a process that listens to Ctrl-C."""
    assert ends(work) == PASSED


def ends(work: Callable[[], None]) -> int:
    """Exit status of a process that listens to Ctrl-C, does `work`, and then exits with `PASSED`."""

    def child() -> int:
        listen_to_ctrl_c()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        work()
        return PASSED

    return in_child(child)


@pytest.fixture(autouse=True)
def handlers_stay() -> Iterator[None]:
    """No test leaves this process with other handlers."""
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    assert [signal.getsignal(number) for number in SIGNALS] == before


# -- stopping --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_raises(number):
    def work() -> None:
        with pytest.raises(Stopped, match=f"^stopped by signal {int(number)}$") as stopped:
            with stopping():
                kill(number)
        assert stopped.value.signal == signal_of(stopped.value) == number

    passes(work)


def test_it_is_a_ctrl_c_to_whoever_knows_nothing_of_it():
    assert issubclass(Stopped, KeyboardInterrupt)
    assert not issubclass(Stopped, Exception), "`except Exception` must not stop it"
    assert signal_of(KeyboardInterrupt()) == signal.SIGINT


@pytest.mark.parametrize("first", SIGNALS)
def test_a_second_ctrl_c_ends_the_process(first):
    """While the first one is being dealt with, however long this takes."""

    def work() -> None:
        with stopping():
            try:
                kill(first)
            except Stopped:
                kill(signal.SIGINT)

    assert ends(work) == 130


@pytest.mark.parametrize("first", SIGNALS)
def test_a_second_sigterm_changes_nothing(first):
    """Of two that a system sends in a row, the second must not break into the end of the work."""

    def work() -> None:
        with stopping():
            try:
                kill(first)
            except Stopped:
                kill(signal.SIGTERM)

    passes(work)


def test_handlers_come_back_after_it():
    def work() -> None:
        before = [signal.getsignal(number) for number in SIGNALS]
        for _ in range(2):  # what came before counts no more
            with pytest.raises(Stopped), stopping():
                kill(signal.SIGINT)
            assert [signal.getsignal(number) for number in SIGNALS] == before
        with pytest.raises(ZeroDivisionError), stopping():
            1 / 0  # noqa: B018
        assert [signal.getsignal(number) for number in SIGNALS] == before

    passes(work)


def test_an_ignored_ctrl_c_stays_ignored():
    """As in a background job of a shell; SIGTERM is heard all the same."""

    def work() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with SignalListener() as interruption:
            kill(signal.SIGINT)
            kill(signal.SIGINT)
            assert interruption.signal is None
            kill(signal.SIGTERM)
            assert interruption.signal == signal.SIGTERM
        with pytest.raises(Stopped) as stopped, stopping():
            kill(signal.SIGINT)
            kill(signal.SIGINT)
            kill(signal.SIGTERM)
        assert stopped.value.signal == signal.SIGTERM
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN

    passes(work)


@pytest.mark.parametrize("listener", [stopping, SignalListener, lambda: handled_by(exit_at_once)])
def test_other_threads_may_enter_and_change_nothing(listener):
    """Python lets only the main thread set handlers."""

    def work() -> None:
        done = []

        def in_thread() -> None:
            before = [signal.getsignal(number) for number in SIGNALS]
            with listener():
                assert [signal.getsignal(number) for number in SIGNALS] == before
                assert send_to(exit_at_once) == {}
            done.append(True)

        thread = threading.Thread(target=in_thread)
        thread.start()
        thread.join()
        assert done == [True]

    passes(work)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_stop_that_got_lost_is_heeded_later(number):
    """C code may clear the exception that a handler has raised in its callback."""

    def work() -> None:
        raise_if_stopped()
        with pytest.raises(Stopped) as stopped, stopping():
            raise_if_stopped()
            with suppress(Stopped):
                kill(number)
            assert SignalListener().signal == number, "nothing more is begun"
            raise_if_stopped()
        assert stopped.value.signal == number
        raise_if_stopped()
        assert SignalListener().signal is None

    passes(work)


# -- interruption ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", SIGNALS)
def test_an_interruption_remembers_the_first_signal(number):
    def work() -> None:
        with SignalListener() as interruption:
            assert interruption.signal is None
            kill(number)
            assert interruption.signal == number
            kill(signal.SIGTERM)
            assert interruption.signal == number, "the exit status is that of the first"
        assert interruption.signal == number

    passes(work)


@pytest.mark.parametrize("first", SIGNALS)
def test_a_second_ctrl_c_ends_an_interruption_too(first):
    def work() -> None:
        with SignalListener():
            kill(first)
            kill(signal.SIGINT)

    assert ends(work) == 130


def test_an_interruption_inside_of_stopping_takes_the_signals_for_itself():
    def work() -> None:
        with pytest.raises(Stopped) as stopped, stopping():
            with SignalListener() as interruption:
                kill(signal.SIGINT)
            assert interruption.signal == signal.SIGINT
            kill(signal.SIGTERM)
        assert stopped.value.signal == signal.SIGTERM

    passes(work)


@pytest.mark.parametrize("number", SIGNALS)
def test_long_work_is_cut_short(number):
    """In its middle, and the exception leaves nothing behind: what follows is safe from signals again."""

    def work() -> None:
        with SignalListener() as interruption:
            with pytest.raises(Stopped) as stopped, interruption.cutting_short():
                threading.Timer(0.02, kill, (number,)).start()
                time.sleep(30)
            assert stopped.value.signal == interruption.signal == number
            kill(signal.SIGTERM)

    passes(work)


def test_long_work_is_not_begun_after_a_signal():
    def work() -> None:
        with SignalListener() as interruption:
            kill(signal.SIGTERM)
            with pytest.raises(Stopped) as stopped, interruption.cutting_short():
                raise AssertionError("it was begun")
            assert stopped.value.signal == signal.SIGTERM

    passes(work)


def test_after_long_work_a_signal_is_only_remembered():
    def work() -> None:
        with SignalListener() as interruption:
            with interruption.cutting_short():
                pass
            with pytest.raises(ZeroDivisionError), interruption.cutting_short():
                1 / 0  # noqa: B018
            kill(signal.SIGINT)
            assert interruption.signal == signal.SIGINT

    passes(work)


def test_a_signal_to_another_thread_is_heard():
    """The kernel may hand it to any thread; Python runs the handler in the main one."""

    def work() -> None:
        with SignalListener() as interruption:
            thread = threading.Thread(target=lambda: signal.pthread_kill(threading.get_ident(), signal.SIGTERM))
            thread.start()
            thread.join()
            for _ in range(100):
                if interruption.signal is None:
                    time.sleep(0.01)
            assert interruption.signal == signal.SIGTERM

    passes(work)


# -- the rest --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", SIGNALS)
def test_exit_at_once_has_the_status_of_the_signal(number):
    """No `finally` runs."""

    def work() -> None:
        with handled_by(exit_at_once):
            try:
                kill(number)
            finally:
                os._exit(1)

    assert ends(work) == 128 + number


def test_handled_by_gives_back_what_was_there():
    def work() -> None:
        heard = []
        signal.signal(signal.SIGTERM, lambda number, frame: heard.append("outer"))
        with handled_by(lambda number, frame: heard.append("inner")):
            kill(signal.SIGTERM)
        kill(signal.SIGTERM)
        assert heard == ["inner", "outer"]

    passes(work)


def test_send_to_says_who_had_the_signals():
    def work() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        assert send_to(exit_at_once) == {signal.SIGTERM: signal.SIG_DFL}
        assert signal.getsignal(signal.SIGTERM) is exit_at_once

    passes(work)
