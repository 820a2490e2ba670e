"""What `scripts/compare_revisions.py` takes for a difference between two runs."""

import json
import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

SCRIPT = runpy.run_path(str(Path(__file__).resolve().parents[1] / "scripts" / "compare_revisions.py"))
compare_runs, with_needed, write_data = (SCRIPT[name] for name in ("compare_runs", "with_needed", "write_data"))
RECORDS = [
    {"step": 4, "tag": "Loss/train", "value": 2.5},
    {"step": 4, "tag": "Throughput/tokens_per_second", "value": 1000.0},
    {"step": 8, "tag": "Loss/train", "value": 2.25},
]


def write_run(folder: Path) -> Path:
    """A run's files that are compared, small."""
    (folder / "best").mkdir(parents=True)
    tensors = {"a.weight": torch.tensor([[1.0, 0.0], [float("nan"), 4.0]]), "b.bias": torch.tensor(2.0)}
    save_file(tensors, folder / "best" / "model.safetensors")
    write_records(folder, RECORDS)
    (folder / "predictions.json").write_text('{"q1": "Ada", "q2": ["Boris", 1.0]}', encoding="utf-8")
    return folder


def write_records(folder: Path, records: list[dict]) -> None:
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in records), encoding="utf-8")


@pytest.fixture
def runs(tmp_path):
    return write_run(tmp_path / "base"), write_run(tmp_path / "new")


def test_the_same_but_for_throughput_settings_and_pictures(runs):
    write_records(runs[1], [RECORDS[0], {**RECORDS[1], "value": 900.0}, RECORDS[2]])
    (runs[0] / "config.json").write_text('{"conv_width": 3}')
    (runs[1] / "report.png").write_bytes(b"picture")
    assert compare_runs(*runs) == (3, None)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("a.weight", [[1.0, 0.0], [float("nan"), 4.5]], "a.weight differs in 1 of 4 values, by up to"),
        ("a.weight", [[1.0, -0.0], [float("nan"), 4.0]], "a.weight differs in 1 of 4 values, by up to"),
        ("a.weight", [[1.0, 0.0, 0.0, 4.0]], "a.weight was torch.float32 (2, 2), is torch.float32 (1, 4)"),
        ("b.bias", 2, "b.bias was torch.float32 (), is torch.int64 ()"),
        ("c.bias", 2.0, "c.bias is new"),
    ],
    ids=["value", "sign of zero", "shape", "type", "name"],
)
def test_difference_of_a_tensor(runs, name, tensor, message):
    tensors = {"a.weight": torch.tensor([[1.0, 0.0], [float("nan"), 4.0]]), "b.bias": torch.tensor(2.0)}
    save_file({**tensors, name: torch.tensor(tensor)}, runs[1] / "best" / "model.safetensors")
    assert f"best/model.safetensors: {message}" in compare_runs(*runs)[1]
    save_file(tensors, runs[1] / "best" / "model.safetensors")
    assert compare_runs(*runs)[1] is None


def test_difference_of_a_record(runs):
    write_records(runs[1], [*RECORDS[:2], {**RECORDS[2], "value": 2.25000000001}])
    assert compare_runs(*runs)[1] == ("metrics.jsonl: record 2 (step 8, Loss/train): value: was 2.25, is 2.25000000001")


def test_record_too_few(runs):
    write_records(runs[1], RECORDS[:2])
    assert compare_runs(*runs)[1] == "metrics.jsonl: had 2 records, has 1"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"q1": "Ada", "q2": ["Clara", 1.0]}', "q2.0: was 'Boris', is 'Clara'"),
        ('{"q1": "Ada", "q2": ["Boris", "1.0"]}', "q2.1: was 1.0, is '1.0'"),
        ('{"q1": "Ada"}', "value: was {'q1': 'Ada', 'q2': ['Boris', 1.0]}, is {'q1': 'Ada'}"),
        ('{"q1": null, "q2": ["Boris", 1.0]}', "q1: was 'Ada', is None"),
    ],
)
def test_difference_of_predictions(runs, content, message):
    (runs[1] / "predictions.json").write_text(content, encoding="utf-8")
    assert compare_runs(*runs)[1] == f"predictions.json: {message}"


@pytest.mark.parametrize("missing", [0, 1])
def test_missing_file(runs, missing):
    (runs[missing] / "best" / "model.safetensors").unlink()
    which = ("base", "new")[missing]
    assert compare_runs(*runs)[1] == f"best/model.safetensors: missing in the {which} revision's run"


def test_runs_without_results_are_a_difference(tmp_path):
    assert "neither run has a file to compare" in compare_runs(tmp_path / "base", tmp_path / "new")[1]


def test_runs_that_others_start_from_come_first():
    assert with_needed(["squad_teacher"]) == ["squad", "squad_teacher"]
    names = with_needed(list(SCRIPT["RUNS"]))
    assert names == list(SCRIPT["RUNS"])
    assert all(names.index(other) < names.index(name) for name in names for other in SCRIPT["needed_by"](name))


def test_files_that_the_runs_read_are_the_same_each_time(tmp_path):
    for name in ("one", "two"):
        write_data(tmp_path / name)
    one, two = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("one", "two")
    )
    assert one == two and len(one) == 9
