"""The stages of a compression, and what they share: pruning, fine-tuning by distillation, int8."""

import dataclasses
import json
from pathlib import Path

import torch
from torch import nn

from him.compression.pruning import (
    Importance,
    check_amount,
    choose_units,
    magnitude_masks,
    nonzero_masks,
    pruned_weights,
    taylor_importance,
)
from him.config import Config
from him.config.resolve import fine_tuning_config
from him.core.compute import Compute
from him.data.batching import epoch_batches
from him.model.int8 import pack, quantize
from him.model.int8_kernels import backend_note, find_backend
from him.runs.checkpoint import Checkpoints, load_weights, save_model
from him.runs.folder import INT8, PRUNED, TRAINED, CompressionFolder, ModelFolder, RunFolder
from him.runs.models import load_stage, save_int8
from him.tasks.base import Task
from him.training.objective import Distillation, WeightMasks, objective_with_teacher
from him.training.trainer import Trainer

IMPORTANCE_EXAMPLES = 1024  # training examples that units are ranked on
ROWS = 16  # of them at a time; what is summed up does not depend on it


class Stages:
    """The stages of the compression of a run: what they begin with, and what is left by those that are done.

    Attributes:
        run: with a best model.
        target: where the result is put.
        part: where it is made.
        best: folder of the trained model.
        config: of the run, with the compression that is wanted.
        task: with training and validation data.
        compute: device and precision of training and evaluation.
        trained: the best model of the run, in evaluation mode.

    Raises:
        HimError: the trained model is damaged, or there is not so much to prune; nothing is written yet.
    """

    def __init__(self, run: RunFolder, config: Config, task: Task, compute: Compute, target: CompressionFolder) -> None:
        self.run = run
        self.target, self.part = target, target.part
        self.best = run.find_best()
        # BERTScore on all validation data, after each stage, would take longer than the stages.
        self.config = dataclasses.replace(config, bertscore_samples=0)
        self.bertscore_samples = config.bertscore_samples
        self.task = task.with_config(self.config)
        self.compute = compute
        self.trained = load_stage(self.task, self.best, compute)
        if config.pruning_method == "taylor":
            check_amount(self.trained, config.pruning_amount)

    def folder_of(self, stage: str) -> Path:
        """Where a stage's model is while this is going on."""
        return self.best if stage == TRAINED else self.part.model(stage)

    def load(self, stage: str) -> nn.Module:
        """The model of a stage, on its device and in evaluation mode."""
        return load_stage(self.task_of(stage), self.folder_of(stage), self.compute)

    def task_of(self, stage: str) -> Task:
        """The task with the shape of a stage's model."""
        found = Config.load(ModelFolder(self.folder_of(stage)).config)
        return self.task.with_config(
            dataclasses.replace(self.config, layer_heads=found.layer_heads, layer_feedforward=found.layer_feedforward)
        )

    def as_saved(self, config: Config) -> Config:
        """The settings that a model of a stage is used with later: the run's, with the model's shape."""
        return dataclasses.replace(config, bertscore_samples=self.bertscore_samples)

    def evaluate(self, task: Task, model: nn.Module) -> dict[str, float]:
        """The metrics of a model on all validation data; its task may tune itself on them, and is saved with it."""
        return task.evaluate(model.eval(), self.compute, final=True).metrics


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

    torch.manual_seed(config.seed)  # where random windows begin is drawn with each batch
    parts = (batch[start : start + ROWS] for batch in batches[:number] for start in range(0, len(batch), ROWS))
    chosen = (stages.compute.to_device(task.train_batch(examples)) for examples in parts)
    return taylor_importance(trained, chosen, loss_of)


def fine_tune(stages: Stages) -> dict[str, float]:
    """Trains the pruned model with the trained one as its teacher, saves the best, and returns its metrics.

    What pruning took is learned again, by the usual trainer in a folder of its own, which goes on from its last
    checkpoint; the pruned model is its epoch 0.

    Raises Interrupted: a signal ended it.
    """
    folder = stages.part.fine_tuning
    pruned = stages.task_of(PRUNED)
    steps_per_epoch = -(-pruned.examples_per_epoch // stages.config.batch_size)
    best_step = int(json.loads(ModelFolder(stages.best).metrics.read_text(encoding="utf-8"))["step"])
    config = fine_tuning_config(pruned.config, steps_per_epoch, best_step)
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
    trainer.fit()
    load_weights(student, folder.best)
    masks.apply(student)
    metrics = stages.evaluate(task, student)
    state = trainer.state
    if state.best_step == 0:
        print(f"fine-tuning did not improve {task.best_metric}; the pruned weights are kept", flush=True)
    save_model(folder.best, stages.as_saved(pruned.config), student, task, {"step": state.best_step, **metrics})
    return metrics


def quantize_stage(stages: Stages, stage: str) -> dict[str, float]:
    """Quantizes the model of a stage, saves it, and returns its metrics on all validation data."""
    task, compute = stages.task_of(stage), stages.compute
    model = quantize(stages.load(stage))
    backend = find_backend(compute.device)
    print(backend_note(backend, compute.bf16, compute.device), flush=True)
    pack(model.to(compute.device), backend, compute.bf16)
    metrics = stages.evaluate(task, model)
    save_int8(stages.part.model(INT8), stages.as_saved(task.config), model, task, metrics)
    return metrics
