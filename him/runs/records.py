"""Metric records: TensorBoard's event file and `metrics.jsonl`, with the same numbers in both."""

import json
import math
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from him.core.errors import CheckpointError
from him.core.files import cannot_write, sync, write_file
from him.runs.folder import RunFolder

Point = tuple[str, float, float | None]  # tag, epoch, value


class AppendedFile:
    """Collects what is written and appends it at `flush`: all of it, or nothing until a later flush.

    Python's own buffered files lose or double a part of what the disk did not take.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)
        sync(path.parent)  # or a power cut could take its name, whatever is flushed into it
        self._size = path.stat().st_size
        self._waiting = bytearray()

    def write(self, data: bytes) -> int:
        """Collects bytes; returns their number."""
        self._waiting += data
        return len(data)

    def flush(self, to_disk: bool = False) -> None:
        """Appends what was collected; `to_disk` waits until the disk has it. Raises CannotWrite: there is no space, or
        the disk fails; the file is as it was, and what was collected stays."""
        try:
            if os.fstat(self._file.fileno()).st_size > self._size:  # what an earlier call could not take back
                self._file.truncate(self._size)
            written = 0
            while written < len(self._waiting):
                written += os.write(self._file.fileno(), memoryview(self._waiting)[written:])
            if to_disk:
                os.fsync(self._file.fileno())
        except OSError as error:
            with suppress(OSError):  # of a disk that fails altogether
                self._file.truncate(self._size)
            raise cannot_write(error, self.path, len(self._waiting)) from None
        self._size += len(self._waiting)
        self._waiting = bytearray()

    def close(self) -> None:
        """Flushes and closes the file, which is closed even where the disk is full."""
        try:
            self.flush()
        finally:
            self._file.close()


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
        for tag, value in metrics.items():
            self._event(step, summary=_summary("scalar", tag, value))
            number = value if math.isfinite(value) else None
            record = {"step": step, "epoch": round(epoch, 6), "stage": stage, "tag": tag, "value": number}
            self._lines.write(f"{json.dumps(record)}\n".encode())

    def picture(self, tag: str, image: np.ndarray, step: int) -> None:
        """Records a picture (height, width, 3) uint8."""
        self._event(step, summary=_summary("image", tag, image, dataformats="HWC"))

    def text(self, tag: str, markdown: str, step: int) -> None:
        """Records a text."""
        self._event(step, summary=_summary("text", tag, markdown))

    def hyperparameters(self, settings: Mapping[str, Any], metric_tags: list[str]) -> None:
        """Fills the HParams tab, in the same event file."""
        kept = bool | int | float | str
        plain = {name: value if isinstance(value, kept) else str(value) for name, value in settings.items()}
        for summary in _summary("hparams", plain, dict.fromkeys(metric_tags, 0.0)):
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


def _summary(kind: str, *content: Any, **form: Any) -> Any:
    """What TensorBoard shows, made by its function of this name."""
    from torch.utils.tensorboard import summary

    return getattr(summary, kind)(*content, **form)


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
