"""A `Config`: its defaults, what was given, its JSON."""

import copy
import dataclasses
import json
import pickle
import re
from dataclasses import fields

import pytest

from him.config import Config
from him.config.options import OPTIONS
from him.core.errors import CheckpointError, ConfigError, HimError


def test_frozen_and_comparable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 1
    assert Config(seed="1") == Config(seed=1) != Config()


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


# --- what was given ---------------------------------------------------------------------------------------------------


def test_what_was_given_is_known():
    config = Config(seed=3, dropout=None)
    assert config.given == {"seed", "dropout"}, "whatever its value"
    assert Config().given == set()
    assert config == Config(seed=3) and "given" not in config.to_dict()


def test_what_was_given_survives_changes(tmp_path):
    config = Config(seed=3, dropout=0.1)
    changed = config.replace(batch_size="4")
    assert (changed.batch_size, changed.seed, changed.given) == (4, 3, {"seed", "dropout", "batch_size"})
    assert (config.batch_size, config.given) == (None, {"seed", "dropout"})
    assert copy.deepcopy(changed).given == pickle.loads(pickle.dumps(changed)).given == changed.given
    assert config.with_values(max_steps=2).given == config.given
    config.save(tmp_path / "config.json")
    assert Config.load(tmp_path / "config.json").given == set(OPTIONS)


def test_only_what_was_not_given_is_filled():
    filled = Config(seed=3, dropout=None).filled({"seed": 4, "dropout": 0.5, "embed_dim": 64})
    assert (filled.seed, filled.dropout, filled.embed_dim, filled.given) == (3, None, 64, {"seed", "dropout"})
    with pytest.raises(ConfigError, match="^--embed_dim 0 is out of range"):
        Config().filled({"embed_dim": 0})


def test_a_stored_configuration_whose_settings_do_not_fit_together(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**Config().to_dict(), "embed_dim": 250}))
    with pytest.raises(CheckpointError, match="not a configuration of HIM .--embed_dim 250 is not divisible"):
        Config.load(tmp_path / "config.json")
