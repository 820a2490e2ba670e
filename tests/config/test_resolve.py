"""Where a setting gets its value from: flags, YAML, an earlier model, the task; and the stages of a run."""

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

from him.cli.parser import build_parser, parse_command_line
from him.config import Config
from him.config.bert import RECIPE, BertEncoder
from him.config.options import OPTIONS, TASKS, readers_of, task_defaults
from him.config.resolve import fine_tuning_config, resolve, with_changes
from him.core.errors import CheckpointError, ConfigError
from him.runs.folder import read_earlier


def parse(line: str) -> tuple[dict, str | None]:
    return parse_command_line(build_parser("HIM"), shlex.split(line))[:2]


def config_of(line: str) -> Config:
    return Config(**parse(line)[0])


def test_precedence(tmp_path):
    """Flags over YAML over the task's defaults over the general ones over the dataclass."""
    file = tmp_path / "settings.yaml"
    file.write_text("batch_size: 7\nnum_epochs: 8\nlearning_rate: 1e-2\n", encoding="utf-8")
    assert task_defaults("squad")["batch_size"] == 32 and task_defaults("squad")["num_epochs"] == 3
    assert task_defaults("lm")["num_epochs"] == 10 and task_defaults("lm")["batch_size"] == 16

    def resolved(line: str) -> tuple:
        config = resolve(config_of(line))
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
    config = resolve(Config(task_type=task))
    read = {each.name for each in fields(Config) if task in readers_of(each.name)}
    general = {name for name, each in OPTIONS.items() if "fallback" in each.metadata}
    assert len(general) == 15
    names = read & {*general, "max_seq_len", "vocab_size", "tokenizer_type"}
    assert [name for name in names if getattr(config, name) is None] == []


def test_the_defaults_of_all_tasks_are_no_foreign_flags():
    for task in TASKS:
        resolved = resolve(Config(task_type=task))
        assert Config(**resolved.to_dict()) == resolved


# --- continuing an earlier run ----------------------------------------------------------------------------------------


def earlier_run(folder: Path, **settings) -> str:
    (folder / "best").mkdir(parents=True)
    Config(**settings).save(folder / "best" / "config.json")
    return str(folder)


def resolved_from(**settings) -> Config:
    config = Config(**settings)
    return resolve(config, read_earlier(config.init_from))


def test_shape_of_an_earlier_run_is_taken_over(tmp_path):
    run = earlier_run(tmp_path / "run", task_type="lm", embed_dim=64, norm_first=False, dropout=0.3, max_seq_len=40)
    config = resolved_from(task_type="lm", init_from=run, num_heads="4")
    assert (config.embed_dim, config.norm_first, config.max_seq_len) == (64, False, 40)
    assert config.num_heads == 4, "what is said wins"
    assert config.dropout == task_defaults("lm")["dropout"], "the recipe is the new run's own"
    assert config.given == {"task_type", "init_from", "num_heads"}


def test_an_earlier_run_is_not_pretrained_again(tmp_path):
    run = earlier_run(tmp_path / "run")
    assert resolved_from(init_from=run).pretrain_epochs == 0 != resolved_from().pretrain_epochs
    assert resolved_from(init_from=run, pretrain_epochs=2).pretrain_epochs == 2
    assert resolved_from(init_from=run, pretrain_epochs=None).pretrain_epochs == resolved_from().pretrain_epochs


@pytest.mark.parametrize(
    ("given", "heads", "widths"),
    [
        ({}, (4, 8), (64, 32)),
        ({"seed": 2}, (4, 8), (64, 32)),
        ({"num_heads": 8}, (), ()),
        ({"num_encoder_layers": 3}, (), ()),
        ({"dim_feedforward": 128}, (), ()),
        ({"dim_feedforward": 128, "layer_heads": (2, 2)}, (2, 2), ()),
    ],
)
def test_widths_of_pruned_layers(given, heads, widths, tmp_path):
    """They are of the earlier model's layers; where other ones are asked for, only what is given counts."""
    run = earlier_run(tmp_path / "run", num_encoder_layers=2, layer_heads=(4, 8), layer_feedforward=(64, 32))
    config = resolved_from(init_from=run, **given)
    assert (config.layer_heads, config.layer_feedforward) == (heads, widths)


def test_conflicts_with_what_is_taken_over(tmp_path):
    """The settings are sound by themselves, and only with the shape of the earlier model not."""
    run = earlier_run(tmp_path / "run", embed_dim=64)
    config = Config(init_from=run, num_heads=5)
    with pytest.raises(ConfigError, match="^--embed_dim 64 is not divisible by --num_heads 5"):
        resolve(config, read_earlier(run))


def test_resolving_twice_changes_nothing(tmp_path):
    run = earlier_run(tmp_path / "run", embed_dim=64, max_seq_len=200)
    once = resolved_from(init_from=run, num_heads=4, dry_run=True)
    twice = resolve(once, read_earlier(run))
    assert twice == once and twice.given == once.given
    assert (once.max_steps, once.embed_dim) == (2, 64)


@pytest.mark.parametrize(("max_steps", "expected"), [(None, 2), (1, 1), (2, 2), (7, 2)])
def test_a_dry_run_has_two_steps(max_steps, expected):
    assert resolve(Config(dry_run=True, max_steps=max_steps)).max_steps == expected
    assert resolve(Config(max_steps=max_steps)).max_steps == max_steps


@pytest.mark.parametrize("more", [{}, {"init_from": None}, {"init_from": "no/such/run"}])
def test_without_an_earlier_run_settings_stay(more):
    assert read_earlier(more.get("init_from")) is None
    assert resolved_from(embed_dim=64, **more) == resolve(Config(embed_dim=64, **more))


def test_an_earlier_run_of_another_task_gives_no_shape(tmp_path):
    run = earlier_run(tmp_path / "run", task_type="lm", embed_dim=64)
    assert resolved_from(init_from=run).embed_dim == Config().embed_dim


def test_a_damaged_configuration_of_an_earlier_run(tmp_path):
    run = Path(earlier_run(tmp_path / "run"))
    (run / "best" / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match="not a configuration of HIM"):
        read_earlier(str(run))


ENCODER = BertEncoder(
    Path("encoder"), {"embed_dim": 32, "num_heads": 4, "max_seq_len": 96, "conv_kernel_size": 0, **RECIPE}, 100
)


def test_settings_of_a_pretrained_encoder():
    """What was given, then the encoder's shape and recipe, then the task's own."""
    config = resolve(Config(learning_rate=1e-4, doc_stride=32, max_seq_len=100), ENCODER)
    assert (config.learning_rate, config.max_seq_len) == (1e-4, 100)
    assert (config.embed_dim, config.conv_kernel_size, config.dropout) == (32, 0, RECIPE["dropout"])
    assert config.batch_size == task_defaults("squad")["batch_size"]
    assert config.given == {"learning_rate", "doc_stride", "max_seq_len"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"embed_dim": 64}, "--init_from encoder: --embed_dim 64 is 32 there; leave these flags out"),
        ({"num_heads": 2, "conv_kernel_size": 7}, "--num_heads 2 is 4 there, --conv_kernel_size 7 is 0 there"),
        ({"max_seq_len": 101}, "--max_seq_len 101: the encoder has 100 positions; use at most that"),
        ({"task_type": "lm"}, "--init_from encoder: the encoder reads in both directions, and --task_type lm does not"),
    ],
)
def test_settings_of_another_encoder(given, message):
    doc_stride = {} if "task_type" in given else {"doc_stride": 32}
    with pytest.raises(ConfigError, match=re.escape(message)):
        resolve(Config(**given, **doc_stride), ENCODER)


@pytest.mark.parametrize("given", [{"embed_dim": 32}, {"num_heads": "4"}, {"dropout": 0.3}])
def test_what_is_as_in_the_encoder_may_be_given(given):
    assert resolve(Config(**given, doc_stride=32), ENCODER).embed_dim == 32


def test_changes_are_checked_with_what_is_there(tmp_path):
    Config(embed_dim=64).save(tmp_path / "config.json")
    config = Config.load(tmp_path / "config.json")
    assert with_changes(config, {"num_heads": "4"}).num_heads == 4
    with pytest.raises(ConfigError, match="^--embed_dim 64 is not divisible by --num_heads 5"):
        with_changes(config, {"num_heads": 5})


# --- fine-tuning after pruning ---------------------------------------------------------------------------------------


BEFORE = {"num_epochs": 6, "learning_rate": 1e-3, "batch_size": 16}


@pytest.mark.parametrize(
    ("more", "num_epochs", "max_steps"),
    [
        ({}, 2, 20),
        ({"num_epochs": 1}, 1, 4),
        ({"num_epochs": 4}, 2, 14),
        ({"max_steps": 12}, 1, 4),
        ({"max_steps": 1000}, 2, 20),
        ({"max_steps": 1}, 1, 1),
        ({"fine_tune_epochs": 5}, 5, None),
        ({"fine_tune_epochs": 5, "max_steps": 3}, 5, None),
        ({"early_stopping_epochs": 1}, 1, 10),
        ({"early_stopping_epochs": 9}, 2, 20),
        ({"dry_run": True, "max_steps": 2}, 1, 2),
        ({"dry_run": True, "fine_tune_epochs": 3}, 3, 2),
    ],
)
def test_budget(more, num_epochs, max_steps):
    """10 steps an epoch; a third of the steps before, rounded up, unless epochs are asked for.

    A training that may have stopped early was at most as long as its best epoch, the second, and its patience.
    """
    config = fine_tuning_config(Config(**BEFORE | more), 10, best_step=20)
    assert (config.num_epochs, config.max_steps) == (num_epochs, max_steps)


@pytest.mark.parametrize(
    ("more", "rate", "of_muon"),
    [({}, 5e-4, 0.01), ({"fine_tune_learning_rate": 2e-3}, 2e-3, 0.04), ({"fine_tune_learning_rate": 9.0}, 9.0, 10.0)],
)
def test_rates(more, rate, of_muon):
    config = fine_tuning_config(Config(**BEFORE | more), 10, best_step=20)
    assert (config.learning_rate, config.muon_learning_rate) == (pytest.approx(rate), pytest.approx(of_muon))


def test_what_else_is_other_than_before():
    before = Config(**BEFORE, early_stopping_epochs=2, eval_every_steps=3, seed=4, ema_decay=0.9, dropout=0.2)
    after = fine_tuning_config(before, 10, best_step=20)
    different = {name for name, value in after.to_dict().items() if value != getattr(before, name) and value != []}
    assert different == {
        *("num_epochs", "max_steps", "learning_rate", "muon_learning_rate", "early_stopping_epochs"),
        *("eval_every_steps", "bertscore_samples"),
    }
