"""The stage of pruning: the units that matter least to the loss are removed, or the smallest weights zeroed."""

import dataclasses

import torch

from him.compression.pruning import Importance, choose_units, magnitude_masks, pruned_weights, taylor_importance
from him.compression.stages import Stages
from him.data.batching import epoch_batches
from him.runs.checkpoint import save_model
from him.runs.folder import PRUNED
from him.training.objective import WeightMasks

IMPORTANCE_EXAMPLES = 1024  # training examples that units are ranked on
ROWS = 16  # of them at a time; what is summed up does not depend on it


def prune(stages: Stages) -> dict[str, float]:
    """Prunes the trained model by `--pruning_method`, saves it, and returns its metrics on all validation data."""
    config, trained = stages.config, stages.trained
    if config.pruning_method == "magnitude":
        student, student_config = stages.task.build_model(), config
        student.load_state_dict(trained.state_dict())
        WeightMasks(magnitude_masks(student, config.pruning_amount)).apply(student)
    else:
        kept = choose_units(trained, _importance(stages), config.pruning_amount)
        student_config = dataclasses.replace(
            config,
            layer_heads=tuple(len(units.heads) for units in kept),
            layer_feedforward=tuple(len(units.neurons) for units in kept),
        )
        student = stages.task.with_config(student_config).build_model()
        student.load_state_dict(pruned_weights(trained, kept))
    student.to(stages.compute.device)
    task = stages.task.with_config(student_config)
    metrics = stages.evaluate(task, student)
    save_model(stages.part.model(PRUNED), stages.as_saved(student_config), student, task, metrics)
    return metrics


def _importance(stages: Stages) -> Importance:
    """Of the trained model's heads and neurons, on the first training examples of its first epoch."""
    task, config, trained = stages.task, stages.config, stages.trained
    batches = epoch_batches(task.train_lengths, config.batch_size, config.seed, 0, task.train_sampling)
    number = 2 if config.dry_run else -(-IMPORTANCE_EXAMPLES // config.batch_size)

    def loss_of(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        with stages.compute.autocast():
            return task.loss(trained, batch).loss

    torch.manual_seed(config.seed)  # where crops of texts begin is drawn with each batch
    parts = (batch[start : start + ROWS] for batch in batches[:number] for start in range(0, len(batch), ROWS))
    chosen = (stages.compute.to_device(task.train_batch(examples)) for examples in parts)
    return taylor_importance(trained, chosen, loss_of)
