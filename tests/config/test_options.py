"""The registry of tasks: what follows from a name, and what each task says of itself."""

import inspect
from dataclasses import fields

import pytest

from him.config import Config
from him.config.options import OPTIONS, SECTIONS, SPECS, TASKS, readers_of, spec_of, task_defaults
from him.core.errors import ConfigError
from him.tasks import task_class


def test_every_setting_is_an_option_once():
    names = [each.name for section in SECTIONS for each in fields(section)]
    assert len(names) == len(set(names)) == len(OPTIONS) > 90
    assert set(names) == {each.name for each in fields(Config)}


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_found_by_its_name(task):
    cls = task_class(task)
    assert (cls.name, cls.__module__) == (task, f"him.tasks.{task}.task")
    spec = spec_of(task)
    assert inspect.getmodule(spec.options).__name__ == f"him.config.options.{task}"
    assert (cls.inputs, cls.shown_metrics) == (spec.inputs, spec.shown_metrics)


def test_an_unknown_task():
    message = r"^--task_type squat is not known; use squad or summarization or lm \(squad\?\)$"
    for look_up in (spec_of, task_defaults, task_class):
        with pytest.raises(ConfigError, match=message):
            look_up("squat")


def test_defaults_are_of_settings_that_the_task_reads():
    """A default of a setting that another task reads would be refused as a foreign flag."""
    for task, spec in SPECS.items():
        assert all(task in readers_of(name) for name in spec.defaults)
        assert not {each.name for each in fields(spec.options)} & spec.defaults.keys()
        assert spec.defaults.items() <= task_defaults(task).items()
    assert readers_of("doc_stride") == ("squad",)
    assert readers_of("num_beams") == ("summarization", "lm")
    assert readers_of("seed") == TASKS


@pytest.mark.parametrize(
    ("task", "eval_samples", "metric"),
    [
        ("squad", 200, "F1"),
        ("summarization", 200, "ROUGE-L"),
        ("summarization", 0, "Loss"),
        ("lm", 200, "Bits_Per_Byte"),
        ("lm", 0, "Bits_Per_Byte"),
    ],
)
def test_the_metric_of_the_best_model(task, eval_samples, metric):
    assert spec_of(task).best_metric_of(Config(task_type=task, eval_samples=eval_samples)) == metric


def test_prefixes_of_prepared_data_differ():
    prefixes = [spec.cache_prefix for spec in SPECS.values()]
    assert len(set(prefixes)) == len(prefixes) and all(prefixes)
