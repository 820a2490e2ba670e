"""Several training files with weights: examples know which file they are from, and runs are resumed exactly."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from him.config import Config
from him.tasks import task_class
from him.workflows.resume import resume
from him.workflows.train import train
from tests.small_runs import (
    assert_one_line,
    assert_same_run,
    call_main,
    flags,
    in_child,
    kill_at,
    small_settings,
    write_jsonl,
    writing_settings,
)


@pytest.fixture(scope="module")
def squad(tmp_path_factory) -> dict:
    """Two files; the second one begins with the last paragraph of the first, word for word."""
    place = tmp_path_factory.mktemp("squad")
    settings = small_settings(place, num_train=48)
    document = json.loads(Path(settings["train_file"]).read_text())
    paragraphs = document["data"][0]["paragraphs"]
    files = []
    for name, part in (("first", paragraphs[:3]), ("second", paragraphs[2:])):
        files.append(place / f"{name}.json")
        files[-1].write_text(json.dumps({**document, "data": [{"title": name, "paragraphs": part}]}))
    return {**settings, "train_file": [str(path) for path in files], "batch_size": 4}


def prepared(settings: dict, **more):
    config = Config(**{**settings, **more})
    cls = task_class(config.task_type)
    return cls.prepare(cls.resolve(config))


def test_questions_know_their_file(squad):
    task = prepared(squad, train_file_weights=(1, 0))
    documents = [json.loads(Path(path).read_text()) for path in squad["train_file"]]
    first = {qa["id"] for paragraph in documents[0]["data"][0]["paragraphs"] for qa in paragraph["qas"]}
    source_ids = task.train_sampling.source_ids[
        np.unique(task.source_indices(np.arange(len(task.train_lengths))), return_index=True)[1]
    ]
    assert (source_ids == 0).sum() == len(first), "a question that stands in both is of the first"
    assert set(source_ids.tolist()) == {0, 1}
    assert task.examples_per_epoch == (task.train_sampling.source_ids == 0).sum() < len(task.train_lengths)
    assert prepared(squad).train_sampling is None


def test_windows_are_of_the_file_of_their_question(squad):
    task = prepared(squad, train_file_weights=(1, 2), max_seq_len=40, doc_stride=8)
    sources = task.source_indices(np.arange(len(task.train_lengths)))
    assert len(sources) > len(set(sources.tolist())), "long contexts have several windows"
    for question in set(sources.tolist()):
        assert len(set(task.train_sampling.source_ids[sources == question].tolist())) == 1


def test_pairs_know_their_file(tmp_path):
    settings = writing_settings("summarization", tmp_path)
    lines = [json.loads(line) for line in Path(settings["train_file"]).read_text().splitlines()]
    files = [str(write_jsonl(tmp_path / f"{name}.jsonl", part)) for name, part in (("a", lines[:9]), ("b", lines[9:]))]
    task = prepared({**settings, "train_file": files}, train_file_weights=(0.5, 1))
    assert task.train_sampling.source_ids.tolist() == [0] * 9 + [1] * (len(lines) - 9)
    assert task.examples_per_epoch == 4 + len(lines) - 9


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_run_goes_on_the_same(squad):
    more = {"train_file_weights": (2, 0.5), "end_with_first_file": True, "save_every_steps": 3}
    straight = train(Config(**squad, **more, run_name="straight"))
    config = Config(**squad, **more, run_name="killed")

    def work() -> None:
        kill_at(35)
        train(config)

    assert in_child(work) == -signal.SIGKILL
    run = Path(config.output_dir) / "killed"
    resume(run, {})
    assert_same_run(run, Path(straight["run"]))


def test_what_is_seen_is_said(squad):
    finished = call_main(
        *flags({**squad, "train_file_weights": [1, 0.5], "dry_run": False, "max_steps": 2, "run_name": "said"})
    )
    assert finished.status == 0
    assert " seen an epoch), " in finished.out


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (
            {"train_file_weights": [1]},
            "--train_file_weights names 1 weights and --train_file 2 files; name a weight for each file",
        ),
        ({"train_file_weights": [0, 0]}, "--train_file_weights are all 0; leave something to train on"),
        ({"train_file_weights": [1, 9]}, "--train_file_weights 9.0 is out of range; use at least 0 and at most 4"),
        ({"train_file_weights": ["a", 1]}, "--train_file_weights ['a', '1'] is not a list of numbers"),
    ],
)
def test_weights_that_are_none(squad, change, part):
    assert_one_line(call_main(*flags({**squad, **change, "run_name": "no"})), part)


def test_one_file_cannot_come_last(squad):
    settings = {**squad, "train_file": squad["train_file"][:1], "end_with_first_file": True}
    assert_one_line(call_main(*flags({**settings, "run_name": "no"})), "--end_with_first_file needs several files")


def test_other_tasks_do_not_read_them(tmp_path):
    settings = writing_settings("lm", tmp_path)
    assert_one_line(call_main(*flags({**settings, "end_with_first_file": True})), "--end_with_first_file")
