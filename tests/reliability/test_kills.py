"""A run that is killed at any moment, in any stage, loses nothing and ends the same."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

import him
from him.config import Config
from tests.reliability.tiny_runs import KINDS, begin_or_go_on, hush, settings_of_kind, wait, without_a_clock
from tests.small_runs import assert_same_run

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and signals")


def stage_of(run: Path) -> str:
    """What a run was about when it was killed, as far as its files tell."""
    part = run / "compressed.part"
    if not (run / "checkpoints").is_dir():
        return "beginning"
    if not part.is_dir():
        return "training" if not (run / "predictions.json").exists() else "after training"
    if (part / "int8").is_dir():
        return "quantizing"
    return "fine-tuning" if (part / "fine_tuned").is_dir() else "pruning"


@pytest.mark.parametrize("kind", KINDS)
def test_kills_at_random_moments(tmp_path, amount, reached, kind):
    """Of a process that nobody warns: SIGKILL, some time after it was started, until the wanted number is reached."""
    wanted = amount(4 if list(KINDS).index(kind) < 3 else 0, 40)
    if not wanted:
        pytest.skip("only in the full form")
    choose = random.Random(kind)
    stages: dict[str, int] = {}
    num_runs = 0
    with without_a_clock():
        settings = settings_of_kind(kind, tmp_path / "data")
        begun_at = time.monotonic()
        # In this process: those to come are copies of it and find all modules loaded.
        straight = Path(him.train(Config(**settings, run_name="straight"))["run"])
        takes = time.monotonic() - begun_at
        while sum(stages.values()) < wanted:
            num_runs += 1
            run = tmp_path / f"killed {num_runs}" / "run"
            while True:
                process = begin_or_go_on(settings, run, hush)
                # The last attempt of a run is let be: a number of kills is wanted, not of runs.
                delay = choose.uniform(0.0, 0.6 * takes) if sum(stages.values()) < wanted else 60.0
                if not wait(process, delay):
                    process.send_signal(signal.SIGKILL)
                status = process.finish().status
                if status == 0:  # it may also have ended just before
                    break
                assert status == -signal.SIGKILL
                stage = stage_of(run)
                stages[stage] = stages.get(stage, 0) + 1
            assert_same_run(run, straight)
            shutil.rmtree(run.parent)
    told = ", ".join(f"{number} {stage}" for stage, number in stages.items())
    reached(
        "a killed run loses nothing and ends the same",
        f"{kind}: {sum(stages.values())} kills ({told}), {num_runs} runs bit-identical",
    )
