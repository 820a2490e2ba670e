"""Settings: flags, aliases, YAML, their precedence, and one line for every fault."""

import dataclasses
import json
import math
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

from him.cli.parser import Parser, add_settings, build_parser, parse_command_line
from him.config.config import Config, with_shape_of_earlier
from him.config.names import NAMES
from him.config.options import OPTIONS, TASKS, readers_of, task_defaults
from him.config.values import kind_of
from him.core.errors import CheckpointError, ConfigError, HimError
from him.tasks import task_class

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


# --- what there is ----------------------------------------------------------------------------------------------------


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
    assert each.metadata["help"] in action.help
    shown = each.default
    if kind_of(each)[0] is bool:
        shown = f"--{each.name}" if each.default else f"--no-{each.name}"
    assert (f"[{shown}]" in action.help) == (each.default not in (None, ()))
    assert all(choice in action.help for choice in each.metadata.get("choices", ()))
    assert f"--{each.name} " in parser.format_help().replace(",", " ")


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
    ],
)
def test_flags_of_scripts_have_the_same_forms(line, expected):
    """A boolean used to need a value there."""
    parser = Parser("script.py")
    add_settings(parser, ("no_repeat_words", "seed", "train_file", "dry_run"), {"seed": "100 % of its own"})
    assert vars(parser.parse_args(shlex.split(line))) == expected
    assert "100 % of its own" in parser.format_help() and "no word is written twice" in parser.format_help()
    with pytest.raises(ConfigError, match="^unrecognized arguments: true; see --help$"):
        parser.parse_args(["--dry_run", "true"])


# --- who wins ---------------------------------------------------------------------------------------------------------


def test_precedence(tmp_path):
    """Flags over YAML over the task's defaults over the general ones over the dataclass."""
    file = tmp_path / "settings.yaml"
    file.write_text("batch_size: 7\nnum_epochs: 8\nlearning_rate: 1e-2\n", encoding="utf-8")
    task = task_class("squad")
    assert task_defaults("squad")["batch_size"] == 32 and task_defaults("squad")["num_epochs"] == 3
    assert task_defaults("lm")["num_epochs"] == 10 and task_defaults("lm")["batch_size"] == 16

    def resolved(line: str) -> tuple:
        config = task.resolve(config_of(line))
        return config.batch_size, config.num_epochs, config.learning_rate, config.max_grad_norm

    assert resolved("") == (32, 3, 1e-3, 1.0)
    assert resolved(f"--config {file}") == (7, 8, 1e-2, 1.0)
    assert resolved(f"--config {file} --batch_size 9") == (9, 8, 1e-2, 1.0)
    assert resolved(f"--learning_rate 0.1 --config {file} --epochs 2") == (7, 2, 0.1, 1.0)


def test_with_defaults_fills_only_what_is_none():
    config = Config(num_epochs=5).with_defaults({"num_epochs": 3, "batch_size": 4, "ema_decay": 0.0})
    assert (config.num_epochs, config.batch_size, config.ema_decay, config.dropout) == (5, 4, 0.0, None)
    with pytest.raises(ConfigError, match="^--batch_size 0 is out of range; use at least 1$"):
        Config().with_defaults({"batch_size": 0})


@pytest.mark.parametrize("task", TASKS)
def test_resolved_settings_have_no_gap(task):
    """What trains must not be None: these are read by the trainer, the model and the data."""
    config = task_class(task).resolve(Config(task_type=task))
    read = {each.name for each in fields(Config) if task in readers_of(each.name)}
    general = {name for name, each in OPTIONS.items() if "fallback" in each.metadata}
    assert len(general) == 15
    names = read & {*general, "max_seq_len", "vocab_size", "tokenizer_type"}
    assert [name for name in names if getattr(config, name) is None] == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task_type": "squad", "corpus_dir": "x"}, "--corpus_dir is for --task_type lm, not squad; leave it out"),
        ({"task_type": "squad", "top_k": 3}, "--top_k is for --task_type summarization or lm, not squad; leave it out"),
        ({"task_type": "lm", "doc_stride": 3}, "--doc_stride is for --task_type squad, not lm; leave it out"),
        ({"task_type": "lm", "copy_head": False}, "--copy_head is for --task_type summarization, not lm; leave it out"),
    ],
)
def test_flags_that_the_task_does_not_read(settings, message):
    """A flag that changes nothing would be a lie."""
    with pytest.raises(ConfigError, match=re.escape(message)):
        Config(**settings)


def test_the_defaults_of_all_tasks_are_no_foreign_flags():
    for task in TASKS:
        cls = task_class(task)
        resolved = cls.resolve(Config(task_type=task))
        assert Config(**resolved.to_dict()) == resolved


# --- YAML -------------------------------------------------------------------------------------------------------------


def test_yaml_values(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text(
        "# comment\nlearning_rate: 5e-4\nnorm_first: no\ntrain_file: [a.json, b.json]\nrun_name: 'x'\ndropout: null\n",
        encoding="utf-8",
    )
    config = config_of(f"--config {file}")
    assert config.learning_rate == 5e-4
    assert config.norm_first is False
    assert config.train_file == ("a.json", "b.json")
    assert config.run_name == "x"
    assert config.dropout is None


def test_empty_yaml_changes_nothing(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("# nothing yet\n", encoding="utf-8")
    assert config_of(f"--config {file}") == Config()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1\n", "unknown setting learning_rat; did you mean learning_rate?"),
        ("zzz: 1\n", "unknown setting zzz; see --help"),
        (
            "seeed: 1\nembeddim: 2\n",
            "unknown setting seeed; did you mean seed?; --config {}: unknown setting embeddim; did you mean embed_dim?",
        ),
        ("5: 1\n", "unknown setting 5; see --help"),
        ("- seed\n", "not a list of `name: value` settings"),
        ("seed\n", "not a list of `name: value` settings"),
        ("seed: [1\n", r"not YAML (while parsing"),
        ("seed: !!python/object:os.system {}\n", r"not YAML (could not determine a constructor"),
        ("? [a]\n: 1\n", "not YAML (while constructing a mapping"),
    ],
)
def test_yaml_faults(tmp_path, text, message):
    file = tmp_path / "settings.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="^" + re.escape(f"--config {file}: {message.replace('{}', str(file), 1)}")):
        parse(f"--config {file}")


def test_yaml_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="no.yaml: No such file or directory; name a YAML file$"):
        parse(f"--config {tmp_path}/no.yaml")
    with pytest.raises(ConfigError, match="Is a directory; name a YAML file$"):
        parse(f"--config {tmp_path}")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary.yaml: not YAML \("):
        parse(f"--config {tmp_path}/binary.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: many", "--seed many is not a whole number"),
        ("seed: 1.5", "--seed 1.5 is not a whole number"),
        ("seed: true", "--seed True is not a whole number"),
        ("seed: .nan", "--seed nan is not a whole number"),
        ("seed: .inf", "--seed inf is not a whole number"),
        ("seed: null", "--seed needs a value"),
        ("dropout: [0.1]", "--dropout [0.1] is not a number"),
        ("dropout: yes", "--dropout True is not a number"),
        ("norm_first: 1", "--norm_first 1 is not true or false"),
        ("norm_first: maybe", "--norm_first maybe is not true or false"),
        ("run_name: 5", "--run_name 5 is not text"),
        ("train_file: [1]", "--train_file [1] is not a list of file names"),
        ("train_file: {a: 1}", "--train_file {'a': 1} is not a list of file names"),
        ("precision: {fp32: 1}", "--precision {'fp32': 1} is not text"),
    ],
)
def test_wrong_types_in_yaml(tmp_path, text, message):
    file = tmp_path / "settings.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        config_of(f"--config {file}")


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": "-1e-3"}, "--learning_rate -0.001 is out of range; use more than 0 and at most 10"),
        ({"learning_rate": 0}, "--learning_rate 0.0 is out of range; use more than 0 and at most 10"),
        ({"learning_rate": 11.0}, "--learning_rate 11.0 is out of range; use more than 0 and at most 10"),
        ({"learning_rate": "nan"}, "--learning_rate nan is not a number"),
        ({"learning_rate": math.nan}, "--learning_rate nan is not a number"),
        ({"learning_rate": "inf"}, "--learning_rate inf is not a number"),
        ({"max_grad_norm": math.inf}, "--max_grad_norm inf is not a number"),
        ({"max_grad_norm": "1e400"}, "--max_grad_norm 1e400 is not a number"),
        ({"learning_rate": 10**400}, f"--learning_rate {str(10**400)[:60]}... is not a number"),
        ({"learning_rate": 2**20_000}, "--learning_rate (too large to be shown) is not a number"),
        ({"learning_rate": True}, "--learning_rate True is not a number"),
        ({"learning_rate": b"1"}, "--learning_rate b'1' is not a number"),
        ({"dropout": 1.0}, "--dropout 1.0 is out of range; use at least 0 and less than 1"),
        ({"dropout": -0.1}, "--dropout -0.1 is out of range; use at least 0 and less than 1"),
        ({"num_epochs": 0}, "--num_epochs 0 is out of range; use at least 1"),
        ({"batch_size": "1e3"}, "--batch_size 1e3 is not a whole number"),
        ({"batch_size": ""}, "--batch_size  is not a whole number"),
        ({"seed": 2**32}, "--seed 4294967296 is out of range; use at least 0 and at most 4294967295"),
        ({"seed": -1}, "--seed -1 is out of range; use at least 0 and at most 4294967295"),
        ({"embed_dim": None}, "--embed_dim needs a value"),
        ({"train_file": None}, "--train_file needs a value"),
        ({"precision": "fp16"}, "--precision fp16 is not known; use auto or bf16 or fp32 (bf16?)"),
        ({"schedule": "zzz"}, "--schedule zzz is not known; use cosine or linear or constant or plateau"),
        ({"positions": "rotory"}, "--positions rotory is not known; use rotary or learned (rotary?)"),
        ({"device": "gpu"}, "--device gpu is not known; use auto, cpu, cuda or cuda:N"),
        ({"device": "cuda:"}, "--device cuda: is not known; use auto, cpu, cuda or cuda:N"),
        ({"norm_first": "False "}, "--norm_first False  is not true or false"),
        ({"norm_first": 0}, "--norm_first 0 is not true or false"),
        ({"norm_first": None}, "--norm_first needs a value"),
        ({"output_dir": 5}, "--output_dir 5 is not text"),
        (
            {"embed_dim": 250},
            "--embed_dim 250 is not divisible by --num_heads 8; use a multiple of 8, such as 248 or 256",
        ),
        ({"embed_dim": 4}, "--embed_dim 4 is not divisible by --num_heads 8; use a multiple of 8, such as 8"),
        (
            {"embed_dim": 24},
            "--embed_dim 24 with --num_heads 8 makes heads of odd width 3, which rotary positions cannot turn; "
            "use --positions learned",
        ),
        (
            {"batch_size": 4, "micro_batch_size": 5},
            "--micro_batch_size 5 is larger than --batch_size 4; lower it",
        ),
        ({"doc_stride": 384, "max_seq_len": 384}, "--doc_stride 384 is not below --max_seq_len 384; lower it"),
        ({"run_name": "a/b"}, "--run_name 'a/b' is not a plain folder name; use --output_dir for the place"),
        ({"run_name": ""}, "--run_name '' is not a plain folder name; use --output_dir for the place"),
        ({"run_name": "."}, "--run_name '.' is not a plain folder name; use --output_dir for the place"),
        ({"run_name": ".."}, "--run_name '..' is not a plain folder name; use --output_dir for the place"),
    ],
)
def test_value_faults(settings, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        Config(**settings)


def test_all_faults_at_once():
    with pytest.raises(ConfigError) as error:
        Config(
            embed_dim="x",
            num_heads=0,
            learning_rate=-1,
            precision="fp8",
            norm_first="maybe",
            device="tpu",
            run_name="a/b",
        )
    message = str(error.value)
    assert "\n" not in message
    for part in ("--embed_dim x", "--num_heads 0", "--learning_rate -1", "--precision fp8", "--norm_first maybe"):
        assert message.count(part) == 1
    assert "--device tpu" in message and "--run_name 'a/b'" in message
    assert message.count("; --") == 6


def test_all_conflicts_at_once():
    with pytest.raises(ConfigError) as error:
        Config(
            embed_dim=250,
            doc_stride=500,
            max_seq_len=384,
            batch_size=1,
            micro_batch_size=2,
        )
    message = str(error.value)
    for part in ("--embed_dim 250", "--doc_stride 500", "--micro_batch_size 2"):
        assert message.count(part) == 1


@pytest.mark.parametrize(
    ("settings", "name", "value"),
    [
        ({"seed": "7"}, "seed", 7),
        ({"seed": 7.0}, "seed", 7),
        ({"learning_rate": 1}, "learning_rate", 1.0),
        ({"learning_rate": "1e-3"}, "learning_rate", 0.001),
        ({"norm_first": "False"}, "norm_first", False),
        ({"norm_first": "true"}, "norm_first", True),
        ({"train_file": "a.json"}, "train_file", ("a.json",)),
        ({"train_file": ["a.json", Path("b.json")]}, "train_file", ("a.json", "b.json")),
        ({"train_file": Path("a.json")}, "train_file", ("a.json",)),
        ({"output_dir": Path("here") / "runs"}, "output_dir", str(Path("here") / "runs")),
        ({"positions": "learned", "embed_dim": 24}, "embed_dim", 24),
        ({"dropout": None}, "dropout", None),
        ({"device": "cuda:3"}, "device", "cuda:3"),
    ],
)
def test_converted(settings, name, value):
    found = getattr(Config(**settings), name)
    assert found == value
    assert type(found) is type(value)


def test_frozen_and_comparable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 1
    assert Config(seed="1") == Config(seed=1) != Config()


# --- the command line -------------------------------------------------------------------------------------------------


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


# --- config.json ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        Config(
            train_file=("ä.json", "b.json"), learning_rate=0.1 + 0.2, norm_first=False, dropout=1e-17, seed=2**32 - 1
        ),
    ],
    ids=["defaults", "changed"],
)
def test_json_round_trip(config, tmp_path):
    config.save(tmp_path / "config.json")
    assert Config.load(tmp_path / "config.json") == config
    assert set(json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))) == {
        each.name for each in fields(Config)
    }
    assert Config(**config.to_dict()) == config


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a configuration of HIM (Expecting property name"),
        ("[]", "not a configuration of HIM ("),
        ('{"sed": 1}', "not a configuration of HIM ("),
        ('{"seed": "x"}', "not a configuration of HIM (--seed x is not a whole number)"),
        ('{"seed": null}', "not a configuration of HIM (--seed needs a value)"),
        ("[" * 100_000, "not a configuration of HIM (maximum recursion depth"),
        ("\udcff", "not a configuration of HIM ('utf-8' codec can't decode"),
    ],
    ids=["cut short", "list", "unknown", "type", "null", "deep", "not UTF-8"],
)
def test_damaged_json(tmp_path, content, message):
    path = tmp_path / "config.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match="^" + re.escape(f"{path}: {message}")) as error:
        Config.load(path)
    assert str(error.value).endswith("); restore it or train again")


def test_json_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="config.json: no such file; .* is not a run of HIM$"):
        Config.load(tmp_path / "config.json")


def test_errors_of_users_have_one_base():
    assert issubclass(ConfigError, HimError) and issubclass(CheckpointError, HimError)


# --- continuing an earlier run ----------------------------------------------------------------------------------------


def earlier_run(folder: Path, **settings) -> str:
    (folder / "best").mkdir(parents=True)
    Config(**settings).save(folder / "best" / "config.json")
    return str(folder)


def test_shape_of_an_earlier_run_is_taken_over(tmp_path):
    run = earlier_run(tmp_path / "run", task_type="lm", embed_dim=64, norm_first=False, dropout=0.3, max_seq_len=40)
    settings = with_shape_of_earlier({"task_type": "lm", "init_from": run, "num_heads": "4"})
    config = Config(**settings)
    assert (config.embed_dim, config.norm_first, config.max_seq_len) == (64, False, 40)
    assert config.num_heads == 4, "what is said wins"
    assert config.dropout is None, "the recipe is the new run's own"


@pytest.mark.parametrize("more", [{}, {"init_from": None}, {"init_from": "no/such/run"}])
def test_without_an_earlier_run_settings_stay(more):
    assert with_shape_of_earlier({"embed_dim": 64, **more}) == {"embed_dim": 64, **more}


def test_an_earlier_run_of_another_task_gives_no_shape(tmp_path):
    settings = {"task_type": "squad", "init_from": earlier_run(tmp_path / "run", task_type="lm", embed_dim=64)}
    assert with_shape_of_earlier(settings) == settings


def test_a_damaged_configuration_of_an_earlier_run(tmp_path):
    run = Path(earlier_run(tmp_path / "run"))
    (run / "best" / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match="not a configuration of HIM"):
        with_shape_of_earlier({"init_from": str(run)})


def test_shapes_of_single_layers():
    config = Config(num_encoder_layers=2, layer_heads=["4", 8], layer_feedforward=(64, 32))
    assert (config.layer_heads, config.layer_feedforward) == ((4, 8), (64, 32))
    assert Config(**config.to_dict()) == config
    with pytest.raises(ConfigError, match=r"--layer_heads names 1 layers and --num_encoder_layers is 4; name each"):
        Config(layer_heads=4)
    with pytest.raises(ConfigError, match=r"--layer_heads 0 is out of range; use at least 1"):
        Config(num_encoder_layers=1, layer_heads=(0,))
    with pytest.raises(ConfigError, match=r"--layer_feedforward 'a' is not a list of whole numbers"):
        Config(layer_feedforward="a")
