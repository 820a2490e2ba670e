"""The registry of tasks: what follows from a name, and what each task says of itself."""

import inspect
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from him.config import Config
from him.config.options import OPTIONS, SECTIONS, SPECS, TASKS, readers_of, spec_of, task_defaults
from him.core.errors import ConfigError
from him.tasks import task_class

ROOT = Path(__file__).resolve().parents[2]


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


TOY = '''
from dataclasses import dataclass

from him.config.options.option import TaskSpec, option


@dataclass(frozen=True, kw_only=True)
class ToyOptions:
    """A toy."""

    num_classes: int = option(2, "classes of a text", role="shape", low=2)


SPEC = TaskSpec(
    options=ToyOptions,
    defaults={"max_seq_len": 64, "vocab_size": 500, "num_epochs": 7},
    inputs=("text",),
    best_metric="Accuracy",
    shown_metrics=("Accuracy",),
    cache_prefix="toy",
)
'''
USE_OF_TOY = """
from him.cli.parser import build_parser
from him.config import Config
from him.config.options import SPECS, with_role
from him.config.resolve import resolve

config = resolve(Config(task_type="toy", num_classes="3"))
print(config.num_classes, config.max_seq_len, config.num_epochs, config.batch_size, "num_classes" in with_role("shape"))
try:
    resolve(Config(num_classes=3))
except Exception as error:
    print(error)
print(" ".join(build_parser("").format_help().split()))
"""


def test_a_task_more_is_a_file_and_a_line(tmp_path):
    """Nothing else in the settings names the tasks; its class follows from the name, too (see above)."""
    for room in ("config", "core", "cli"):
        shutil.copytree(ROOT / "him" / room, tmp_path / "him" / room)
    (tmp_path / "him" / "config" / "options" / "toy.py").write_text(TOY)
    registry = tmp_path / "him" / "config" / "options" / "__init__.py"
    text = registry.read_text(encoding="utf-8")
    line = 'TASKS = ("squad", "summarization", "lm")\n'
    assert text.count(line) == 1
    registry.write_text(text.replace(line, 'TASKS = ("squad", "summarization", "lm", "toy")\n'), encoding="utf-8")
    found = subprocess.run([sys.executable, "-c", USE_OF_TOY], cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    settings, refused, help = found.stdout.splitlines()
    assert settings == "3 64 7 16 True"
    assert refused == "--num_classes is for --task_type toy, not squad; leave it out"
    assert "a toy: --num_classes N classes of a text [2]" in help
    assert "--task_type {squad,summarization,lm,toy}" in help and "[squad: 3; summarization, lm: 10; toy: 7]" in help
