"""The stage of fine-tuning: what pruning took is learned again, with the unpruned model as the teacher."""

import dataclasses
from pathlib import Path

import torch

from him.compression.pruning import nonzero_masks
from him.compression.stages import Stages
from him.config.resolve import fine_tuning_config
from him.runs.checkpoint import Checkpoints, load_weights, save_model
from him.runs.folder import PRUNED
from him.training.distillation import Distillation, objective_with_teacher
from him.training.masks import WeightMasks
from him.training.trainer import Interrupted, Trainer


def fine_tune(stages: Stages) -> dict[str, float]:
    """Trains the pruned model with the trained one as its teacher, saves the best, and returns its metrics.

    The usual trainer in a folder of its own, which goes on from its last checkpoint; the pruned model is its epoch 0.

    Raises Interrupted: a signal ended it.
    """
    folder = stages.part.fine_tuning
    pruned = stages.task_of(PRUNED)
    steps_per_epoch = -(-pruned.examples_per_epoch // stages.config.batch_size)
    config = fine_tuning_config(pruned.config, steps_per_epoch, stages.best_step)
    if stages.target == stages.run.compressed:
        config = dataclasses.replace(config, attention_dir=str(Path(config.attention_dir) / stages.run.name))
    else:
        config = dataclasses.replace(config, attention_examples=0)  # the amounts of a sweep would share one folder
    student = stages.load(PRUNED)
    masks = WeightMasks(nonzero_masks(student) if config.pruning_method == "magnitude" else None)
    task = pruned.with_config(config)
    objective = objective_with_teacher(task, stages.trained, config.fine_tune_distillation_weight, masks)
    checkpoint = Checkpoints(folder.checkpoints, config.keep_checkpoints).load_newest()
    if checkpoint is None:
        folder.begin_anew()
    torch.manual_seed(config.seed)
    trainer = Trainer(task, config, folder, stages.compute, student, checkpoint, objective)
    trainer.restore_best()
    how = f"on labels alone: {task.name} has no distillation loss"
    if isinstance(objective, Distillation):
        how = "distilled from the unpruned model"
    print(f"fine-tuning after pruning: {trainer.max_steps:,} steps, {how}", flush=True)
    if trainer.state.best_value is None:
        trainer.evaluate()
    try:
        trainer.fit()
    except Interrupted as interrupted:
        raise Interrupted(interrupted.signal, stages.run.path) from None
    load_weights(student, folder.best)
    masks.apply(student)
    metrics = stages.evaluate(task, student)
    state = trainer.state
    if state.best_step == 0:
        print(f"fine-tuning did not improve {task.best_metric}; the pruned weights are kept", flush=True)
    save_model(folder.best, stages.as_saved(pruned.config), student, task, {"step": state.best_step, **metrics})
    return metrics
