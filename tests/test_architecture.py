"""What docs/architecture.md shows is so: the walk from a JSON line to the loss, and what an addition costs."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.small_runs import ROOT

TEXT = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
DIFFS = re.findall(r"```diff\n(.*?)```", TEXT, re.DOTALL)
SIZE = "--num_encoder_layers 1 --embed_dim 16 --num_heads 2 --dim_feedforward 32 --vocab_size 400".split()
QUICK = "--dataset sample --sample_size 40 --max_steps 2 --pretrain_epochs 0".split()
QUICK += "--num_threads 1 --bertscore_samples 0 --no-compress".split()


def section(title: str) -> str:
    return TEXT.split(f"## {title}\n")[1].split("\n## ")[0]


def test_the_walk_is_short_and_its_files_hold_what_is_said():
    """At most 15 files from the task to the backward pass; him/model/ below squad/model.py counts as one."""
    steps = re.findall(
        r"^\d+\. `([^`]+)`: (.*?)(?=^\d+\. |\Z)", section("From a JSON line to the loss"), re.M | re.DOTALL
    )
    files = [name for name, _ in steps]
    assert files[0] == "him/tasks/squad/task.py" and files[-1] == "him/training/gradients.py"
    assert len(files) == len(set(files)) and len(files) + 1 <= 15
    for name, said in steps:
        source = (ROOT / name).read_text(encoding="utf-8")
        for word in re.findall(r"`([a-z_]+|[A-Z]\w+(?:\.\w+)?)`", said):
            assert word.split(".")[-1] in source, (name, word)
    assert ".backward()" in (ROOT / files[-1]).read_text(encoding="utf-8")


def test_every_room_is_in_the_table():
    rooms = {path.name for path in (ROOT / "him").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert set(re.findall(r"^\| `(\w+)/` \|", TEXT, re.M)) == rooms


@pytest.mark.parametrize("title", ["Add an optimizer", "Add a setting of squad's data"])
def test_an_addition_costs_two_files(title):
    (diff,) = re.findall(r"```diff\n(.*?)```", section(title), re.DOTALL)
    assert len(re.findall(r"^\+\+\+ b/him/", diff, re.M)) == len(re.findall(r"^\+\+\+ ", diff, re.M)) == 2


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """HIM with both additions."""
    if shutil.which("git") is None:
        pytest.skip("git applies the diffs")
    root = tmp_path_factory.mktemp("copy")
    for name in ("him", "scripts"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "main.py", root)
    for number, diff in enumerate(DIFFS):
        patch = root / f"{number}.diff"
        patch.write_text(diff, encoding="utf-8")
        command = ["git", "apply", "--whitespace=nowarn", patch.name]
        applied = subprocess.run(command, cwd=root, capture_output=True, text=True)
        assert applied.returncode == 0, applied.stderr
    return root


def test_the_additions_work(copy):
    """The optimizer trains and its whole state is saved; the setting leaves fewer than the 40 questions asked for."""
    from him.runs.checkpoint import load_tensors

    flags = ["--optimizer", "nadam", "--max_questions_per_context", "1", "--run_name", "new"]
    command = [sys.executable, "main.py", *SIZE, *QUICK, *flags]
    run = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    config = json.loads((copy / "runs/new/config.json").read_text(encoding="utf-8"))
    assert (config["optimizer"], config["max_questions_per_context"]) == ("nadam", 1)
    assert 0 < int(re.search(r"(\d+) training examples", run.stdout)[1]) < 40
    (held,) = (copy / "runs/new/checkpoints").glob("step_00000002/optimizer.safetensors")
    assert any(name.endswith(".mu_product") for name in load_tensors(held))
