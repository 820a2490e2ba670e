"""Timing: the same inputs for all, alternately, and numbers that are what they are called."""

import dataclasses
import time

import pytest
import torch

from him.compression import latency
from him.compression.latency import SHAPES, TimedModel, measure_speeds
from tests.compression.tiny import IN_FP32, TASKS, loaded, new_model

EVERY_TASK = pytest.mark.parametrize("task_type", TASKS)


def timed(task_type, stage="trained"):
    task, model = loaded(task_type, stage)
    return TimedModel(model, task, IN_FP32)


@EVERY_TASK
def test_what_is_measured(task_type):
    found = measure_speeds({"a": timed(task_type), "b": timed(task_type, "int8")})
    expected = {*SHAPES, "latency_ms_example"} | ({"latency_ms_token"} if task_type != "squad" else set())
    assert set(found) == {"a", "b"}
    for measures in found.values():
        assert set(measures) == expected
        assert all(value > 0 for value in measures.values())
        assert measures.get("latency_ms_token", 0) <= measures["latency_ms_example"]


def test_numbers_by_hand(monkeypatch):
    """On a clock that stands still but for passes, each of which takes a millisecond for each hundred tokens."""
    now = [0.0]

    def read_clock():
        now[0] += 1e-9
        return now[0]

    monkeypatch.setattr(latency.time, "perf_counter", read_clock)
    monkeypatch.setattr(latency, "SHAPES", SHAPES)
    each = timed("squad")

    def forward(model, batch):
        now[0] += 1e-5 * batch["input_ids"].numel()

    each.task.forward = forward
    measures = measure_speeds({"a": each})["a"]
    assert measures["latency_ms_1x128"] == pytest.approx(1.28)
    assert measures["latency_ms_1x384"] == pytest.approx(3.84)
    assert measures["examples_per_second_32x384"] == pytest.approx(32 / (1e-5 * 32 * 384), abs=1e-3)


def test_benchmark_runs_alternate_after_a_run_that_warms_up(monkeypatch):
    """So that a machine that gets busy slows all alike; the first pass is not counted."""
    order = []

    def passes(name, seconds):
        def run():
            order.append(name)
            time.sleep(seconds if order.count(name) > 1 else 0.05)

        return run

    monkeypatch.setattr(latency, "ROUNDS", 3)
    monkeypatch.setattr(latency, "RUN_SECONDS", 0.0)
    medians = latency._medians({"a": passes("a", 0.001), "b": passes("b", 0.004)}, quick=False)
    assert order == ["a", "b"] * 4
    assert medians["a"] < medians["b"] < 0.04
    order.clear()
    latency._medians({"a": passes("a", 0.0), "b": passes("b", 0.0)}, quick=True)
    assert order == ["a", "b"] * 2


@EVERY_TASK
def test_all_get_the_same_inputs_and_the_generator_is_left_alone(task_type):
    batches = []
    models = {"a": timed(task_type), "b": timed(task_type, "pruned")}
    for each in models.values():
        each.task.forward = lambda model, batch: batches.append(batch)
    state = torch.random.get_rng_state()
    measure_speeds(models)
    assert torch.equal(torch.random.get_rng_state(), state)
    by_shape = {}
    for batch in batches:
        by_shape.setdefault(tuple(batch["input_ids"].shape), []).append(batch)
    assert len(by_shape) == len(SHAPES)
    for first, *others in by_shape.values():
        assert len({id(batch["input_ids"]) for batch in (first, *others)}) == 2, "each model got its own"
        assert all(torch.equal(value, other[name]) for other in others for name, value in first.items())
        assert first["attention_mask"].all(), "no padding"


@EVERY_TASK
@pytest.mark.parametrize("max_seq_len", [64, 200, 384])
def test_shapes_that_learned_positions_do_not_reach_are_left_out(task_type, max_seq_len):
    task, model = new_model(task_type, positions="learned", max_seq_len=max_seq_len)
    (measures,) = measure_speeds({"a": TimedModel(model, task, IN_FP32)}).values()
    for name, (_, length) in SHAPES.items():
        assert (measures[name] is None) == (length > max_seq_len), name
    assert measures["latency_ms_example"] > 0


def test_the_example_is_read_once():
    """Writing the built-in data takes a second, and there are seven models."""
    calls = []
    models = {name: timed("squad") for name in ("a", "b", "c")}
    inputs = models["a"].task.example_inputs()
    for each in models.values():
        each.task.example_inputs = lambda: calls.append(1) or inputs
    measure_speeds(models)
    assert len(calls) == 1


def test_a_model_is_computed_in_its_own_precision():
    seen = []
    in_bf16 = dataclasses.replace(timed("lm"), compute=dataclasses.replace(IN_FP32, bf16=True))
    for each in (timed("lm"), in_bf16):
        each.task.forward = lambda model, batch: seen.append(
            (torch.is_autocast_enabled("cpu"), torch.is_inference_mode_enabled(), torch.is_grad_enabled())
        )
        measure_speeds({"a": each})
    assert set(seen[: len(seen) // 2]) == {(False, True, False)}
    assert set(seen[len(seen) // 2 :]) == {(True, True, False)}
