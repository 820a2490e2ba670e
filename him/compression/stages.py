"""What the stages of a compression share: the trained model, the settings, and where each stage's model is."""

import dataclasses
import json
from pathlib import Path

from torch import nn

from him.compression.pruning import check_amount
from him.config import Config
from him.core.compute import Compute
from him.runs.folder import TRAINED, CompressionFolder, ModelFolder, RunFolder
from him.runs.models import load_stage
from him.tasks.base import Task


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
        return self.task.with_config(self.config_of(stage))

    def config_of(self, stage: str) -> Config:
        """The settings with the shape of a stage's model."""
        of_model = Config.load(ModelFolder(self.folder_of(stage)).config)
        return dataclasses.replace(
            self.config, layer_heads=of_model.layer_heads, layer_feedforward=of_model.layer_feedforward
        )

    def as_saved(self, config: Config) -> Config:
        """The settings that a model of a stage is used with later: the run's, with the model's shape."""
        return dataclasses.replace(config, bertscore_samples=self.bertscore_samples)

    def evaluate(self, task: Task, model: nn.Module) -> dict[str, float]:
        """The metrics of a model on all validation data; its task may tune itself on them, and is saved with it."""
        return task.evaluate(model.eval(), self.compute, final=True).metrics

    @property
    def best_step(self) -> int:
        """The step of the training that the trained model is of."""
        return int(json.loads(ModelFolder(self.best).metrics.read_text(encoding="utf-8"))["step"])
