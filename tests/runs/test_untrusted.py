"""Runs of a stranger: what is refused, in which words, and what a user's own runs may do."""

import os
from pathlib import Path

import pytest

from him.config import Config
from him.core.errors import CheckpointError, ConfigError
from him.runs.untrusted import check_files, check_places, check_writable


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """A run below the current folder."""
    made = tmp_path / "here" / "runs" / "run"
    (made / "best").mkdir(parents=True)
    (made / "best" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "here")
    return Path("runs/run")


def test_links_within_a_run_and_a_run_that_is_linked_are_fine(run, tmp_path):
    (run / "newest.json").symlink_to("best/config.json")
    (tmp_path / "linked").symlink_to(run.resolve())
    check_writable(run)
    check_writable(tmp_path / "linked")
    check_files(run / "best")


@pytest.mark.parametrize("target", ["../../elsewhere", "/etc", "loop"])
def test_links_out_of_a_run(run, target):
    (run / "best" / "loop").symlink_to(target)
    if target == "loop":
        check_writable(run)
        return
    with pytest.raises(
        CheckpointError, match=r"^runs/run/best/loop: a link out of the run, to /.*; remove it, or copy"
    ):
        check_writable(run)


def test_files_of_a_cache_are_read_through_links(run, tmp_path):
    (tmp_path / "blob").write_text("{}")
    (run / "best" / "model.safetensors").symlink_to(tmp_path / "blob")
    check_files(run / "best")


@pytest.mark.parametrize("check", [check_files, check_writable])
def test_what_has_no_end(run, check):
    os.mkfifo(run / "task.json")
    with pytest.raises(
        CheckpointError, match=r"runs/run/task.json: neither a file nor a folder, but a device or a pipe"
    ):
        check(run)


@pytest.mark.parametrize(
    ("settings", "given"),
    [
        ({}, ()),
        ({"cache_dir": "cache", "attention_dir": "a/b"}, ()),
        ({"cache_dir": "/elsewhere", "attention_dir": "../elsewhere"}, ("cache_dir", "attention_dir")),
        ({"attention_dir": "/elsewhere", "attention_examples": 0}, ()),
    ],
)
def test_places_that_are_fine(run, settings, given):
    check_places(run, Config(**settings), given)


def test_places_of_a_run_that_is_where_it_was_made(run):
    """As with `--output_dir /data/runs --cache_dir /data/cache`: resuming needs no flag."""
    check_places(run, Config(output_dir=str(Path("runs").resolve()), cache_dir="/elsewhere"))


def test_places_of_a_run_that_was_moved(run, tmp_path):
    """They hold what HIM wrote there before."""
    for place in ("cache/squad-01", "pictures/other/epoch1_1_layer1.png"):
        (tmp_path / place).mkdir(parents=True)
    check_places(run, Config(cache_dir=str(tmp_path / "cache"), attention_dir=str(tmp_path / "pictures")))


@pytest.mark.parametrize(
    ("settings", "what", "flag"),
    [
        ({"cache_dir": "/elsewhere"}, "prepared data to /elsewhere", "cache_dir"),
        ({"output_dir": "../elsewhere"}, "prepared data to ../elsewhere/.cache", "cache_dir"),
        ({"attention_dir": "a/../../elsewhere"}, "attention pictures to a/../../elsewhere", "attention_dir"),
        (
            {"output_dir": "/elsewhere/runs", "cache_dir": "cache", "attention_dir": "/"},
            "pictures to /",
            "attention_dir",
        ),
    ],
)
def test_places_elsewhere(run, settings, what, flag):
    with pytest.raises(ConfigError, match=rf"^runs/run: its settings send .*{what}, out of .*; give --{flag} to say"):
        check_places(run, Config(**settings))
