"""Checkpoint saver: when a checkpoint is due, and how a run goes on where the disk has no room for one."""

import time
from dataclasses import dataclass, field

from him.config import Config
from him.core.files import CannotWrite
from him.runs.checkpoint import Checkpoint, Checkpoints
from him.training.best_model import BestModel
from him.training.loop_state import LoopState
from him.training.progress import Progress
from him.training.schedule import StepBudget

TRY_AGAIN_EVERY_STEPS = 10  # where there was no room


@dataclass(eq=False)
class Saver:
    """Checkpoint saver of a run: writes them with what has to be on the disk beside them: records and the best model.

    Attributes:
        best_model, progress: written first.
        waits_for_room: whether the last attempt found none.
    """

    checkpoints: Checkpoints
    best_model: BestModel
    progress: Progress
    config: Config
    budget: StepBudget
    loop: LoopState
    waits_for_room: bool = field(default=False, init=False)
    _saved_at: float = field(default_factory=time.monotonic, init=False)

    def is_due(self) -> bool:
        """At the end of an epoch, at a new best model, and after so many steps or minutes."""
        step, minutes = self.loop.step, self.config.save_every_minutes
        return bool(
            self.budget.is_epoch_end(step)
            or self.loop.best_step == step
            or (self.config.save_every_steps and step % self.config.save_every_steps == 0)
            or (minutes and time.monotonic() - self._saved_at >= 60.0 * minutes)
            or (self.waits_for_room and step % TRY_AGAIN_EVERY_STEPS == 0)
        )

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint; where the disk has no room the run goes on with the earlier ones, and tries again later.

        Raises:
            NotFinite: a tensor of it, or of the best model, is not finite.
        """
        step = self.loop.step
        try:
            self.best_model.write()
            self.progress.writer.flush(to_disk=True)
            self.checkpoints.save(checkpoint, step, self.loop.best_step)
        except CannotWrite as error:
            if not self.waits_for_room:
                self.progress.say(f"step {step}: {error}; training goes on and tries again")
            self.waits_for_room = True
        else:
            if self.waits_for_room:
                self.progress.say(f"step {step}: saved, there is room again")
            self.waits_for_room = False
        finally:
            self._saved_at = time.monotonic()

    def finish(self) -> None:
        """Says what could not be saved, and writes the best model if it still waits.

        Raises:
            CannotWrite: there is no room for it.
        """
        if self.waits_for_room:
            found = self.checkpoints.list()
            last = found[-1].name if found else "the beginning"
            self.progress.say(f"step {self.loop.step}: not saved for lack of room; --resume would go back to {last}")
        self.best_model.write()
