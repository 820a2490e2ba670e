"""The benchmarks of training language models and of generation: fair sides, sound figures, a tiny run of each."""

import dataclasses
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from him.config import Config
from him.core.compute import Compute
from him.core.errors import ConfigError
from him.runs.folder import RunFolder
from him.tasks.evaluation import mean_loss
from him.tasks.lm.task import LanguageModelingTask
from him.tasks.lm.windows import ScoringWindows
from him.training.trainer import Trainer
from scripts.benchmarks.generate import (
    GenerationPlan,
    Way,
    _resolved,
    build_model,
    equal_shares,
    generation_table,
    measure_generation_run,
)
from scripts.benchmarks.lm import LM_LABELS, LM_SETTINGS, LmPlan, language_model_table
from scripts.benchmarks.lm_run import LmJob, him_side, measure_lm_run, plain_side, validation_loss
from scripts.benchmarks.plain_lm import PlainGPT, plain_lr_at, random_windows
from tests.small_runs import ROOT

CPU = Compute(torch.device("cpu"), bf16=False)
TINY_MODEL = {"num_encoder_layers": 1, "num_heads": 2, "embed_dim": 16, "dim_feedforward": 32}


@pytest.fixture
def text_file(tmp_path) -> str:
    """2,000 characters in which each is followed by one other only."""
    path = tmp_path / "text.txt"
    path.write_text("abcdefghij" * 200, encoding="utf-8")
    return str(path)


@pytest.fixture
def config(text_file, tmp_path) -> Config:
    """A tiny training; 28 windows make epochs of 7 steps."""
    changes = {**TINY_MODEL, "max_seq_len": 64, "batch_size": 4, "max_steps": 10, "num_epochs": 10, "precision": "fp32"}
    changes |= {"train_file": (text_file,), "cache_dir": str(tmp_path / "cache"), "attention_examples": 0}
    return LanguageModelingTask.resolve(Config(**{**LM_SETTINGS, **changes}))


@pytest.fixture
def task(config) -> LanguageModelingTask:
    return LanguageModelingTask.prepare(config)


# -- the plain model and its loop --------------------------------------------------------------------------------------


def test_plain_model_sees_nothing_later_and_trains_every_weight(config):
    torch.manual_seed(0)
    model = PlainGPT(config, vocab_size=50)
    ids_BL = torch.randint(50, (2, 12))
    changed_BL = ids_BL.clone()
    changed_BL[:, 8:] = (changed_BL[:, 8:] + 1) % 50
    logits_BLV = model(ids_BL)
    assert torch.equal(logits_BLV[:, :8], model(changed_BL)[:, :8])
    assert not torch.equal(logits_BLV[:, 8:], model(changed_BL)[:, 8:])
    loss = F.cross_entropy(logits_BLV.flatten(0, 1), torch.randint(50, (2 * 12,)))
    assert loss.item() == pytest.approx(math.log(50), abs=0.1), "undecided at first"
    loss.backward()
    for name, parameter in model.named_parameters():
        used = parameter.grad[:12] if name == "positions.weight" else parameter.grad
        assert used.any(), name


def test_plain_rate_by_hand():
    """20 steps, 4 of them warm-up: a quarter first; a tenth is left at the end, and (1 + 0.1) / 2 halfway down."""
    config = Config(learning_rate=1.0, warmup_ratio=0.2, max_steps=20)
    rates = [plain_lr_at(step, config) for step in (0, 3, 4, 12, 20, 30)]
    assert rates == pytest.approx([0.25, 1.0, 1.0, 0.55, 0.1, 0.1])


def test_plain_windows_are_the_text_and_what_follows():
    inputs_BL, labels_BL = random_windows(np.arange(100, dtype=np.uint16), 16, 9, CPU)
    assert inputs_BL.shape == labels_BL.shape == (16, 9)
    assert torch.equal(labels_BL, inputs_BL + 1)
    starts = {int(random_windows(np.arange(12, dtype=np.uint16), 1, 9, CPU)[0][0, 0]) for _ in range(60)}
    assert starts == {0, 1, 2}, "also the last window that fits"


def test_plain_loop_learns(config, task):
    torch.manual_seed(0)
    side = plain_side(task, dataclasses.replace(config, max_steps=60, learning_rate=0.01), CPU, Path())
    before = validation_loss(side, task.corpus.validation.ids, 64)
    assert list(itertools.islice(side.steps, 60)) == [4 * 64] * 60
    after = validation_loss(side, task.corpus.validation.ids, 64)
    assert before > 5 and after < 1, "each character tells the next one"


# -- both sides --------------------------------------------------------------------------------------------------------


def test_timed_steps_are_those_of_a_run(config, task, tmp_path):
    """10 steps across the end of an epoch leave the same weights, bit for bit, as `Trainer.fit`."""
    weights = []
    for name in ("benchmark", "run"):
        torch.manual_seed(0)
        (tmp_path / name).mkdir()
        if name == "benchmark":
            side = him_side(task, config, CPU, tmp_path / name)
            assert sum(itertools.islice(side.steps, 10)) == 10 * 4 * 64
            model = side.model
        else:
            model = task.build_model()
            Trainer(task, config, RunFolder(tmp_path / name), CPU, model).fit()
        weights.append(model.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_both_sides_score_the_whole_text_alike(config, task, tmp_path):
    """HIM's figure is that of its own evaluation; the plain one that of the windows one by one."""
    ids = task.corpus.validation.ids[:150]  # two windows, and one of 21 new tokens that ends with the text
    ours = him_side(task, config, CPU, tmp_path)
    means = mean_loss(ours.model, ScoringWindows(ids, 64, stride=64), 128, CPU, task.loss)
    assert validation_loss(ours, ids, 64) == pytest.approx(means.loss.mean, rel=1e-6)
    theirs = plain_side(task, config, CPU, tmp_path)
    whole = torch.from_numpy(ids.astype(np.int64))
    total = 0.0
    for start, num_seen in ((0, 0), (64, 0), (85, 43)):
        logits_LV = theirs.model(whole[None, start : start + 64])[0]
        labels_L = whole[start + 1 : start + 65]
        total += F.cross_entropy(logits_LV[num_seen:], labels_L[num_seen:], reduction="sum").item()
    assert validation_loss(theirs, ids, 64) == pytest.approx(total / 149, rel=1e-5)


@pytest.mark.parametrize("side", ["plain", "him"])
def test_turn_measures_and_scores(config, side, tmp_path):
    run = measure_lm_run(LmJob(side, config, tmp_path, num_warmup=1, num_timed=3, scored=True))
    assert run.ms_per_step > 0 and run.precision == "fp32"
    assert run.tokens_per_second == pytest.approx(1000 * 4 * 64 / run.ms_per_step)
    assert 0 < run.loss < 8
    assert measure_lm_run(LmJob(side, config, tmp_path, 1, 1, scored=False)).loss is None


def test_plain_side_stays_in_float32(config, task, tmp_path):
    assert not plain_side(task, config, Compute(torch.device("cpu"), bf16=True), tmp_path).compute.bf16


# -- generation --------------------------------------------------------------------------------------------------------

SMALL_PLAN = GenerationPlan(num_documents=3, prompt_tokens=20, max_new_tokens=6, rounds=1)


def generation_config(**changes) -> Config:
    settings = {**TINY_MODEL, "embed_dim": 32, "task_type": "lm", "vocab_size": 500, "precision": "fp32"}
    return _resolved(Config(**{**settings, **changes}), SMALL_PLAN)


@pytest.mark.parametrize("task_type", ["lm", "summarization"])
@pytest.mark.parametrize("num_beams", [1, 2])
def test_all_ways_write_the_same_in_float32(task_type, num_beams):
    config = generation_config(task_type=task_type, num_beams=num_beams)
    texts = [measure_generation_run(config, SMALL_PLAN, way).texts for way in SMALL_PLAN.ways().values()]
    assert len(texts) == 3 and texts[0] == texts[1] == texts[2]
    assert [len(text) for text in texts[0]] == [6, 6, 6], "no text ends early"
    assert min(itertools.chain(*texts[0])) >= 5, "no special tokens"


def test_texts_are_not_one_token_for_ever():
    """At the default shape; with the weights that training starts from, each text is one token again and again."""
    plan = GenerationPlan(num_documents=4, prompt_tokens=32, max_new_tokens=12)
    config = _resolved(Config(task_type="lm", vocab_size=8192, precision="fp32"), plan)
    texts = measure_generation_run(config, plan, Way(cached=True, batch_size=4)).texts
    assert min(len(set(text)) for text in texts) >= 4
    assert len(set(map(tuple, texts))) == 4, "each document has its own"


def test_same_seed_same_model():
    first, second, other = (build_model(generation_config(seed=seed)).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["embedding.tokens.weight"], other["embedding.tokens.weight"])


def test_ways_have_no_larger_batches_than_there_are_documents():
    assert GenerationPlan(num_documents=4).ways() == {
        "him": Way(True, 4),
        "uncached_4": Way(False, 4),
        "uncached_1": Way(False, 1),
    }
    assert GenerationPlan(batch_size=16).ways()["him"] == Way(True, 16)
    assert Way(False, 1).label == "uncached, one by one"


def test_equal_shares_by_hand():
    """5 of 6 tokens and 1 of 2 texts."""
    assert equal_shares([[1, 2, 3], [4, 5, 6]], [[1, 2, 3], [4, 5, 7]]) == {"tokens": 5 / 6, "texts": 0.5}


@pytest.mark.parametrize(
    ("changes", "plan", "message"),
    [
        ({"task_type": "squad"}, SMALL_PLAN, "--task_type squad writes no text; use lm or summarization"),
        ({}, GenerationPlan(prompt_tokens=9000), "--prompt_tokens 9000 and --max_new_tokens 32 make 9032 tokens"),
    ],
)
def test_what_cannot_be_generated_is_refused(changes, plan, message):
    with pytest.raises(ConfigError, match=message):
        _resolved(Config(**{"task_type": "lm", **changes}), plan)


# -- the command -------------------------------------------------------------------------------------------------------


def benchmark(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "scripts/benchmark.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["lm", "--embed_dim", "250"], "--embed_dim 250 is not divisible by --num_heads 4"),
        (["lm", "--train_steps", "-1"], "-1 is not a whole number of at least 1"),
        (["lm", "--train_file", "nowhere.txt"], "nowhere.txt"),
        (["lm", "--contestants", "him"], "--contestants"),
        (["generate", "--prompt_tokens", "0"], "0 is not a whole number of at least 1"),
        (["generate", "--task_type", "squad"], "--task_type squad writes no text"),
        (["generate", "--device", "cuda:1"], "--device cuda:1: the benchmark takes auto, cpu or cuda"),
    ],
)
def test_a_wrong_flag_is_one_line(arguments, part):
    finished = benchmark(*arguments)
    assert finished.returncode == 2
    (line,) = finished.stderr.splitlines()
    assert line.startswith("benchmark.py: error: ") and part in line


TINY_FLAGS = [f"--{name}={value}" for name, value in TINY_MODEL.items()] + ["--rounds=1", "--num_threads=1", "--json"]


@pytest.mark.slow
def test_language_model_benchmark_prints_one_json_object(text_file):
    finished = benchmark(
        "lm",
        *TINY_FLAGS,
        "--train_file",
        text_file,
        "--steps=3",
        "--warmup_steps=1",
        "--train_steps=6",
        "--him_train_steps=3",
    )
    assert finished.returncode == 0, finished.stderr
    result = json.loads(finished.stdout)
    assert list(result["contestants"]) == ["plain", "him"]
    plain, him = result["contestants"].values()
    assert plain["precision"] == "fp32" and 0.8 < plain["parameters"] / him["parameters"] < 1.25
    assert result["loss_difference"] == pytest.approx(him["loss"] - plain["loss"])
    speeds = [figures["tokens_per_second"]["median"] for figures in (him, plain)]
    assert result["ratio"]["median"] == pytest.approx(speeds[0] / speeds[1], rel=1e-3)
    assert (plain["train_steps"], him["train_steps"]) == (6, 3)
    times = [figures["ms_per_step"]["median"] for figures in (plain, him)]
    assert result["time_ratio"] == pytest.approx(2 * times[0] / times[1], rel=1e-3)
    assert result["settings"]["batch_size"] == 12 and result["data"]["train_tokens"] == 1801
    lines = language_model_table(result).splitlines()
    assert any(line.startswith("plain PyTorch loop") and line.endswith(" x") for line in lines)
    assert "nats a token from the plain loop's" in lines[-1]
    unscored = {**result, "loss_difference": None, "contestants": {"him": {**him, "loss": None}}}
    assert "nats a token" not in language_model_table(unscored)


def test_him_may_have_fewer_steps_to_the_same_loss():
    assert [LmPlan(train_steps=9, him_train_steps=4).steps_of(side) for side in LM_LABELS] == [9, 4]
    assert [LmPlan(train_steps=9).steps_of(side) for side in LM_LABELS] == [9, 9]


@pytest.mark.slow
def test_generation_benchmark_prints_one_json_object():
    work = ["--vocab_size=500", "--num_documents=3", "--prompt_tokens=20", "--max_new_tokens=4", "--precision=bf16"]
    finished = benchmark("generate", *TINY_FLAGS, *work)
    assert finished.returncode == 0, finished.stderr
    result = json.loads(finished.stdout)
    assert list(result["contestants"]) == ["him", "uncached_3", "uncached_1"]
    assert result["equal_tokens"]["fp32"] == {"tokens": 1.0, "texts": 1.0}
    assert set(result["equal_tokens"]) == {"bf16", "fp32"} and result["distinct_tokens"] >= 1
    assert result["ratio"] == result["ratios"][result["fastest_peer"]]
    seconds = {name: figures["seconds"]["median"] for name, figures in result["contestants"].items()}
    fastest = min(("uncached_3", "uncached_1"), key=seconds.get)
    assert result["fastest_peer"] == fastest
    assert result["ratio"]["median"] == pytest.approx(seconds[fastest] / seconds["him"], rel=1e-3)
    lines = generation_table(result).splitlines()
    assert any(line.startswith("uncached, one by one") and line.endswith(" x") for line in lines)
    assert lines[-1] == "fp32: 100.0 % of the tokens and 100.0 % of the texts are the same"
