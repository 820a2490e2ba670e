"""Folders with a pretrained encoder of the BERT family (Devlin et al. 2018, arXiv:1810.04805), to start from.

Of such a folder `config.json`, `model.safetensors` and `tokenizer.json` are read; no pickles, no code.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from him.config.config import Config
from him.core.errors import CheckpointError, ConfigError

FILES = ("config.json", "model.safetensors", "tokenizer.json")
# What a pretrained encoder is fine-tuned with, where nobody says something else: Devlin et al. 2018, appendix A.3, with
# a rate that suits the smaller encoders; what it knows is lost at the rates that training from scratch needs.
RECIPE = {
    "learning_rate": 2e-4,
    "dropout": 0.1,
    "word_dropout": 0.0,
    "ema_decay": 0.99,
    "num_epochs": 3,
    "pretrain_epochs": 0,
}
LONGEST = 384  # tokens; a sequence is as long as in the public recipes for SQuAD, though there are more positions


def is_bert(folder: Path) -> bool:
    """Whether a folder holds an encoder of the BERT family, and not a run."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return isinstance(config, dict) and config.get("model_type") == "bert"
    except (OSError, ValueError, RecursionError):
        return False


@dataclass(frozen=True)
class BertEncoder:
    """What the folder of a pretrained encoder says about it.

    Attributes:
        folder: where it is.
        settings: those that a model needs to take over its weights, and those that it is best fine-tuned with.
        num_positions: tokens of the longest sequence that it knows positions for.
    """

    folder: Path
    settings: dict[str, Any]
    num_positions: int


def read_bert(folder: Path) -> BertEncoder:
    """Reads the description of an encoder, not its weights. Raises CheckpointError: a file is missing, or the encoder
    is of a kind that HIM does not compute."""
    where = f"--init_from {folder}"
    for name in FILES:
        if not (folder / name).is_file():
            raise CheckpointError(f"{where}: it has no {name}; use a folder with {', '.join(FILES)}")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    odd = {
        "hidden_act": config.get("hidden_act") != "gelu",
        "position_embedding_type": config.get("position_embedding_type", "absolute") != "absolute",
        "type_vocab_size": config.get("type_vocab_size") != 2,
        "is_decoder": bool(config.get("is_decoder", False)),
    }
    if any(odd.values()):
        told = ", ".join(f"{name} {config.get(name)}" for name, is_odd in odd.items() if is_odd)
        raise CheckpointError(f"{where}: an encoder of another kind ({told}); use one like bert-base-uncased")
    try:
        num_positions = int(config["max_position_embeddings"])
        settings = {
            "num_encoder_layers": int(config["num_hidden_layers"]),
            "embed_dim": int(config["hidden_size"]),
            "num_heads": int(config["num_attention_heads"]),
            "dim_feedforward": int(config["intermediate_size"]),
            "layer_norm_eps": float(config["layer_norm_eps"]),
            "max_seq_len": min(LONGEST, num_positions),
            "norm_first": False,
            "positions": "learned",
            "activation": "gelu",
            "conv_kernel_size": 0,
            **RECIPE,
        }
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{where}/config.json: not of an encoder ({error}); restore it from its source") from None
    return BertEncoder(folder, settings, num_positions)


def check_task(config: Config, encoder: BertEncoder) -> None:
    """Raises ConfigError if the task of the settings cannot be learned with an encoder's weights."""
    if config.task_type != "squad":
        raise ConfigError(
            f"--init_from {encoder.folder}: the encoder reads in both directions, and --task_type {config.task_type} "
            "does not; use it with --task_type squad"
        )


def check_settings(config: Config, encoder: BertEncoder) -> None:
    """Raises ConfigError if what was given among the settings is of another model than the encoder."""
    check_task(config, encoder)
    if config.max_seq_len is not None and config.max_seq_len > encoder.num_positions:
        raise ConfigError(
            f"--max_seq_len {config.max_seq_len}: the encoder has {encoder.num_positions} positions; use at most that"
        )
    fixed = [name for name in encoder.settings if name in config.given and name not in (*RECIPE, "max_seq_len")]
    if odd := [name for name in fixed if getattr(config, name) != encoder.settings[name]]:
        told = ", ".join(f"--{name} {getattr(config, name)} is {encoder.settings[name]} there" for name in odd)
        raise ConfigError(f"--init_from {encoder.folder}: {told}; leave these flags out")
