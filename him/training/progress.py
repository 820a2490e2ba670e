"""Progress of a run: its bar and lines on the screen, its records in metrics.jsonl and TensorBoard."""

import math
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from him.attention_maps import AttentionExample, write_sheets
from him.config import Config
from him.core.files import CannotWrite, cannot_write
from him.runs.folder import RunFolder
from him.runs.records import MetricWriter
from him.tasks.base import Evaluation, Task
from him.training.loop_state import LoopState, new_means
from him.training.schedule import StepBudget


class Progress:
    """Progress bar, lines and records: what a user sees of a run while it trains.

    Attributes:
        writer: of the records.
        train_seconds: spent on steps by this process.
        tokens_seen: in them.

    Args:
        goes_on: whether the run was begun before, so that records of a part of it that was lost are dropped.
    """

    def __init__(
        self, folder: RunFolder, task: Task, config: Config, budget: StepBudget, loop: LoopState, goes_on: bool
    ) -> None:
        self.folder = folder
        self.task = task
        self.config = config
        self.budget = budget
        self.loop = loop
        self.writer = MetricWriter(folder.path, resumed_step=loop.step if goes_on else None)
        self.train_seconds = 0.0
        self.tokens_seen = 0
        self._measured: dict[str, float] = {}  # by tag, of the last step
        self._logged = (0.0, 0)  # train_seconds and tokens_seen at the last record
        self._bar: tqdm | None = None

    def say(self, line: str) -> None:
        """Prints a line without tearing the progress bar."""
        tqdm.write(line)

    def open_bar(self) -> None:
        """Begins the bar of the epoch that the loop is in."""
        epoch, done = divmod(self.loop.step, self.budget.steps_per_epoch)
        total = min(self.budget.steps_per_epoch, self.budget.max_steps - epoch * self.budget.steps_per_epoch)
        label = f"epoch {epoch + 1}/{self.budget.num_epochs}"
        self._bar = tqdm(total=total, initial=done, desc=label, leave=False, disable=None, unit="step")

    def close_bar(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.close()

    def say_epoch(self, evaluation: Evaluation, means: dict[str, float]) -> None:
        """Says how an epoch went: the means of training loss and accuracy over it, and the evaluation at its end."""
        before = self.loop.epoch_before or means
        names = [name for name in ("Loss", *self.task.shown_metrics) if name in evaluation.metrics]
        shown = "  ".join(f"{tag(name)} {evaluation.metrics[name]:.4g}" for name in names)
        epoch = self.budget.epochs_begun(self.loop.step)
        self.say(
            f"epoch {epoch}/{self.budget.num_epochs}  loss {before['Loss']:.2f} → {means['Loss']:.2f}  "
            f"accuracy {100 * before['Accuracy']:.1f} % → {100 * means['Accuracy']:.1f} %  {shown}"
        )

    def count_step(self, gradient_norm: float, learning_rate: float, num_tokens: int, seconds: float) -> None:
        """Takes a step into account, be it refused or not."""
        self._measured = {"Gradient_Norm/train": gradient_norm, "Learning_Rate": learning_rate}
        self.tokens_seen += num_tokens
        self.train_seconds += seconds
        if self._bar is not None:
            self._bar.update()

    def record_training(self) -> None:
        """Records the means since the last record."""
        seconds, num_tokens = self.train_seconds - self._logged[0], self.tokens_seen - self._logged[1]
        self._logged = (self.train_seconds, self.tokens_seen)
        measured = self._measured
        measured["Throughput/tokens_per_second"] = num_tokens / seconds if seconds else 0.0
        sums = self.loop.since_log
        if sums["Loss"].count:
            measured["Loss/train"] = sums["Loss"].mean
            measured["Accuracy/train"] = 100.0 * sums["Accuracy"].mean
        self._write(measured, self.task.stages[0])
        self.loop.since_log = new_means()
        with suppress(CannotWrite):  # the next checkpoint says so
            self.writer.flush()
        if self._bar is not None:
            speed = f"{measured['Throughput/tokens_per_second']:,.0f} tokens/s"
            self._bar.set_postfix_str(f"loss {measured.get('Loss/train', math.nan):.3f}, {speed}")

    def record_evaluation(self, evaluation: Evaluation, examples: list[AttentionExample]) -> None:
        """Records an evaluation, with pictures of the attention of some examples."""
        self._write({tag(name): value for name, value in evaluation.metrics.items()}, self.task.stages[1])
        if examples:
            self._draw(examples)
        if evaluation.samples:
            self.writer.text("Samples/val", evaluation.samples, self.loop.step)

    def _write(self, values: dict[str, float], stage: str) -> None:
        self.writer.write(values, self.loop.step, self.budget.epoch(self.loop.step), stage)

    def _draw(self, examples: list[AttentionExample]) -> None:
        folder = Path(self.config.attention_dir) / self.folder.name
        epoch = self.budget.epochs_begun(self.loop.step)
        try:
            for name, image, _ in write_sheets(folder, epoch, examples):
                self.writer.picture(name, image, self.loop.step)
        except OSError as error:
            self.say(f"step {self.loop.step}: {cannot_write(error, folder)}; no pictures of this epoch")

    def close_records(self) -> None:
        """Writes out what was recorded."""
        self.writer.close()

    def reopen_records(self) -> None:
        """Goes on with the records from the step that the loop is at now; later ones are dropped."""
        self.writer = MetricWriter(self.folder.path, resumed_step=self.loop.step)


def tag(name: str) -> str:
    """TensorBoard tag of a validation metric: `F1` is `F1/val`, `Diversity/distinct-1` stays."""
    return name if "/" in name else f"{name}/val"
