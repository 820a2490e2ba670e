"""Ctrl-C and SIGTERM at any moment: saved within a step, exit 130 or 143, and the resumed run ends the same."""

import mmap
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

import him
from him.config import Config
from him.runs.checkpoint import Checkpoints
from him.training.trainer import Trainer
from tests.reliability.tiny_runs import KINDS, begin_or_go_on, settings_of_kind, wait, without_a_clock
from tests.small_runs import assert_same_run, before_steps, flags, start_main

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and signals")
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}


class Watched:
    """Shared memory in which a process says how far it is: steps begun in the training, and whether that is over."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 8)

    def hook(self) -> None:
        """To be called in the process."""

        def note(step: int) -> None:
            self.memory[:4] = (step + 1).to_bytes(4, "little")

        before_steps(note)
        fit = Trainer.fit

        def watched_fit(trainer: Trainer, *args: object) -> None:
            in_training = trainer.folder.name == "run"
            self.memory[4] = in_training
            fit(trainer, *args)
            self.memory[4] = False

        Trainer.fit = watched_fit

    @property
    def steps_begun(self) -> int:
        return int.from_bytes(self.memory[:4], "little")

    @property
    def in_training(self) -> bool:
        return bool(self.memory[4])


@pytest.mark.parametrize("kind", KINDS)
def test_signals_at_random_moments(tmp_path, amount, reached, kind):
    wanted = amount(3 if list(KINDS).index(kind) < 2 else 0, 10)
    if not wanted:
        pytest.skip("only in the full form")
    choose = random.Random(kind)
    num_sent, num_runs, in_training, slowest = 0, 0, 0, 0.0
    with without_a_clock():
        settings = settings_of_kind(kind, tmp_path / "data")
        begun_at = time.monotonic()
        straight = Path(him.train(Config(**settings, run_name="straight"))["run"])
        takes = time.monotonic() - begun_at
        while num_sent < wanted:
            num_runs += 1
            run = tmp_path / f"stopped {num_runs}" / "run"
            while True:
                watched = Watched()
                process = begin_or_go_on(settings, run, watched.hook)
                if wait(process, choose.uniform(0.02, 0.5 * takes) if num_sent < wanted else 60.0):
                    assert process.finish().status == 0
                    break
                number = choose.choice(list(STATUS))
                steps, is_training = watched.steps_begun, watched.in_training
                sent_at = time.monotonic()
                process.send_signal(number)
                finished = process.finish()
                slowest = max(slowest, time.monotonic() - sent_at)
                if finished.status == 0:  # it was just about to end
                    break
                assert finished.status == STATUS[number], finished
                assert finished.err in ("", "main.py: stopped\n"), finished
                num_sent += 1
                if run.exists():
                    assert finished.out.splitlines()[-1] == f"stopped; go on with: python main.py --resume '{run}'"
                if is_training and steps:
                    in_training += 1
                    saved = Checkpoints(run / "checkpoints", 1).list()[-1]
                    assert int(saved.name.removeprefix("step_")) >= steps - 1, "saved within a step"
            assert_same_run(run, straight, was_stopped=True)
            shutil.rmtree(run.parent)
    reached(
        "Ctrl-C and SIGTERM are safe",
        f"{kind}: {num_sent} signals, {in_training} of them in steps of the training, all saved within a step, ended "
        f"in at most {slowest:.2f} s, {num_runs} runs bit-identical",
    )


def test_signals_while_main_py_starts(tmp_path, amount, reached):
    """From the first moments of the process on: no traceback, and nothing left behind that is not whole."""
    settings = settings_of_kind("squad, pre-LN", tmp_path / "data")
    choose = random.Random(5)
    num = amount(2, 20)
    for number in range(num):
        run = tmp_path / f"runs {number}" / "run"
        process = start_main(*flags({**settings, "output_dir": run.parent, "run_name": run.name}))
        time.sleep(choose.uniform(0.15, 2.0))
        sent = choose.choice(list(STATUS))
        process.send_signal(sent)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, "Traceback" in out + err) == (STATUS[sent], False), f"{out}\n{err}"
        assert not run.exists() or (run / "config.json").is_file()
    reached("Ctrl-C and SIGTERM are safe", f"{num} signals in the first two seconds of main.py: no traceback")
