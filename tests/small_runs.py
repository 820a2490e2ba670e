"""Runs of a model so small that a test can train it: settings, command lines, and what such a run wrote."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
SETTINGS: dict[str, Any] = {
    "dataset": "sample",
    "sample_size": 64,
    "embed_dim": 32,
    "num_encoder_layers": 1,
    "num_heads": 2,
    "dim_feedforward": 64,
    "max_seq_len": 96,
    "doc_stride": 32,
    "vocab_size": 500,
    "batch_size": 32,
    "num_epochs": 2,
    "attention_examples": 0,
    "bertscore_samples": 0,
    "num_threads": 1,
}


class Finished(NamedTuple):
    """A command line that has ended."""

    status: int
    out: str
    err: str


def flags(settings: dict[str, Any]) -> list[str]:
    """Settings as they are typed."""
    typed = []
    for name, value in settings.items():
        if isinstance(value, bool):
            typed.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, list | tuple):
            typed += [f"--{name}", *map(str, value)]
        elif value is not None:
            typed += [f"--{name}", str(value)]
    return typed


def call_main(*arguments: str | Path) -> Finished:
    """`main.py` inside this process: for what a process of its own would not show better."""
    import main
    from him.command_line import run_command

    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    argv = ["main.py", *map(str, arguments)]
    with mock.patch.object(sys, "argv", argv), redirect_stdout(out), redirect_stderr(err):
        try:
            status = run_command(main.main, "main.py")
        except SystemExit as stop:  # --help
            status = stop.code or 0
    texts = (stream.buffer.getvalue().decode("utf-8") for stream in (out, err))
    return Finished(status, *texts)


def start_main(*arguments: str | Path, program: Sequence[str] = ("main.py",), **options: Any) -> subprocess.Popen:
    """`main.py` in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *program, *map(str, arguments)],
        cwd=ROOT,
        env={**environment, **options.pop("environment", {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=options.pop("preexec_fn", listen_to_ctrl_c),
        **options,
    )


def listen_to_ctrl_c() -> None:
    """Background jobs of a shell inherit an ignored SIGINT; a terminal's foreground job does not."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run_main(*arguments: str | Path, timeout: float = 120, **options: Any) -> Finished:
    """Runs `main.py` in a process of its own to its end."""
    process = start_main(*arguments, **options)
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return Finished(process.returncode, out, err)


def assert_one_line(finished: Finished, *parts: str) -> None:
    """An expected error: exit status 2 and one line on stderr that holds all `parts`, no traceback anywhere."""
    assert finished.status == 2, finished
    assert "Traceback" not in finished.out + finished.err, finished.err
    (line,) = finished.err.splitlines()
    assert line.startswith("main.py: error: "), line
    for part in parts:
        assert part in line, (part, line)


def records(run: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def exact_records(run: Path) -> list[tuple]:
    """The records of a run without what depends on the clock."""
    return [
        (r["step"], r["epoch"], r["stage"], r["tag"], None if r["tag"].startswith("Throughput") else r["value"])
        for r in records(run)
    ]


def scalar_series(run: Path) -> dict[str, list[tuple[int, float | None]]]:
    """Every scalar series as TensorBoard shows it: tag -> (step, value), without the values that depend on the clock."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: [(e.step, None if tag.startswith("Throughput") else e.value) for e in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder with its content: to see that nothing was touched."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }
