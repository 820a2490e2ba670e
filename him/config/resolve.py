"""Every place where a setting gets another value than the one that it was given.

Nothing is read here: what earlier runs say is handed in.
"""

import dataclasses
from typing import Any

from him.config.config import Config
from him.config.options import with_role

# What has one value in every pretraining, so that nothing is left that it does not read. Words are hidden, and asked
# for: word dropout would hide them twice.
PRETRAINING: dict[str, Any] = {
    "word_dropout": 0.0,
    "label_smoothing": 0.0,
    "ema_decay": 0.0,
    "schedule": "cosine",
    "early_stopping_epochs": 0,
    "eval_every_steps": None,
    "attention_examples": 0,
    "bertscore_samples": 0,
    "compress": False,
    "end_with_first_file": False,
    "train_file_weights": (),
    "teacher": None,
}


def pretraining_config(config: Config) -> Config:
    """The settings of the pretraining of a run, in which nothing is left that it does not read."""
    return dataclasses.replace(
        config,
        num_epochs=config.pretrain_epochs,
        max_steps=2 if config.dry_run else None,
        learning_rate=config.pretrain_learning_rate,
        **PRETRAINING,
    )


def pretraining_settings() -> tuple[str, ...]:
    """The settings that a pretraining's weights depend on, beside its data and tokenizer, in the order of their
    names."""
    read = with_role("shape", "examples", "optimization", "budget")
    return tuple(sorted(set(read) - PRETRAINING.keys()))
