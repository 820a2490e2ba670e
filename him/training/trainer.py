"""Training loop. It is handed a task and never asks which one it is."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
from torch import nn

from him.config import Config
from him.core.compute import Compute
from him.core.signals import SignalListener, Stopped
from him.data.batching import epoch_batches
from him.runs.checkpoint import Checkpoint, Checkpoints, NotFinite
from him.runs.environment import describe_environment
from him.runs.folder import RunFolder
from him.tasks.base import AttentionTask, Evaluation, Task
from him.training.best_model import BestModel
from him.training.gradients import Gradients
from him.training.loop_state import TrainState
from him.training.objective import Objective
from him.training.observers import Observer, Update
from him.training.progress import Progress
from him.training.recovery import Recovery, RolledBack
from him.training.saver import Saver
from him.training.schedule import StepBudget, lr_at

LOG_EVERY_STEPS = 10


class Interrupted(Exception):
    """A signal, by its number, ended the run in `folder` after a step; its checkpoint is saved."""

    def __init__(self, signal: int, folder: Path) -> None:
        super().__init__(f"{folder}: stopped by signal {signal}")
        self.signal = signal
        self.folder = folder


class Trainer:
    """Trainer of a model on a task: evaluates it every epoch, and keeps checkpoints and the best model.

    Attributes:
        state: where the loop stands.
        signals: those that have come.
        batches: the batches of this epoch, each as indices of its training examples.

    Args:
        task: what is learned, with its data.
        folder: of the run; exists. If it has records and there is no checkpoint, the run was killed before its first.
        model: to be trained, on its device.
        checkpoint: to go on from, or None.
        objective: the training loss; the task's own by default.
        observers: are shown what happens, and change nothing.

    Raises:
        CheckpointError: the checkpoint is of other data, another model or another HIM.
    """

    def __init__(
        self,
        task: Task,
        config: Config,
        folder: RunFolder,
        compute: Compute,
        model: nn.Module,
        checkpoint: Checkpoint | None = None,
        objective: Objective | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.task = task
        self.config = config
        self.folder = folder
        self.compute = compute
        self.model = model
        self.objective = Objective(task) if objective is None else objective
        self.observers = observers
        self.budget = StepBudget.of(task.examples_per_epoch, config)
        self.steps_per_epoch, self.max_steps = self.budget.steps_per_epoch, self.budget.max_steps
        self.train_state = TrainState(model, config)
        self.state = self.train_state.loop
        if checkpoint is not None:
            self._restore(checkpoint)
        goes_on = checkpoint is not None or folder.metrics.exists()
        self.progress = Progress(folder, task, config, self.budget, self.state, goes_on)
        self.gradients = Gradients(task, self.objective, config, compute, model, self.progress.say)
        self.gradients.most_tokens = self.state.most_tokens
        self.checkpoints = Checkpoints(folder.checkpoints, config.keep_checkpoints)
        self.best_model = BestModel(folder.best, task, config, self.state, self.progress)
        self.saver = Saver(self.checkpoints, self.best_model, self.progress, config, self.budget, self.state)
        self.recovery = Recovery(
            self.train_state, self.gradients, self.checkpoints, config, self.progress, self._restore
        )
        self.signals = SignalListener()
        self.batches: list[np.ndarray] = []

    def fit(self, until: int | None = None) -> None:
        """Trains to the end.

        Args:
            until: the step to stop at, if not at the end; the evaluation at this step is made.

        Raises:
            Interrupted: a signal came; the run is saved.
            HimError: the loss is not finite any more, memory or space is short.
        """
        with self._session():
            self._begin()
            while self._goes_on(until):
                if not self.state.evaluation_due and not self._make_step():
                    continue  # at an earlier step now
                if self.state.evaluation_due:
                    self._make_evaluation()
                if self.saver.is_due() or self.signals.signal:
                    self.save()
                if self.signals.signal:
                    raise Interrupted(self.signals.signal, self.folder.path)

    @contextmanager
    def _session(self) -> Iterator[None]:
        """While entered, a signal is remembered in `signals` instead of ending the process; after it, what still waits
        for room on the disk is saved for the last time. In any case the records are closed.

        Raises:
            CannotWrite: there is no room for the best model.
        """
        try:
            with SignalListener() as self.signals:
                yield
            if self.saver.waits_for_room:
                self.save()
            self.saver.finish()
        finally:
            self.progress.close_records()

    def _begin(self) -> None:
        """Shows a lack of memory or of room now, and not after hours."""
        self.start_epoch()
        if self.state.step < self.max_steps:
            self.gradients.try_longest_batch(self.state.step)
        if self.state.step == 0 and not self.state.evaluation_due:
            self.save()

    def _goes_on(self, until: int | None) -> bool:
        last_step = self.max_steps if until is None else min(until, self.max_steps)
        return self.state.evaluation_due or (self.state.step < last_step and not self.state.stopped_early)

    def due(self, every: int | None) -> bool:
        """Whether the step is a multiple of `every`."""
        return every is not None and self.state.step % every == 0

    def start_epoch(self) -> None:
        """Orders the examples of the epoch that the step is in, and opens its progress bar."""
        if self.state.step >= self.max_steps:
            return
        epoch = self.state.step // self.steps_per_epoch
        self.batches = epoch_batches(
            self.task.train_lengths,
            self.config.batch_size,
            self.config.seed,
            epoch,
            self.task.train_sampling,
            end_with_first_source=self.config.end_with_first_file and epoch == self.budget.num_epochs - 1,
        )
        self.progress.open_bar()

    def _make_step(self) -> bool:
        """A step with its record; False if the run went back instead."""
        try:
            self.train_step()
        except RolledBack:
            self.start_epoch()
            return False
        self.state.step += 1
        if self.due(LOG_EVERY_STEPS) or self.budget.is_epoch_end(self.state.step):
            self.progress.record_training()
        self.state.evaluation_due = self.budget.is_epoch_end(self.state.step) or self.due(self.config.eval_every_steps)
        return True

    def train_step(self) -> None:
        """Forward and backward pass of all micro-batches, then one update; refused if anything is not finite.

        Raises:
            RolledBack: the run is at an earlier step now.
        """
        started_at = time.perf_counter()
        self.model.train()
        examples = self.batches[self.state.step % self.steps_per_epoch]
        loss, accuracy, num_tokens = self.gradients.accumulate(examples, self.state.step)
        norm = nn.utils.get_total_norm([each.grad for each in self.model.parameters() if each.grad is not None])
        gradient_norm = float(norm)
        learning_rate = self.state.rate_factor * lr_at(
            self.state.step, self.config, self.max_steps, self.state.plateau_reductions
        )
        is_good = math.isfinite(loss.mean) and math.isfinite(gradient_norm)
        if is_good:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), self.config.max_grad_norm, norm)
            self.train_state.update(learning_rate)
            is_good = self.train_state.is_finite()
        if is_good:
            self.state.count_update(loss, accuracy)
            for observer in self.observers:
                shown = (loss.mean, accuracy.mean, gradient_norm, learning_rate, examples, self.model)
                observer.after_update(Update(self.state.step + 1, *shown))
        else:
            self.recovery.handle_non_finite(examples, loss.mean, gradient_norm)
        self.model.zero_grad(set_to_none=True)
        self.progress.count_step(gradient_norm, learning_rate, num_tokens, time.perf_counter() - started_at)

    def _make_evaluation(self) -> None:
        """The evaluation that is due; a signal puts it off, to after the resume."""
        try:
            if self.budget.is_epoch_end(self.state.step):
                self.end_epoch()
            else:
                self.evaluate()
        except Stopped:
            return
        except NotFinite as error:
            self._roll_back(error)
            return
        self.state.evaluation_due = False

    def end_epoch(self) -> None:
        """Evaluates, draws attention, says how the epoch went, and begins the next one."""
        self.progress.close_bar()
        evaluation = self.evaluate(draw_attention=True)
        means = {name: mean.mean for name, mean in self.state.since_epoch.items()}
        self.progress.say_epoch(evaluation, means)
        num_steps = self.budget.steps_in_epoch(self.state.step)
        self.state.end_epoch(num_steps, self.config.early_stopping_epochs, self.config.schedule == "plateau")
        if self.state.stopped_early and self.state.bad_epochs:  # a resumed run may have been stopped before this epoch
            best_metric = self.task.best_metric
            self.progress.say(f"stopped early: {best_metric} was best {self.state.bad_epochs} epochs ago")
        for observer in self.observers:
            observer.at_epoch_end(self.state.step, self.budget.epochs_begun(self.state.step), means)
        self.start_epoch()

    def evaluate(self, draw_attention: bool = False) -> Evaluation:
        """Evaluates on the validation data, records it, and saves the model if it is the best so far.

        Raises:
            Stopped: a signal came; nothing was recorded or saved.
            NotFinite: a weight of the best model is not finite.
        """
        ema = self.train_state.ema
        with nullcontext() if ema is None else ema.swapped_into(self.model):
            with self.signals.cutting_short():
                self.objective.masks.apply(self.model)
                evaluation = self.task.evaluate(self.model, self.compute)
                examples = []
                if draw_attention and self.config.attention_examples and isinstance(self.task, AttentionTask):
                    examples = self.task.attention_examples(self.model, self.compute, self.config.attention_examples)
            self.progress.record_evaluation(evaluation, examples)
            is_best = self.best_model.consider(self.model, evaluation, self.budget.epoch(self.state.step))
            for observer in self.observers:
                observer.after_evaluation(self.state.step, evaluation, is_best)
        return evaluation

    def save(self) -> None:
        """Writes a checkpoint that a resumed run goes on from, bit for bit; see `Saver.save`."""
        try:
            self.saver.save(self.checkpoint())
        except NotFinite as error:
            self._roll_back(error)

    def _roll_back(self, error: NotFinite) -> None:
        self.progress.say(f"{error}")
        self.recovery.roll_back(str(error))
        self.start_epoch()

    def checkpoint(self) -> Checkpoint:
        """All that the run needs to go on from here."""
        plain = {
            "step": self.state.step,
            "loop": {**self.state.to_dict(), "most_tokens": self.gradients.most_tokens},
            "machine": describe_environment(self.compute),
            "config": self.config.to_dict(),
            "data": self.objective.data_digest(),
            "validation": self.task.validation_digest,
        }
        return self.train_state.to_checkpoint(plain)

    def restore_best(self) -> None:
        """Finds the best model whole, or makes it again from its checkpoint; see `BestModel.restore`."""
        self.best_model.restore(self.model, self.checkpoints)

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.train_state.restore(checkpoint, self.folder, self.objective.data_digest(), self.task.validation_digest)
        # The patience may have changed.
        self.state.stopped_early = 0 < self.config.early_stopping_epochs <= self.state.bad_epochs
