"""The training loop. It is handed a task and never asks which one it is."""

import copy
import math
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
from torch import Tensor, nn
from tqdm import tqdm

from him.attention_maps import AttentionExample, write_sheets
from him.config import Config
from him.core.compute import Compute
from him.core.errors import CheckpointError, HimError
from him.core.files import CannotWrite, cannot_write, quarantine, remove_leftovers, verify_folder
from him.core.signals import SignalListener, Stopped
from him.data.batching import epoch_batches
from him.runs.checkpoint import (
    Checkpoint,
    Checkpoints,
    NotFinite,
    optimizer_tensors,
    put_weights,
    restore_optimizers,
    save_model,
)
from him.runs.environment import describe_environment
from him.runs.records import MetricWriter
from him.tasks.base import LOWER_IS_BETTER, AttentionTask, Evaluation, Task
from him.training.gradients import Gradients
from him.training.loop_state import LoopState, new_means
from him.training.non_finite import all_finite, first_not_finite
from him.training.optimizers import ExponentialMovingAverage, build_optimizers, lr_at

LOG_EVERY_STEPS = 10
MOST_REFUSED_IN_A_ROW = 5
RATE_AFTER_FAULT = 0.5


class Interrupted(Exception):
    """A signal ended the run after a step; its checkpoint is saved.

    Attributes:
        signal: the signal's number.
        folder: of the run.
    """

    def __init__(self, signal: int, folder: Path) -> None:
        super().__init__(f"{folder}: stopped by signal {signal}")
        self.signal = signal
        self.folder = folder


class RolledBack(Exception):
    """The run went back to an earlier step."""


class Trainer:
    """Trains a model on a task, evaluates it every epoch, and keeps checkpoints and the best model.

    Args:
        task: what is learned, with its data.
        config: all settings.
        folder: of the run; exists.
        compute: device and precision.
        model: to be trained, on its device.
        checkpoint: to go on from, or None.
        resumes: whether the run was begun before, and killed before its first checkpoint if there is none.
    """

    def __init__(
        self,
        task: Task,
        config: Config,
        folder: Path,
        compute: Compute,
        model: nn.Module,
        checkpoint: Checkpoint | None = None,
        resumes: bool = False,
    ) -> None:
        self.task = task
        self.config = config
        self.folder = folder
        self.compute = compute
        self.model = model
        self.optimizers = build_optimizers(model, config)
        self.ema = ExponentialMovingAverage(model, config.ema_decay) if config.ema_decay else None
        self.checkpoints = Checkpoints(folder / "checkpoints", config.keep_checkpoints)
        self.gradients = Gradients(task, config, compute, model, self.say)
        self.state = LoopState()
        if checkpoint is not None:
            self._restore(checkpoint)
        self.steps_per_epoch = math.ceil(task.examples_per_epoch / config.batch_size)
        self.max_steps = config.num_epochs * self.steps_per_epoch
        if config.max_steps is not None:
            self.max_steps = min(self.max_steps, config.max_steps)
        self.num_epochs = math.ceil(self.max_steps / self.steps_per_epoch)
        self.writer = MetricWriter(folder, resumed_step=self.state.step if checkpoint or resumes else None)
        self.interruption = SignalListener()
        self.batches: list[np.ndarray] = []
        self.bar: tqdm | None = None
        self.train_seconds = 0.0
        self.tokens_seen = 0
        self.measured: dict[str, float] = {}
        self._best_waits: tuple[nn.Module, dict[str, float]] | None = None  # the best model, not yet on the disk
        self._save_waits = False  # for room on the disk
        self._saved_at = time.monotonic()
        self._logged = (0.0, 0)  # train_seconds and tokens_seen at the last record

    def fit(self, until: int | None = None) -> None:
        """Trains to the end.

        Args:
            until: the step to stop at, if not at the end; the evaluation at this step is made.

        Raises:
            Interrupted: a signal came; the run is saved.
            HimError: the loss is not finite any more, memory or space is short.
        """
        try:
            with SignalListener() as self.interruption:
                self._start_epoch()
                if self.state.step < self.max_steps:
                    self.gradients.try_longest_batch(self.state.step)
                if self.state.step == 0 and not self.state.evaluation_due:
                    self.save()
                while self._goes_on(self.max_steps if until is None else min(until, self.max_steps)):
                    if not self.state.evaluation_due:
                        try:
                            self.train_step()
                        except RolledBack:
                            continue
                        self.state.step += 1
                        if self.due(LOG_EVERY_STEPS) or self.at_epoch_end():
                            self.log()
                        self.state.evaluation_due = self.at_epoch_end() or self.due(self.config.eval_every_steps)
                    if self.state.evaluation_due:
                        self._evaluate_in_turn()
                    if self._save_is_due():
                        self.save()
                    if self.interruption.signal:
                        raise Interrupted(self.interruption.signal, self.folder)
            if self._save_waits:  # for the last time
                self.save()
            if self._save_waits:
                last = self.checkpoints.list()[-1].name if self.checkpoints.list() else "the beginning"
                self.say(f"step {self.state.step}: not saved for lack of room; --resume would go back to {last}")
            if self._best_waits is not None:
                self._write_best()
        finally:
            self.writer.close()

    def _goes_on(self, last_step: int) -> bool:
        return self.state.evaluation_due or (self.state.step < last_step and not self.state.stopped_early)

    def _save_is_due(self) -> bool:
        """At the end of an epoch, at a new best model, after so many steps or minutes, and after a signal."""
        minutes = self.config.save_every_minutes
        return bool(
            self.at_epoch_end()
            or self.state.best_step == self.state.step
            or self.due(self.config.save_every_steps)
            or (minutes and time.monotonic() - self._saved_at >= 60.0 * minutes)
            or (self._save_waits and self.due(LOG_EVERY_STEPS))
            or self.interruption.signal
        )

    @property
    def epoch(self) -> float:
        """Epochs done so far, fractions included."""
        return self.state.step / self.steps_per_epoch

    def due(self, every: int | None) -> bool:
        """Whether the step is a multiple of `every`."""
        return every is not None and self.state.step % every == 0

    def at_epoch_end(self) -> bool:
        """Whether the step was the last of an epoch or of the run."""
        return self.due(self.steps_per_epoch) or self.state.step == self.max_steps

    # -- a step --------------------------------------------------------------------------------------------------------

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
            self._update(learning_rate)
            is_good = self._is_finite()
        if is_good:
            self.state.refused_in_a_row = 0
            self.state.epoch_before = self.state.epoch_before or {"Loss": loss.mean, "Accuracy": accuracy.mean}
            for sums in (self.state.since_log, self.state.since_epoch):
                sums["Loss"].add(loss.total, loss.count)
                sums["Accuracy"].add(accuracy.total, accuracy.count)
        else:
            self._handle_non_finite(examples, loss.mean, gradient_norm)
        self.model.zero_grad(set_to_none=True)
        self.measured = {"Gradient_Norm/train": gradient_norm, "Learning_Rate": learning_rate}
        self.tokens_seen += num_tokens
        self.train_seconds += time.perf_counter() - started_at
        if self.bar is not None:
            self.bar.update()

    def _update(self, learning_rate: float) -> None:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * group["lr_ratio"]
            optimizer.step()
        if self.ema is not None:
            self.ema.update(self.model, self.state.step)

    # -- numbers that are not finite -----------------------------------------------------------------------------------

    def _is_finite(self) -> bool:
        """Whether all that one step hands on to the next is."""
        return all_finite([tensor for tensor in self._lasting().values() if tensor.is_floating_point()])

    def _lasting(self) -> dict[str, Tensor]:
        """All that one step hands on to the next. What was bad before an update is named before what it made bad."""
        averaged = self.ema.weights if self.ema is not None else {}
        moments = optimizer_tensors(self.model, self.optimizers)
        return (
            {f"the optimizer state {name}": value for name, value in moments.items()}
            | {f"the weights {name}": value.detach() for name, value in self.model.named_parameters()}
            | {f"the EMA weights {name}": value for name, value in averaged.items()}
        )

    def _handle_non_finite(self, examples: np.ndarray, loss: float, gradient_norm: float) -> None:
        """Names what is not finite. The update is not made; if that does not help, the run goes back.

        Raises:
            RolledBack: it did.
        """
        spoiled = first_not_finite(self._lasting())
        non_finite_source = spoiled or self.gradients.non_finite_source(examples, self.state.step, math.isfinite(loss))
        self.state.refused_in_a_row += 1
        goes_back = spoiled is not None or self.state.refused_in_a_row >= MOST_REFUSED_IN_A_ROW
        step = self.state.step + 1
        self.say(
            f"step {step}: loss {loss:.4g}, gradient norm {gradient_norm:.4g}; first not finite: {non_finite_source}"
            + ("" if goes_back else "; the update is not made")
        )
        if goes_back:
            self._roll_back(f"step {step}: {non_finite_source} is not finite")
            raise RolledBack

    def _roll_back(self, reason: str) -> None:
        """Goes on from the newest checkpoint with a lower rate, once.

        Raises:
            HimError: the run went back before, or cannot.
        """
        advice = (
            f"lower --learning_rate ({self.config.learning_rate:g}), raise --warmup_ratio, or use --precision fp32; "
            f"the checkpoints in {self.checkpoints.folder} are finite"
        )
        if self.state.rate_factor < 1.0:
            raise HimError(f"{reason}, again after going back once with a lower rate; {advice}")
        checkpoint = self.checkpoints.load_newest(self.say)
        if checkpoint is None:
            raise HimError(f"{reason}, and there is no checkpoint to go back to; {advice}")
        self.writer.close()
        self._restore(checkpoint)
        self.state.rate_factor, self.state.refused_in_a_row = RATE_AFTER_FAULT, 0
        self.writer = MetricWriter(self.folder, resumed_step=self.state.step)
        self.model.zero_grad(set_to_none=True)
        self.say(f"back to step {self.state.step}; from here on {RATE_AFTER_FAULT:g} of the learning rate")
        self._start_epoch()

    # -- records -------------------------------------------------------------------------------------------------------

    def log(self) -> None:
        """Records the means since the last record."""
        seconds, num_tokens = self.train_seconds - self._logged[0], self.tokens_seen - self._logged[1]
        self._logged = (self.train_seconds, self.tokens_seen)
        self.measured["Throughput/tokens_per_second"] = num_tokens / seconds if seconds else 0.0
        sums = self.state.since_log
        if sums["Loss"].count:
            self.measured["Loss/train"] = sums["Loss"].mean
            self.measured["Accuracy/train"] = 100.0 * sums["Accuracy"].mean
        self.writer.write(self.measured, self.state.step, self.epoch, self.task.stages[0])
        self.state.since_log = new_means()
        with suppress(CannotWrite):  # the next checkpoint says so
            self.writer.flush()
        if self.bar is not None:
            speed = f"{self.measured['Throughput/tokens_per_second']:,.0f} tokens/s"
            self.bar.set_postfix_str(f"loss {self.measured.get('Loss/train', math.nan):.3f}, {speed}")

    def _evaluate_in_turn(self) -> None:
        """The evaluation that is due; a signal puts it off, to after the resume."""
        try:
            if self.at_epoch_end():
                self.end_epoch()
            else:
                self.evaluate()
        except Stopped:
            return
        except NotFinite as error:
            self.say(f"{error}")
            self._roll_back(str(error))
            return
        self.state.evaluation_due = False

    def end_epoch(self) -> None:
        """Evaluates, draws attention, and says how the epoch went."""
        if self.bar is not None:
            self.bar.close()
        evaluation = self.evaluate(draw_attention=True)
        now = {name: mean.mean for name, mean in self.state.since_epoch.items()}
        before = self.state.epoch_before or now
        names = [name for name in ("Loss", *self.task.shown_metrics) if name in evaluation.metrics]
        shown = "  ".join(f"{tag(name)} {evaluation.metrics[name]:.4g}" for name in names)
        self.say(
            f"epoch {math.ceil(self.epoch)}/{self.num_epochs}  loss {before['Loss']:.2f} → {now['Loss']:.2f}  "
            f"accuracy {100 * before['Accuracy']:.1f} % → {100 * now['Accuracy']:.1f} %  {shown}"
        )
        if self.state.since_epoch["Loss"].count:
            self.state.epoch_before = now
        self.state.since_epoch = new_means()
        self._judge_epoch()
        self._start_epoch()

    def evaluate(self, draw_attention: bool = False) -> Evaluation:
        """Evaluates on the validation data, records it, and saves the model if it is the best so far.

        Raises:
            Stopped: a signal came; nothing was recorded or saved.
        """
        before = self.ema.swap(self.model) if self.ema is not None else None
        try:
            with self.interruption.cutting_short():
                evaluation = self.task.evaluate(self.model, self.compute)
                examples = []
                if draw_attention and self.config.attention_examples and isinstance(self.task, AttentionTask):
                    examples = self.task.attention_examples(self.model, self.compute, self.config.attention_examples)
            self._record(evaluation, examples)
        finally:
            if before is not None:
                self.model.load_state_dict(before)
        return evaluation

    def _record(self, evaluation: Evaluation, examples: list[AttentionExample]) -> None:
        values = {tag(name): value for name, value in evaluation.metrics.items()}
        self.writer.write(values, self.state.step, self.epoch, self.task.stages[1])
        if examples:
            self._draw(examples)
        if evaluation.samples:
            self.writer.text("Samples/val", evaluation.samples, self.state.step)
        value = evaluation.metrics[self.task.best_metric]
        if self._is_best(value):
            self.state.best_value, self.state.best_step = value, self.state.step
            metrics = {"step": self.state.step, "epoch": round(self.epoch, 6), **evaluation.metrics}
            self._best_waits = (self.model, metrics)
            try:
                self._write_best()
            except CannotWrite as error:
                self.say(f"step {self.state.step}: {error}; training goes on and tries again")

    def _draw(self, examples: list[AttentionExample]) -> None:
        folder = Path(self.config.attention_dir) / self.folder.name
        try:
            for name, image, _ in write_sheets(folder, math.ceil(self.epoch), examples):
                self.writer.picture(name, image, self.state.step)
        except OSError as error:
            self.say(f"step {self.state.step}: {cannot_write(error, folder)}; no pictures of this epoch")

    def _write_best(self) -> None:
        """Writes the best model, if it is not on the disk yet; keeps a copy where there is no room.

        Raises:
            CannotWrite: there is no room.
        """
        if self._best_waits is None:
            return
        (model, metrics), self._best_waits = self._best_waits, None
        try:
            save_model(self.folder / "best", self.config, model, self.task, metrics)
        except CannotWrite:
            self._best_waits = (copy.deepcopy(model) if model is self.model else model, metrics)
            raise

    def _is_best(self, value: float) -> bool:
        best = self.state.best_value
        if best is None or math.isnan(best):
            return True
        return value < best if self.task.best_metric in LOWER_IS_BETTER else value > best

    def _judge_epoch(self) -> None:
        """Counts epochs that brought no best model, for early stopping and the plateau schedule."""
        steps_in_epoch = self.state.step - (math.ceil(self.epoch) - 1) * self.steps_per_epoch
        if self.state.best_step > self.state.step - steps_in_epoch:
            self.state.bad_epochs = 0
            return
        self.state.bad_epochs += 1
        if self.config.schedule == "plateau":
            self.state.plateau_reductions += 1
        patience = self.config.early_stopping_epochs
        if patience and self.state.bad_epochs >= patience:
            self.state.stopped_early = True
            self.say(f"stopped early: {self.task.best_metric} was best {self.state.bad_epochs} epochs ago")

    def _start_epoch(self) -> None:
        """Orders the examples of the epoch that the step is in, and opens its progress bar."""
        if self.state.step >= self.max_steps:
            return
        epoch, done = divmod(self.state.step, self.steps_per_epoch)
        self.batches = epoch_batches(
            self.task.train_lengths,
            self.config.batch_size,
            self.config.seed,
            epoch,
            self.task.train_sampling,
            end_with_first_source=self.config.end_with_first_file and epoch == self.num_epochs - 1,
        )
        total = min(self.steps_per_epoch, self.max_steps - epoch * self.steps_per_epoch)
        label = f"epoch {epoch + 1}/{self.num_epochs}"
        self.bar = tqdm(total=total, initial=done, desc=label, leave=False, disable=None, unit="step")

    def say(self, line: str) -> None:
        """Prints a line without tearing the progress bar."""
        tqdm.write(line)

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Writes a checkpoint that a resumed run goes on from, bit for bit.

        Where the disk has no room the run goes on, with the earlier checkpoints, and tries again later.
        """
        try:
            self._write_best()
            self.writer.flush(to_disk=True)
            self.checkpoints.save(self.checkpoint(), self.state.step, self.state.best_step)
        except CannotWrite as error:
            if not self._save_waits:
                self.say(f"step {self.state.step}: {error}; training goes on and tries again")
            self._save_waits = True
        except NotFinite as error:
            self.say(f"{error}")
            self._roll_back(str(error))
        else:
            if self._save_waits:
                self.say(f"step {self.state.step}: saved, there is room again")
            self._save_waits = False
        self._saved_at = time.monotonic()

    def checkpoint(self) -> Checkpoint:
        """All that the run needs to go on from here."""
        return Checkpoint(
            state={
                "step": self.state.step,
                "loop": {**self.state.to_dict(), "most_tokens": self.gradients.most_tokens},
                "machine": describe_environment(self.compute),
                "config": self.config.to_dict(),
                "data": self.task.train_digest,
                "validation": self.task.validation_digest,
            },
            weights=self.model.state_dict(),
            optimizer_state=optimizer_tensors(self.model, self.optimizers),
            ema=self.ema.weights if self.ema is not None else {},
        )

    def restore_best(self) -> None:
        """Finds the best model whole, or makes it again from its checkpoint.

        Raises:
            CheckpointError: neither is whole.
        """
        folder = self.folder / "best"
        remove_leftovers(folder)
        if self.state.best_value is None:
            return
        try:
            verify_folder(folder)
        except CheckpointError as error:
            try:
                saved = self.checkpoints.load(self.checkpoints.path_of(self.state.best_step))
            except CheckpointError:
                raise CheckpointError(
                    f"{error}, and so is its checkpoint; restore it from a copy, or start the run again"
                ) from None
            aside = f", and what is there is quarantined as {quarantine(folder).name}" if folder.exists() else ""
            self.say(f"{error}; it is made again from {self.checkpoints.path_of(self.state.best_step)}{aside}")
            model = copy.deepcopy(self.model)
            put_weights(model, saved.ema or saved.weights, f"{folder}", "start the run again")
            metrics = {"step": saved.step, self.task.best_metric: self.state.best_value}
            save_model(folder, self.config, model, self.task, metrics)

    def _restore(self, checkpoint: Checkpoint) -> None:
        where = f"{self.folder}: the checkpoint"
        if checkpoint.state.get("data") != self.task.train_digest:
            raise CheckpointError(
                f"{where} was made with other training data; restore the data, or start a new run with --init_from "
                f"{self.folder}"
            )
        if checkpoint.state.get("validation", "") != self.task.validation_digest:
            raise CheckpointError(
                f"{where} was made with other validation data, by which its best model was chosen; restore the data, "
                f"or start a new run with --init_from {self.folder}"
            )
        put_weights(self.model, checkpoint.weights, where, "restore the config.json that the run began with")
        restore_optimizers(self.model, self.optimizers, checkpoint.optimizer_state)
        if self.ema is not None:
            device = self.compute.device
            self.ema.weights = {name: value.to(device, copy=True) for name, value in checkpoint.ema.items()}
        try:
            self.state = LoopState.from_dict(checkpoint.state["loop"])
        except CheckpointError as error:
            raise CheckpointError(f"{where}: {error}") from None
        self.gradients.most_tokens = self.state.most_tokens
        # The patience may have changed.
        self.state.stopped_early = 0 < self.config.early_stopping_epochs <= self.state.bad_epochs


def tag(name: str) -> str:
    """TensorBoard tag of a validation metric: `F1` is `F1/val`, `Diversity/distinct-1` stays."""
    return name if "/" in name else f"{name}/val"
