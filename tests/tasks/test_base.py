"""The protocol of a task: who uses which of its parts."""

import ast
from abc import ABC

import pytest

from him.tasks import base, task_class
from him.tasks.base import AttentionTask, DistillableTask, ExportableTask, PretrainableTask, StreamingTask, Task
from him.tasks.base import TrainingTask as Training
from him.tasks.lm.pretraining import LanguageModelingPretraining
from him.tasks.pretraining import Pretraining
from him.tasks.squad.pretraining import SquadPretraining
from him.tasks.summarization.pretraining import SummarizationPretraining
from tests.small_runs import ROOT

PRETRAININGS = (SquadPretraining, SummarizationPretraining, LanguageModelingPretraining)
CAPABILITIES = {
    "squad": {PretrainableTask, DistillableTask, AttentionTask, ExportableTask},
    "summarization": {PretrainableTask, DistillableTask, AttentionTask, ExportableTask},
    "lm": {PretrainableTask, DistillableTask, StreamingTask, AttentionTask, ExportableTask},
}


def members(cls: type) -> set[str]:
    """Public names of a class and of those above it, annotated ones too."""
    above = [each for each in cls.__mro__ if each not in (object, ABC)]
    names = {name for each in above for name in {**vars(each), **vars(each).get("__annotations__", {})}}
    return {name for name in names if not name.startswith("_")}


def used_of_task(source: str) -> set[str]:
    """The attributes that a source reads of `task` or of `….task`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            owner = node.value
            if (isinstance(owner, ast.Name) and owner.id == "task") or (
                isinstance(owner, ast.Attribute) and owner.attr == "task"
            ):
                found.add(node.attr)
    return found


def test_the_training_loop_uses_nothing_but_a_training_task():
    """And, where a task has them, its attention and its distillation loss; so that a pretraining need not be a task."""
    files = list((ROOT / "him" / "training").glob("*.py"))
    used = set().union(*(used_of_task(path.read_text(encoding="utf-8")) for path in files))
    assert {"train_batch", "loss", "evaluate", "train_digest"} <= used, "the test itself"
    assert used <= members(Training) | {"attention_examples", "distillation_loss"}


@pytest.mark.parametrize("cls", PRETRAININGS, ids=lambda cls: cls.__name__)
def test_a_pretraining_is_a_training_task_of_its_own(cls):
    assert issubclass(cls, Pretraining) and issubclass(cls, Training) and not issubclass(cls, Task)
    assert not cls.__abstractmethods__, "nothing is left out"
    assert not any("__getattr__" in vars(each) for each in cls.__mro__), "and nothing is passed on unseen"


@pytest.mark.parametrize("name", CAPABILITIES)
def test_what_each_task_can_do(name):
    every = {PretrainableTask, DistillableTask, StreamingTask, AttentionTask, ExportableTask}
    declared = {each for each in vars(base).values() if isinstance(each, type) and issubclass(each, Task)} - {Task}
    assert declared == every
    assert {each for each in every if issubclass(task_class(name), each)} == CAPABILITIES[name]
    assert not task_class(name).__abstractmethods__
