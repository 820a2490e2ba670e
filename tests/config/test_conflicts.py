"""Settings that are sound one by one, and not together."""

import re

import pytest

from him.config import Config
from him.config.resolve import resolve
from him.core.errors import ConfigError


def resolved(**settings) -> Config:
    return resolve(Config(**settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
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
    ],
)
def test_conflicts(settings, message):
    config = Config(**settings)
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        resolve(config)


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
        resolved(**settings)


def test_all_conflicts_at_once():
    with pytest.raises(ConfigError) as error:
        resolved(
            embed_dim=250,
            doc_stride=500,
            max_seq_len=384,
            batch_size=1,
            micro_batch_size=2,
        )
    message = str(error.value)
    for part in ("--embed_dim 250", "--doc_stride 500", "--micro_batch_size 2"):
        assert message.count(part) == 1


def test_shapes_of_single_layers():
    config = Config(num_encoder_layers=2, layer_heads=["4", 8], layer_feedforward=(64, 32))
    assert (config.layer_heads, config.layer_feedforward) == ((4, 8), (64, 32))
    assert Config(**config.to_dict()) == config
    with pytest.raises(ConfigError, match=r"--layer_heads names 1 layers and --num_encoder_layers is 4; name each"):
        resolved(layer_heads=4)
    with pytest.raises(ConfigError, match=r"--layer_heads 0 is out of range; use at least 1"):
        Config(num_encoder_layers=1, layer_heads=(0,))
    with pytest.raises(ConfigError, match=r"--layer_feedforward 'a' is not a list of whole numbers"):
        Config(layer_feedforward="a")
