"""Runs that an earlier version wrote: they are gone on with, used and compressed as runs of today are."""

import json
import math
import shutil
from pathlib import Path

import pytest

from tests.small_runs import Finished, call_main, call_script

OLD_RUNS = Path(__file__).resolve().parent / "fixtures" / "old_runs"
# Of the stages of `finished` on `data/validation.json`, as the earlier version measured them.
LOSSES = {"trained": 2.609928, "pruned": 2.610699, "fine_tuned": 2.394129, "int8": 2.394132}

# Of its answers to the question below.
SCORES = {"trained": 0.06116, "pruned": 0.06197, "fine_tuned": 0.06988, "int8": 0.06985}


def resume(name: str) -> Finished:
    """Goes on with a run, which another machine may have begun."""
    return succeeds(call_main("--resume", f"runs/{name}", "--allow_inexact_resume"))


def succeeds(finished: Finished) -> Finished:
    assert finished.status == 0, finished
    return finished


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The working folder, with the old runs in `runs`, and the data that one of them was trained on."""
    for name in ("finished", "training_stopped", "pretraining_stopped"):
        shutil.copytree(OLD_RUNS / name, tmp_path / "runs" / name)
    shutil.copytree(OLD_RUNS / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def curves(path: Path) -> dict[tuple[str, int], float]:
    """Value by tag and step."""
    records = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {(record["tag"], record["step"]): record["value"] for record in records}


def assert_curves(path: Path, expected: str) -> None:
    """Losses and learning rates are those of the earlier version, but for the last bits of another machine."""
    found, wanted = curves(path), curves(OLD_RUNS / "expected" / f"{expected}.jsonl")
    assert {key: found.get(key, math.nan) for key in wanted} == pytest.approx(wanted, rel=1e-3)


def test_a_training_that_was_stopped_is_gone_on_with(folder):
    """Every setting that has another value than by default counts in the losses or in the learning rates."""
    finished = resume("training_stopped")
    run = folder / "runs" / "training_stopped"
    assert "resuming runs/training_stopped at step 16 of 48" in finished.out
    assert_curves(run / "metrics.jsonl", "training_stopped")
    assert_curves(run / "compressed" / "fine_tuned" / "metrics.jsonl", "training_stopped_fine_tuned")
    assert (run / "checkpoints" / "step_00000048").is_dir()
    report = json.loads((run / "compressed" / "report.json").read_text())
    assert [stage["stage"] for stage in report["stages"]] == list(LOSSES)


def test_a_pretraining_that_was_stopped_is_gone_on_with(folder):
    finished = resume("pretraining_stopped")
    run = folder / "runs" / "pretraining_stopped"
    assert "epoch 1/2" not in finished.out and "epoch 2/2" in finished.out  # the first one had been done
    assert_curves(run / "pretraining" / "metrics.jsonl", "pretraining_stopped_pretraining")
    assert_curves(run / "metrics.jsonl", "pretraining_stopped")
    assert not (run / "pretraining" / "checkpoints").exists()
    assert (run / "predictions.json").is_file()


@pytest.mark.parametrize("stage", LOSSES)
def test_a_finished_run_predicts_and_measures(folder, stage):
    use = ("runs/finished", "--stage", stage, "--num_threads", "1", "--json")
    finished = succeeds(call_script("evaluate.py", *use, "--file", "data/validation.json", "--output", "answers.json"))
    assert json.loads(finished.out)["metrics"]["Loss"] == pytest.approx(
        LOSSES[stage], rel=1e-2 if stage == "int8" else 1e-3
    )
    assert len(json.loads((folder / "answers.json").read_text())) == 16
    context = "The bridge of Delft was planned by Ada in 1801."
    asked = ("--question", "Who planned the bridge of Delft?", "--context", context)
    answer = json.loads(succeeds(call_script("predict.py", *use, *asked)).out)
    assert answer["score"] == pytest.approx(SCORES[stage], rel=1e-2)
    assert answer["text"] and answer["text"] in context


def test_a_finished_run_is_resumed_and_compressed_again(folder):
    run = folder / "runs" / "finished"
    kept = {name: (run / name).read_bytes() for name in ("metrics.jsonl", "compressed/report.json")}
    weights = (run / "best" / "model.safetensors").read_bytes()
    finished = resume("finished")
    assert "resuming runs/finished at step 14 of 14" in finished.out and "epoch" not in finished.out.split("best")[0]
    assert {name: (run / name).read_bytes() for name in kept} == kept
    assert (run / "best" / "model.safetensors").read_bytes() == weights
    succeeds(call_script("compress.py", "runs/finished", "--pruning_amount", "0.5"))
    again = json.loads((run / "compressed" / "report.json").read_text())
    assert again["settings"]["pruning_amount"] == 0.5
    before = json.loads(kept["compressed/report.json"])
    pruned = [stages["stages"][1]["parameters"] for stages in (before, again)]
    assert pruned[1] < pruned[0]
