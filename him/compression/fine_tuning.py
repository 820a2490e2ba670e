"""The settings of the training after pruning, which the model as it was before teaches."""

import dataclasses
import math

from him.config import Config

SHARE_OF_STEPS = 1 / 3  # of the training before, where nobody says how long


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
    return dataclasses.replace(
        config,
        num_epochs=num_epochs,
        max_steps=2 if config.dry_run else max_steps,
        learning_rate=rate,
        # Muon's rate goes down with the other one.
        muon_learning_rate=min(10.0, config.muon_learning_rate * rate / config.learning_rate),
        early_stopping_epochs=0,
        eval_every_steps=None,
        bertscore_samples=0,
    )
