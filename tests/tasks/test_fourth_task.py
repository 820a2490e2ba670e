"""A fourth task is one folder, one file of options and one line in the registry, and has all that no task need add."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.small_runs import ROOT

TOY = Path(__file__).parent / "toy"
RUN = [
    "--task_type",
    "toy",
    "--train_file",
    "train.jsonl",
    "--validation_file",
    "validation.jsonl",
    "--num_threads",
    "1",
]
SIZE = ["--num_encoder_layers", "1", "--embed_dim", "32", "--num_heads", "4", "--dim_feedforward", "64"]
SHORT = ["--batch_size", "16", "--learning_rate", "0.003", "--fine_tune_epochs", "1"]


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """HIM with the toy task, and data: a text's class is whether its first word is even."""
    root = tmp_path_factory.mktemp("copy")
    for name in ("him", "scripts"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "main.py", root)
    (root / "him" / "tasks" / "toy").mkdir()
    shutil.copy(TOY / "task.py", root / "him" / "tasks" / "toy")
    shutil.copy(TOY / "options.py", root / "him" / "config" / "options" / "toy.py")
    registry = root / "him" / "config" / "options" / "__init__.py"
    text, line = registry.read_text(encoding="utf-8"), 'TASKS = ("squad", "summarization", "lm")\n'
    assert text.count(line) == 1
    registry.write_text(text.replace(line, 'TASKS = ("squad", "summarization", "lm", "toy")\n'), encoding="utf-8")
    words, chosen = "one two three four five six seven eight".split(), random.Random(0)
    for name, number in (("train", 240), ("validation", 40)):
        rows = [[chosen.randrange(8) for _ in range(chosen.randint(2, 9))] for _ in range(number)]
        records = [{"text": " ".join(words[each] for each in row), "class": row[0] % 2} for row in rows]
        (root / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return root


def call(root: Path, *arguments: str, status: int = 0) -> str:
    """What a program of the copy prints."""
    found = subprocess.run(
        [sys.executable, *arguments], cwd=root, capture_output=True, text=True, timeout=300, check=False
    )
    assert found.returncode == status, found.stdout + found.stderr
    return found.stdout + found.stderr


@pytest.fixture(scope="module")
def trained(copy) -> str:
    return call(copy, "main.py", *RUN, *SIZE, *SHORT, "--run_name", "toy", "--compress")


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def test_it_trains_and_is_evaluated(copy, trained):
    assert metrics_of(copy / "runs" / "toy" / "best")["Accuracy"] > 80
    said = json.loads(call(copy, "scripts/evaluate.py", "runs/toy", "--file", "validation.jsonl", "--json"))["metrics"]
    assert said["Accuracy"] == pytest.approx(metrics_of(copy / "runs" / "toy" / "best")["Accuracy"])


def test_it_predicts(copy, trained):
    assert "class 1" in call(copy, "scripts/predict.py", "runs/toy", "--text", "two one one one")
    assert "class 0" in call(copy, "scripts/predict.py", "runs/toy", "--text", "seven two two two")
    answers = json.loads(call(copy, "scripts/predict.py", "runs/toy", "--file", "validation.jsonl", "--json"))
    assert len(answers) == 40 and set(answers["0"]) == {"number", "probability"}


def test_it_is_compressed_without_a_teacher(copy, trained):
    """It knows no distillation: fine-tuning then has the labels alone, which a line says."""
    assert "steps, on labels alone: toy has no distillation loss" in trained
    report = json.loads((copy / "runs" / "toy" / "compressed" / "report.json").read_text(encoding="utf-8"))
    assert [stage["stage"] for stage in report["stages"]] == ["trained", "pruned", "fine_tuned", "int8"]
    assert report["stages"][1]["parameters"] < report["stages"][0]["parameters"]


def test_it_resumes(copy, trained):
    """From the checkpoint before the last one it comes to the same weights, bit for bit."""
    runs = copy / "runs"
    shutil.copytree(runs / "toy", runs / "again")
    last = sorted((runs / "again" / "checkpoints").iterdir())[-1]
    shutil.rmtree(last)
    assert list((runs / "again" / "checkpoints").glob("step_*"))
    call(copy, "main.py", "--resume", "runs/again", "--no-compress")
    weights = [runs / name / "checkpoints" / last.name / "model.safetensors" for name in ("toy", "again")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--pretrain_epochs", "1"], "--pretrain_epochs 1: --task_type toy has no pretraining; leave it out"),
        (["--teacher", "runs/toy"], "--teacher runs/toy: --task_type toy cannot learn from a teacher; leave it out"),
    ],
)
def test_what_it_cannot_do_is_said(copy, trained, flags, message):
    found = call(copy, "main.py", *RUN, *SIZE, *flags, status=2)
    assert message in found and "Traceback" not in found


@pytest.mark.parametrize("form", ["onnx", "transformers"])
def test_it_cannot_be_exported(copy, trained, form):
    found = call(copy, "scripts/export.py", "runs/toy", "--format", form, status=2)
    assert "--task_type toy cannot be exported" in found and "Traceback" not in found


def test_it_is_in_the_help(copy):
    found = call(copy, "main.py", "--help", "--task_type", "toy")
    assert "toy" in found and "--num_classes" in found
