"""The training loop. It is handed a task and never asks which one it is."""

import math
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from him.attention_maps import write_sheets
from him.compute import Compute
from him.config import Config
from him.data.order import epoch_batches
from him.errors import CheckpointError, HimError
from him.metrics.running import RunningMean
from him.tasks.base import LOWER_IS_BETTER, Evaluation, Task
from him.training.checkpoint import (
    Checkpoint,
    Checkpoints,
    optimizer_tensors,
    put_weights,
    restore_optimizers,
    save_model,
)
from him.training.interruption import Interruption
from him.training.metric_writer import MetricWriter
from him.training.optimization import AveragedWeights, build_optimizers, lr_at

LOG_EVERY_STEPS = 10
MOST_REFUSED_IN_A_ROW = 5
CPU_TOKENS = 6144  # 2,080 MB -> 1,360 MB for batches of 32 SQuAD windows, at the same speed


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


@dataclass
class LoopState:
    """Where the loop stands; everything here is saved with each checkpoint.

    Attributes:
        step: updates made so far; epoch and place in it follow from this number.
        best_value, best_step: best value of the task's metric so far, and the step that reached it.
        bad_epochs: epochs since then.
        plateau_reductions: how often the `plateau` schedule has halved the rate.
        stopped_early: whether early stopping has ended the run.
        refused_in_a_row: updates refused since the last good one.
        since_log, since_epoch: sums of loss and accuracy since the last record and since the epoch began.
        epoch_before: mean loss and accuracy of the epoch before; of the first step, in the first epoch.
    """

    step: int = 0
    best_value: float | None = None
    best_step: int = 0
    bad_epochs: int = 0
    plateau_reductions: int = 0
    stopped_early: bool = False
    refused_in_a_row: int = 0
    since_log: dict[str, RunningMean] = field(default_factory=lambda: _means())
    since_epoch: dict[str, RunningMean] = field(default_factory=lambda: _means())
    epoch_before: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; floats survive JSON exactly."""
        sums = {name: _dump(getattr(self, name)) for name in ("since_log", "since_epoch")}
        return {name: value for name, value in vars(self).items() if name not in sums} | sums

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "LoopState":
        """Reads what `to_dict` gave."""
        state = cls(**{name: value for name, value in data.items() if name not in ("since_log", "since_epoch")})
        for name in ("since_log", "since_epoch"):
            for key, mean in getattr(state, name).items():
                mean.load_state_dict(data[name][key])
        return state


def _means() -> dict[str, RunningMean]:
    return {"Loss": RunningMean(), "Accuracy": RunningMean()}


def _dump(means: dict[str, RunningMean]) -> dict[str, dict[str, float]]:
    return {name: mean.state_dict() for name, mean in means.items()}


def step_seed(seed: int, step: int) -> int:
    """Seed of one step's dropout: a pure function of (seed, step), so that a resumed run draws the same masks."""
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0] >> 1)


class Trainer:
    """Trains a model on a task, evaluates it every epoch, and keeps checkpoints and the best model.

    Args:
        task: what is learned, with its data.
        config: all settings.
        folder: of the run; exists.
        compute: device and precision.
        model: to be trained, on its device.
        checkpoint: to go on from, or None.
    """

    def __init__(
        self,
        task: Task,
        config: Config,
        folder: Path,
        compute: Compute,
        model: nn.Module,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self.task = task
        self.config = config
        self.folder = folder
        self.compute = compute
        self.model = model
        self.optimizers = build_optimizers(model, config)
        self.averaged = AveragedWeights(model, config.ema_decay) if config.ema_decay else None
        self.checkpoints = Checkpoints(folder / "checkpoints", config.keep_checkpoints)
        self.state = LoopState()
        if checkpoint is not None:
            self._restore(checkpoint)
        self.steps_per_epoch = math.ceil(len(task.train_lengths) / config.batch_size)
        self.max_steps = config.num_epochs * self.steps_per_epoch
        if config.max_steps is not None:
            self.max_steps = min(self.max_steps, config.max_steps)
        self.num_epochs = math.ceil(self.max_steps / self.steps_per_epoch)
        self.writer = MetricWriter(folder, resumed_step=self.state.step if checkpoint is not None else None)
        self.batches: list[np.ndarray] = []
        self.bar: tqdm | None = None
        self.train_seconds = 0.0
        self.tokens_seen = 0
        self.measured: dict[str, float] = {}
        self._logged = (0.0, 0)  # train_seconds and tokens_seen at the last record

    def fit(self) -> None:
        """Trains to the end.

        Raises:
            Interrupted: a signal came; the run is saved.
            HimError: the loss is not finite any more, or there is no space.
        """
        with Interruption() as interruption, closing(self.writer):
            self._start_epoch()
            while self.state.step < self.max_steps and not self.state.stopped_early:
                self.train_step()
                self.state.step += 1
                if self.due(LOG_EVERY_STEPS) or self.at_epoch_end():
                    self.log()
                if self.at_epoch_end():
                    self.end_epoch()
                elif self.due(self.config.eval_every_steps):
                    self.evaluate()
                if self.at_epoch_end() or self.due(self.config.save_every_steps) or interruption.signal:
                    self.save()
                if interruption.signal:
                    raise Interrupted(interruption.signal, self.folder)

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
        """Forward and backward pass of all micro-batches, then one update; refused if anything is not finite."""
        started_at = time.perf_counter()
        torch.manual_seed(step_seed(self.config.seed, self.state.step))
        self.model.train()
        examples = self.batches[self.state.step % self.steps_per_epoch]
        loss, accuracy, num_tokens = self._forward_backward(examples)
        gradient_norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm))
        learning_rate = lr_at(self.state.step, self.config, self.max_steps, self.state.plateau_reductions)
        if math.isfinite(loss.mean) and math.isfinite(gradient_norm):
            self._update(learning_rate)
            for sums in (self.state.since_log, self.state.since_epoch):
                sums["Loss"].add(loss.total, loss.count)
                sums["Accuracy"].add(accuracy.total, accuracy.count)
        else:
            self._refuse(loss.mean, gradient_norm)
        self.model.zero_grad(set_to_none=True)
        self.measured = {"Gradient_Norm/train": gradient_norm, "Learning_Rate": learning_rate}
        self.state.epoch_before = self.state.epoch_before or {"Loss": loss.mean, "Accuracy": accuracy.mean}
        self.tokens_seen += num_tokens
        self.train_seconds += time.perf_counter() - started_at
        if self.bar is not None:
            self.bar.update()

    def _forward_backward(self, examples: np.ndarray) -> tuple[RunningMean, RunningMean, int]:
        """Adds up the gradients of a batch; the sum over all its targets is divided once, by their number."""
        parts = np.array_split(examples, math.ceil(len(examples) / self._micro_batch_size(examples)))
        batches = [self.task.train_batch(part) for part in parts]
        loss, accuracy = RunningMean(), RunningMean()
        num_targets = sum(self.task.num_targets(batch) for batch in batches)
        for batch in batches:
            with self.compute.autocast():
                sums = self.task.loss(self.model, self.compute.to_device(batch))
            (sums.loss / num_targets).backward()
            loss.add(float(sums.loss.detach()), sums.num_targets)
            accuracy.add(float(sums.num_correct), sums.num_targets)
        return loss, accuracy, sum(int(batch["attention_mask"].sum()) for batch in batches)

    def _micro_batch_size(self, examples: np.ndarray) -> int:
        """Examples per forward pass; a batch of long ones is cut, on a CPU without being asked."""
        most_tokens = self.config.micro_batch_tokens
        if most_tokens is None:
            most_tokens = CPU_TOKENS if self.compute.device.type == "cpu" else math.inf
        fitting = most_tokens / int(self.task.train_lengths[examples].max())
        return max(1, int(min(fitting, self.config.micro_batch_size or len(examples))))

    def _update(self, learning_rate: float) -> None:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * group["lr_ratio"]
            optimizer.step()
        if self.averaged is not None:
            self.averaged.update(self.model, self.state.step)
        self.state.refused_in_a_row = 0

    def _refuse(self, loss: float, gradient_norm: float) -> None:
        self.state.refused_in_a_row += 1
        step = self.state.step + 1
        self.say(f"step {step}: loss {loss:.4g}, gradient norm {gradient_norm:.4g}; the update is not made")
        if self.state.refused_in_a_row >= MOST_REFUSED_IN_A_ROW:
            raise HimError(
                f"step {step}: {MOST_REFUSED_IN_A_ROW} updates in a row were not finite; lower --learning_rate "
                f"({self.config.learning_rate:g}), raise --warmup_share, or use --precision fp32"
            )

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
        self.writer.write(self.measured, self.state.step, self.epoch)
        self.state.since_log = _means()
        if self.bar is not None:
            speed = f"{self.measured['Throughput/tokens_per_second']:,.0f} tokens/s"
            self.bar.set_postfix_str(f"loss {self.measured.get('Loss/train', math.nan):.3f}, {speed}")

    def end_epoch(self) -> None:
        """Evaluates, draws attention, and says how the epoch went."""
        if self.bar is not None:
            self.bar.close()
        evaluation = self.evaluate(draw_attention=True)
        now = {name: mean.mean for name, mean in self.state.since_epoch.items()}
        before = self.state.epoch_before
        names = [name for name in ("Loss", *self.task.shown_metrics) if name in evaluation.metrics]
        shown = "  ".join(f"{tag(name)} {evaluation.metrics[name]:.4g}" for name in names)
        self.say(
            f"epoch {math.ceil(self.epoch)}/{self.num_epochs}  loss {before['Loss']:.2f} → {now['Loss']:.2f}  "
            f"accuracy {100 * before['Accuracy']:.1f} % → {100 * now['Accuracy']:.1f} %  {shown}"
        )
        self.state.epoch_before = now
        self.state.since_epoch = _means()
        self._judge_epoch()
        self._start_epoch()

    def evaluate(self, draw_attention: bool = False) -> Evaluation:
        """Evaluates on the validation data, records it, and saves the model if it is the best so far."""
        before = self.averaged.swap(self.model) if self.averaged is not None else None
        evaluation = self.task.evaluate(self.model, self.compute)
        values = {tag(name): value for name, value in evaluation.metrics.items()}
        self.writer.write(values, self.state.step, self.epoch, "validation")
        if draw_attention and self.config.attention_examples:
            examples = self.task.attention_examples(self.model, self.compute, self.config.attention_examples)
            folder = Path(self.config.attention_dir) / self.folder.name
            for name, image, _ in write_sheets(folder, math.ceil(self.epoch), examples):
                self.writer.picture(name, image, self.state.step)
        if evaluation.samples:
            self.writer.text("Samples/val", evaluation.samples, self.state.step)
        value = evaluation.metrics[self.task.best_metric]
        if self._is_best(value):
            self.state.best_value, self.state.best_step = value, self.state.step
            metrics = {"step": self.state.step, "epoch": round(self.epoch, 6), **evaluation.metrics}
            save_model(self.folder / "best", self.config, self.model, self.task, metrics)
        if before is not None:
            self.model.load_state_dict(before)
        return evaluation

    def _is_best(self, value: float) -> bool:
        best = self.state.best_value
        if best is None:
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
        lengths = self.task.train_lengths
        self.batches = epoch_batches(lengths, self.config.batch_size, self.config.seed, epoch)
        total = min(self.steps_per_epoch, self.max_steps - epoch * self.steps_per_epoch)
        label = f"epoch {epoch + 1}/{self.num_epochs}"
        self.bar = tqdm(total=total, initial=done, desc=label, leave=False, disable=None, unit="step")

    def say(self, line: str) -> None:
        """Prints a line without tearing the progress bar."""
        tqdm.write(line)

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Writes a checkpoint that a resumed run goes on from, bit for bit."""
        self.writer.flush()
        machine = {
            "torch": torch.__version__,
            "device": self.compute.device.type,
            "bf16": self.compute.bf16,
            "num_threads": torch.get_num_threads(),
        }
        checkpoint = Checkpoint(
            state={
                "loop": self.state.to_dict(),
                "machine": machine,
                "config": self.config.to_dict(),
                "data": self.task.train_digest,
            },
            weights=self.model.state_dict(),
            moments=optimizer_tensors(self.model, self.optimizers),
            averaged=self.averaged.weights if self.averaged is not None else {},
        )
        self.checkpoints.save(checkpoint, self.state.step)

    def _restore(self, checkpoint: Checkpoint) -> None:
        where = f"{self.folder}: the checkpoint"
        if checkpoint.state["data"] != self.task.train_digest:
            raise CheckpointError(
                f"{where} was made with other training data; restore the data, or start a new run with --init_from "
                f"{self.folder}"
            )
        put_weights(self.model, checkpoint.weights, where, "restore the config.json that the run began with")
        restore_optimizers(self.model, self.optimizers, checkpoint.moments)
        if self.averaged is not None:
            device = self.compute.device
            self.averaged.weights = {name: value.to(device) for name, value in checkpoint.averaged.items()}
        self.state = LoopState.from_dict(checkpoint.state["loop"])
        # The patience may have changed.
        self.state.stopped_early = 0 < self.config.early_stopping_epochs <= self.state.bad_epochs


def tag(name: str) -> str:
    """TensorBoard tag of a validation metric: `F1` is `F1/val`, `Diversity/distinct-1` stays."""
    return name if "/" in name else f"{name}/val"
