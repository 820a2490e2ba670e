"""The benchmarks: the windows and spans of `run_qa`, the arithmetic of the figures, and a tiny run of each command."""

import json
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from him.config import Config
from him.core.compute import Compute
from him.core.errors import ConfigError
from him.tasks.squad.features import FeatureOptions, build_features
from him.tasks.squad.reader import squad_from_document
from him.text.training import train_tokenizer
from scripts.benchmarks.batch_plan import choose_batches, plan_steps, random_batches
from scripts.benchmarks.features import compare_features, features_table, find_differences
from scripts.benchmarks.measure import Meter, training_flops
from scripts.benchmarks.requirements import require_peers
from scripts.benchmarks.rounds import Spread, ratios
from scripts.benchmarks.run_qa import map_features, squad_dataset, wrap_tokenizer
from tests.small_runs import ROOT, first_paragraphs, sample_documents

CPU = Compute(torch.device("cpu"), bf16=False)


# -- windows and spans -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "unpadded"])
@pytest.mark.parametrize(("max_seq_len", "doc_stride"), [(48, 16), (384, 128)])
def test_windows_and_spans_are_those_of_run_qa(tmp_path, padded, max_seq_len, doc_stride):
    data = squad_from_document(first_paragraphs(sample_documents()[0], 150), "sample")
    tokenizer = train_tokenizer([paragraph.context for paragraph in data.paragraphs], 500)
    raw = squad_dataset(data, tmp_path / "raw")
    theirs = map_features(raw, wrap_tokenizer(tokenizer), max_seq_len, doc_stride, padded)
    ours, _ = build_features(data, tokenizer, FeatureOptions(max_seq_len, doc_stride), None)
    found = find_differences(theirs, ours, tokenizer, max_seq_len)
    assert found.identical, found
    if max_seq_len == 48:
        assert found.num_windows > 2 * data.num_questions, "several windows a question"
        assert found.starts_on_padding < found.num_windows / 50


def features_of_both(data, tokenizer, folder: Path, max_seq_len: int = 16):
    raw = squad_dataset(data, folder / "raw")
    theirs = map_features(raw, wrap_tokenizer(tokenizer), max_seq_len, 2, padded=True)
    return theirs, build_features(data, tokenizer, FeatureOptions(max_seq_len, 2), None)[0]


def test_run_qa_spans_by_hand(tmp_path, tokenizer, squad_data):
    """[CLS] who ran ? [SEP] the dog sat . the cat ran [SEP] [PAD] [PAD] [PAD] [PAD]: the context starts at place 5."""
    context = "the dog sat. the cat ran"
    asked = [("who ran?", [("the cat", 13)]), (" who sat?", [("dog", 4), ("the dog", 0)]), ("who?", [])]
    theirs, _ = features_of_both(squad_data((context, asked)), tokenizer, tmp_path)
    assert theirs["start_positions"] == [9, 6, 0]
    assert theirs["end_positions"] == [10, 6, 0]
    assert len(theirs["input_ids"][0]) == 16 and sum(theirs["attention_mask"][0]) == 13
    assert theirs["token_type_ids"][0] == [0] * 5 + [1] * 8 + [0] * 3


def test_an_answer_in_the_last_piece_is_told_apart_from_a_difference(tmp_path, tokenizer, squad_data):
    """There `run_qa` labels the last place, here padding, and HIM the answer: the one difference that is not ours."""
    theirs, ours = features_of_both(squad_data(("the dog ran", [("who?", [("ran", 8)])])), tokenizer, tmp_path)
    assert theirs["start_positions"] == [15] and theirs["end_positions"] == [6]
    found = find_differences(theirs, ours, tokenizer, 16)
    assert found.identical and found.starts_on_padding == 1


def test_differences_are_found(tmp_path, tokenizer, squad_data):
    theirs, _ = features_of_both(squad_data(("the dog ran", [("who?", [("dog", 4)])])), tokenizer, tmp_path / "one")
    _, ours = features_of_both(squad_data(("the cat ran", [("who?", [("the", 0)])])), tokenizer, tmp_path / "two")
    found = find_differences(theirs, ours, tokenizer, 16)
    assert (found.different_windows, found.different_spans, found.identical) == (1, 1, False)


def test_features_benchmark_reports_speeds_and_identity(tmp_path):
    path = tmp_path / "train.json"
    path.write_text(json.dumps(first_paragraphs(sample_documents()[0], 60)), encoding="utf-8")
    config = Config(train_file=(str(path),), validation_file=str(path), vocab_size=500, max_seq_len=64, doc_stride=16)
    result = json.loads(json.dumps(compare_features(config, num_rounds=2)))
    assert result["identical"] and result["questions"] >= 60
    assert set(result["questions_per_second"]) == {"run_qa", "him_windows", "him"}
    for figures in result["questions_per_second"].values():
        assert 0 < figures["min"] <= figures["median"] <= figures["max"]
    assert "identical: yes" in features_table(result)


# -- figures -----------------------------------------------------------------------------------------------------------


def test_training_flops_by_hand():
    """One layer, D = 2, F = 3: P = 4 * 4 + 2 * 6 + 4 = 32. Rows of 1 and 3: 6 * 32 * 4 + 12 * 2 * (1 + 9) = 1008."""
    assert training_flops([1, 3], num_encoder_layers=1, embed_dim=2, dim_feedforward=3) == 1008
    assert training_flops([1], num_encoder_layers=2, embed_dim=2, dim_feedforward=3) == 6 * 60 + 48


def test_ratios_are_taken_round_by_round():
    """Rounds of ratio 2, 4 and 3 have the median 3; the ratio of the medians would be 20 / 10 = 2."""
    assert ratios([20, 4, 90], [10, 1, 30]) == Spread(3, 2, 4)
    assert Spread.of([1, 5, 2]).to_dict() == {"median": 2, "min": 1, "max": 5}
    assert Spread.of([1234.4]).text() == "1,234 (1,234-1,234)"


def test_meter_counts_real_tokens_of_the_timed_steps_only():
    meter, model = Meter(CPU, num_warmup=1, num_timed=2), nn.Identity()
    meter.watch(model)
    with mock.patch("time.perf_counter", side_effect=[10.0, 13.5]):
        for number_of_tokens in (5, 3, 1, 4):
            mask = torch.arange(5)[None] < number_of_tokens
            model({"attention_mask": mask})
            finished = meter.step_done()
    assert finished
    assert meter.row_lengths == [3, 1]
    assert meter.seconds == 3.5


def test_chosen_batches_stand_for_the_epoch():
    lengths = np.random.default_rng(1).integers(20, 384, 2000)
    order = np.argsort(lengths)
    batches = [order[start : start + 32] for start in range(0, 2000, 32)]
    chosen = choose_batches(batches, lengths, 20)
    assert abs(np.mean([lengths[batch].mean() for batch in chosen]) / lengths.mean() - 1) < 0.02
    assert {len(batch) for batch in chosen} == {32}, "not the smaller last one"
    assert len(choose_batches(batches[:2], lengths, 5)) == 5, "a small epoch is gone through again"
    plan = plan_steps(batches, lengths, num_warmup=3, num_timed=4)
    assert len(plan) == 7 and lengths.max() in lengths[plan[0]]


def test_random_batches_hold_every_example_once():
    batches = random_batches(10, 4, seed=0)
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert sorted(np.concatenate(batches)) == list(range(10))


# -- the command -------------------------------------------------------------------------------------------------------


def benchmark(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "scripts/benchmark.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)


def test_missing_peers_are_named_with_the_fix():
    with (
        mock.patch("importlib.util.find_spec", side_effect=lambda name: None if name == "accelerate" else object()),
        pytest.raises(ConfigError, match="need accelerate: pip install -r requirements-dev.txt"),
    ):
        require_peers()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["train", "--rounds", "0"], "0 is not a whole number of at least 1"),
        (["train", "--embed_dim", "250"], "--embed_dim 250 is not divisible by --num_heads 8"),
        (["train", "--device", "cuda:1"], "--device cuda:1: the benchmark takes auto, cpu or cuda"),
        (["features", "--train_file", "nowhere.json"], "nowhere.json"),
        (["train", "--systems", "nobody"], "nobody"),
        (["train", "--contestants", "nobody"], "nobody"),
    ],
)
def test_a_wrong_flag_is_one_line(arguments, part):
    finished = benchmark(*arguments)
    assert finished.returncode == 2
    (line,) = finished.stderr.splitlines()
    assert line.startswith("benchmark.py: error: ") and part in line


TINY = (
    "train --sample_size 64 --rounds 1 --steps 2 --padded_steps 1 --warmup_steps 1 --search_steps 1 --num_threads 1 "
    "--num_encoder_layers 1 --embed_dim 32 --num_heads 2 --dim_feedforward 64 --vocab_size 500 --max_seq_len 96 "
    "--doc_stride 32 --batch_size 8"
).split()


@pytest.mark.slow
def test_training_benchmark_prints_one_json_object():
    finished = benchmark(*TINY, "--json")
    assert finished.returncode == 0, finished.stderr
    result = json.loads(finished.stdout)
    assert result["settings"]["contestants"] == list(result["turns"]) == list(result["contestants"])
    assert list(result["contestants"]) == ["trainer", "trainer_best", "plain", "him"]
    assert result["contestants"]["trainer"]["precision"] == "fp32"
    for figures in result["contestants"].values():
        assert figures["tokens_per_second"]["median"] > 0
        assert 0 < figures["share_of_peak"]["median"] < 1
        assert figures["peak_mb"]["median"] > figures["above_imports_mb"]["median"] > 0
        assert figures["tokens_per_step"]["median"] <= 8 * 96
    speeds = {name: figures["tokens_per_second"]["median"] for name, figures in result["contestants"].items()}
    assert result["ratios"]["plain"]["speed"]["median"] == pytest.approx(speeds["him"] / speeds["plain"], rel=1e-3)
    assert len(result["search"]) == 4
    assert result["search"][0]["options"] == result["contestants"]["trainer_best"]["options"]


@pytest.mark.slow
def test_training_benchmark_prints_a_table_of_those_who_take_part():
    finished = benchmark(*TINY, "--contestants", "plain", "him")
    assert finished.returncode == 0, finished.stderr
    lines = finished.stdout.splitlines()
    assert any(line.startswith("nn.TransformerEncoder, plain loop") and line.endswith(" x") for line in lines)
    assert any(line.startswith("HIM ") for line in lines)
    assert "HF Trainer" not in finished.stdout
