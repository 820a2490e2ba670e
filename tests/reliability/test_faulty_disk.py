"""A checkpoint is whole or absent: whatever call of a save meets a fault, the old state or the new one is there.

Each call that changes files is met once by each fault: a kill, a power cut, and a disk that is broken or full, once or
from then on. Afterwards nothing is lost, mixed or taken for damaged, and the next save works and cleans up.
"""

import json
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from him import Config
from him.core.files import CannotWrite, find_folder, verify_folder, write_json
from him.runs.checkpoint import Checkpoint, Checkpoints, load_tensors, save_model
from him.runs.records import AppendedFile, MetricWriter
from him.workflows.train import train
from tests.reliability.faulty_disk import Fault, FaultyDisk
from tests.small_runs import (
    Finished,
    assert_one_line,
    assert_same_run,
    call_main,
    flags,
    in_child,
    records,
    scalar_series,
    small_settings,
)

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs fork, and the paths of open files")

PROMISE = "a checkpoint is whole or absent"
CUTS = [Fault("cut", undone=undone, content=content) for undone in (0.0, 0.5, 1.0) for content in ("nothing", "zeros")]
CUTS += [Fault("cut", True, undone=undone, content=content) for undone in (0.0, 1.0) for content in ("half", "all")]
FAILS = [
    Fault("EIO"),
    Fault("ENOSPC", halfway=True),
    Fault("EIO", halfway=True, lasts=True),
    Fault("ENOSPC", lasts=True),
]
MOST_CALLS = 1000


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Waiting for the real disk would be most of the time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@dataclass
class Case:
    """Something that writes.

    Attributes:
        prepare: makes a folder as it is before.
        work: writes into it.
        check: of the folder afterwards, and whether the work came to its end without an error.
        raises: what the work may raise.
        is_flushed: whether a power cut after the work takes nothing back.
    """

    prepare: Callable[[Path], None]
    work: Callable[[Path], None]
    check: Callable[[Path, bool], None]
    raises: tuple[type[Exception], ...] = (CannotWrite,)
    is_flushed: bool = True


def faults_at(number: int, kind: str, full: bool) -> list[Fault]:
    """The faults that are tried at a call; in the short form they take turns."""
    if kind == "none":
        return CUTS if full else [CUTS[-2]]
    kills = [Fault("kill"), *([Fault("kill", halfway=True)] if kind == "write" else [])]
    if full:
        return [*kills, *CUTS, *FAILS]
    turn = number // 2
    return [CUTS[turn % len(CUTS)] if number % 2 else kills[turn % len(kills)], FAILS[turn % len(FAILS)]]


def try_all(place: Path, case: Case, full: bool) -> tuple[int, int]:
    """Has faults at every call of a case, and power cuts after it; numbers of the calls and of the faults survived."""
    template, folder = place / "template", place / "disk"
    case.prepare(template)
    kinds, num_faults = calls_of(case, template, folder), 0
    for number in range(1, MOST_CALLS):
        kind = kinds[number - 1] if number <= len(kinds) else "none"
        for fault in faults_at(number, kind, full):
            start_again(template, folder)
            disk = FaultyDisk(folder, number, fault)
            finished = meet(disk, case, folder)
            if kind == "none":
                assert finished, "the work has more calls than before"
                if not case.is_flushed:
                    continue
            assert kind == "none" or fault.kind not in ("kill", "cut") or not finished
            try:
                case.check(folder, finished)
            except BaseException as error:
                error.add_note(f"{fault} at call {number} of {len(kinds)}, {kind}; found {sorted(folder.rglob('*'))}")
                raise
            num_faults += 1
        if kind == "none":
            return len(kinds), num_faults
    raise AssertionError("more calls than expected")


def start_again(template: Path, folder: Path) -> None:
    for left in folder.parent.glob("disk*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    shutil.copytree(template, folder)


def calls_of(case: Case, template: Path, folder: Path) -> list[str]:
    start_again(template, folder)
    with FaultyDisk(folder).on() as disk:
        case.work(folder)
    case.check(folder, True)
    return disk.calls


def meet(disk: FaultyDisk, case: Case, folder: Path) -> bool:
    """Whether the work came to its end."""

    def work() -> None:
        with disk.on():
            case.work(folder)
            if disk.fault.kind == "cut":
                disk.cut_power()

    if disk.fault.kind in ("kill", "cut"):
        status = in_child(work)
        assert status in (0, -signal.SIGKILL)
        return status == 0
    try:
        work()
    except case.raises:
        return False
    return True


# -- checkpoints -------------------------------------------------------------------------------------------------------


def content(seed: int) -> Checkpoint:
    torch.manual_seed(seed)
    state = {"loop": {"seed": seed}, "machine": {"num_threads": 1}, "config": {}}
    weights = {"a.weight": torch.randn(30, 4), "half": torch.randn(2).bfloat16()}
    return Checkpoint(state, weights, {"a.weight.exp_avg": torch.randn(30, 4)}, {"a.weight": torch.randn(30, 4)})


def assert_is(found: Checkpoint, step: int, seed: int) -> None:
    expected = content(seed)
    assert (found.step, found.state["loop"]) == (step, expected.state["loop"])
    for part in ("weights", "optimizer_state", "ema"):
        one, other = getattr(found, part), getattr(expected, part)
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one), part


def save(folder: Path, step: int, seed: int, best_step: int | None = None) -> None:
    Checkpoints(folder / "checkpoints", 2).save(content(seed), step, best_step)


def checkpoint_case(there: list[int], step: int, best_step: int | None = None) -> Case:
    """A save, where checkpoints are there; the seed of their content is their step, and of the new one 1."""

    def prepare(folder: Path) -> None:
        folder.mkdir()
        for each in there:
            save(folder, each, each, best_step)

    def check(folder: Path, finished: bool) -> None:
        checkpoints = Checkpoints(folder / "checkpoints", 2)
        said: list[str] = []
        found = checkpoints.load_newest(said.append)
        assert not said, said
        if found is None:
            assert not there and not finished
        elif finished or found.state["loop"]["seed"] == 1:
            assert_is(found, step, 1)
        else:
            assert_is(found, there[-1], there[-1])
        for path in checkpoints.list():  # the older ones too
            one = checkpoints.load(path)
            assert_is(one, int(path.name[5:]), one.state["loop"]["seed"])
        steps = {int(path.name[5:]) for path in checkpoints.list()}
        assert best_step in (*steps, None)
        save(folder, 90, 90, best_step)
        assert_is(checkpoints.load_newest(said.append), 90, 90)
        left = {path.name for path in checkpoints.folder.iterdir()}
        last = sorted({*steps, 90})[-2:]
        assert left == {f"step_{each:08d}" for each in {*last, *([best_step] if best_step else [])}} and not said
        for path in checkpoints.list():
            verify_folder(path)

    return Case(prepare, lambda folder: save(folder, step, 1, best_step), check)


def repair_case() -> Case:
    """A resume finds a save that was killed, the old version of another one, and a damaged checkpoint."""

    def prepare(folder: Path) -> None:
        folder.mkdir()
        for step in (10, 20, 30):
            Checkpoints(folder / "checkpoints", 9).save(content(step), step)
        checkpoints = folder / "checkpoints"
        shutil.copytree(checkpoints / "step_00000020", checkpoints / "step_00000020.old")
        os.rename(checkpoints / "step_00000010", checkpoints / "step_00000010.old")
        shutil.copytree(checkpoints / "step_00000030", checkpoints / "step_00000030.damaged")
        (checkpoints / "step_00000030" / "model.safetensors").write_bytes(b"damaged")
        (checkpoints / ".step_00000040-01234567").mkdir()

    def work(folder: Path) -> None:
        checkpoints = Checkpoints(folder / "checkpoints", 2)
        assert_is(checkpoints.load_newest(lambda line: None), 20, 20)
        checkpoints.remove_surplus()

    def check(folder: Path, finished: bool) -> None:
        work(folder)
        checkpoints = folder / "checkpoints"
        assert [path.name for path in Checkpoints(checkpoints, 2).list()] == ["step_00000010", "step_00000020"]
        assert len(list(checkpoints.iterdir())) == 2 + len(list(checkpoints.glob("*.damaged")))
        assert len(list(checkpoints.glob("*.damaged"))) == 1

    return Case(prepare, work, check, (OSError,))


CHECKPOINTS = {
    "the first one": checkpoint_case([], 10),
    "a third one, of which two are kept": checkpoint_case([10, 20], 30),
    "a fourth one, beside the best": checkpoint_case([10, 20, 30], 40, best_step=10),
    "at a step that is there": checkpoint_case([10, 20], 20),
    "repair after a kill": repair_case(),
}


# -- models, records, JSON ---------------------------------------------------------------------------------------------


class GenerationTask:
    def save(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}" * 100, encoding="utf-8")


def model_of(name: str) -> nn.Module:
    torch.manual_seed(len(name))
    return nn.Linear(8, 8)


def save_best(folder: Path, name: str) -> None:
    save_model(folder / "best", Config(run_name=name), model_of(name), GenerationTask(), {"name": name})


def best_case(is_there: bool) -> Case:
    def prepare(folder: Path) -> None:
        folder.mkdir()
        if is_there:
            save_best(folder, "old")

    def name_of(best: Path) -> str:
        verify_folder(best)
        name = json.loads((best / "metrics.json").read_text())["name"]
        assert Config.load(best / "config.json").run_name == name
        assert torch.equal(load_tensors(best / "model.safetensors")["weight"], model_of(name).weight)
        return name

    def check(folder: Path, finished: bool) -> None:
        best = find_folder(folder / "best")
        if best.exists():
            assert name_of(best) in (["newer"] if finished or not is_there else ["old", "newer"])
        else:
            assert not is_there and not finished
        save_best(folder, "the newest")
        assert name_of(folder / "best") == "the newest"
        assert [path.name for path in folder.iterdir()] == ["best"]

    return Case(prepare, lambda folder: save_best(folder, "newer"), check)


def json_case() -> Case:
    def write(folder: Path, name: str) -> None:
        write_json(folder / "a.json", [name] * 50)

    def prepare(folder: Path) -> None:
        folder.mkdir()
        write(folder, "old")

    def check(folder: Path, finished: bool) -> None:
        names = json.loads((folder / "a.json").read_text())
        assert names == ["new"] * 50 or (not finished and names == ["old"] * 50)
        write(folder, "newer")
        assert json.loads((folder / "a.json").read_text()) == ["newer"] * 50
        assert [path.name for path in folder.iterdir()] == ["a.json"]

    return Case(prepare, lambda folder: write(folder, "new"), check, (OSError,), is_flushed=False)


PARTS = (b"flushed before\n" * 9, b"to the disk\n" * 9, b"to other readers\n" * 9)


def appended_case() -> Case:
    """What was flushed to the disk stays, what was not may be cut, and what fails is there after the next try."""
    still_open: list[AppendedFile] = []

    def prepare(folder: Path) -> None:
        folder.mkdir()
        (folder / "a.txt").write_bytes(PARTS[0])

    def work(folder: Path) -> None:
        file = AppendedFile(folder / "a.txt")
        still_open.append(file)
        file.write(PARTS[1])
        with suppress(CannotWrite):
            file.flush(to_disk=True)
            folder.with_name("disk has it").touch()
        file.write(PARTS[2])
        with suppress(CannotWrite):
            file.flush()

    def check(folder: Path, finished: bool) -> None:
        if still_open:  # this process has lived through the fault, and goes on
            still_open.pop().close()
            assert (folder / "a.txt").read_bytes() == b"".join(PARTS)
            return
        found = (folder / "a.txt").read_bytes().rstrip(b"\0")
        assert found.startswith(PARTS[0]) and b"".join(PARTS).startswith(found)
        assert len(found) >= len(PARTS[0] + PARTS[1]) or not folder.with_name("disk has it").exists()

    return Case(prepare, work, check, (OSError,))


def write_steps(writer: MetricWriter, steps: range) -> None:
    for step in steps:
        writer.write({"Loss/train": step / 3, "F1/val": 1.0 / step}, step, step / 4)


def records_case(straight: Path) -> Case:
    """A resumed run adds records; after a fault another one goes on, from the step of its newest checkpoint."""

    def prepare(folder: Path) -> None:
        folder.mkdir()
        writer = MetricWriter(folder)
        write_steps(writer, range(1, 4))
        writer.close()

    def work(folder: Path) -> None:
        writer = MetricWriter(folder, resumed_step=3)
        write_steps(writer, range(4, 6))
        try:
            with suppress(CannotWrite):
                writer.flush(to_disk=True)
                folder.with_name("disk has it").touch()
            write_steps(writer, range(6, 7))
            with suppress(CannotWrite):
                writer.flush()
        finally:
            writer.close()

    def check(folder: Path, finished: bool) -> None:
        step = 5 if folder.with_name("disk has it").exists() else 3
        writer = MetricWriter(folder, resumed_step=step)
        write_steps(writer, range(step + 1, 9))
        writer.close()
        assert records(folder) == records(straight)
        assert scalar_series(folder) == scalar_series(straight)
        assert not list(folder.glob(".*"))

    return Case(prepare, work, check, (OSError, CannotWrite))


@pytest.fixture
def straight_records(tmp_path) -> Path:
    folder = tmp_path / "straight"
    folder.mkdir()
    writer = MetricWriter(folder)
    write_steps(writer, range(1, 9))
    writer.close()
    return folder


# -- tests -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints(tmp_path, name, amount, reached):
    num_calls, num_faults = try_all(tmp_path, CHECKPOINTS[name], bool(amount(0, 1)))
    assert num_calls >= 15
    reached(PROMISE, f"checkpoint, {name}: {num_faults} of {num_faults} faults at {num_calls} calls survived")


@pytest.mark.parametrize("is_there", [True, False], ids=["replaced", "new"])
def test_best_model(tmp_path, is_there, amount, reached):
    num_calls, num_faults = try_all(tmp_path, best_case(is_there), bool(amount(0, 1)))
    assert num_calls >= 15
    what = "replaced" if is_there else "new"
    reached(PROMISE, f"best model, {what}: {num_faults} of {num_faults} faults at {num_calls} calls survived")


def test_json(tmp_path, amount, reached):
    num_calls, num_faults = try_all(tmp_path, json_case(), bool(amount(0, 1)))
    assert num_calls >= 4
    reached(PROMISE, f"JSON: {num_faults} of {num_faults} faults at {num_calls} calls survived")


def test_appended_file(tmp_path, amount, reached):
    num_calls, num_faults = try_all(tmp_path, appended_case(), bool(amount(0, 1)))
    assert num_calls >= 4
    reached(PROMISE, f"appended file: {num_faults} of {num_faults} faults at {num_calls} calls survived")


def test_records(tmp_path, straight_records, amount, reached):
    num_calls, num_faults = try_all(tmp_path, records_case(straight_records), bool(amount(0, 1)))
    assert num_calls >= 8
    reached(PROMISE, f"records of a run: {num_faults} of {num_faults} faults at {num_calls} calls survived")


# -- whole runs --------------------------------------------------------------------------------------------------------

RUN = {"batch_size": 8, "num_epochs": 2, "save_every_steps": 2, "keep_checkpoints": 1, "ema_decay": 0.9}


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> dict[str, Any]:
    return small_settings(tmp_path_factory.mktemp("data"), num_train=20, num_validation=4) | RUN


@pytest.fixture(scope="module")
def straight_run(settings) -> tuple[Path, int]:
    """The run that nothing happens to, and how many calls it has."""
    train(Config(**settings, run_name="warm"))  # prepares the data, which all others find in the cache
    place = Path(settings["output_dir"]).with_name("straight")
    place.mkdir()
    with FaultyDisk(place).on() as disk:
        run = train(Config(**{**settings, "output_dir": str(place)}, run_name="run"))["run"]
    return Path(run), len(disk.calls)


def begin(settings: dict[str, Any], place: Path) -> Finished:
    return call_main(*flags({**settings, "output_dir": place, "run_name": "run"}))


def end_well(settings: dict[str, Any], place: Path, expected: Path) -> None:
    """Begins the run, or goes on with it if it is there, and compares it with the expected one."""
    finished = call_main("--resume", place / "run") if (place / "run").exists() else begin(settings, place)
    assert (finished.status, finished.err) == (0, ""), finished
    assert "damaged" not in finished.out
    assert_same_run(place / "run", expected)
    assert [path.name for path in place.iterdir() if not path.name.startswith(".run-")] == ["run"]


def remove_what_stayed(run: Path, expected: Path) -> None:
    """Old folders whose removal failed: the next save would have removed them."""
    for path in [*run.glob("*.old"), *run.glob("checkpoints/*")]:
        if not (expected / path.relative_to(run)).exists():
            shutil.rmtree(path)


@pytest.mark.parametrize("kind", ["EIO", "ENOSPC"])
def test_runs_on_a_disk_that_fails_once(settings, straight_run, tmp_path, kind, amount, reached):
    """Training goes on, or ends with one line and can be resumed; the bits are the same either way."""
    expected, num_calls = straight_run
    numbers, resumed = numbers_of(num_calls, amount), 0
    for number in numbers:
        place = tmp_path / str(number)
        place.mkdir()
        disk = FaultyDisk(place, number, Fault(kind, halfway=kind == "ENOSPC"))
        with disk.on():
            finished = begin(settings, place)
        assert len(disk.calls) >= number
        if finished.status == 0:
            assert finished.err == ""
            remove_what_stayed(place / "run", expected)
            assert_same_run(place / "run", expected)
        else:
            assert_one_line(finished, str(place))
            end_well(settings, place, expected)
            resumed += 1
        shutil.rmtree(place)
    figure = (
        f"{len(numbers) - resumed} runs went on after one {kind}, and {resumed} ended with one line and were resumed"
    )
    reached(PROMISE, f"{figure}: all to the same bits, at each of {num_calls} calls")


def test_runs_after_a_power_cut(settings, straight_run, tmp_path, amount, reached):
    """Resumed, or begun again if nothing was saved, to the same bits."""
    expected, num_calls = straight_run
    num_resumed = 0
    numbers = numbers_of(num_calls, amount)
    for number in numbers:
        place = tmp_path / str(number)
        place.mkdir()
        disk = FaultyDisk(place, number, CUTS[number % len(CUTS)])

        def work(disk=disk, place=place) -> None:
            with disk.on():
                begin(settings, place)

        assert in_child(work) == -signal.SIGKILL
        num_resumed += (place / "run").exists()
        end_well(settings, place, expected)
        shutil.rmtree(place)
        shutil.rmtree(f"{place}.lost", ignore_errors=True)
    figure = f"{num_resumed} of {len(numbers)} runs resumed after a power cut"
    reached(PROMISE, f"{figure}, the others begun again: all to the same bits")


def numbers_of(num_calls: int, amount: Callable[[int, int], int]) -> range:
    """Numbers of calls: all of them, or two in the short form."""
    return range(1, num_calls + 1) if amount(0, 1) else range(num_calls // 3, num_calls, num_calls // 3)[:2]
