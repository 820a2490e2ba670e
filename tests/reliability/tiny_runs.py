"""Tiny runs with every stage, for each task and norm order, that can be begun and gone on with in a process of their
own."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from him.compression import latency
from tests.compression.tiny import quickly, settings_of
from tests.small_runs import ForkedMain, flags

# A save every two steps, and an evaluation within the epochs, so that there is much to be stopped in.
OFTEN = {"compress": True, "num_epochs": 2, "save_every_steps": 2, "fine_tune_epochs": 1, "batch_size": 8}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "squad, post-LN, EMA": ("squad", {"norm_first": False, "ema_decay": 0.9}),
    "summarization, pre-LN": ("summarization", {"norm_first": True, "eval_every_steps": 3}),
    "lm, pre-LN, Muon": ("lm", {"norm_first": True, "optimizer": "muon"}),
    "squad, pre-LN": ("squad", {"norm_first": True, "micro_batch_size": 3}),
    "summarization, post-LN, sampling": ("summarization", {"norm_first": False, "num_beams": 1, "temperature": 1.0}),
    "lm, post-LN, EMA": ("lm", {"norm_first": False, "ema_decay": 0.9, "eval_every_steps": 3}),
}


def settings_of_kind(kind: str, place: Path) -> dict[str, Any]:
    """Settings of a tiny run, with its data below `place`; without a name for the run."""
    task_type, more = KINDS[kind]
    place.mkdir()
    return settings_of(task_type, place) | OFTEN | more | {"attention_examples": 0}


@contextmanager
def without_a_clock() -> Iterator[None]:
    """Speeds are not measured but made up, so that reports of two runs can be compared byte by byte."""
    speeds = {"latency_ms_1x128": 1.0, "latency_ms_1x384": 2.0, "examples_per_second_32x384": 3.0, "ms_per_token": None}
    with (
        quickly(),
        mock.patch.object(latency, "measure_speeds", lambda models, quick: dict.fromkeys(models, speeds)),
    ):
        yield


def begin_or_go_on(settings: dict[str, Any], run: Path, hook: Callable[[], None] = lambda: None) -> ForkedMain:
    """`main.py` in a process of its own: a new run, or `--resume` if there is one."""
    is_there = run.exists()
    arguments = ["--resume", run] if is_there else flags({**settings, "output_dir": run.parent, "run_name": run.name})
    return ForkedMain(arguments, hook)


def wait(process: ForkedMain, seconds: float) -> bool:
    """Whether a process has ended within some seconds."""
    end = time.monotonic() + seconds
    while process.is_running() and time.monotonic() < end:
        time.sleep(0.002)
    return not process.is_running()


def hush() -> None:
    """Keeps what a killed process prints to itself: nobody reads its pipes while it runs."""
    silent = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(silent, stream.fileno())
