"""Where numbers go: TensorBoard's event file and `metrics.jsonl`, the same ones in both."""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


class MetricWriter:
    """Writes numbers and pictures of a run.

    Args:
        folder: of the run.
        resumed_step: None for a new run; otherwise the step that the run goes on from. Later records, of a part of
            the run that was lost, are dropped from `metrics.jsonl` and hidden in TensorBoard (`purge_step`).
    """

    def __init__(self, folder: Path, resumed_step: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Of a new run too: TensorBoard takes the first mark of a start that it sees for no restart and hides nothing.
        purge_step = 0 if resumed_step is None else resumed_step + 1
        self.path = folder / "metrics.jsonl"
        if resumed_step is not None:
            _drop_after(self.path, resumed_step)
        self.file = self.path.open("a", encoding="utf-8")
        _wait_for_next_name(folder)
        self.events = SummaryWriter(str(folder), purge_step=purge_step)

    def write(self, metrics: Mapping[str, float], step: int, epoch: float, stage: str = "train") -> None:
        """Records numbers by TensorBoard tag. A NaN is left out of the JSON lines, which cannot hold it, as null."""
        for tag, value in metrics.items():
            self.events.add_scalar(tag, value, step)
            number = value if math.isfinite(value) else None
            record = {"step": step, "epoch": round(epoch, 6), "stage": stage, "tag": tag, "value": number}
            self.file.write(json.dumps(record) + "\n")

    def picture(self, tag: str, image: np.ndarray, step: int) -> None:
        """Records a picture (height, width, 3) uint8."""
        self.events.add_image(tag, image, step, dataformats="HWC")

    def text(self, tag: str, markdown: str, step: int) -> None:
        """Records a text."""
        self.events.add_text(tag, markdown, step)

    def hyperparameters(self, settings: Mapping[str, Any], metric_tags: list[str]) -> None:
        """Fills the HParams tab, in the same event file."""
        from torch.utils.tensorboard.summary import hparams

        plain = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in settings.items()
        }
        for summary in hparams(plain, dict.fromkeys(metric_tags, 0.0)):
            self.events.file_writer.add_summary(summary)

    def flush(self) -> None:
        """Brings everything to the disk."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.events.flush()

    def close(self) -> None:
        """Flushes and closes both files."""
        self.flush()
        self.file.close()
        self.events.close()


def _wait_for_next_name(folder: Path) -> None:
    """Waits out the second in which an event file was made: TensorBoard reads them in the order of their names, which
    begin with it, and a resumed run read before the run that it goes on from would be hidden by it."""
    newest = max((int(path.name.split(".")[3]) for path in folder.glob("events.out.tfevents.*")), default=0)
    if 0 <= newest + 1 - time.time() <= 1:
        time.sleep(newest + 1 - time.time())


def _drop_after(path: Path, step: int) -> None:
    """Keeps the records up to `step`; a last line that broke off goes too."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except ValueError:
            break
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_text("".join(kept), encoding="utf-8")
    os.replace(aside, path)
