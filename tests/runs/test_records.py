"""Numbers in TensorBoard and in `metrics.jsonl`: the same ones, and after a resume without gaps or doubles."""

import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from him.runs.records import MetricWriter
from tests.small_runs import records, scalar_series


def event_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("events.out.tfevents.*"))


def write_steps(writer: MetricWriter, steps: range, factor: float = 1.0) -> None:
    for step in steps:
        writer.write({"Loss/train": factor * step, "F1/val": 1.0 / step}, step, step / 4)


def test_both_hold_the_same(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.write({"Loss/train": 0.1, "Accuracy/train": 50.0}, step=10, epoch=1 / 3)
    writer.write({"Loss/val": 0.7}, step=12, epoch=0.4, stage="validation")
    writer.close()
    assert records(tmp_path) == [
        {"step": 10, "epoch": 0.333333, "stage": "train", "tag": "Loss/train", "value": 0.1},
        {"step": 10, "epoch": 0.333333, "stage": "train", "tag": "Accuracy/train", "value": 50.0},
        {"step": 12, "epoch": 0.4, "stage": "validation", "tag": "Loss/val", "value": 0.7},
    ]
    single = struct.unpack("f", struct.pack("f", 0.1))[0]  # event files hold 32-bit floats
    assert scalar_series(tmp_path) == {
        "Loss/train": [(10, single)],
        "Accuracy/train": [(10, 50.0)],
        "Loss/val": [(12, pytest.approx(0.7))],
    }


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_hold_is_null(tmp_path, value):
    writer = MetricWriter(tmp_path)
    writer.write({"Loss/train": value}, 1, 0.5)
    writer.close()

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=refuse)["value"] is None
    ((step, shown),) = scalar_series(tmp_path)["Loss/train"]
    assert step == 1
    np.testing.assert_equal(shown, value)


def test_flush_brings_everything_to_other_readers(tmp_path):
    writer = MetricWriter(tmp_path)
    write_steps(writer, range(1, 4))
    writer.flush()
    assert len(records(tmp_path)) == 6
    assert [step for step, _ in scalar_series(tmp_path)["F1/val"]] == [1, 2, 3]
    writer.close()


def test_pictures(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.picture("Attention/1_layer1", np.zeros((4, 6, 3), np.uint8), 7)
    writer.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (image,) = events.Images("Attention/1_layer1")
    assert (image.step, image.width, image.height) == (7, 6, 4)


def test_hyperparameters_lie_in_the_same_file(tmp_path):
    """`SummaryWriter.add_hparams` would make a second run folder beside this one."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    writer = MetricWriter(tmp_path)
    settings = {"learning_rate": 0.5, "norm_first": True, "dataset": "sample", "train_file": ["a", "b"]}
    writer.hyperparameters(settings, ["F1/val"])
    writer.close()
    assert len(event_files(tmp_path)) == 1
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (content,) = (
        text
        for tag, text in events.PluginTagToContent("hparams").items()
        if HParamsPluginData.FromString(text).HasField("session_start_info")
    )
    found = HParamsPluginData.FromString(content).session_start_info.hparams
    assert found["learning_rate"].number_value == 0.5
    assert found["norm_first"].number_value == 1.0  # as SummaryWriter.add_hparams has it
    assert found["dataset"].string_value == "sample"
    assert found["train_file"].string_value == "['a', 'b']"


@pytest.mark.parametrize("resumed", [1, 3, 5])
def test_a_resume_leaves_no_gap_and_no_double(tmp_path, resumed):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    for folder in (straight, broken):
        folder.mkdir()
    writer = MetricWriter(straight)
    write_steps(writer, range(1, 8))
    writer.close()

    first = MetricWriter(broken)
    write_steps(first, range(1, resumed + 1))
    write_steps(first, range(resumed + 1, 6), factor=9.0)  # lost: after the checkpoint
    first.close()
    second = MetricWriter(broken, resumed_step=resumed)
    write_steps(second, range(resumed + 1, 8))
    second.close()

    assert records(broken) == records(straight)
    assert scalar_series(broken) == scalar_series(straight)
    assert len(event_files(broken)) == 2


def test_a_run_killed_in_the_middle_of_a_record(tmp_path):
    """Both files end in half a record; what was written before it counts, and the new records do too."""
    writer = MetricWriter(tmp_path)
    write_steps(writer, range(1, 4))
    writer.close()
    (events,) = event_files(tmp_path)
    events.write_bytes(events.read_bytes()[:-5])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "epoch": 1.0, "sta')
    writer = MetricWriter(tmp_path, resumed_step=2)
    write_steps(writer, range(3, 6))
    writer.close()
    assert [(record["step"], record["tag"]) for record in records(tmp_path)] == [
        (step, tag) for step in range(1, 6) for tag in ("Loss/train", "F1/val")
    ]
    series = scalar_series(tmp_path)
    assert [step for step, _ in series["Loss/train"]] == [1, 2, 3, 4, 5]
    assert [step for step, _ in series["F1/val"]] == [1, 2, 3, 4, 5]


def test_resume_without_a_record_file(tmp_path):
    writer = MetricWriter(tmp_path, resumed_step=3)
    write_steps(writer, range(4, 5))
    writer.close()
    assert [record["step"] for record in records(tmp_path)] == [4, 4]
