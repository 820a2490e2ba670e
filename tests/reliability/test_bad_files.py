"""Bad input is met: a malformed file never ends in a traceback, and nothing that was written before is harmed.

Each file goes through the command line as a user would give it. It is refused by exactly one line on stderr and exit
status 2, soon and in little memory; or it happens to be sound, and is taken without a word on stderr.
"""

import json
import os
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import him
from him.config import Config
from him.core.files import CHECKSUMS, checksum
from him.model.int8 import quantize
from him.runs.models import save_int8
from him.training.trainer import Interrupted, Trainer
from him.workflows.predict import load
from tests.reliability.malformed import (
    as_parquet,
    damaged_bytes,
    damaged_csv,
    damaged_document,
    damaged_lines,
    damaged_parquet,
    damaged_safetensors,
    damaged_yaml,
)
from tests.small_runs import (
    SETTINGS,
    Finished,
    assert_one_line,
    call_main,
    call_script,
    first_paragraphs,
    flags,
    sample_documents,
    sample_texts,
    write_jsonl,
)

MOST_SECONDS = 2.0
MOST_MEMORY = 400 * 2**20
MOST_CHARACTERS = 2000  # of the line that refuses
TASKS = ("squad", "summarization", "lm")


@dataclass
class Tally:
    """What became of the files of one kind."""

    refused: set[bytes] = field(default_factory=set)
    accepted: set[bytes] = field(default_factory=set)
    slowest: float = 0.0
    peak: int = 0

    def __str__(self) -> str:
        return (
            f"{len(self.refused)} refused, {len(self.accepted)} accepted, slowest {self.slowest:.2f} s, "
            f"memory grew by {self.peak / 2**20:.0f} MB at most"
        )


class Bench:
    """A folder with good files and runs, and the command line in it.

    All paths are relative and flat: whatever becomes of a path in a damaged configuration, it stays in this folder.
    """

    def __init__(self) -> None:
        self.settings = {task: self._write_data(task) for task in TASKS}
        for task in TASKS:
            him.train(Config(**self.settings[task], run_name=task, max_steps=2, save_every_steps=1))
        predictor = load("runs/lm")
        folder = Path("runs/lm/compressed/int8")
        folder.parent.mkdir()
        save_int8(folder, predictor.config, quantize(predictor.model), predictor.task, {})
        self.tallies: dict[str, Tally] = {}

    def _write_data(self, task: str) -> dict[str, Any]:
        """Small files of a task, and the settings that name them."""
        given = {name: value for name, value in SETTINGS.items() if name != "num_augmentations" or task == "squad"}
        given |= {"task_type": task, "cache_dir": "cache", "output_dir": "runs", "attention_dir": "pictures"}
        if task == "squad":
            for name, document in zip(("train", "dev"), sample_documents(), strict=True):
                Path(f"{name}.json").write_text(json.dumps(first_paragraphs(document, 8)))
            return given | {"train_file": "train.json", "validation_file": "dev.json"}
        del given["doc_stride"]
        if task == "summarization":
            from him.data.sample import summarization_sample

            for name, records in zip(("train", "dev"), summarization_sample(0, 8, 4), strict=True):
                write_jsonl(Path(f"{name}.jsonl"), records)
            given |= {"max_seq_len": 128, "max_target_len": 32, "num_beams": 1, "eval_samples": 1}
            return given | {"train_file": "train.jsonl", "validation_file": "dev.jsonl"}
        for name, texts in zip(("train", "dev"), sample_texts(), strict=True):
            Path(f"{name}.txt").write_text("\n\n".join(texts[:6]), encoding="utf-8")
        return given | {"max_seq_len": 64, "eval_samples": 1, "train_file": "train.txt", "validation_file": "dev.txt"}

    def meets(self, kind: str, content: bytes, where: str, prog: str, *arguments: str) -> None:
        """Runs a command line on a malformed file, and checks what becomes of it.

        Args:
            kind: counts it.
            content: of the file, to count different ones.
            where: has to be in the line that refuses the file.
            prog: `main.py` or a script.
            arguments: of the command line.
        """
        before, resumes = files_here(), "--resume" in arguments
        finished, said, seconds, grown = self._run(prog, arguments)
        if seconds > MOST_SECONDS:  # once more: the machine may have been busy
            seconds = min(seconds, self._run(prog, arguments)[2])
        tally = self.tallies.setdefault(kind, Tally())
        tally.slowest, tally.peak = max(tally.slowest, seconds), max(tally.peak, grown)
        assert said == "", said
        assert seconds <= MOST_SECONDS, f"{seconds:.1f} s: {finished}"
        assert grown <= MOST_MEMORY + 10 * len(content), f"{grown / 2**20:.0f} MB: {finished}"
        if finished.status != 2:
            assert finished.err == "", finished
            assert finished.status == (0 if resumes or prog != "main.py" else 128 + signal.SIGTERM), finished
            tally.accepted.add(content)
            return
        assert_one_line(finished, where, prog=prog)
        assert finished.err.rstrip("\n").isprintable() and len(finished.err) < MOST_CHARACTERS, finished.err
        after = files_here()
        # A damaged checkpoint is quarantined under another name, and a run is locked while it is looked at.
        assert before.items() <= after.items() if resumes else before == after
        tally.refused.add(content)

    def _run(self, prog: str, arguments: Sequence[str]) -> tuple[Finished, str, float, int]:
        """The command that ended, what it said on stderr outside of Python's, seconds, and growth of the memory."""
        shutil.rmtree("runs/new", ignore_errors=True)
        with peak_memory() as grown, own_stderr() as said:
            started_at = time.perf_counter()
            finished = call_main(*arguments) if prog == "main.py" else call_script(prog, *arguments)
            seconds = time.perf_counter() - started_at
        torch.set_num_threads(1)
        shutil.rmtree("runs/new", ignore_errors=True)
        return finished, said[0], seconds, grown[0]

    def train(self, kind: str, content: bytes, task: str, where: str, **changes: Any) -> None:
        """`meets` for `main.py` with a task's settings changed."""
        self.meets(kind, content, where, "main.py", *flags({**self.settings[task], "run_name": "new", **changes}))


def files_here() -> dict[int, tuple[str, int, int]]:
    """Every file below this folder but the cache of prepared data: name, size and time of the last change, by inode."""
    found = {}
    for at, folders, names in os.walk("."):
        folders[:] = [name for name in folders if name != "cache"]
        for name in names:
            status = os.stat(os.path.join(at, name))
            found[status.st_ino] = (name, status.st_size, status.st_mtime_ns)
    return found


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """Bytes by which the memory of this process grew at most; 0 where the system does not tell."""

    def now(name: str) -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
        return int(line.split()[1]) * 1024

    grown: list[int] = []
    can_tell = sys.platform == "linux"
    if can_tell:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = now("VmRSS")
    yield grown
    grown.append(now("VmHWM") - before if can_tell else 0)


@contextmanager
def own_stderr() -> Iterator[list[str]]:
    """What is said on stderr by other languages than Python, and as warnings, which would be further lines there."""
    said: list[str] = []
    with tempfile.TemporaryFile() as file, warnings.catch_warnings(record=True) as warned:
        warnings.resetwarnings()
        for hidden in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", hidden)
        before = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(before, 2)
            os.close(before)
        file.seek(0)
        said.append("".join([file.read().decode("utf-8", "replace"), *(f"{each.message}\n" for each in warned)]))


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Iterator[Bench]:
    """The bench in a folder of its own; a new run stops before its first step, and the hub is out of reach."""
    import datasets
    import huggingface_hub

    place, before = tmp_path_factory.mktemp("bench"), os.getcwd()

    fit = Trainer.fit

    def stop(trainer: Trainer) -> None:
        if trainer.folder.name == "case":  # a run that goes on: what its checkpoint holds shows in a step
            return fit(trainer)
        trainer.progress.close_records()
        raise Interrupted(signal.SIGTERM, trainer.folder.path)

    with pytest.MonkeyPatch.context() as patch:
        os.chdir(place)
        made = Bench()
        patch.setattr(Trainer, "fit", stop)
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        yield made
        os.chdir(before)


# -- kinds of files: how each is damaged, and who reads it -------------------------------------------------------------

Use = Callable[[Bench, bytes, int], None]
KINDS: dict[str, tuple[Callable[[], st.SearchStrategy[bytes]], Use]] = {}


def kind(name: str, make: Callable[[], st.SearchStrategy[bytes]]) -> Callable[[Use], Use]:
    """Adds a kind of file: `make` gives the damaged ones, and the function uses one, in one of four ways."""

    def add(use: Use) -> Use:
        KINDS[name] = make, use
        return use

    return add


def _json(name: str) -> Any:
    return json.loads(Path(name).read_text(encoding="utf-8"))


def _records(name: str) -> list[dict]:
    return [json.loads(line) for line in Path(name).read_text(encoding="utf-8").splitlines()]


def _rows() -> list[list[str]]:
    return [["document", "summary"], *([each["document"], each["summary"]] for each in _records("train.jsonl"))]


def _use_as_data(bench: Bench, kind: str, content: bytes, way: int, task: str, name: str) -> None:
    """A file to train on, to validate on, to measure a run on, or to predict on."""
    Path(name).write_bytes(content)
    if way < 2:
        flag = ("train_file", "validation_file")[way]
        bench.train(kind, content, task, name, **{flag: name})
    else:
        bench.meets(kind, content, name, ("evaluate.py", "predict.py")[way - 2], f"runs/{task}", "--file", name)


@kind("SQuAD JSON", lambda: damaged_document(_json("train.json")))
def _squad(bench: Bench, content: bytes, way: int) -> None:
    _use_as_data(bench, "SQuAD JSON", content, way, "squad", "bad.json")


@kind("JSON Lines", lambda: damaged_lines(_records("train.jsonl")[:4]))
def _json_lines(bench: Bench, content: bytes, way: int) -> None:
    _use_as_data(bench, "JSON Lines", content, way, "summarization", "bad.jsonl")


@kind("prompts", lambda: damaged_lines([{"id": str(i), "text": "The mill of"} for i in range(3)]))
def _prompts(bench: Bench, content: bytes, way: int) -> None:
    Path("bad.jsonl").write_bytes(content)
    more = ("--file", "bad.jsonl", "--max_new_tokens", "2")
    bench.meets("prompts", content, "bad.jsonl", "predict.py", "runs/lm", *more)


@kind("CSV", lambda: damaged_csv(_rows()))
def _csv(bench: Bench, content: bytes, way: int) -> None:
    _use_as_data(bench, "CSV", content, way, "summarization", "bad.csv")


@kind("Parquet", lambda: damaged_parquet(as_parquet(pa.Table.from_pylist(_records("train.jsonl")))))
def _parquet(bench: Bench, content: bytes, way: int) -> None:
    _use_as_data(bench, "Parquet", content, way, "summarization", "bad.parquet")


@kind("text", lambda: damaged_bytes(Path("dev.txt").read_bytes()))
def _text(bench: Bench, content: bytes, way: int) -> None:
    if way == 3:  # text that goes on and on for the model would take its time; the reader is the same
        way = 1
    Path("texts").mkdir(exist_ok=True)
    name = "texts/bad.txt"
    Path(name).write_bytes(content)
    if way == 0:
        bench.train("text", content, "lm", "texts", train_file=None, corpus_dir="texts")
    else:
        _use_as_data(bench, "text", content, way, "lm", name)


NAMES = tuple(
    each.name for each in fields(Config) if each.name not in ("cache_dir", "output_dir", "attention_dir", "num_threads")
)


# Flags win over the file: these stay flags, because they say where things are.
PLACES = ("task_type", "train_file", "validation_file", "cache_dir", "output_dir", "attention_dir", "num_threads")
SMALL = {name: value for name, value in SETTINGS.items() if name not in (*PLACES, "doc_stride")}


@kind("YAML", lambda: damaged_yaml(SMALL | {"schedule": "linear", "norm_first": False}, NAMES))
def _yaml(bench: Bench, content: bytes, way: int) -> None:
    Path("bad.yaml").write_bytes(content)
    given = {name: bench.settings[TASKS[way % 3]][name] for name in PLACES}
    bench.meets("YAML", content, "", "main.py", *flags({**given, "run_name": "new", "config": "bad.yaml"}))


@kind("tokenizer", lambda: damaged_document(_json("runs/lm/best/tokenizer.json")))
def _tokenizer(bench: Bench, content: bytes, way: int) -> None:
    Path("tokenizer").mkdir(exist_ok=True)
    Path("tokenizer/tokenizer.json").write_bytes(content)
    bench.train("tokenizer", content, TASKS[way % 3], "", tokenizer="tokenizer")


def _damage_run(run: str, name: str, content: bytes, way: int) -> None:
    """Copies a run to `case` and damages a file of its model; three times of four its checksum is of the damage."""
    shutil.rmtree("case", ignore_errors=True)
    shutil.copytree(run, "case")
    path = Path("case", name)
    path.write_bytes(content)
    if way != 0 and (path.parent / CHECKSUMS).is_file() and path.name != CHECKSUMS:
        sums = _json(str(path.parent / CHECKSUMS))
        sums[path.name] = checksum(path)
        (path.parent / CHECKSUMS).write_text(json.dumps(sums, indent=2) + "\n")  # as it was written


def _use_run(bench: Bench, kind: str, content: bytes, way: int, task: str, *more: str) -> None:
    """Predicts with a damaged run, or begins a new one with its weights."""
    if way == 3 and not more:
        bench.train(kind, content, task, "case", init_from="case")
    elif task == "squad":
        text = "Ann Bell built the mill in 1902."
        bench.meets(kind, content, "case", "predict.py", "case", "--question", "Who?", "--context", text, *more)
    else:
        bench.meets(kind, content, "case", "predict.py", "case", "--text", "The mill", *more)


MODEL_FILES = {
    ("config.json", "squad"): "run's config.json",
    ("task.json", "squad"): "run's task.json",
    ("tokenizer.json", "squad"): "run's tokenizer.json",
    ("checksums.json", "lm"): "run's checksums.json",
}
for (_name, _task), _kind in MODEL_FILES.items():

    def _use_file(bench: Bench, content: bytes, way: int, name: str = _name, task: str = _task, kind: str = _kind):
        _damage_run(f"runs/{task}", f"best/{name}", content, way)
        _use_run(bench, kind, content, way, task)

    kind(_kind, lambda name=_name, task=_task: damaged_document(_json(f"runs/{task}/best/{name}")))(_use_file)


@kind("run's weights", lambda: damaged_safetensors(Path("runs/lm/best/model.safetensors").read_bytes()))
def _weights(bench: Bench, content: bytes, way: int) -> None:
    _damage_run("runs/lm", "best/model.safetensors", content, way)
    _use_run(bench, "run's weights", content, way, "lm")


INT8 = "runs/lm/compressed/int8"


@kind("int8 weights", lambda: damaged_safetensors(Path(INT8, "model.safetensors").read_bytes()))
def _int8_weights(bench: Bench, content: bytes, way: int) -> None:
    _damage_run("runs/lm", "compressed/int8/model.safetensors", content, way)
    _use_run(bench, "int8 weights", content, way, "lm", "--stage", "int8")


@kind("quantization.json", lambda: damaged_document(_json(f"{INT8}/quantization.json")))
def _quantization(bench: Bench, content: bytes, way: int) -> None:
    _damage_run("runs/lm", "compressed/int8/quantization.json", content, way)
    _use_run(bench, "quantization.json", content, way, "lm", "--stage", "int8")


CHECKPOINT = "checkpoints/step_00000002"


def _resume(bench: Bench, kind: str, content: bytes, way: int, run: str, name: str) -> None:
    _damage_run(run, name, content, way)
    if way != 0:  # else it goes on from the checkpoint before
        shutil.rmtree("case/checkpoints/step_00000001")
    quick = ("--max_steps", "3", "--attention_examples", "0", "--bertscore_samples", "0", "--no-compress")
    # What is wrong with the settings in a run may be told by whoever reads the data.
    where = "" if name == "config.json" else "case"
    bench.meets(kind, content, where, "main.py", "--resume", "case", *quick)


@kind("checkpoint's state.json", lambda: damaged_document(_json(f"runs/lm/{CHECKPOINT}/state.json")))
def _state(bench: Bench, content: bytes, way: int) -> None:
    _resume(bench, "checkpoint's state.json", content, way, "runs/lm", f"{CHECKPOINT}/state.json")


for _name in ("model", "optimizer"):

    def _use_checkpoint(bench: Bench, content: bytes, way: int, name: str = _name) -> None:
        _resume(bench, f"checkpoint's {name}", content, way, "runs/lm", f"{CHECKPOINT}/{name}.safetensors")

    kind(
        f"checkpoint's {_name}",
        lambda name=_name: damaged_safetensors(Path(f"runs/lm/{CHECKPOINT}/{name}.safetensors").read_bytes()),
    )(_use_checkpoint)


@kind("config.json to resume", lambda: damaged_document(_json("runs/lm/config.json")))
def _resumed_config(bench: Bench, content: bytes, way: int) -> None:
    _resume(bench, "config.json to resume", content, way, "runs/lm", "config.json")


@kind("metrics.jsonl to resume", lambda: damaged_lines(_records("runs/lm/metrics.jsonl")))
def _resumed_metrics(bench: Bench, content: bytes, way: int) -> None:
    _resume(bench, "metrics.jsonl to resume", content, way, "runs/lm", "metrics.jsonl")


# -- what becomes of them ----------------------------------------------------------------------------------------------

NEVER_REFUSED = ("metrics.jsonl to resume",)  # records are not needed to go on; what cannot be read is dropped


@pytest.mark.parametrize("kind", KINDS)
def test_malformed_files(bench, amount, reached, kind):
    """By strategies, the same ones each time. How many are refused is counted by different contents."""
    make, use = KINDS[kind]

    @settings(
        max_examples=amount(12, 400),
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(make(), st.integers(0, 3))
    def check(content: bytes, way: int) -> None:
        use(bench, content, way)

    check()
    tally = bench.tallies[kind]
    reached("bad input is met", f"{kind}: {tally}")
    assert len(tally.refused) >= (0 if kind in NEVER_REFUSED else amount(3, 100))


MEGABYTE = 2**20
NOT_SQUAD = b'{"data": [' + b"{}," * 100_000 + b"{}]}"
REPEATED = b"{" + b",".join(b'"%d": 1' % number for number in range(100_000)) + b', "99999": 2}'
LONG_CELL = b'document,summary\n"' + b"x" * 5 * MEGABYTE
MERGED = b"a: &a {k: 1}\nb: &b {<<: [*a, *a]}\nc: &c {<<: [*b, *b]}\n<<: [*c, *c]"
EXTREMES = {
    "SQuAD JSON": (
        b"[" * 5 * MEGABYTE,
        b" " * 5 * MEGABYTE,
        b"\0" * 5 * MEGABYTE,
        b"9" * MEGABYTE,
        NOT_SQUAD,
        REPEATED,
    ),
    "JSON Lines": (
        b"[" * 5 * MEGABYTE,
        b"\n" * 5 * MEGABYTE,
        b'{"a":1}' * MEGABYTE,
        b'{"document": "' + b"x" * 5 * MEGABYTE,
    ),
    "CSV": (LONG_CELL, b"document,summary\n" + b"," * MEGABYTE, b"document," * 100_000, b"\r" * 5 * MEGABYTE),
    "text": (b"\0" * 5 * MEGABYTE, b" " * 5 * MEGABYTE, b"a" * 5 * MEGABYTE + b"\xff", b"\xf0\x9f\x98" * MEGABYTE),
    "YAML": (
        *(b"[" * 19_000, b"{" * 19_000, b"- " * 9000, b"a: " * 5000, b"? " * 9000, b"x" * 5 * MEGABYTE, MERGED),
        *(b"\n".join(b"k%d: 1" % number for number in range(2000)), b"embed_dim: 1\nembed_dim: 2", b"a: &a [*a]"),
        *(b"embed_dim: 0x" + b"F" * 15_000, b"embed_dim: [0x" + b"F" * 15_000 + b"]", b"embed_dim: " + b"9" * 4000),
        *(b"embed_dim: 65536\ndim_feedforward: 1000000\nnum_layers: 1000", b"embed_dim: 1" + b"0" * 9),
        *(b"num_layers: 1" + b"0" * 9, b"num_epochs: 1" + b"0" * 30, b'tokenizer: "a\\0b"', b'init_from: "\\ud800"'),
    ),
    "run's config.json": (b"[" * MEGABYTE, b'{"embed_dim": 16384, "task_type": "squad"}', REPEATED),
    "checkpoint's state.json": (b"[" * MEGABYTE, b"{}", b"9" * MEGABYTE),
}


@pytest.mark.parametrize(("kind", "number"), [(kind, each) for kind in EXTREMES for each in range(len(EXTREMES[kind]))])
@pytest.mark.timing
def test_extreme_files(bench, kind, number):
    """Deep, long, repeated and huge: each of these has cost some reader its time, its memory or its stack."""
    content = EXTREMES[kind][number]
    KINDS[kind][1](bench, content, 1)
    assert content in bench.tallies[kind].refused


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("flag", ["train_file", "validation_file", "config", "tokenizer", "init_from", "corpus_dir"])
def test_folders_in_the_place_of_files(bench, task, flag):
    """And files in the place of folders."""
    Path("empty").mkdir(exist_ok=True)
    name = "train.json" if flag in ("init_from", "corpus_dir") else "empty"
    bench.train("folders", f"{task} {flag}".encode(), task, "", **{flag: name})
    assert f"{task} {flag}".encode() in bench.tallies["folders"].refused


def test_the_sum(bench, amount, reached):
    """After all others of this file."""
    if len(bench.tallies) < len(KINDS):
        pytest.skip("some kinds were left out")
    refused = sum(len(tally.refused) for tally in bench.tallies.values())
    accepted = sum(len(tally.accepted) for tally in bench.tallies.values())
    slowest = max(tally.slowest for tally in bench.tallies.values())
    peak = max(tally.peak for tally in bench.tallies.values())
    figure = f"all: {refused:,} refused in a line each, {accepted:,} accepted, slowest {slowest:.2f} s"
    reached("bad input is met", f"{figure}, memory grew by {peak / 2**20:.0f} MB at most")
    assert refused >= amount(100, 2000)
