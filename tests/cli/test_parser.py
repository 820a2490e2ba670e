"""Settings from a command line: flags, aliases, their forms, and one line for every fault."""

import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from him.cli.parser import Parser, add_settings, build_parser, flag_default, named_task, parse_command_line
from him.config import Config
from him.config.names import NAMES
from him.config.options import TASKS, readers_of
from him.config.resolve import resolve
from him.config.values import kind_of
from him.core.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
# The flags of the design: value when nobody says anything, and other names. None: none, or the task's own.
FLAGS = {
    "num_encoder_layers": (4, "num_layers"),
    "embed_dim": (256,),
    "num_heads": (8,),
    "dim_feedforward": (1024, "ff_dim"),
    "norm_first": (True,),
    "positions": ("rotary",),
    "task_type": ("squad",),
    "dataset": (None,),
    "train_file": ((),),
    "validation_file": (None,),
    "corpus_dir": (None,),
    "sample_size": (None,),
    "tokenizer": (None,),
    "max_seq_len": (None, "seq_len"),
    "vocab_size": (None,),
    "copy_head": (True,),
    "optimizer": (None,),
    "num_beams": (None,),
    "doc_stride": (128,),
    "max_answer_words": (15,),
    "learning_rate": (1e-3,),
    "max_grad_norm": (1.0,),
    "beta2": (0.98,),
    "weight_decay": (0.01,),
    "warmup_ratio": (0.1,),
    "num_epochs": (None, "epochs", "epoch"),
    "max_steps": (None,),
    "batch_size": (None,),
    "save_every_steps": (None,),
    "init_from": (None,),
    "seed": (0,),
    "precision": ("auto",),
    "device": ("auto",),
    "num_threads": (None,),
    "dry_run": (False,),
    "output_dir": ("runs",),
    "run_name": (None,),
    "attention_dir": ("attention_visualizations",),
}
BOOLEANS = [each.name for each in fields(Config) if kind_of(each)[0] is bool]


def parse(line: str) -> tuple[dict, str | None]:
    return parse_command_line(build_parser("HIM"), shlex.split(line))[:2]


def config_of(line: str) -> Config:
    return Config(**parse(line)[0])


def reader_of(name: str) -> str:
    """A task that reads a setting."""
    return readers_of(name)[0]


@pytest.mark.parametrize("name", FLAGS)
def test_default(name):
    default = FLAGS[name][0]
    assert getattr(Config(), name) == default
    assert type(getattr(Config(), name)) is type(default)


@pytest.mark.parametrize(("name", "alias"), [(name, alias) for name, row in FLAGS.items() for alias in row[1:]])
def test_alias(name, alias, tmp_path):
    assert getattr(config_of(f"--{alias} 300"), name) == 300
    assert NAMES[alias] == name
    file = tmp_path / "settings.yaml"
    file.write_text(f"{alias}: 300\n", encoding="utf-8")
    assert getattr(config_of(f"--config {file}"), name) == 300


@pytest.mark.parametrize("each", fields(Config), ids=lambda each: each.name)
def test_every_setting_is_a_flag_with_help(each):
    parser = build_parser("HIM")
    (action,) = (action for action in parser._actions if f"--{each.name}" in action.option_strings)
    if kind_of(each)[0] is bool:
        assert parse(f"--no-{each.name}") == ({each.name: False}, None)
    elif kind_of(each)[0] is tuple:
        assert parse(f"--{each.name} a b") == ({each.name: ["a", "b"]}, None)
    else:
        assert parse(f"--{each.name} x") == ({each.name: "x"}, None)
    default = flag_default(each.name)
    assert action.help == each.metadata["help"].replace("%", "%%") + (f" [{default}]" if default else "")
    if each.default not in (None, ()):
        assert default, "a default that everybody gets is shown"
    assert f"--{each.name} " in parser.format_help().replace(",", " ")


# --- help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "task", "shown"),
    [
        ("embed_dim", None, "256"),
        ("norm_first", None, "--norm_first"),
        ("dry_run", None, "--no-dry_run"),
        ("num_epochs", None, "squad: 3; summarization, lm: 10"),
        ("num_epochs", "squad", "3"),
        ("num_epochs", "lm", "10"),
        ("conv_kernel_size", None, "squad: 7; summarization: 5; lm: 0"),
        ("conv_kernel_size", "summarization", "5"),
        ("no_repeat_words", None, "summarization: --no_repeat_words; lm: --no-no_repeat_words"),
        ("tokenizer_type", None, "bpe"),
        ("num_beams", "lm", "1"),
        ("num_beams", "squad", "summarization: 4; lm: 1"),  # which does not read it
        ("max_answer_words", "lm", "15"),
        ("num_augmentations", None, "0"),
        ("train_file", None, ""),
        ("run_name", None, ""),
    ],
)
def test_defaults_are_those_that_a_run_gets(name, task, shown):
    assert flag_default(name, task) == shown


@pytest.mark.parametrize("task", TASKS)
def test_every_default_of_a_task_is_shown(task):
    """17 flags used to show none, but "[the task's own]"."""
    for name, value in resolve(Config(task_type=task)).to_dict().items():
        if task in readers_of(name) and name != "task_type":
            typed = {True: f"--{name}", False: f"--no-{name}"}[value] if isinstance(value, bool) else str(value)
            assert flag_default(name, task) == ("" if value in (None, []) else typed)


def test_forms_of_values():
    help = " ".join(build_parser("HIM").format_help().split())
    for form in (
        "--train_file FILE [FILE ...]",
        "--corpus_dir FOLDER",
        "--init_from FOLDER",
        "--num_epochs N",
        "--learning_rate N",
        "--layer_heads N [N ...]",
        "--run_name NAME",
        "--schedule {cosine,linear,constant,plateau}",
        "--task_type {squad,summarization,lm}",
    ):
        assert form in help
    assert not re.search(r"TUPLE|STR\b|INT\b|FLOAT|the task's own\]", help)


@pytest.mark.parametrize(
    ("line", "task"),
    [
        ("--help", None),
        ("--help --task_type lm", "lm"),
        ("--task_type=summarization -h", "summarization"),
        ("--task_type nothing --help", None),
        ("--help --task_type", None),
    ],
)
def test_the_task_whose_help_is_asked_for(line, task):
    assert named_task(line.split()) == task


HELP = """
import runpy, sys, time
sys.argv = ["main.py", *sys.argv[1:]]
try:
    runpy.run_path("main.py", run_name="__main__")
except SystemExit as end:
    assert not end.code
print(round(time.process_time(), 3), *sorted({"torch", "numpy", "yaml"} & sys.modules.keys()))
"""


def test_help_is_quick_and_loads_no_pytorch():
    def shown(*arguments: str) -> list[str]:
        command = [sys.executable, "-c", HELP, "--help", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()

    lines = [shown(), shown("--task_type", "lm"), shown()]
    assert min(float(each[-1]) for each in lines) < 0.3, "seconds"
    assert all(" " not in each[-1] for each in lines), "what is loaded beside"
    of_all, of_lm = (" ".join(" ".join(each).split()) for each in lines[:2])
    assert "passes over the training data [squad: 3; summarization, lm: 10]" in of_all
    assert "passes over the training data [10]" in of_lm


DESIGN_LINES = {
    "--task_type squad --num_epochs 20 --learning_rate 0.0001 --batch_size 32 --norm_first": {
        "task_type": "squad",
        "num_epochs": 20,
        "learning_rate": 1e-4,
        "batch_size": 32,
        "norm_first": True,
    },
    "--num_encoder_layers 6 --embed_dim 256 --dim_feedforward 1024": {
        "num_encoder_layers": 6,
        "embed_dim": 256,
        "dim_feedforward": 1024,
    },
    "--num_encoder_layers 2 --embed_dim 128 --dim_feedforward 256": {
        "num_encoder_layers": 2,
        "embed_dim": 128,
        "dim_feedforward": 256,
    },
    "--learning_rate 0.00005": {"learning_rate": 5e-5},
    "--no-norm_first": {"norm_first": False},
    "--task_type summarization": {"task_type": "summarization"},
    "--task_type lm --corpus_dir path/to/your/corpus --sample_size 1000": {
        "task_type": "lm",
        "corpus_dir": "path/to/your/corpus",
        "sample_size": 1000,
    },
    "--task_type lm --init_from runs/earlier --num_epochs 5 --learning_rate 0.0005": {
        "task_type": "lm",
        "init_from": "runs/earlier",
        "num_epochs": 5,
        "learning_rate": 5e-4,
    },
}


@pytest.mark.parametrize("line", DESIGN_LINES)
def test_lines_of_the_design(line):
    expected = DESIGN_LINES[line]
    config = config_of(line)
    assert {name: getattr(config, name) for name in expected} == expected
    untouched = {each.name for each in fields(Config)} - expected.keys()
    assert all(getattr(config, name) == getattr(Config(), name) for name in untouched)


def test_resume_is_no_setting():
    assert parse("--resume runs/earlier") == ({}, "runs/earlier")
    assert parse("--seed 3 --resume runs/earlier") == ({"seed": "3"}, "runs/earlier")
    assert parse("") == ({}, None)


@pytest.mark.parametrize("name", BOOLEANS)
def test_boolean_forms(name):
    task = f"--task_type {reader_of(name)}"
    assert getattr(config_of(f"{task} --{name}"), name) is True
    assert getattr(config_of(f"{task} --no-{name}"), name) is False
    assert getattr(config_of(f"{task} --{name} --no-{name}"), name) is False
    assert getattr(config_of(f"{task} --no-{name} --{name}"), name) is True


def test_there_are_booleans():
    assert {"norm_first", "dry_run"} <= set(BOOLEANS)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", {}),
        ("--no_repeat_words --seed 3", {"no_repeat_words": True, "seed": "3"}),
        ("--no-no_repeat_words", {"no_repeat_words": False}),
        ("--train_file a b --dry_run", {"train_file": ["a", "b"], "dry_run": True}),
        (
            "--distillation 0.25 --no-shared_dropout",
            {"fine_tune_distillation_weight": "0.25", "variational_dropout": False},
        ),
    ],
)
def test_flags_of_scripts_have_the_same_forms(line, expected):
    """A boolean used to need a value there; old names are taken, as in `main.py`."""
    names = ("no_repeat_words", "seed", "train_file", "dry_run", "fine_tune_distillation_weight", "variational_dropout")
    parser = Parser("script.py")
    add_settings(parser, names, {"seed": "100 % of its own"})
    assert vars(parser.parse_args(shlex.split(line))) == expected
    assert "100 % of its own" in parser.format_help() and "no word is written twice" in parser.format_help()
    with pytest.raises(ConfigError, match="^unrecognized arguments: true; see --help$"):
        parser.parse_args(["--dry_run", "true"])
    with pytest.raises(
        ConfigError, match="^--distillation and --fine_tune_distillation_weight are names of one setting"
    ):
        parser.parse_args(["--distillation=0.2", "--fine_tune_distillation_weight", "0.3"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--lerning_rate 0.1", "unknown setting --lerning_rate; did you mean --learning_rate?"),
        ("--learning-rate=0.1", "unknown setting --learning-rate; did you mean --learning_rate?"),
        ("--no-norm-first", "unknown setting --no-norm-first; did you mean --no-norm_first?"),
        ("--no-seed", "unknown setting --no-seed; did you mean --seed?"),
        ("--zzzzzz", "unknown setting --zzzzzz; see --help"),
        ("--num_epoch 3", "unknown setting --num_epoch; did you mean --num_epochs?"),  # no abbreviations
        (
            "--embeddim 3 --sead 4 -5",
            "unknown setting --embeddim; did you mean --embed_dim?; unknown setting --sead; did you mean --seed?; "
            "-5: not a flag; see --help",
        ),
        ("train", "train: not a flag; see --help"),
        ("--norm_first true", "true: not a flag; see --help"),
        ("--seed", "argument --seed: expected one argument; see --help"),
        ("--train_file", "argument --train_file: expected at least one argument; see --help"),
        (
            "--norm_first=false",
            "argument --norm_first/--no-norm_first: ignored explicit argument 'false'; see --help",
        ),
    ],
)
def test_flag_faults(line, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        parse(line)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--learning_rate -1e-3", "--learning_rate -0.001 is out of range"),
        ("--learning_rate=-1e-3", "--learning_rate -0.001 is out of range"),
        ("--learning_rate -.5", "--learning_rate -0.5 is out of range"),
        ("--seed -1", "--seed -1 is out of range"),
        ("--epochs -2", "--num_epochs -2 is out of range"),
        ("--batch_size 4 --seed -1 --dropout -0.5", "--seed -1 is out of range.*; --dropout -0.5 is out of range"),
    ],
)
def test_negative_numbers_reach_the_range_check(line, message):
    """argparse takes -1e-3 for a flag, and says that --learning_rate lacks its value."""
    with pytest.raises(ConfigError, match=f"^{message}"):
        config_of(line)


def test_the_last_of_the_same_flag_wins():
    assert config_of("--epochs 3 --epochs 4").num_epochs == 4
    assert config_of("--norm_first --no-norm_first").norm_first is False


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("--epochs 3 --num_epochs 4", "--epochs and --num_epochs"),
        ("--num_epochs=4 --epoch 3 --epochs=5", "--num_epochs and --epoch and --epochs"),
        ("--conv_width 5 --seed 1 --conv_kernel_size 5", "--conv_width and --conv_kernel_size"),
        ("--no-shared_dropout --variational_dropout", "--shared_dropout and --variational_dropout"),
    ],
)
def test_two_names_of_one_setting_in_a_command_line(line, names):
    """The later one used to win, whatever the user thought that the other one was."""
    with pytest.raises(ConfigError, match=f"^{names} are names of one setting; keep one of them$"):
        parse(line)


def test_several_train_files():
    assert config_of("--train_file a.json b.json --seed 2").train_file == ("a.json", "b.json")
