"""Best model of a run: by which evaluation it is chosen, and how it gets onto the disk and back."""

import copy
import math
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from him.config import Config
from him.core.errors import CheckpointError
from him.core.files import CannotWrite, quarantine, remove_leftovers, verify_folder
from him.runs.checkpoint import Checkpoints, put_weights, save_model
from him.tasks.base import LOWER_IS_BETTER, Evaluation, Task
from him.training.loop_state import LoopState
from him.training.progress import Progress


@dataclass(eq=False)
class BestModel:
    """Best model: the one with the best value of the task's metric so far, in the folder `best`; the first of equals.

    The task and the config are saved with it; `loop` holds the best value and its step.
    """

    folder: Path
    task: Task
    config: Config
    loop: LoopState
    progress: Progress
    _waiting: tuple[nn.Module, dict[str, float]] | None = None  # for room on the disk

    def consider(self, model: nn.Module, evaluation: Evaluation, epoch: float) -> bool:
        """Writes an evaluated model if it is the best so far, and returns whether; keeps a copy where there is no room.

        Args:
            epoch: epochs done, fractions included.

        Raises:
            NotFinite: one of its weights is not.
        """
        value = evaluation.metrics[self.task.best_metric]
        if not self._is_better(value):
            return False
        self.loop.best_value, self.loop.best_step = value, self.loop.step
        metrics = {"step": self.loop.step, "epoch": round(epoch, 6), **evaluation.metrics}
        self._waiting = (model, metrics)
        try:
            self.write()
        except CannotWrite as error:
            self._waiting = (copy.deepcopy(model), metrics)  # training changes the model itself
            self.progress.say(f"step {self.loop.step}: {error}; training goes on and tries again")
        return True

    def _is_better(self, value: float) -> bool:
        best = self.loop.best_value
        if best is None or math.isnan(best):
            return True
        return value < best if self.task.best_metric in LOWER_IS_BETTER else value > best

    def write(self) -> None:
        """Writes the best model, if it is not on the disk yet.

        Raises:
            CannotWrite: there is no room.
            NotFinite: one of its weights is not finite.
        """
        if self._waiting is None:
            return
        waiting, self._waiting = self._waiting, None
        model, metrics = waiting
        try:
            save_model(self.folder, self.config, model, self.task, metrics)
        except CannotWrite:
            self._waiting = waiting
            raise

    def restore(self, model: nn.Module, checkpoints: Checkpoints) -> None:
        """Finds the best model whole, or makes it again from its checkpoint; the `model` of the run is not changed.

        Raises:
            CheckpointError: neither is whole.
        """
        remove_leftovers(self.folder)
        if self.loop.best_value is None:
            return
        try:
            verify_folder(self.folder)
        except CheckpointError as error:
            self._make_again(model, checkpoints, error)

    def _make_again(self, model: nn.Module, checkpoints: Checkpoints, error: CheckpointError) -> None:
        path = checkpoints.path_of(self.loop.best_step)
        try:
            saved = checkpoints.load(path)
        except CheckpointError:
            raise CheckpointError(
                f"{error}, and so is its checkpoint; restore it from a copy, or start the run again"
            ) from None
        aside = ""
        if self.folder.exists():
            aside = f", and what is there is quarantined as {quarantine(self.folder).name}"
        self.progress.say(f"{error}; it is made again from {path}{aside}")
        again = copy.deepcopy(model)
        put_weights(again, saved.ema or saved.weights, f"{self.folder}", "start the run again")
        metrics = {"step": saved.step, self.task.best_metric: self.loop.best_value}
        save_model(self.folder, self.config, again, self.task, metrics)
