"""Curves of several runs: what is compared when nothing is named, and what is refused."""

import json
from pathlib import Path

import pytest

from him.core.errors import CheckpointError, ConfigError
from him.workflows.compare import draw_curves, read_curve, usual_tags


def run_with(folder: Path, tags: list[str]) -> Path:
    folder.mkdir()
    lines = [{"step": n, "epoch": n, "tag": tag, "value": n / 2} for n in (1, 2) for tag in tags]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return folder


@pytest.mark.parametrize("tag", ["F1/val", "ROUGE-L/val", "Bits_Per_Byte/val"])
def test_the_main_metric_of_each_task(tmp_path, tag):
    assert usual_tags(run_with(tmp_path / "run", ["Loss/train", "Loss/val", tag])) == [tag, "Loss/val"]


def test_a_curve(tmp_path):
    run = run_with(tmp_path / "run", ["Loss/val"])
    assert read_curve(run, "Loss/val") == ([1, 2], [0.5, 1.0])
    draw_curves([run, run], ["a", "b"], ["Loss/val"], tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_a_tag_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="no value of F1/val; its tags are Loss/val"):
        read_curve(run_with(tmp_path / "run", ["Loss/val"]), "F1/val")


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read .*name the folder of a run"):
        usual_tags(tmp_path)
