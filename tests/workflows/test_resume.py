"""A run that was killed, interrupted or ran out of space goes on exactly as if nothing had happened."""

import dataclasses
import errno
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from him import Config
from him.core.errors import ConfigError, HimError
from him.runs.checkpoint import Checkpoints, load_tensors
from him.runs.environment import describe_environment
from him.training.trainer import Interrupted
from him.workflows.resume import resume
from him.workflows.train import train
from tests.small_runs import (
    ForkedMain,
    assert_one_line,
    assert_same_run,
    before_steps,
    call_main,
    exact_records,
    flags,
    in_child,
    kill_at,
    program,
    records,
    run_main,
    scalar_series,
    slow_steps,
    small_settings,
    start_main,
    tree,
    writing_settings,
)

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and signals")

# Dropout is on, as by default. 9 steps an epoch, with saves that fall together with its end only at times.
LONGER = {"batch_size": 8, "num_epochs": 3, "save_every_steps": 4}


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> dict:
    return small_settings(tmp_path_factory.mktemp("data"), num_train=28) | LONGER


@pytest.fixture(scope="module")
def straight(settings) -> Path:
    """The run that nothing happens to."""
    return Path(train(Config(**settings, run_name="straight"))["run"])


def test_the_straight_run_has_what_is_compared(straight, settings):
    """The comparison would pass on two runs that wrote nothing."""
    assert len(list((straight / "checkpoints").glob("step_*/optimizer.safetensors"))) == 3  # the best and two
    assert len(scalar_series(straight)["Loss/val"]) == 3
    assert len(scalar_series(straight)["Loss/train"]) >= 4
    assert len(json.loads((straight / "predictions.json").read_text())) >= 24
    assert len(exact_records(straight)) > 30
    other = train(Config(**{**settings, "seed": 1}, run_name="other"))
    with pytest.raises(AssertionError):
        assert_same_run(Path(other["run"]), straight)


def test_the_same_command_gives_the_same_run(straight, settings):
    assert_same_run(Path(train(Config(**settings, run_name="again"))["run"]), straight)


def test_five_kills_from_the_command_line(straight, settings):
    """`main.py`, killed at random places: in steps, in evaluations and while saving.

    It starts anew the first and the last time and is a fork of this process in between, which is quicker.
    """
    choose = random.Random(20)
    run = Path(settings["output_dir"]) / "five kills"
    # The first one lives until it has saved something; an epoch has about 50 such events.
    finished = run_main(
        *flags({**settings, "run_name": run.name}), program=program(f"kill_at({choose.randrange(25, 40)})")
    )
    assert finished.status == -signal.SIGKILL, finished
    steps = [Checkpoints(run / "checkpoints", 1).load_newest().state["step"]]
    for _ in range(4):
        finished = ForkedMain(["--resume", run], partial(kill_at, choose.randrange(18, 32))).finish()
        assert finished.status == -signal.SIGKILL, finished
        steps.append(Checkpoints(run / "checkpoints", 1).load_newest().state["step"])
    finished = run_main("--resume", run)
    assert (finished.status, finished.err) == (0, "")
    assert f"resuming {run} at step {steps[-1]} of 27" in finished.out
    assert len(set(steps)) >= 3, "the kills were spread over the run"
    assert_same_run(run, straight)
    assert shown_by_tensorboard(run) == shown_by_tensorboard(straight)


@pytest.mark.parametrize(
    "more",
    [
        {"norm_first": False, "ema_decay": 0.9},
        {"norm_first": True, "ema_decay": 0.9, "micro_batch_size": 3},
        {"norm_first": False, "schedule": "plateau", "learning_rate": 1e-7, "warmup_ratio": 0.0},
        {"early_stopping_epochs": 1, "attention_dropout": 0.1, "positions": "learned", "eval_every_steps": 5},
    ],
    ids=[
        "post-LN, EMA",
        "pre-LN, EMA, accumulation",
        "post-LN, plateau",
        "pre-LN, early stopping, evaluation within epochs",
    ],
)
def test_two_kills(settings, more, tmp_path):
    """The same in forks of this process, which is quicker."""
    expected = train(Config(**{**settings, **more}, run_name=f"{tmp_path.name}-straight"))
    if "schedule" in more:
        rates = {rate for _, rate in scalar_series(Path(expected["run"]))["Learning_Rate"]}
        assert len(rates) > 1, "the plateau schedule was at work"
    config = Config(**{**settings, **more}, run_name=tmp_path.name)
    run = Path(config.output_dir) / tmp_path.name
    choose = random.Random(tmp_path.name)
    for number in range(2):
        event = choose.randrange(25, 40) if number == 0 else choose.randrange(3, 45)

        def work(event=event, number=number) -> None:
            kill_at(event)
            train(config) if number == 0 else resume(run, {})

        assert in_child(work) == -signal.SIGKILL
    result = resume(run, {})
    assert result["metrics"] == expected["metrics"]
    assert result["best_step"] == expected["best_step"]
    assert_same_run(run, Path(expected["run"]))


@pytest.mark.slow
@pytest.mark.parametrize(("norm_first", "ema_decay", "first"), [(True, 0.0, 1), (False, 0.9, 2), (True, 0.9, 3)])
def test_a_kill_at_every_event(settings, tmp_path, norm_first, ema_decay, first):
    """Each kind of run takes a third of the events: some minutes in all."""
    more = {"norm_first": norm_first, "ema_decay": ema_decay, "num_epochs": 2}
    expected = Path(train(Config(**{**settings, **more}, run_name=f"{tmp_path.name}-straight"))["run"])
    num_resumed = 0
    for event in range(first, 300, 3):
        config = Config(**{**settings, **more}, run_name=f"{tmp_path.name}-{event}")
        run = Path(config.output_dir) / config.run_name

        def work(event=event, config=config) -> None:
            kill_at(event)
            train(config)

        status = in_child(work)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        if Checkpoints(run / "checkpoints", 1).list():
            resume(run, {})
            assert_same_run(run, expected)
            num_resumed += 1
        shutil.rmtree(run)
    assert status == 0
    assert num_resumed > 15


# -- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_saves_and_the_printed_command_goes_on(straight, settings, number, status):
    folder = Path(settings["output_dir"]) / "my runs"
    arguments = flags({**settings, "output_dir": folder, "run_name": f"run {number}"})
    process = ForkedMain(arguments, lambda: slow_steps(0.05))
    process.wait_for("step 13 begins")
    process.send_signal(number)
    found, out, err = process.finish()
    assert (found, err) == (status, "")
    (stopped,) = (line for line in out.splitlines() if line.startswith("stopped; "))
    interpreter, script, *command = shlex.split(stopped.removeprefix("stopped; go on with: "))
    assert (interpreter, script) == ("python", "main.py")
    run = folder / f"run {number}"
    assert command == ["--resume", str(run)]
    step = Checkpoints(run / "checkpoints", 1).load_newest().state["step"]
    assert step in (14, 15), "the step was finished, and no more than that"

    finished = call_main(*command)
    assert (finished.status, finished.err) == (0, "")
    assert f"resuming {run} at step {step} of 27" in finished.out.splitlines()
    # Another checkpoint was made on the way; the last ones are the same again.
    assert_same_run(run, straight)


@pytest.mark.timing
def test_a_second_ctrl_c_ends_at_once(settings):
    process = ForkedMain(flags({**settings, "run_name": "impatient"}), lambda: slow_steps(60))
    process.wait_for("step 0 begins")
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.is_running(), "the first one lets the step finish"
    process.send_signal(signal.SIGINT)
    asked_at = time.monotonic()
    assert process.finish() == (130, "", "")
    assert time.monotonic() - asked_at < 1.0


def test_ctrl_c_of_main_py_itself(settings):
    """The same from the shell's side: a new process, and nothing on stderr."""
    run = Path(settings["output_dir"]) / "main itself"
    process = start_main(*flags({**settings, "run_name": run.name}), program=program("slow_steps(0.1)"))
    while not process.stdout.readline().startswith("step 3 begins"):
        pass
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "")
    assert out.splitlines()[-1] == f"stopped; go on with: python main.py --resume '{run}'"


@pytest.mark.parametrize("where", ["prepare", "evaluate"])
def test_ctrl_c_outside_of_the_loop_is_one_line(settings, where):
    """While the data is prepared, and in the last evaluation; both may take minutes."""
    from him.tasks.squad.task import SquadTask

    evaluate = SquadTask.evaluate

    def wait(*args, **kwargs) -> None:
        print("now", flush=True)
        time.sleep(60)

    def hook() -> None:
        if where == "prepare":
            SquadTask.prepare = wait
        else:
            SquadTask.evaluate = lambda *a, **more: (wait if more.get("final") else evaluate)(*a, **more)

    run = Path(settings["output_dir"]) / f"ctrl-c in {where}"
    process = ForkedMain(flags({**settings, "num_epochs": 1, "run_name": run.name}), hook)
    process.wait_for("now")
    process.send_signal(signal.SIGINT)
    finished = process.finish()
    if where == "prepare":
        assert finished == (130, "", "main.py: stopped\n")
        assert not run.exists()
    else:
        stopped = f"stopped; go on with: python main.py --resume '{run}'"
        assert (finished.status, finished.out.splitlines()[-1], finished.err) == (130, stopped, "")
        assert "F1" in resume(run, {})["metrics"]


# -- no space --------------------------------------------------------------------------------------------------------


def limit_file_size(size: int, steps: range) -> None:
    """No file may grow beyond a size in these steps: 2 kB stop records, 20 kB weights, 200 kB optimizer state."""
    import resource

    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]

    def limit(step: int) -> None:
        if step in (steps.start, steps.stop):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size if step == steps.start else hard, hard))

    before_steps(limit)


@pytest.mark.parametrize("size", [2_000, 20_000, 200_000])
def test_training_goes_on_while_the_disk_is_full(straight, settings, size):
    """From step 10 to step 21, over an evaluation; then there is room again."""
    name = f"full for a while at {size}"
    finished = ForkedMain(flags({**settings, "run_name": name}), lambda: limit_file_size(size, range(10, 21))).finish()
    run = Path(settings["output_dir"]) / name
    assert (finished.status, finished.err) == (0, "")
    lines = [line for line in finished.out.splitlines() if "no space to write it (" in line]
    assert 1 <= len(lines) <= 2, "the best model and the checkpoint at most, once each"
    for line in lines:
        assert line.startswith("step 12: ")
        assert " MB needed, " in line
        assert line.endswith(
            " MB free); make room; what was saved before is unharmed; training goes on and tries again"
        )
    assert "step 24: saved, there is room again" in finished.out
    assert_same_run(run, straight)


@pytest.mark.parametrize("size", [2_000, 20_000])
def test_a_disk_that_stays_full_harms_nothing(straight, settings, size):
    name = f"full at {size}"
    finished = ForkedMain(
        flags({**settings, "run_name": name}), lambda: limit_file_size(size, range(10, 1000))
    ).finish()
    run = Path(settings["output_dir"]) / name
    assert_one_line(finished, "no space to write it", "go on with --resume", "what was saved before is unharmed")
    checkpoints = Checkpoints(run / "checkpoints", 1)
    assert checkpoints.load_newest().state["step"] == 9
    assert [path.name for path in run.rglob(".*")] == [".lock"]
    finished = call_main("--resume", run)
    assert (finished.status, finished.err) == (0, "")
    assert_same_run(run, straight)


def test_a_disk_that_is_full_for_tensorboard(straight, settings, monkeypatch):
    """For a while; what it should have shown comes later."""
    write, failed = os.write, []

    def full(handle: int, data: bytes) -> int:
        if ".tfevents." in os.readlink(f"/proc/self/fd/{handle}") and b"F1/val" in bytes(data) and len(failed) < 3:
            failed.append(write(handle, data[:100]))
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, data)

    monkeypatch.setattr(os, "write", full)
    run = Path(settings["output_dir"]) / "full for tensorboard"
    finished = call_main(*flags({**settings, "run_name": run.name}))
    assert (finished.status, len(failed)) == (0, 3)
    assert_same_run(run, straight)
    assert shown_by_tensorboard(run) == shown_by_tensorboard(straight)


@pytest.fixture
def small_disk(tmp_path):
    """A disk whose size can be set; only root may have one."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def resize(size: str, *options: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "tmpfs", str(disk)]
        return subprocess.run(command, capture_output=True).returncode == 0

    if not shutil.which("mount") or not resize("1m"):
        pytest.skip("cannot mount a small disk")
    yield disk, lambda size: resize(size, "remount")
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("size", ["40k", "400k", "800k", "1200k"])
def test_a_full_disk(straight, settings, small_disk, size):
    disk, resize = small_disk
    resize(size)
    arguments = flags({**settings, "output_dir": disk, "run_name": "run"})
    finished = call_main(*arguments)
    assert_one_line(finished, "no space" if (disk / "run").exists() else "No space")
    resize("64m")
    if list((disk / "run").glob("checkpoints/step_*")):
        finished = call_main("--resume", disk / "run")
    else:
        shutil.rmtree(disk / "run", ignore_errors=True)
        finished = call_main(*arguments)
    assert (finished.status, finished.err) == (0, ""), finished
    assert_same_run(disk / "run", straight)


# -- changes beside --resume -----------------------------------------------------------------------------------------


@pytest.fixture
def stopped(straight, tmp_path) -> Path:
    """A copy of the straight run as it was after its first checkpoint that is left."""
    run = tmp_path / "stopped"
    shutil.copytree(straight, run)
    newest = sorted((run / "checkpoints").iterdir())[-1]
    shutil.rmtree(newest)
    return run


def test_a_lost_checkpoint_costs_only_time(straight, stopped):
    finished = call_main("--resume", stopped)
    assert finished.status == 0, finished
    assert_same_run(stopped, straight)


def test_a_finished_run_is_evaluated_again(straight, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    (run / "predictions.json").unlink()
    finished = call_main("--resume", run)
    assert finished.status == 0
    assert_same_run(run, straight)


def test_a_longer_budget_is_said_and_kept(stopped):
    finished = call_main("--resume", stopped, "--num_epochs", "4", "--keep_checkpoints", "5")
    assert finished.status == 0, finished
    assert "--num_epochs: 3 → 4" in finished.out.splitlines()
    assert "--keep_checkpoints: 2 → 5" in finished.out.splitlines()
    config = Config.load(stopped / "config.json")
    assert (config.num_epochs, config.keep_checkpoints) == (4, 5)
    assert records(stopped)[-1]["step"] == 36


@pytest.mark.parametrize(
    "change",
    [
        ("--embed_dim", "64"),
        ("--no-norm_first",),
        ("--learning_rate", "0.5"),
        ("--seed", "3"),
        ("--batch_size", "4"),
        ("--precision", "bf16"),
        ("--dataset", "sample"),
    ],
)
def test_what_would_make_it_another_run_is_refused(stopped, change):
    before = tree(stopped)
    finished = call_main("--resume", stopped, *change)
    name = change[0].removeprefix("--").removeprefix("no-")
    assert_one_line(finished, f"--{name} ", "with --resume: the run has", "or start a new run with --init_from")
    assert tree(stopped) == before


def test_all_refused_changes_are_named_together(stopped):
    assert_one_line(call_main("--resume", stopped, "--embed_dim", "64", "--seed", "3"), "--embed_dim 64", "--seed 3")


def test_the_same_value_is_no_change(straight, stopped, settings):
    finished = call_main("--resume", stopped, *flags({**settings, "run_name": "straight"}))
    assert finished.status == 0, finished
    assert "→" not in finished.out.split("resuming")[0]
    assert_same_run(stopped, straight)


def test_a_budget_that_is_spent_before_the_first_evaluation(settings):
    config = Config(**settings, run_name="early")
    run = Path(config.output_dir) / "early"

    def work() -> None:
        before_steps(lambda step: os.kill(os.getpid(), signal.SIGKILL) if step == 5 else None)
        train(config)

    assert in_child(work) == -signal.SIGKILL
    with pytest.raises(ConfigError, match=r"the run is at step 4 of 3 without an evaluation; give it more with"):
        resume(run, {"max_steps": 3})
    assert resume(run, {"max_steps": 5})["best_step"] == 5


def test_another_number_of_threads_is_taken_from_the_checkpoint(settings, straight, tmp_path):
    """Sums come out differently in the last bits with another number of threads."""
    free = {**settings, "num_threads": None}
    torch.set_num_threads(1)
    expected = train(Config(**free, run_name=f"{tmp_path.name}-straight"))
    config = Config(**free, run_name=tmp_path.name)
    run = Path(config.output_dir) / tmp_path.name

    def work() -> None:
        kill_at(30)
        train(config)

    assert in_child(work) == -signal.SIGKILL
    torch.set_num_threads(2)
    try:
        resume(run, {})
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(1)
    assert_same_run(run, Path(expected["run"]))


def test_changed_data_is_refused(stopped, settings, tmp_path):
    """The run would go on with another tokenizer and other batches, and nobody would know."""
    path = Path(settings["train_file"])
    content = path.read_bytes()
    before = tree(stopped)
    document = json.loads(content)
    document["data"][0]["paragraphs"].pop()
    try:
        path.write_text(json.dumps(document))
        finished = call_main("--resume", stopped)
    finally:
        path.write_bytes(content)
    assert_one_line(finished, "other training data; restore the data, or start a new run with --init_from")
    assert tree(stopped) == before


def test_a_best_that_is_being_replaced_is_found(straight, stopped):
    os.rename(stopped / "best", stopped / "best.old")
    assert call_main("--resume", stopped).status == 0
    assert_same_run(stopped, straight)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(straight, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    *_, before, newest = Checkpoints(run / "checkpoints", 1).list()
    path = newest / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    finished = call_main("--resume", run)
    assert (finished.status, finished.err) == (0, "")
    said = f"{path}: damaged, its checksum is another one; it is quarantined as {newest.name}.damaged"
    assert finished.out.splitlines()[:1] == [said]
    assert f"resuming {run} at step {int(before.name[5:])} of 27" in finished.out
    shutil.rmtree(newest.with_name(f"{newest.name}.damaged"))
    assert_same_run(run, straight)


@pytest.mark.parametrize("damage", ["cut", "missing"])
@pytest.mark.parametrize("averaged", [False, True])
def test_a_damaged_best_is_made_again_from_its_checkpoint(straight, settings, tmp_path, damage, averaged):
    run = tmp_path / "run"
    if averaged:
        straight = Path(train(Config(**settings | {"ema_decay": 0.9, "run_name": f"averaged, {damage}"}))["run"])
    shutil.copytree(straight, run)
    if damage == "cut":
        (run / "best" / "model.safetensors").write_bytes(b"")
    else:
        shutil.rmtree(run / "best")
    finished = call_main("--resume", run)
    assert (finished.status, finished.err) == (0, "")
    assert "; it is made again from " in finished.out
    shutil.rmtree(run / "best.damaged", ignore_errors=True)
    assert_same_run(run, straight)


def test_a_damaged_best_without_its_checkpoint_is_refused(straight, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    (run / "best" / "model.safetensors").write_bytes(b"")
    step = json.loads((run / "best" / "metrics.json").read_text())["step"]
    shutil.rmtree(run / "checkpoints" / f"step_{step:08d}")
    before = tree(run)
    assert_one_line(call_main("--resume", run), "best/model.safetensors: damaged", "so is its checkpoint; restore it")
    assert {**tree(run), "x": 0} != before
    assert (run / "best" / "model.safetensors").exists()


@pytest.mark.parametrize("event", [1, 4, 8])
def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(straight, settings, event, tmp_path):
    config = Config(**settings, run_name=tmp_path.name)
    run = Path(config.output_dir) / config.run_name

    def work() -> None:
        kill_at(event)
        train(config)

    assert in_child(work) == -signal.SIGKILL
    if not run.exists():
        train(config)
    else:
        finished = call_main("--resume", run)
        assert (finished.status, finished.err) == (0, "")
        assert f"resuming {run} at step 0 of 27" in finished.out
    assert_same_run(run, straight)


def test_another_machine_is_said_and_has_to_be_allowed(stopped):
    """A thread more, and a checkpoint that another PyTorch wrote."""
    before = tree(stopped)
    finished = call_main("--resume", stopped, "--num_threads", "2")
    try:
        assert_one_line(finished, "num_threads 1 → 2", "add --allow_inexact_resume to go on all the same")
        assert tree(stopped) == before
        finished = call_main("--resume", stopped, "--num_threads", "2", "--allow_inexact_resume")
        assert (finished.status, finished.err) == (0, "")
        assert "resuming on another machine: num_threads 1 → 2; the result may differ" in finished.out
    finally:
        torch.set_num_threads(1)
    assert "allow_inexact" not in (stopped / "config.json").read_text()


@pytest.mark.parametrize("name", ["torch", "device", "hardware", "bf16"])
def test_what_the_bits_depend_on_is_recorded(stopped, name, monkeypatch):
    from him.workflows import resume as workflow

    def other(compute) -> dict:
        return {**describe_environment(compute), name: "another"}

    monkeypatch.setattr(workflow, "describe_environment", other)
    assert_one_line(call_main("--resume", stopped), f"another machine than before ({name} ", " → another)")


def test_two_processes_do_not_write_to_one_run(settings):
    run = Path(settings["output_dir"]) / "shared"
    process = ForkedMain(flags({**settings, "run_name": run.name}), lambda: slow_steps(0.2))
    process.wait_for("step 2 begins")
    assert_one_line(call_main("--resume", run), "another process writes to this run; wait for it, or stop it")
    process.send_signal(signal.SIGINT)
    assert process.finish().status == 130


@pytest.mark.timing
def test_a_signal_in_an_evaluation_puts_it_off(straight, settings):
    """It may take minutes: nothing of it is kept, and the resumed run makes it anew."""
    from him.tasks.squad.task import SquadTask

    def hook() -> None:
        evaluate = SquadTask.evaluate

        def wait(*args, **kwargs):
            print("evaluating", flush=True)
            time.sleep(0.5)
            return evaluate(*args, **kwargs)

        SquadTask.evaluate = wait

    run = Path(settings["output_dir"]) / "cut evaluation"
    process = ForkedMain(flags({**settings, "run_name": run.name}), hook)
    for _ in range(2):
        process.wait_for("evaluating")
    asked_at = time.monotonic()
    process.send_signal(signal.SIGTERM)
    finished = process.finish()
    assert (finished.status, finished.err) == (143, "")
    assert time.monotonic() - asked_at < 0.45
    checkpoint = Checkpoints(run / "checkpoints", 1).load_newest()
    assert (checkpoint.step, checkpoint.state["loop"]["evaluation_due"]) == (18, True)
    assert call_main("--resume", run).status == 0
    assert_same_run(run, straight)


def test_data_that_moved_can_be_named(straight, stopped, settings, tmp_path):
    moved = {name: str(shutil.copy(settings[name], tmp_path)) for name in ("train_file", "validation_file")}
    finished = call_main("--resume", stopped, *flags(moved))
    assert (finished.status, finished.err) == (0, "")
    assert_same_run(stopped, straight)


def test_changed_validation_data_is_refused(stopped, settings, tmp_path):
    document = json.loads(Path(settings["validation_file"]).read_text())
    document["data"][0]["paragraphs"].pop()
    (tmp_path / "other.json").write_text(json.dumps(document))
    before = tree(stopped)
    finished = call_main("--resume", stopped, "--validation_file", tmp_path / "other.json")
    assert_one_line(finished, "other validation data, by which its best model was chosen; restore the data")
    assert tree(stopped) == before


def test_a_budget_that_was_changed_by_hand_is_said(stopped):
    config = json.loads((stopped / "config.json").read_text())
    (stopped / "config.json").write_text(json.dumps({**config, "num_epochs": 4}))
    finished = call_main("--resume", stopped)
    assert finished.status == 0
    assert "config.json: --num_epochs 3 → 4 since the checkpoint was made" in finished.out.splitlines()


def test_a_damaged_record_costs_no_other_one(straight, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join([*lines[:5], b"?" + lines[5], *lines[6:]]))
    damaged = (run / "metrics.jsonl").read_bytes()
    finished = call_main("--resume", run)
    assert finished.status == 0
    assert "1 damaged lines are left out; the file as it was is metrics.jsonl.damaged" in finished.out
    assert (run / "metrics.jsonl").read_bytes() == b"".join([*lines[:5], *lines[6:]])
    assert (run / "metrics.jsonl.damaged").read_bytes() == damaged


@pytest.mark.parametrize("kind", ["squad", "summarization", "lm"])
def test_a_damaged_cache_is_made_again(settings, writing, kind):
    """One flipped bit in each of its files; nobody would know what was trained on."""
    settings = settings if kind == "squad" else writing[kind]
    more = {"num_epochs": 1, "compress": False}
    expected = Path(train(Config(**{**settings, **more}, run_name="whole cache"))["run"])
    for number, path in enumerate(sorted(Path(settings["cache_dir"]).rglob("*"))):
        if path.is_file() and path.stat().st_size > 8 and number % 4 == 0:
            content = bytearray(path.read_bytes())
            content[len(content) * 3 // 5] ^= 2
            path.write_bytes(content)
    again = Path(train(Config(**{**settings, **more}, run_name="damaged cache"))["run"])
    assert_same_run(again, expected)


def test_one_run_at_a_time_in_a_process(settings, monkeypatch):
    from him.training.trainer import Trainer

    seen = []

    def train_step(trainer: Trainer) -> None:
        with pytest.raises(ConfigError, match="another run trains in this process; train this one after it"):
            train(Config(**settings, run_name="second"))
        seen.append(trainer.state.step)
        raise HimError("enough")

    monkeypatch.setattr(Trainer, "train_step", train_step)
    with pytest.raises(HimError, match="enough"):
        train(Config(**settings, run_name="first of two"))
    assert seen == [0]


@pytest.mark.parametrize("kind", ["missing", "empty", "file", "strange"])
def test_what_is_no_run_is_refused_and_left_alone(tmp_path, kind):
    folder = tmp_path / "folder"
    if kind == "file":
        folder.write_text("?")
    elif kind != "missing":
        folder.mkdir()
    if kind == "strange":  # a folder of somebody else that happens to have such names
        for name in ("best", "best.old", ".best-of-all", "checkpoints", "checkpoints/.step_1"):
            (folder / name).mkdir()
            (folder / name / "dear.txt").write_text("?")
    before = tree(tmp_path)
    said = "no such folder; name a run" if kind in ("missing", "file") else "no run there (it has no config.json)"
    assert_one_line(call_main("--resume", folder), said)
    assert tree(tmp_path) == before


def test_in_python_a_signal_is_an_exception(settings, monkeypatch):
    from him.training.trainer import Trainer

    original = Trainer.train_step

    def train_step(trainer: Trainer) -> None:
        if trainer.state.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        original(trainer)

    monkeypatch.setattr(Trainer, "train_step", train_step)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted, match="stopped by signal 15") as raised:
        train(Config(**settings, run_name="in python"))
    assert not isinstance(raised.value, HimError)
    assert raised.value.signal == signal.SIGTERM
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert Checkpoints(raised.value.folder / "checkpoints", 1).load_newest().state["step"] == 3


def test_weights_differ_from_step_to_step(straight):
    """Or equal weights at the end would prove nothing."""
    first, *_, last = (
        load_tensors(path / "model.safetensors") for path in Checkpoints(straight / "checkpoints", 1).list()
    )
    assert any(not torch.equal(first[name], last[name]) for name in first)


# -- tasks that write text ---------------------------------------------------------------------------------------------

# 6 steps an epoch. Sampling, so that the samples at each evaluation depend on the generator too.
SHORT = {"batch_size": 8, "num_epochs": 3, "save_every_steps": 4, "word_dropout": 0.1, "dropout": 0.1}
WRITING = {
    "summarization, muon": ("summarization", {"optimizer": "muon", "eval_every_steps": 5}),
    "summarization, EMA, sampling": (
        "summarization",
        {"ema_decay": 0.9, "num_beams": 1, "temperature": 1.0, "norm_first": False, "conv_kernel_size": 3},
    ),
    "lm, muon": ("lm", {"optimizer": "muon", "eval_stride": 16, "micro_batch_size": 3}),
    "lm, sampling, accumulation": ("lm", {"temperature": 1.0, "ema_decay": 0.9, "norm_first": False}),
}


@pytest.fixture(scope="module")
def writing(tmp_path_factory) -> dict[str, dict]:
    made = {}
    for kind, num_train in (("summarization", 44), ("lm", 26)):
        made[kind] = writing_settings(kind, tmp_path_factory.mktemp(kind), num_train, 6) | SHORT
    made["lm"] |= {"max_seq_len": 96}
    return made


@pytest.mark.parametrize("name", WRITING)
def test_kills_of_tasks_that_write_text(writing, tmp_path, name):
    """Killed at several moments, in steps, evaluations and saves; lm draws its windows anew at each step."""
    kind, more = WRITING[name]
    config = Config(**{**writing[kind], **more, "output_dir": str(tmp_path)}, run_name="run")
    expected = train(dataclasses.replace(config, run_name="straight"))
    straight, run = Path(expected["run"]), tmp_path / "run"
    assert len(scalar_series(straight)["Loss/val"]) >= 3
    assert json.loads((straight / "predictions.json").read_text())
    choose = random.Random(name)
    events = [choose.randrange(25, 40), *(choose.randrange(3, 40) for _ in range(2))]
    for number, event in enumerate(events):

        def work(event=event, number=number) -> None:
            kill_at(event)
            train(config) if number == 0 else resume(run, {})

        assert in_child(work) == -signal.SIGKILL
    result = resume(run, {})
    assert (result["metrics"], result["best_step"]) == (expected["metrics"], expected["best_step"])
    assert_same_run(run, straight)
    shown = shown_by_tensorboard(run)
    assert shown == shown_by_tensorboard(straight)
    assert len(shown["Samples/val/text_summary"]) == len(shown["Loss/val"])


def shown_by_tensorboard(run: Path) -> dict[str, list[tuple[int, bytes]]]:
    """Everything in the event files as TensorBoard's pages load it, by tag, but for the speed.

    They do not use `event_accumulator`, which `scalar_series` reads: there a first resume hid what was lost, and on the
    pages it stayed beside what came in its place.
    """
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"tensors": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["tensors"] if not tag.startswith(("Throughput", "_hparams_"))]
    return {tag: [(e.step, e.tensor_proto.SerializeToString()) for e in events.Tensors(tag)] for tag in tags}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITING)
def test_a_kill_at_every_event_of_tasks_that_write_text(writing, tmp_path, name):
    kind, more = WRITING[name]
    more = {**more, "num_epochs": 2, "output_dir": str(tmp_path)}
    expected = Path(train(Config(**{**writing[kind], **more}, run_name="straight"))["run"])
    num_resumed = 0
    for event in range(2, 300, 3):
        config = Config(**{**writing[kind], **more}, run_name="run")

        def work(event=event, config=config) -> None:
            kill_at(event)
            train(config)

        if (status := in_child(work)) == 0:
            break
        assert status == -signal.SIGKILL
        if Checkpoints(tmp_path / "run" / "checkpoints", 1).list():
            resume(tmp_path / "run", {})
            assert_same_run(tmp_path / "run", expected)
            num_resumed += 1
        shutil.rmtree(tmp_path / "run")
    assert status == 0
    assert num_resumed > 10


@pytest.fixture(scope="module")
def finished_writers(writing) -> dict[str, Path]:
    return {kind: Path(train(Config(**settings, run_name="run"))["run"]) for kind, settings in writing.items()}


@pytest.fixture(params=["summarization", "lm"])
def stopped_writer(request, finished_writers, tmp_path) -> Path:
    run = tmp_path / "stopped"
    shutil.copytree(finished_writers[request.param], run)
    shutil.rmtree(sorted((run / "checkpoints").iterdir())[-1])
    return run


def test_a_writer_goes_on_from_an_older_checkpoint(finished_writers, stopped_writer):
    finished = call_main("--resume", stopped_writer)
    assert (finished.status, finished.err) == (0, "")
    assert_same_run(stopped_writer, finished_writers[Config.load(stopped_writer / "config.json").task_type])


def test_a_changed_corpus_is_refused(writing, finished_writers, tmp_path):
    """The same number of tokens and so of windows: only their content tells the corpora apart."""
    run = tmp_path / "run"
    shutil.copytree(finished_writers["lm"], run)
    before = tree(run)
    path = sorted(Path(writing["lm"]["corpus_dir"]).rglob("*.txt"))[0]
    content = path.read_text(encoding="utf-8")
    try:
        path.write_text(content.replace("the ", "eht "), encoding="utf-8")
        assert_one_line(call_main("--resume", run), "other training data; restore the data, or start a new run with")
        path.rename(path.with_suffix(".gone"))
        assert_one_line(call_main("--resume", run), "other training data; restore the data")
    finally:
        path.with_suffix(".gone").unlink(missing_ok=True)
        path.write_text(content, encoding="utf-8")
    assert tree(run) == before
    assert call_main("--resume", run).status == 0


def test_changed_pairs_are_refused(writing, finished_writers, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_writers["summarization"], run)
    before = tree(run)
    path = Path(writing["summarization"]["train_file"])
    content = path.read_text(encoding="utf-8")
    lines = content.splitlines(keepends=True)
    try:
        for changed in (lines[1:], lines[::-1], [lines[0].replace("water", "stone"), *lines[1:]]):
            path.write_text("".join(changed), encoding="utf-8")
            assert_one_line(call_main("--resume", run), "other training data; restore the data, or start a new run")
    finally:
        path.write_text(content, encoding="utf-8")
    assert tree(run) == before


@pytest.mark.parametrize(
    "change",
    [
        ("--num_beams", "3"),
        ("--eval_samples", "0"),
        ("--optimizer", "muon"),
        ("--max_seq_len", "80"),
        ("--dropout", "0"),
    ],
)
def test_changes_of_a_writer_are_refused(stopped_writer, change):
    before = tree(stopped_writer)
    finished = call_main("--resume", stopped_writer, *change)
    assert_one_line(finished, f"{change[0]} ", "with --resume: the run has", "or start a new run with --init_from")
    assert tree(stopped_writer) == before
