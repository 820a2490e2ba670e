"""`scripts/verify.py`: is a run whole, and do its own data and settings give it again?"""

import json
import shutil
from pathlib import Path

import pytest
import torch

from him import Config
from him.core.errors import CheckpointError
from him.core.files import write_checksums
from him.runs.checkpoint import Checkpoints, load_tensors, save_tensors
from him.runs.environment import describe_environment
from him.workflows import verify as verification
from him.workflows.train import train
from him.workflows.verify import replay, verify_files
from tests.small_runs import assert_one_line, call_script, small_settings, tree, writing_settings

MORE = {"batch_size": 8, "save_every_steps": 3, "keep_checkpoints": 2, "num_epochs": 2}
KINDS = {
    "squad, EMA": ("squad", {"ema_decay": 0.9}),
    "squad, post-LN, accumulation": ("squad", {"norm_first": False, "micro_batch_size": 3}),
    "summarization, Muon": ("summarization", {"optimizer": "muon", "num_beams": 1}),
    "lm, sampling, evaluation within epochs": ("lm", {"temperature": 1.0, "eval_every_steps": 2}),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    made = {}
    for kind, (task_type, more) in KINDS.items():
        place = tmp_path_factory.mktemp("data")
        if task_type == "squad":
            settings = small_settings(place, num_train=20, num_validation=4)
        else:
            settings = writing_settings(task_type, place, num_train=24, num_validation=4)
        made[kind] = Path(train(Config(**settings | MORE | more, run_name="run"))["run"])
    return made


@pytest.fixture
def run(runs, tmp_path) -> Path:
    return Path(shutil.copytree(runs["squad, EMA"], tmp_path / "run"))


def newest_of(run: Path) -> Path:
    return Checkpoints(run / "checkpoints", 1).list()[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_run(runs, kind):
    run = runs[kind]
    before = tree(run)
    finished = call_script("verify.py", run)
    assert (finished.status, finished.err) == (0, ""), finished
    folders = [*(f"checkpoints/{path.name}" for path in Checkpoints(run / "checkpoints", 1).list()), "run/best"]
    named = [line for line in finished.out.splitlines() if line.startswith("good  ")]
    for folder, line in zip(folders, named, strict=False):
        assert line.startswith(f"good  {folder}: checksums agree, ") and line.endswith(" tensors are finite")
    steps = [int(path.name[5:]) for path in Checkpoints(run / "checkpoints", 1).list()]
    assert named[-1] == f"good  replay of the steps {steps[-2] + 1} to {steps[-1]}: all bits agree"
    assert len(named) == len(folders) + 1
    assert tree(run) == before


@pytest.mark.parametrize("part", ["model", "optimizer", "averaged"])
def test_the_replay_sees_one_changed_bit(run, part):
    """Even where the checksums were written anew, as by somebody who wants it to look whole."""
    path = newest_of(run) / f"{part}.safetensors"
    tensors = load_tensors(path)
    name = sorted(name for name, tensor in tensors.items() if tensor.dtype == torch.float32 and tensor.dim() == 2)[0]
    tensors = {key: tensor.clone() for key, tensor in tensors.items()}
    tensors[name].view(torch.int32).view(-1)[3] ^= 1
    save_tensors(tensors, path)
    write_checksums(path.parent)
    assert all(finding.is_good for finding in verify_files(run))
    before = tree(run)
    finished = call_script("verify.py", run)
    assert (finished.status, finished.err) == (1, "")
    where = {"model": "weights", "optimizer": "optimizer state", "averaged": "ema"}[part]
    last = finished.out.splitlines()[-1]
    assert last.startswith("BAD   replay of the steps ") and last.endswith(
        f": the bits differ, first in {where} {name}"
    )
    assert tree(run) == before


def test_the_replay_sees_a_changed_state(run):
    path = newest_of(run) / "state.json"
    state = json.loads(path.read_text())
    state["loop"]["best_value"] += 1e-9
    path.write_text(json.dumps(state))
    write_checksums(path.parent)
    finding = replay(run)
    assert not finding.is_good and finding.note == "the bits differ, first in the loop's best_value"


def test_replays_of_other_seeds_differ(run):
    """Or equal bits would prove nothing."""
    path = run / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "seed": 5}))
    assert not replay(run).is_good


def test_only_one_checkpoint(run):
    for path in Checkpoints(run / "checkpoints", 1).list()[:-1]:
        shutil.rmtree(path)
    finished = call_script("verify.py", run)
    assert finished.status == 0
    last = finished.out.splitlines()[-1]
    assert last == "good  replay: left out: there is no checkpoint before the newest one"


def test_another_machine(run, monkeypatch):
    monkeypatch.setattr(
        verification, "describe_environment", lambda compute: describe_environment(compute) | {"torch": "0.1"}
    )
    finished = call_script("verify.py", run)
    assert finished.status == 0
    assert f"left out: another machine than that of the run (torch {torch.__version__} → 0.1)" in finished.out


def test_changed_data_cannot_be_replayed(run, tmp_path):
    config = json.loads((run / "config.json").read_text())
    (train_file,) = config["train_file"]
    document = json.loads(Path(train_file).read_text())
    document["data"][0]["paragraphs"].pop()
    (tmp_path / "other.json").write_text(json.dumps(document))
    (run / "config.json").write_text(json.dumps({**config, "train_file": str(tmp_path / "other.json")}))
    assert_one_line(call_script("verify.py", run), "other training data; restore the data", prog="verify.py")
    assert call_script("verify.py", run, "--no-replay").status == 0


def test_json(run):
    finished = call_script("verify.py", run, "--json")
    assert finished.status == 0
    (line,) = finished.out.splitlines()
    found = json.loads(line)
    assert (found["run"], found["good"]) == (str(run), True)
    assert [each["is_good"] for each in found["findings"]] == [True] * len(found["findings"])
    assert found["findings"][-1]["what"].startswith("replay of the steps ")
    path = run / "best" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    finished = call_script("verify.py", run, "--json")
    found = json.loads(finished.out)
    assert (finished.status, found["good"]) == (1, False)
    (bad,) = (each for each in found["findings"] if not each["is_good"])
    assert bad["what"] == "run/best" and "model.safetensors: damaged, its checksum is another one" in bad["note"]
    assert not any(each["what"].startswith("replay") for each in found["findings"]), "of a damaged run"


def test_no_replay(run, monkeypatch):
    monkeypatch.setattr(verification, "replay", lambda run: pytest.fail("a replay"))
    finished = call_script("verify.py", run, "--no-replay")
    assert (finished.status, finished.err) == (0, "")
    assert "replay" not in finished.out


def test_numbers_that_are_not_finite(run):
    path = run / "best" / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_tensors(path).items()}
    name = sorted(tensors)[0]
    tensors[name].view(-1)[0] = torch.inf
    save_tensors(tensors, path)
    write_checksums(path.parent)
    finished = call_script("verify.py", run)
    assert finished.status == 1
    (line,) = (line for line in finished.out.splitlines() if line.startswith("BAD "))
    assert line.startswith("BAD   run/best: ") and name in line


def test_what_was_quarantined_is_named(run):
    newest = newest_of(run)
    newest.rename(newest.with_name(f"{newest.name}.damaged"))
    finished = call_script("verify.py", run)
    assert finished.status == 1
    (line,) = (line for line in finished.out.splitlines() if line.startswith("BAD "))
    assert line.startswith(f"BAD   checkpoints/{newest.name}.damaged: quarantined as damaged")


def test_a_best_model_that_is_gone(run):
    shutil.rmtree(run / "best")
    *_, last = verify_files(run)
    assert (last.what, last.is_good) == ("best", False)
    assert last.note == "missing; --resume makes it again from its checkpoint"


def test_a_run_without_anything_saved(run):
    for name in ("best", "checkpoints"):
        shutil.rmtree(run / name)
    finished = call_script("verify.py", run)
    assert finished.status == 1
    assert finished.out == f"BAD   {run}: nothing saved yet: neither a checkpoint nor a model\n"


@pytest.mark.parametrize("kind", ["missing", "empty", "file"])
def test_what_is_no_run(tmp_path, kind):
    path = tmp_path / "folder"
    if kind == "empty":
        path.mkdir()
    elif kind == "file":
        path.write_text("?")
    before = tree(tmp_path)
    assert_one_line(
        call_script("verify.py", path), "no run there (it has no config.json); name a run", prog="verify.py"
    )
    with pytest.raises(CheckpointError):
        list(verify_files(path))
    assert tree(tmp_path) == before
