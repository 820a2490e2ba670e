"""Runs of a model so small that a test can train it: settings, command lines, and what such a run wrote."""

import io
import itertools
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

if TYPE_CHECKING:
    from him.training.trainer import Trainer

# The `tokenizers` package warns on stderr in processes that are forked after it has used its threads.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
ROOT = Path(__file__).resolve().parents[1]
SETTINGS: dict[str, Any] = {
    "embed_dim": 32,
    "num_encoder_layers": 1,
    "num_heads": 2,
    "dim_feedforward": 64,
    "max_seq_len": 96,
    "doc_stride": 32,
    "vocab_size": 500,
    "batch_size": 32,
    "num_epochs": 2,
    "pretrain_epochs": 0,
    "attention_examples": 0,
    "bertscore_samples": 0,
    "num_threads": 1,
    "compress": False,
}


@cache
def sample_documents() -> tuple[dict, dict]:
    """The built-in sample as SQuAD documents."""
    from him.data.sample import squad_sample

    return squad_sample()


def first_paragraphs(document: dict, num_questions: int) -> dict:
    """The first paragraphs of a SQuAD document, with at least so many questions."""
    paragraphs = []
    for paragraph in (paragraph for article in document["data"] for paragraph in article["paragraphs"]):
        if num_questions > 0:
            paragraphs.append(paragraph)
            num_questions -= len(paragraph["qas"])
    return {"version": "1.1", "data": [{"title": "first", "paragraphs": paragraphs}]}


def small_settings(folder: Path, num_train: int = 64, num_validation: int = 24) -> dict[str, Any]:
    """`SETTINGS` with a little of the sample as files, and one cache for all runs of a test module."""
    named = {}
    for name, document, number in zip(
        ("train", "validation"), sample_documents(), (num_train, num_validation), strict=True
    ):
        path = folder / f"{name}.json"
        path.write_text(json.dumps(first_paragraphs(document, number)), encoding="utf-8")
        named[f"{name}_file"] = str(path)
    return SETTINGS | named | {"cache_dir": str(folder / "cache"), "output_dir": str(folder / "runs")}


def with_impossible(document: dict) -> dict:
    """The document with each question asked once more, as impossible, about the paragraph after the next one."""
    paragraphs = document["data"][0]["paragraphs"]
    made = []
    for number, paragraph in enumerate(paragraphs):
        asked = [{**qa, "is_impossible": False} for qa in paragraph["qas"]]
        for qa in paragraphs[(number + 2) % len(paragraphs)]["qas"]:
            asked.append({**qa, "id": f"{qa['id']}-not", "answers": [], "is_impossible": True})
        made.append({"context": paragraph["context"], "qas": asked})
    return {"version": "v2.0", "data": [{"title": "first", "paragraphs": made}]}


# -- tasks that write text ---------------------------------------------------------------------------------------------

WRITING: dict[str, dict[str, Any]] = {
    "summarization": {"max_seq_len": 128, "max_target_len": 32, "num_beams": 2, "eval_samples": 4},
    "lm": {"max_seq_len": 64, "eval_samples": 3},
}


def write_jsonl(path: Path, records: Sequence[Any]) -> Path:
    """Writes one JSON value a line."""
    path.write_text("".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records), encoding="utf-8")
    return path


@cache
def sample_texts() -> tuple[list[str], list[str]]:
    """Some built-in documents for language modelling, two paragraphs of each."""
    from him.data.sample import text_sample

    return tuple(["\n\n".join(text.split("\n\n")[:3]) for text in part] for part in text_sample(0, 40, 12))


def writing_settings(task_type: str, folder: Path, num_train: int = 48, num_validation: int = 8) -> dict[str, Any]:
    """As `small_settings`, for summarization (JSONL files) or lm (a folder of text files and one file)."""
    from him.data.sample import summarization_sample

    settings = {name: value for name, value in SETTINGS.items() if name != "doc_stride"}
    settings |= WRITING[task_type] | {"task_type": task_type, "batch_size": 16}
    settings |= {"cache_dir": str(folder / "cache"), "output_dir": str(folder / "runs")}
    if task_type == "summarization":
        parts = zip(("train", "validation"), summarization_sample(0, num_train, num_validation), strict=True)
        files = {f"{name}_file": str(write_jsonl(folder / f"{name}.jsonl", records)) for name, records in parts}
        return settings | files
    train, validation = sample_texts()
    corpus = folder / "corpus"
    for number, text in enumerate(train[: max(1, num_train // 2)]):
        path = corpus / f"{number % 2}" / f"{number:02}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (folder / "validation.txt").write_text("\n\n".join(validation[:num_validation]), encoding="utf-8")
    return settings | {"corpus_dir": str(corpus), "validation_file": str(folder / "validation.txt")}


@cache
def trained_writer(task_type: str) -> tuple[dict[str, Any], Path]:
    """Settings of a run on a task that writes text and has learned a little, and its folder; one for all test files."""
    import him

    folder = tempfile.TemporaryDirectory()
    weakref.finalize(trained_writer, folder.cleanup)
    place = Path(folder.name)
    more = {"num_epochs": 3, "learning_rate": 0.003, "precision": "fp32", "run_name": "run", "bertscore_samples": 2}
    more |= {"attention_examples": 2, "attention_dir": str(place / "pictures")}
    settings = writing_settings(task_type, place, num_train=96, num_validation=10) | more
    with redirect_stdout(io.StringIO()):
        run = him.train(him.Config(**settings))["run"]
    return settings, Path(run)


@cache
def trained_run(version: int = 1) -> tuple[dict[str, Any], Path]:
    """Settings of a run on SQuAD 1.1 or 2.0 that has learned something, and its folder; one for all test files.

    In float32, so that a batch of another size gives the same numbers but for the order of sums.
    """
    import him

    folder = tempfile.TemporaryDirectory()
    weakref.finalize(trained_run, folder.cleanup)
    more = {"num_epochs": 4, "batch_size": 16, "learning_rate": 0.003, "precision": "fp32"}
    settings = small_settings(Path(folder.name), num_train=240, num_validation=60) | more
    if version == 2:
        for name in ("train_file", "validation_file"):
            path = Path(settings[name])
            path.write_text(json.dumps(with_impossible(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")
    with redirect_stdout(io.StringIO()):
        run = him.train(him.Config(**settings, run_name="run"))["run"]
    return settings, Path(run)


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
    return _call(partial(_train, arguments), "main.py", arguments)


def _train(arguments: Sequence[str | Path]) -> int:
    from him.cli.main import run_as

    return run_as("train", [*map(str, arguments)], "main.py", "python main.py")


def call_script(name: str, *arguments: str | Path, typed: str = "") -> Finished:
    """A script of `scripts/` inside this process, such as `predict.py`; `typed` is what it reads at the terminal."""
    from him.cli.command import run_command
    from him.cli.main import COMMANDS, run_as

    command = Path(name).stem
    if command in COMMANDS:
        work = partial(run_as, command, [*map(str, arguments)], name, f"python scripts/{name}")
    else:
        work = partial(run_command, runpy.run_path(str(ROOT / "scripts" / name))["main"], name)
    with mock.patch.object(sys, "stdin", io.StringIO(typed)):
        return _call(work, name, arguments)


def _call(command: Callable[[], int], prog: str, arguments: Sequence[str | Path]) -> Finished:
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    argv = [prog, *map(str, arguments)]
    with mock.patch.object(sys, "argv", argv), redirect_stdout(out), redirect_stderr(err):
        try:
            status = command()
        except SystemExit as stop:  # --help
            status = stop.code or 0
    texts = (stream.buffer.getvalue().decode("utf-8") for stream in (out, err))
    return Finished(status, *texts)


def start_main(*arguments: str | Path, program: Sequence[str] = ("main.py",), **options: Any) -> subprocess.Popen:
    """`main.py` in a process of its own."""
    folders = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": folders, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
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


def assert_one_line(finished: Finished, *parts: str, prog: str = "main.py") -> None:
    """An expected error: exit status 2 and one line on stderr that holds all `parts`, no traceback anywhere."""
    assert finished.status == 2, finished
    assert "Traceback" not in finished.out + finished.err, finished.err
    (line,) = finished.err.splitlines()
    assert line.startswith(f"{prog}: error: "), line
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
    """Every scalar series as TensorBoard shows it: tag -> (step, value), without values that depend on the clock."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: [(e.step, None if tag.startswith("Throughput") else e.value) for e in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def assert_same_run(run: Path, expected: Path, was_stopped: bool = False) -> None:
    """The same bits: weights, optimizer states, loop states, records, event series and predictions, and no leftovers.

    What depends on the clock, on the run's name or on its folder is left out. A run that was stopped by a signal saved
    then too, so that an older one of the checkpoints that are kept may be of another step.
    """
    events = "events.out.tfevents."
    names, expected_names = (
        {name for name in tree(folder) if not Path(name).name.startswith(events)} for folder in (run, expected)
    )
    odd = names ^ expected_names
    if was_stopped:
        newest = {max(name for name in each if "checkpoints/step_" in name) for each in (names, expected_names)}
        assert len(newest) == 1, newest
        odd = {name for name in odd if "checkpoints/step_" not in name}
    assert not odd, odd
    for name in sorted(names & expected_names):
        path, other = run / name, expected / name
        if path.is_dir() or path.name in ("checksums.json", "command.txt", "config.json"):
            continue
        if path.name == "metrics.jsonl":
            assert exact_records(path.parent) == exact_records(other.parent), name
            assert scalar_series(path.parent) == scalar_series(other.parent), name
        elif path.name == "state.json":
            states = [json.loads(each.read_text()) for each in (path, other)]
            assert {**states[0], "config": None} == {**states[1], "config": None}, name
        else:
            assert path.read_bytes() == other.read_bytes(), name


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder with its content, but for a run's lock: to see that nothing was touched."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if path.name != ".lock"
    }


def new_trainer(settings: dict[str, Any], run: Path) -> "Trainer":
    """What `him.train` hands over to the loop: data prepared, weights drawn, the run's folder made."""
    import torch

    from him.config import Config
    from him.core.compute import choose_compute
    from him.runs.folder import RunFolder
    from him.tasks import task_class
    from him.training.trainer import Trainer

    config = Config(**settings)
    cls = task_class(config.task_type)
    config = cls.resolve(config)
    compute = choose_compute(config.device, config.precision, config.num_threads)
    task = cls.prepare(config)
    torch.manual_seed(config.seed)
    run.mkdir(parents=True)
    config.save(run / "config.json")
    return Trainer(task, config, RunFolder(run), compute, task.build_model().to(compute.device))


# -- what happens to runs: called in a process that the test has started -----------------------------------------------


def run_as_main() -> None:
    """Goes on as `python main.py` after a hook was set: `python -c "...; run_as_main()" FLAGS`."""
    sys.argv[0] = "main.py"
    runpy.run_path(str(ROOT / "main.py"), run_name="__main__")


def before_events(action: Callable[[int], None]) -> None:
    """Calls `action` with a running number before each step, each evaluation and whatever makes files stay."""
    from him.training.trainer import Trainer

    numbers = itertools.count(1)

    def watched(original: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            action(next(numbers))
            return original(*args, **kwargs)

        return call

    for owner, name in ((os, "rename"), (os, "replace"), (os, "fsync"), (Trainer, "train_step"), (Trainer, "evaluate")):
        setattr(owner, name, watched(getattr(owner, name)))


def kill_at(event: int) -> None:
    """Kills this process before the event of that number, as a power cut or the kernel would."""
    before_events(lambda number: os.kill(os.getpid(), signal.SIGKILL) if number == event else None)


def before_steps(action: Callable[[int], None]) -> None:
    """Calls `action` with the steps made so far before each step."""
    from him.training.trainer import Trainer

    original = Trainer.train_step

    def train_step(trainer: "Trainer") -> None:
        action(trainer.state.step)
        original(trainer)

    Trainer.train_step = train_step


def slow_steps(seconds: float) -> None:
    """Makes steps so slow that a test can act in the middle of them; it reads which one begins."""

    def wait(step: int) -> None:
        print(f"step {step} begins", flush=True)
        time.sleep(seconds)

    before_steps(wait)


def program(hook: str) -> tuple[str, str]:
    """`main.py` with a hook of this module, for `start_main`: `program("kill_at(20)")`."""
    return "-c", f"from tests.small_runs import *; {hook}; run_as_main()"


def in_child(work: Callable[[], int | None]) -> int:
    """Exit status of `work` in a copy of this process, which may be killed; minus the signal if it was."""
    return os.waitstatus_to_exitcode(os.waitpid(_fork(work), 0)[1])


def _fork(work: Callable[[], int | None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            status = work()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status or 0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return child


class ForkedMain:
    """`main.py` in a copy of this process: a process of its own, with signals and limits, without the seconds of start.

    Args:
        arguments: of the command line.
        hook: called in the new process first.
    """

    def __init__(self, arguments: Sequence[str | Path], hook: Callable[[], None]) -> None:
        pipes = [os.pipe() for _ in range(2)]
        self.pid = _fork(partial(self._work, arguments, hook, *(writing for _, writing in pipes)))
        for _, writing in pipes:
            os.close(writing)
        self.out, self.err = (os.fdopen(reading, encoding="utf-8") for reading, _ in pipes)
        self.status: int | None = None

    def _work(self, arguments: Sequence[str | Path], hook: Callable[[], None], out: int, err: int) -> int:
        listen_to_ctrl_c()
        sys.argv = ["main.py", *map(str, arguments)]
        sys.stdout, sys.stderr = (os.fdopen(each, "w", encoding="utf-8") for each in (out, err))
        threading.excepthook = threading.__excepthook__  # pytest's keeps the errors of threads to itself
        hook()
        return _train(arguments)

    def wait_for(self, beginning: str) -> None:
        """Reads the output up to a line that begins so."""
        lines = []
        while not lines or not lines[-1].startswith(beginning):
            lines.append(self.out.readline())
            assert lines[-1], (lines, self.err.read())

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def is_running(self) -> bool:
        if self.status is None:
            child, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if child else None
        return self.status is None

    def finish(self, timeout: float = 60.0) -> Finished:
        """What it has written since the last `wait_for`; it is killed if it takes too long."""
        killer = threading.Timer(timeout, os.kill, (self.pid, signal.SIGKILL))
        killer.start()
        with self.out, self.err:
            out, err = self.out.read(), self.err.read()
        while self.is_running():
            time.sleep(0.01)
        killer.cancel()
        return Finished(self.status, out, err)
