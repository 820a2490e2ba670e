"""How fast models are, measured side by side: the same inputs, in turns, so that a busy machine slows all alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from him.core.compute import Compute
from him.tasks.base import Task

SHAPES = {"latency_ms_1x128": (1, 128), "latency_ms_1x384": (1, 384), "examples_per_second_32x384": (32, 384)}
ROUNDS = 5
SECONDS_A_TURN = 0.1  # a turn is as many runs as fit, one at least


@dataclass
class Contestant:
    """A model with its task, and how it is computed."""

    model: nn.Module
    task: Task
    compute: Compute


def measure_speeds(contestants: Mapping[str, Contestant], quick: bool = False) -> dict[str, dict[str, float | None]]:
    """Median latencies in ms, and examples a second, by contestant and name of `SHAPES`.

    A batch has random tokens and no padding. A shape that is longer than learned positions reach is None. Beside them
    `latency_ms_example`, one example of the built-in data from text to text, and for models that write
    `latency_ms_token`, the same for each token that was written.
    """
    speeds: dict[str, dict[str, float | None]] = {name: {} for name in contestants}
    for measure, (batch_size, length) in SHAPES.items():
        able = {name: each for name, each in contestants.items() if _reaches(each, length)}
        medians = _medians({name: _forward(each, batch_size, length) for name, each in able.items()}, quick)
        for name in contestants:
            seconds = medians.get(name)
            value = seconds and (1e3 * seconds if measure.startswith("latency") else batch_size / seconds)
            speeds[name][measure] = value and round(value, 3)
    inputs = next(iter(contestants.values())).task.example_inputs()  # the same for all
    predictions = {name: _prediction(each, inputs) for name, each in contestants.items()}
    for name, seconds in _medians({name: run for name, (run, _) in predictions.items()}, quick).items():
        speeds[name]["latency_ms_example"] = round(1e3 * seconds, 3)
        if num_tokens := predictions[name][1]:
            speeds[name]["latency_ms_token"] = round(1e3 * seconds / num_tokens, 3)
    return speeds


def _reaches(contestant: Contestant, length: int) -> bool:
    config = contestant.task.config
    return config.positions != "learned" or length <= config.max_seq_len


def _forward(contestant: Contestant, batch_size: int, length: int) -> Callable[[], Any]:
    """A pass over a batch of random tokens."""
    task, compute, model = contestant.task, contestant.compute, contestant.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        batch = compute.to_device(task.dummy_batch(batch_size, length))

    @torch.inference_mode()
    def run() -> None:
        with compute.autocast():
            task.forward(model, batch)

    return run


def _prediction(contestant: Contestant, inputs: Mapping[str, str]) -> tuple[Callable[[], Any], int | None]:
    """A prediction for an input of the task, and how many tokens it writes."""

    def run() -> Any:
        return contestant.task.predict(contestant.model, contestant.compute, **inputs)

    return run, getattr(run(), "num_tokens", None)


def _medians(runs: Mapping[str, Callable[[], Any]], quick: bool) -> dict[str, float]:
    """Median seconds of each, over `ROUNDS` turns, or of one run if it has to be quick."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()  # warms up
    for _ in range(1 if quick else ROUNDS):
        for name, run in runs.items():
            turn_started_at = time.perf_counter()
            while True:
                started_at = time.perf_counter()
                run()
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                now = time.perf_counter()
                seconds[name].append(now - started_at)
                if quick or now - turn_started_at > SECONDS_A_TURN:
                    break
    return {name: statistics.median(each) for name, each in seconds.items()}
