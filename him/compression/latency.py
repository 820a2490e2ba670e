"""Latency benchmark of models side by side: the same inputs, alternately, so that a busy machine slows all alike."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from him.compression.stages import Stages
from him.core.compute import Compute
from him.model.embeddings import hold_in_bf16
from him.runs.folder import INT8, ModelFolder
from him.tasks.base import Task

SHAPES = {"latency_ms_1x128": (1, 128), "latency_ms_1x384": (1, 384), "examples_per_second_32x384": (32, 384)}
ROUNDS = 5
RUN_SECONDS = 0.1  # a benchmark run is as many passes as fit, one at least


@dataclass
class TimedModel:
    """A model with its task, and how it is computed."""

    model: nn.Module
    task: Task
    compute: Compute


def measure_speeds(models: Mapping[str, TimedModel], quick: bool = False) -> dict[str, dict[str, float | None]]:
    """Median latencies in ms, and examples a second, by model and name of `SHAPES`.

    A batch has random tokens and no padding. A shape that is longer than learned positions reach is None. Beside them
    `latency_ms_example`, one example of the built-in data from text to text, and for models that write
    `latency_ms_token`, the same for each token that was written.
    """
    speeds: dict[str, dict[str, float | None]] = {name: {} for name in models}
    for measure, (batch_size, length) in SHAPES.items():
        able = {
            name: _forward(each, batch_size, length)
            for name, each in models.items()
            if each.task.config.positions != "learned" or length <= each.task.config.max_seq_len
        }
        medians = _medians(able, quick)
        for name in models:
            seconds = medians.get(name)
            value = seconds and (1e3 * seconds if measure.startswith("latency") else batch_size / seconds)
            speeds[name][measure] = value and round(value, 3)
    inputs = next(iter(models.values())).task.example_inputs()  # the same for all
    predictions = {name: _prediction(each, inputs) for name, each in models.items()}
    for name, seconds in _medians({name: run for name, (run, _) in predictions.items()}, quick).items():
        speeds[name]["latency_ms_example"] = round(1e3 * seconds, 3)
        if num_tokens := predictions[name][1]:
            speeds[name]["latency_ms_token"] = round(1e3 * seconds / num_tokens, 3)
    return speeds


def _forward(timed: TimedModel, batch_size: int, length: int) -> Callable[[], Any]:
    """A pass over a batch of random tokens."""
    task, compute, model = timed.task, timed.compute, timed.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        batch = compute.to_device(task.dummy_batch(batch_size, length))

    @torch.inference_mode()
    def run() -> None:
        with compute.autocast():
            task.forward(model, batch)

    return run


def _prediction(timed: TimedModel, inputs: Mapping[str, str]) -> tuple[Callable[[], Any], int | None]:
    """A prediction for an input of the task, and how many tokens it writes."""

    def run() -> Any:
        return timed.task.predict(timed.model, timed.compute, **inputs)

    return run, getattr(run(), "num_tokens", None)


def _medians(runs: Mapping[str, Callable[[], Any]], quick: bool) -> dict[str, float]:
    """Median seconds of each, over `ROUNDS` benchmark runs, or of one pass if it has to be quick."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()  # warms up
    for _ in range(1 if quick else ROUNDS):
        for name, run in runs.items():
            run_started_at = time.perf_counter()
            while True:
                started_at = time.perf_counter()
                run()
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                now = time.perf_counter()
                seconds[name].append(now - started_at)
                if quick or now - run_started_at > RUN_SECONDS:
                    break
    return {name: statistics.median(each) for name, each in seconds.items()}


def measure_stages(stages: Stages, metrics: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Parameters, size, speed and metrics of each stage that is done; `metrics` are those of its model, by stage."""
    in_fp32, as_used = dataclasses.replace(stages.compute, bf16=False), stages.compute
    timed, measured = {}, []
    for stage in metrics:
        model, is_int8 = stages.load(stage), stage == INT8
        timed[stage] = TimedModel(model, stages.task_of(stage), as_used if is_int8 else in_fp32)
        if not is_int8 and as_used.bf16:
            held = stages.load(stage)
            hold_in_bf16(held)
            timed[f"{stage} in bf16"] = TimedModel(held, stages.task_of(stage), as_used)
        rest = "bf16" if as_used.bf16 else "fp32"
        weights = model.state_dict()  # what was learned; the scales of int8 rows are no parameters
        measured.append(
            {
                "stage": stage,
                "precision": f"int8 and {rest}" if is_int8 else "fp32",
                "parameters": sum(each.numel() for name, each in weights.items() if not name.endswith(".scale")),
                "file_mb": round(ModelFolder(stages.folder_of(stage)).weights.stat().st_size / 1e6, 3),
                **{name: value for name, value in metrics[stage].items() if name not in ("step", "epoch")},
            }
        )
    speeds = measure_speeds(timed, quick=stages.config.dry_run)
    for each in measured:
        each.update(speeds[each["stage"]])
        if (name := f"{each['stage']} in bf16") in speeds:
            each["bf16"] = speeds[name]
    return measured
