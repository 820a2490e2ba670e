"""Hostile files do nothing: runs, models, tokenizers, data, caches and settings of a stranger are refused or just read.

Every case goes through a command line while `Recorder` listens. It ends with one line on stderr and exit status 2, or
it works as if the hostile part were not there; no code of the file runs, nothing is unpickled, no program is started,
the network is not reached for, and nothing is written or removed but where the user said.
"""

import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import him
from him.compression import latency
from him.core.errors import HimError
from him.metrics.bertscore import find_scorer_model
from him.tasks.squad.task import SquadTask
from tests.reliability import hostile
from tests.reliability.hostile import AUTO_MAP, CODE, JSON, WEIGHTS, YAML_TAGS, put, write_code
from tests.reliability.recorder import MARK, Recorder
from tests.small_runs import (
    Finished,
    assert_one_line,
    call_main,
    call_script,
    flags,
    small_settings,
    tree,
)

RECORDER = Recorder()
QUESTION = ("--question", "Who built the mill?", "--context", "Ann Bell built the mill in 1902.")
CASES: list[str] = []


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """How fast a model is does not matter here."""
    monkeypatch.setattr(latency, "SHAPES", dict.fromkeys(latency.SHAPES, (1, 32)))
    monkeypatch.setattr(latency, "ROUNDS", 1)
    monkeypatch.setattr(latency, "RUN_SECONDS", 0.0)
    monkeypatch.setattr(SquadTask, "example_inputs", lambda task: dict(zip(task.inputs, QUESTION[1::2], strict=True)))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[dict[str, Any], Path]:
    """Settings of a small run, and the run, trained and compressed."""
    folder = tmp_path_factory.mktemp("made")
    more = {"num_epochs": 1, "dry_run": True, "run_name": "run", "compress": True}
    settings = small_settings(folder, num_train=16, num_validation=8) | more
    settings |= {"attention_dir": str(folder / "pictures"), "pruning_amount": 0.0}
    with pytest.MonkeyPatch.context() as monkeypatch:
        hurry(monkeypatch)
        return settings, Path(him.train(him.Config(**settings))["run"])


class Bench:
    """A hostile run, what it might harm, and commands that are watched.

    Attributes:
        run: a copy of a run, to be made hostile.
        work: the current folder while a command runs, in which it may write.
        outside: somebody's files, which nothing may touch.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], run: Path) -> None:
        self.folder = folder
        self.run = folder / "work" / "runs" / "run"
        self.work = folder / "work"
        self.outside = folder / "outside"
        self.settings = settings
        shutil.copytree(run, self.run, symlinks=True)
        for place in (self.outside / "step_00000000", self.outside / ".step_00000000", self.work / "temp"):
            place.mkdir(parents=True)
        for place in ("keep.txt", "step_00000000/keep.txt", ".step_00000000/keep.txt"):
            (self.outside / place).write_text("mine\n", encoding="utf-8")
        (self.outside / "keep.json").write_text("{}", encoding="utf-8")
        self.configure(output_dir="runs", cache_dir="cache", attention_dir="pictures", compress=False)

    def configure(self, **changes: Any) -> None:
        """Changes the settings of the run, in all places where they are written."""
        for path in (self.run / "config.json", *self.run.glob("*/config.json"), *self.run.glob("*/*/config.json")):
            put(path, {**json.loads(path.read_text(encoding="utf-8")), **changes})

    def everywhere(self, name: str) -> list[Path]:
        """The files of a name in the run."""
        return [path for path in sorted(self.run.rglob(name)) if ".part" not in str(path)]

    def watch(self, command: Callable[[], Finished], *allowed: Path) -> Finished:
        """Runs a command: recorded, from `work`, with the temporary files there."""
        before = tree(self.outside)
        with RECORDER.on([self.folder], allowed or [self.work]) as deeds:
            finished = command()
        assert deeds == [], finished
        assert tree(self.outside) == before
        assert not (self.work / MARK).exists() and not (self.folder / "escaped.txt").exists()
        if finished.status != 0:
            assert finished.status == 2, finished
            assert "Traceback" not in finished.out + finished.err, finished
            assert len(finished.err.splitlines()) == 1, finished
        CASES.append("")
        return finished

    def try_entries(self, *names: str) -> dict[str, Finished]:
        """Watches ways of using the run; all but `WRITERS` may write nothing anywhere."""
        found = {}
        for name in names or ENTRIES:
            allowed = [] if name in WRITERS else [self.folder / "nowhere"]
            found[name] = self.watch(lambda name=name: ENTRIES[name](self), *allowed)
        return found


def load(bench: Bench) -> Finished:
    """`him.load` and a question."""
    try:
        him.load(bench.run).predict(question="Who?", context="Ann Bell built the mill.")
    except HimError as error:
        return Finished(2, "", " ".join(str(error).split()))
    return Finished(0, "", "")


def train_from(bench: Bench) -> Finished:
    """`--init_from` the run."""
    settings = {**bench.settings, "output_dir": "runs", "cache_dir": "cache", "attention_dir": "pictures"}
    settings |= {"run_name": "other", "compress": False, "init_from": str(bench.run)}
    shutil.rmtree(bench.work / "runs" / "other", ignore_errors=True)
    return call_main(*flags(settings))


ENTRIES: dict[str, Callable[[Bench], Finished]] = {
    "load": load,
    "predict": lambda bench: call_script("predict.py", bench.run, *QUESTION),
    "evaluate": lambda bench: call_script("evaluate.py", bench.run, "--file", bench.settings["validation_file"]),
    "int8": lambda bench: call_script("predict.py", bench.run, "--stage", "int8", *QUESTION),
    "export": lambda bench: call_script("export.py", bench.run, "--format", "transformers"),
    "init_from": train_from,
    "resume": lambda bench: call_main("--resume", bench.run),
    "compress": lambda bench: call_script("compress.py", bench.run, "--pruning_amount", "0"),
}
QUICK = ("load", "predict", "evaluate", "export", "resume")
WRITERS = ("export", "init_from", "resume", "compress")


@pytest.fixture
def bench(made, tmp_path, monkeypatch) -> Bench:
    settings, run = made
    bench = Bench(tmp_path, settings, run)
    hurry(monkeypatch)
    monkeypatch.chdir(bench.work)
    monkeypatch.setattr(tempfile, "tempdir", str(bench.work / "temp"))
    return bench


@pytest.fixture(scope="module", autouse=True)
def figures(reached):
    yield
    reached("hostile files do nothing", f"{len(CASES)} command lines on hostile files, no deed recorded")


# -- the recorder sees -------------------------------------------------------------------------------------------------


def _import_from(folder: Path) -> None:
    write_code(folder)
    sys.path.insert(0, str(folder))
    try:
        __import__(f"modeling_{MARK}")
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop(f"modeling_{MARK}", None)


def _connect() -> None:
    with socket.socket() as opened:
        opened.settimeout(1)
        opened.connect(("127.0.0.1", 9))


CONTROLS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "import": ("code: exec of", _import_from),
    "exec of a file": ("code: exec of", lambda folder: exec(compile("1", str(folder / "file"), "exec"))),
    "compile of a file": ("code: compile of", lambda folder: compile("1", str(folder / "file"), "exec")),
    "code from a file": ("code: compile of", lambda folder: exec(f"'{MARK}'")),
    "pickle": ("pickle: ", lambda folder: pickle.loads(pickle.dumps(Path))),
    "program": ("program: subprocess.Popen", lambda folder: subprocess.run([sys.executable, "-c", ""], check=True)),
    "shell": ("program: os.system", lambda folder: os.system("true")),
    "connect": ("network: socket.connect", lambda folder: _connect()),
    "look-up": ("network: socket.getaddrinfo", lambda folder: socket.getaddrinfo("localhost", 9)),
    "write": ("write: open w", lambda folder: (folder / "new").write_text("x")),
    "os.open": ("write: open", lambda folder: os.close(os.open(folder / "new", os.O_CREAT | os.O_WRONLY))),
    "write through a link": ("write: open a", lambda folder: (folder / "in" / "link").open("a").close()),
    "rename": ("change: os.rename", lambda folder: os.rename(folder / "file", folder / "other")),
    "remove": ("change: os.remove", lambda folder: os.remove(folder / "file")),
    "rmtree": ("change: os.remove", lambda folder: shutil.rmtree(folder / "full")),
    "mkdir": ("change: os.mkdir", lambda folder: (folder / "new").mkdir()),
    "symlink": ("change: os.symlink", lambda folder: (folder / "new").symlink_to("/")),
    "chmod": ("change: os.chmod", lambda folder: (folder / "file").chmod(0o600)),
}


@pytest.mark.parametrize("kind", CONTROLS)
def test_recorder_sees(kind, tmp_path, monkeypatch):
    """So that its silence means something."""
    for place in ("in", "full"):
        (tmp_path / place).mkdir()
    for place in ("file", "full/file"):
        (tmp_path / place).touch()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "file")
    beginning, deed = CONTROLS[kind]
    monkeypatch.chdir(tmp_path)
    with RECORDER.on([tmp_path], [tmp_path / "in"]) as deeds, suppress(OSError):
        deed(tmp_path)
    assert any(line.startswith(beginning) for line in deeds), deeds


def test_recorder_lets_through_what_is_allowed(tmp_path):
    with RECORDER.on([tmp_path / "hostile"], [tmp_path]) as deeds:
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "file").write_text("x")
        shutil.rmtree(tmp_path / "new")
        json.loads((Path(__file__).parent / "../fixtures/squad_v1.json").read_text())
    assert deeds == []


def test_a_sound_run_works_and_nothing_is_recorded(bench):
    """What is recorded in the other tests is the doing of hostile files."""
    found = bench.try_entries()
    assert {name: finished.status for name, finished in found.items()} == {**dict.fromkeys(ENTRIES, 0), "export": 2}
    assert "--format transformers" in found["export"].err


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights(bench, kind):
    content = WEIGHTS[kind]()
    for path in bench.everywhere("*.safetensors"):
        put(path, content)
    found = bench.try_entries()
    assert {finished.status for finished in found.values()} == {2}, found


READERS = {
    "config.json": ("load", "predict", "evaluate", "int8", "export", "init_from", "resume", "compress"),
    "task.json": ("load", "predict", "evaluate", "int8"),
    "tokenizer.json": ("load", "predict", "evaluate", "int8", "init_from"),
    "state.json": ("resume",),
    "quantization.json": ("int8",),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", JSON)
def test_json_of_a_run(bench, amount, name, kind):
    for path in bench.everywhere(name):
        put(path, JSON[kind]())
    found = bench.try_entries(*amount(READERS[name], tuple(ENTRIES)))
    assert {found[each].status for each in READERS[name]} == {2}, found


def test_code_and_pickles_beside_the_files_of_a_run(bench):
    """They are let be: the run works as ever, in every way of using it."""
    for folder in (bench.run, *(path.parent for path in bench.everywhere("config.json"))):
        write_code(folder)
        for name in ("pytorch_model.bin", "optimizer.pt", "training_args.bin", "model.pkl", "model.pt", "data.npz"):
            (folder / name).write_bytes(hostile.pickled())
        (folder / "archive.zip").write_bytes(hostile.zipped())
        for name in ("tokenizer_config.json", "adapter_config.json", "generation_config.json"):
            (folder / name).write_text(json.dumps(AUTO_MAP), encoding="utf-8")
    found = bench.try_entries()
    assert {name: each.status for name, each in found.items()} == {**dict.fromkeys(ENTRIES, 0), "export": 2}, found


# -- links -------------------------------------------------------------------------------------------------------------


def link(path: Path, target: Path) -> None:
    """Puts a link in the place of a file or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


LINKS: dict[str, tuple[str, str]] = {
    "weights": ("best/model.safetensors", "keep.txt"),
    "settings of the model": ("best/config.json", "keep.json"),
    "settings of the run": ("config.json", "keep.json"),
    "tokenizer": ("best/tokenizer.json", "keep.json"),
    "checksums": ("best/checksums.json", "keep.json"),
    "settings, aside": (".config.json.tmp", "keep.json"),
    "predictions": ("predictions.json", "keep.json"),
    "predictions, aside": (".predictions.json.tmp", "keep.json"),
    "records": ("metrics.jsonl", "keep.txt"),
    "records, aside": (".metrics.jsonl.tmp", "keep.txt"),
    "best model": ("best", ""),
    "best model, before": ("best.old", ""),
    "best model, aside": (".best-01234567", ""),
    "checkpoints": ("checkpoints", ""),
    "checkpoint": ("checkpoints/step_99999999", "step_00000000"),
    "old checkpoint": ("checkpoints/step_00000000", "step_00000000"),
    "checkpoint, aside": ("checkpoints/.step_00000000", "step_00000000"),
    "damaged checkpoint": ("checkpoints/step_99999999.damaged", "step_00000000"),
    "compressed": ("compressed", ""),
    "compressed, unfinished": ("compressed.part", ""),
    "compressed, before": ("compressed.old", ""),
    "progress": ("compressed.part/progress.json", "keep.json"),
    "sweep": ("sweep", ""),
    "export": ("export", ""),
}


@pytest.mark.parametrize("kind", LINKS)
def test_links_out_of_a_run(bench, kind):
    """Neither the file behind a link nor the folder is written, emptied or removed."""
    name, target = LINKS[kind]
    (bench.run / name).parent.mkdir(exist_ok=True)
    link(bench.run / name, bench.outside / target)
    bench.try_entries(*QUICK, "compress")
    bench.watch(lambda: call_main("--resume", bench.run, "--num_epochs", "2", "--keep_checkpoints", "1"))


def test_devices_and_pipes_are_not_read(bench):
    """They would never end."""
    for make in (lambda path: path.symlink_to("/dev/zero"), os.mkfifo):
        for name in ("config.json", "task.json", "tokenizer.json", "checksums.json", "model.safetensors"):
            file = bench.run / "best" / name
            content = file.read_bytes()
            file.unlink()
            make(file)
            assert {each.status for each in bench.try_entries("load", "predict", "evaluate").values()} == {2}
            file.unlink()
            file.write_bytes(content)


# -- what the settings of a run name -----------------------------------------------------------------------------------

UNTRUSTED_SETTINGS: dict[str, dict[str, Any]] = {
    "auto_map": AUTO_MAP,
    "architectures": {"architectures": [f"{MARK}.Model"], "model_type": MARK},
    "class to import": {"task_type": f"{MARK}.Task"},
    "function to import": {"task_type": "os:system"},
    "task that is a path": {"task_type": "../../squad"},
    "name that is a path": {"run_name": "../../outside"},
    "device": {"device": f"cuda:0; touch {MARK}"},
    "amount that is code": {"pruning_amount": CODE},
}


@pytest.mark.parametrize("kind", UNTRUSTED_SETTINGS)
def test_settings_that_name_code(bench, kind):
    bench.configure(**UNTRUSTED_SETTINGS[kind])
    found = bench.try_entries()
    assert {each.status for each in found.values()} == {2}, found


@pytest.mark.parametrize("setting", ["output_dir", "cache_dir", "attention_dir"])
def test_settings_that_name_places_outside(bench, setting):
    """Using a run writes nothing; what goes on with it asks for the place to be named by a flag."""
    for place in (str(bench.outside), "../outside", str(bench.work / "runs/../../outside")):
        bench.configure(output_dir="runs", cache_dir="cache", attention_dir="pictures", attention_examples=1)
        bench.configure(**{setting: place}, **({"cache_dir": None} if setting == "output_dir" else {}))
        found = bench.try_entries("load", "predict", "evaluate")
        assert {each.status for each in found.values()} == {0}, found
        flag = "--cache_dir" if setting == "output_dir" else f"--{setting}"
        for finished in bench.try_entries("compress", "resume").values():
            assert finished.status == 2 and flag in finished.err, finished
    assert bench.watch(lambda: call_main("--resume", bench.run, flag, "other")).status == 0


# -- settings in YAML --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", YAML_TAGS)
@pytest.mark.timing
def test_yaml(bench, kind):
    (bench.work / "config.yaml").write_text(YAML_TAGS[kind], encoding="utf-8")
    started_at = time.perf_counter()
    assert_one_line(bench.watch(lambda: call_main("--config", "config.yaml")), "--config config.yaml")
    assert time.perf_counter() - started_at < 2


@pytest.mark.parametrize("kind", JSON)
def test_no_yaml_at_all(bench, kind):
    (bench.work / "config.yaml").write_bytes(JSON[kind]())
    assert_one_line(bench.watch(lambda: call_main("--config", "config.yaml")))


# -- data, tokenizers, encoders ----------------------------------------------------------------------------------------


def train_on(bench: Bench, task_type: str = "squad", **changes: Any) -> Finished:
    """`main.py` on other data, two steps."""
    settings = {**bench.settings, "output_dir": "runs", "cache_dir": "cache", "attention_dir": "pictures"}
    settings |= {"run_name": "other", "compress": False, "task_type": task_type, **changes}
    if task_type != "squad":
        settings = {name: value for name, value in settings.items() if name != "doc_stride"} | {"eval_samples": 0}
    shutil.rmtree(bench.work / "runs" / "other", ignore_errors=True)
    return bench.watch(lambda: call_main(*flags(settings)))


@pytest.mark.parametrize("kind", JSON)
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".txt"])
def test_training_files(bench, suffix, kind):
    path = bench.work / f"train{suffix}"
    path.write_bytes(JSON[kind]())
    task_type = {".json": "squad", ".txt": "lm"}.get(suffix, "summarization")
    finished = train_on(bench, task_type, train_file=str(path), validation_file=str(path))
    if suffix != ".txt" or kind in ("pickle", "zip"):
        assert_one_line(finished, str(path))
    evaluated = bench.watch(lambda: call_script("evaluate.py", bench.run, "--file", path))
    assert_one_line(evaluated, str(path), prog="evaluate.py")


@pytest.mark.parametrize("kind", hostile.PARQUET)
def test_parquet(bench, kind):
    path = bench.work / "train.parquet"
    path.write_bytes(hostile.PARQUET[kind]())
    finished = train_on(bench, "summarization", train_file=str(path), validation_file=str(path))
    assert finished.status == (0 if "extension" in kind else 2), finished


@pytest.mark.parametrize("kind", hostile.DATA_FOLDERS)
def test_folders_for_datasets(bench, kind, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(bench.work / "cache"))
    folder = bench.work / "folder"
    folder.mkdir()
    for name, content in hostile.DATA_FOLDERS[kind]().items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    assert_one_line(train_on(bench, "summarization", dataset=str(folder), train_file=None, validation_file=None))


@pytest.mark.parametrize("kind", hostile.TOKENIZERS)
def test_tokenizers(bench, kind):
    """Of a run and of --tokenizer; a panic of the package is one line too."""
    sound = json.loads((bench.run / "best" / "tokenizer.json").read_text(encoding="utf-8"))
    for path in bench.everywhere("tokenizer.json"):
        put(path, {**sound, **hostile.TOKENIZERS[kind]})
    found = bench.try_entries("load", "predict", "evaluate")
    folder = write_code(bench.work / "tokenizer")
    (folder / "tokenizer.json").write_text(json.dumps({**sound, **hostile.TOKENIZERS[kind]}), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(AUTO_MAP), encoding="utf-8")
    found["--tokenizer"] = train_on(bench, tokenizer=str(folder))
    assert len({each.status for each in found.values()}) == 1, found


@pytest.mark.parametrize("kind", ["pickle", "zip", "tar"])
def test_tokenizers_that_are_none(bench, kind):
    (bench.work / "tokenizer.json").write_bytes(JSON[kind]())
    assert_one_line(train_on(bench, tokenizer="tokenizer.json"), "--tokenizer tokenizer.json")


def encoder_folder(bench: Bench, config: dict[str, Any], tokenizer: dict[str, Any]) -> Path:
    """The installed encoder of BERTScore with hostile settings, code and pickles beside its weights."""
    found = find_scorer_model(None)
    if found is None:
        pytest.skip("the encoder is not installed")
    folder = write_code(bench.work / "encoder")
    for name in ("model.safetensors", "tokenizer.json", "vocab.txt"):
        (folder / name).symlink_to(Path(found) / name)
    for name, changes in {"config.json": config, "tokenizer_config.json": tokenizer}.items():
        settings = json.loads((Path(found) / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps({**settings, **changes}), encoding="utf-8")
    for name in ("adapter_config.json", "generation_config.json", "processor_config.json"):
        (folder / name).write_text(json.dumps({**AUTO_MAP, "base_model_name_or_path": f"hostile/{MARK}"}))
    for name in ("pytorch_model.bin", "tf_model.h5"):
        (folder / name).write_bytes(hostile.pickled())
    return folder


@pytest.mark.parametrize("kind", hostile.ENCODERS)
def test_encoders_of_bertscore(bench, kind):
    """By the flag, and by the settings of a run that is evaluated."""
    folder = encoder_folder(bench, *hostile.ENCODERS[kind])
    bench.configure(bertscore_model=str(folder), bertscore_samples=2)
    found = bench.try_entries("evaluate")["evaluate"]
    refused = "code beside it for" in kind or "of the hub" in kind and "base" not in kind
    assert found.status == 2 or not refused, found
    if found.status == 0:
        assert "BERTScore_F1" in found.out


@pytest.mark.parametrize("kind", ["pickle", "zip", "header of 2**62 bytes", "offsets out of range"])
def test_weights_of_encoders(bench, kind):
    folder = encoder_folder(bench, {}, {})
    put(folder / "model.safetensors", WEIGHTS[kind]())
    assert_one_line(train_on(bench, bertscore_model=str(folder), bertscore_samples=2), "--bertscore_model")


# -- caches ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pickle", "zip", "arrow", "link", "links inside"])
def test_caches(bench, kind):
    """What is not as HIM writes it is made anew."""
    assert train_on(bench).status == 0
    (folder,) = (bench.work / "cache").glob("squad-*")
    if kind == "link":
        link(folder, bench.outside)
    for path in () if kind == "link" else folder.glob("*/*"):
        if kind == "links inside":
            link(path, bench.outside / "keep.txt")
        elif kind == "arrow":
            path.write_bytes(hostile.arrow_stream(hostile.columns_with_a_type("arrow.py_extension_type")))
        else:
            path.write_bytes(JSON[kind]())
    assert train_on(bench).status == 0
