"""Resolution of the settings: every place where a setting gets another value than the one that it was given.

Nothing is read here: what earlier runs say is handed in.
"""

import math
from collections.abc import Mapping
from typing import Any

from him.config.bert import BertEncoder, check_settings, check_task
from him.config.config import Config, conflicts
from him.config.options import task_defaults, with_role
from him.config.values import raise_together

# What an earlier model was trained as, of which single layers may have been pruned: not theirs, where it is given anew.
WIDTHS = frozenset({"num_encoder_layers", "num_heads", "dim_feedforward"})
SHARE_OF_STEPS = 1 / 3  # of the training before, that fine-tuning after pruning has where nobody says how long

# What has one value in every pretraining, so that nothing is left that it does not read. Words are masked, and
# predicted: word dropout would mask them twice.
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


def resolve(config: Config, earlier: Config | BertEncoder | None = None) -> Config:
    """The settings that a run is trained with, none of them missing.

    What was given stays. The rest is as with the model that the weights come from, if there is one, then as the task
    has it. Resolving twice changes nothing.

    Args:
        config: what was given.
        earlier: what `him.runs.folder.read_earlier` found in the folder that `init_from` names.

    Raises:
        ConfigError: settings do not fit together, or not to the weights that they begin with.
    """
    if isinstance(earlier, BertEncoder):
        check_task(config, earlier)
        config = config.filled(earlier.settings)
    elif earlier is not None and earlier.task_type == config.task_type:  # whoever loads its weights refuses another
        config = config.filled(_shape_of(earlier, config))
    config = config.with_defaults(task_defaults(config.task_type))
    if config.dry_run:
        config = config.with_values(max_steps=min(config.max_steps or 2, 2))
    raise_together(conflicts(config))
    if isinstance(earlier, BertEncoder):
        check_settings(config, earlier)
    return config


def _shape_of(earlier: Config, config: Config) -> dict[str, Any]:
    """The shape of an earlier model, without a pretraining before it is trained on."""
    shape = {name: getattr(earlier, name) for name in with_role("shape")}
    if WIDTHS & config.given:
        shape |= {"layer_heads": (), "layer_feedforward": ()}
    return shape | {"pretrain_epochs": 0}


def with_changes(config: Config, changes: Mapping[str, Any]) -> Config:
    """The settings of a run with some others. Raises ConfigError: a value is not sound, or does not fit to another
    one."""
    changed = config.replace(**changes)
    raise_together(conflicts(changed))
    return changed


def pretraining_config(config: Config) -> Config:
    """The settings of the pretraining of a run, in which nothing is left that it does not read."""
    return config.replace(
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


def fine_tuning_config(config: Config, steps_per_epoch: int, best_step: int) -> Config:
    """The settings of the training after pruning.

    Args:
        config: of the pruned model, with the budget of the training before.
        steps_per_epoch: of the training data.
        best_step: the step of the training before that the model is of.
    """
    rate = config.fine_tune_learning_rate or config.learning_rate / 2
    num_epochs, max_steps = config.fine_tune_epochs, None
    if num_epochs is None:
        before = min(config.num_epochs * steps_per_epoch, config.max_steps or math.inf)
        if config.early_stopping_epochs:
            before = min(before, best_step + config.early_stopping_epochs * steps_per_epoch)
        max_steps = math.ceil(SHARE_OF_STEPS * before)
        num_epochs = math.ceil(max_steps / steps_per_epoch)
    return config.replace(
        num_epochs=num_epochs,
        max_steps=2 if config.dry_run else max_steps,
        learning_rate=rate,
        # Muon's rate goes down with the other one.
        muon_learning_rate=min(10.0, config.muon_learning_rate * rate / config.learning_rate),
        early_stopping_epochs=0,
        eval_every_steps=None,
        bertscore_samples=0,
    )
