"""Names of settings: the one map of renamed keys, for files, command lines and Python."""

import json
import warnings

import pytest

from him.config import Config
from him.config.names import NAMES, current, known, named_twice, renamed, unknown
from him.config.options import OPTIONS
from him.core.errors import CheckpointError, ConfigError

# Flags of earlier versions, whose runs and scripts are still there.
OLD = {
    "conv_width": "conv_kernel_size",
    "shared_dropout": "variational_dropout",
    "variants": "num_augmentations",
    "train_weights": "train_file_weights",
    "first_file_last": "end_with_first_file",
    "warmup_share": "warmup_ratio",
    "teacher_weight": "distillation_weight",
    "distillation": "fine_tune_distillation_weight",
}


def test_names():
    assert OLD.items() <= NAMES.items()
    assert all(NAMES[name] == name for name in OPTIONS)
    aliases = [alias for each in OPTIONS.values() for alias in each.metadata["aliases"]]
    assert len(NAMES) == len(OPTIONS) + len(aliases), "an alias stands for one setting, and is none itself"


def test_stored_settings_are_read_by_their_names_of_today():
    stored = {"conv_width": 7, "distillation": 0.5, "seed": 1, "trained": "0123", "machine": ["cpu"]}
    assert renamed(stored) == {
        "conv_kernel_size": 7,
        "fine_tune_distillation_weight": 0.5,
        "seed": 1,
        "trained": "0123",
        "machine": ["cpu"],
    }


TWICE = "conv_width and conv_kernel_size are names of one setting; keep one of them"


def test_two_names_of_one_setting(tmp_path):
    both = {"conv_width": 5, "seed": 2, "conv_kernel_size": 7}
    assert named_twice(both) == [TWICE]
    for read in (renamed, current, lambda settings: Config(**settings), lambda settings: Config().replace(**settings)):
        with pytest.raises(ConfigError, match=f"^{TWICE}$"):
            read(both)
    with pytest.raises(ConfigError, match=f"^--config x.yaml: {TWICE}$"):
        known(both, "--config x.yaml")
    (tmp_path / "config.json").write_text(json.dumps(both))
    with pytest.raises(CheckpointError, match=f"not a configuration of HIM .*{TWICE}"):
        Config.load(tmp_path / "config.json")
    assert named_twice(["epoch", "num_epochs", "epochs", "epoch"], "--") == [
        "--epoch and --num_epochs and --epochs are names of one setting; keep one of them"
    ]
    assert named_twice(["seed", "seed", "no_setting", "no_setting"]) == []


def test_old_keywords_of_python_are_taken_with_a_warning():
    with pytest.warns(DeprecationWarning, match="^conv_width is called conv_kernel_size$"):
        config = Config(conv_width=5, seed=3)
    assert (config.conv_kernel_size, config.given) == (5, {"conv_kernel_size", "seed"})
    with pytest.warns(DeprecationWarning, match="^warmup_share is called warmup_ratio$"):
        assert config.replace(warmup_share=0.2).warmup_ratio == 0.2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Config(conv_kernel_size=5)
    with pytest.raises(TypeError, match="unexpected keyword argument 'no_setting'"):
        Config(no_setting=1)


def test_the_warning_points_at_the_caller():
    with pytest.warns(DeprecationWarning) as found:
        Config(conv_width=5)
        Config().replace(conv_width=5)
    assert [each.filename for each in found] == [__file__, __file__]


def test_config_json_of_an_earlier_version(tmp_path):
    stored = {name: value for name, value in Config().to_dict().items() if name not in OLD.values()}
    stored |= {"conv_width": 7, "shared_dropout": True, "variants": 2, "train_weights": [], "first_file_last": False}
    stored |= {"warmup_share": 0.3, "teacher_weight": 0.25, "distillation": 0.75}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    config = Config.load(tmp_path / "config.json")
    assert {name: getattr(config, new) for name, new in OLD.items()} == {
        name: tuple(stored[name]) if isinstance(stored[name], list) else stored[name] for name in OLD
    }
    config.save(tmp_path / "config.json")
    assert not OLD.keys() & json.loads((tmp_path / "config.json").read_text()).keys(), "new names are written"


def test_unknown_names():
    assert unknown("conv_widht", NAMES) == "unknown setting --conv_widht; did you mean --conv_width?"
    assert unknown("zzz", NAMES, "") == "unknown setting zzz; see --help"
