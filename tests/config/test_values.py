"""Values of single settings: converted, or refused in one line."""

import math
import re
from pathlib import Path

import pytest

from him.config import Config
from him.core.errors import ConfigError


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
