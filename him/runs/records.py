"""Metric records: TensorBoard's event file and `metrics.jsonl`, with the same numbers in both."""

import json
import math
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from him.core.errors import CheckpointError
from him.core.files import cannot_write, write_file
from him.runs.appended_file import AppendedFile
from him.runs.folder import RunFolder

Point = tuple[str, float, float | None]  # tag, epoch, value


class MetricWriter:
    """Writes numbers and pictures of a run.

    Not torch's `SummaryWriter`: its thread dies of a full disk, and with it every record that comes after.

    Args:
        folder: of the run.
        resumed_step: None for a new run; otherwise the step that the run goes on from. Later records, of a part of
            the run that was lost, are dropped from `metrics.jsonl` and hidden in TensorBoard (`purge_step`).
    """

    def __init__(self, folder: Path, resumed_step: int | None = None) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        path = RunFolder(folder).metrics
        if resumed_step is not None:
            _drop_after(path, resumed_step)
        self._lines = AppendedFile(path)
        self._events = AppendedFile(folder / _next_name(folder))
        self._event_records = RecordWriter(self._events)
        # Of a new run too: TensorBoard takes the first mark of a start that it sees for no restart and hides nothing.
        purge_step = 0 if resumed_step is None else resumed_step + 1
        self._event(None, file_version="brain.Event:2")
        self._event(purge_step, session_log=SessionLog(status=SessionLog.START))

    def _event(self, step: int | None, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        event = Event(wall_time=time.time(), **content)
        if step is not None:
            event.step = step
        self._event_records.write(event.SerializeToString())

    def write(self, metrics: Mapping[str, float], step: int, epoch: float, stage: str = "train") -> None:
        """Records numbers by TensorBoard tag. A NaN is left out of the JSON lines, which cannot hold it, as null."""
        from torch.utils.tensorboard.summary import scalar

        for tag, value in metrics.items():
            self._event(step, summary=scalar(tag, value))
            number = value if math.isfinite(value) else None
            record = {"step": step, "epoch": round(epoch, 6), "stage": stage, "tag": tag, "value": number}
            self._lines.write(f"{json.dumps(record)}\n".encode())

    def picture(self, tag: str, image: np.ndarray, step: int) -> None:
        """Records a picture (height, width, 3) uint8."""
        from torch.utils.tensorboard.summary import image as picture

        self._event(step, summary=picture(tag, image, dataformats="HWC"))

    def text(self, tag: str, markdown: str, step: int) -> None:
        """Records a text."""
        from torch.utils.tensorboard.summary import text

        self._event(step, summary=text(tag, markdown))

    def hyperparameters(self, settings: Mapping[str, Any], metric_tags: list[str]) -> None:
        """Fills the HParams tab, in the same event file."""
        from torch.utils.tensorboard.summary import hparams

        plain = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in settings.items()
        }
        for summary in hparams(plain, dict.fromkeys(metric_tags, 0.0)):
            self._event(None, summary=summary)

    def flush(self, to_disk: bool = False) -> None:
        """Appends to both files, for other readers; `to_disk` waits until even a power cut leaves it. Raises
        CannotWrite: there is no space; nothing is lost, and the next call tries again."""
        self._lines.flush(to_disk)
        self._events.flush(to_disk)

    def close(self) -> None:
        """Flushes and closes both files."""
        try:
            self._lines.close()
        finally:
            self._events.close()


def read_points(run: RunFolder) -> list[Point]:
    """All records of a run. Raises CheckpointError: the run has no `metrics.jsonl`, or a line of it is not JSON."""
    try:
        records = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
        return [(record["tag"], record["epoch"], record["value"]) for record in records]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{run.metrics}: cannot be read ({error}); name the folder of a run") from None


def _next_name(folder: Path) -> str:
    """Name of a new event file. TensorBoard reads them in the order of their names, which begin with a time in seconds:
    a resumed run that was read before the run that it goes on from would be hidden by it."""
    times = [path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*")]
    newest = max((int(time) for time in times if time.isdecimal() and len(time) <= 10), default=0)
    return f"events.out.tfevents.{max(newest + 1, int(time.time())):010d}.{socket.gethostname()}.{os.getpid()}.0"


def _drop_after(path: Path, step: int) -> None:
    """Keeps the records up to `step`; a last line that broke off goes too. Damaged ones are kept aside. Raises
    CannotWrite: there is no space."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    kept, damaged = [], 0
    for number, line in enumerate(lines, start=1):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line.rstrip(b"\n") + b"\n")
        except (ValueError, KeyError, TypeError, RecursionError):
            damaged += number < len(lines)
    if kept == lines:
        return
    try:
        if damaged:
            aside = path.with_name(f"{path.name}.damaged")
            write_file(aside, b"".join(lines))
            print(f"{path}: {damaged} damaged lines are left out; the file as it was is {aside.name}", flush=True)
        write_file(path, b"".join(kept))
    except OSError as error:
        raise cannot_write(error, path, sum(map(len, kept))) from None
