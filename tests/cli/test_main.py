"""The commands by name, and that `main.py` and the scripts are no more than ways to them."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from him.cli.command import Program
from him.cli.main import COMMANDS
from him.config import Config
from him.training.trainer import Interrupted
from tests.small_runs import ROOT, Finished, assert_one_line, flags, small_settings

SHIMS = {"main.py": "train"} | {
    f"scripts/{name}.py": name for name in ("predict", "evaluate", "compress", "export", "verify", "compare")
}
# What each command's --help must name, beside -h.
SHOWN = {
    "train": ("--dataset", "--resume", "--embed_dim"),
    "resume": ("RUN", "--allow_inexact_resume", "--num_epochs"),
    "predict": ("RUN", "--stage", "--question", "--context", "--text", "--file", "--example", "--json", "--num_beams"),
    "evaluate": ("RUN", "--stage", "--file", "--output", "--json", "--eval_samples"),
    "compress": ("RUN", "--pruning_amount", "--sweep", "--json"),
    "export": ("RUN", "--format", "--stage", "--output", "--file", "--json"),
    "verify": ("RUN", "--no-replay", "--json"),
    "compare": ("RUN", "--tags", "--labels", "--output", "--json"),
}


def call(*arguments: str | Path, program: tuple[str, ...] = ("-m", "him")) -> Finished:
    """`python -m him ...` or `python SCRIPT ...` in a process of its own."""
    finished = subprocess.run(
        [sys.executable, *program, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "100", "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return Finished(finished.returncode, finished.stdout, finished.stderr)


def test_all_commands_are_listed():
    assert set(COMMANDS) == set(SHOWN)
    finished = call("--help")
    assert (finished.status, finished.err) == (0, "")
    for name, what in COMMANDS.items():
        assert f"  {name} " in finished.out
        assert what in finished.out


@pytest.mark.parametrize("name", SHOWN)
def test_help_of_a_command(name):
    """It says `him`, not the name of a script, and loads no PyTorch."""
    code = (
        f"import sys; sys.argv = ['/usr/bin/him', {name!r}, '--help']\nfrom him.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    print(stop.code, 'torch' in sys.modules, file=sys.stderr)"
    )
    finished = call(program=("-c", code))
    assert finished.err == "0 False\n"
    assert finished.out.startswith(f"usage: him {name} ")
    assert ".py" not in finished.out.split("options:")[0]
    for flag in SHOWN[name]:
        assert flag in finished.out, flag


@pytest.mark.parametrize("script", SHIMS)
def test_a_script_has_the_help_of_its_command(script):
    """But for its own name, in usage and examples."""
    theirs, ours = call("--help", program=(script,)), call(SHIMS[script], "--help")
    assert (theirs.status, theirs.err) == (0, "")
    start = "options:"
    assert theirs.out[theirs.out.index(start) :] == ours.out[ours.out.index(start) :]
    assert theirs.out.startswith(f"usage: {Path(script).name} ")
    assert f"python {script} " in theirs.out.split(start)[0]
    assert f"python -m him {SHIMS[script]} " in ours.out.split(start)[0]


@pytest.mark.parametrize("script", SHIMS)
def test_a_script_is_a_few_lines(script):
    assert len((ROOT / script).read_text(encoding="utf-8").splitlines()) <= 12


@pytest.mark.parametrize("script", [each for each in SHIMS if each != "main.py"])
def test_packages_are_not_taken_for_scripts(script):
    """Python puts the script's folder first: `import evaluate`, as a library does, would run scripts/evaluate.py."""
    code = (
        f"import importlib.util, runpy, sys; sys.path[0] = 'scripts'; sys.argv = [{script!r}, '--help']\n"
        f"try:\n    runpy.run_path({script!r}, run_name='__main__')\n"
        "except SystemExit:\n    spec = importlib.util.find_spec('evaluate')\n"
        "    print(spec is not None and 'scripts' in spec.origin, file=sys.stderr)"
    )
    assert call(program=("-c", code)).err == "False\n"


@pytest.mark.parametrize(
    ("arguments", "prog", "parts"),
    [
        ([], "him", ("no command; use train, resume, predict,",)),
        (["evalute"], "him", ("evalute: no such command; did you mean evaluate?",)),
        (["--nothing"], "him", ("--nothing: no such command; use train, ",)),
        (["train", "--embed_dim", "250"], "him train", ("--embed_dim 250 is not divisible by --num_heads 8",)),
        (["resume"], "him resume", ("the run comes first, as in python -m him resume runs/NAME",)),
        (["resume", "--num_epochs", "3"], "him resume", ("the run comes first",)),
        (["resume", "nowhere"], "him resume", ("nowhere",)),
        (["predict", "nowhere", "--question", "Who?"], "him predict", ("nowhere: no such run",)),
        (["compress"], "him compress", ("the following arguments are required: RUN",)),
    ],
)
def test_what_is_wrong_is_told_in_a_line(arguments, prog, parts):
    assert_one_line(call(*arguments), *parts, prog=prog)


def test_a_run_by_name(tmp_path):
    """Trained by `him train`, gone on with by `him resume`; its folder tells how it was started."""
    settings = small_settings(tmp_path) | {"run_name": "run", "num_epochs": 1, "max_steps": 1}
    trained = call("train", *flags(settings))
    assert (trained.status, trained.err) == (0, "")
    run = tmp_path / "runs" / "run"
    assert (run / "command.txt").read_text().startswith("python -m him train --embed_dim 32 ")
    resumed = call("resume", run, "--max_steps", 2)
    assert (resumed.status, resumed.err) == (0, "")
    assert f"resuming {run} at step 1 of 2" in resumed.out
    assert Config.load(run / "config.json").max_steps == 2


def test_help_of_resume_is_its_own():
    """Also behind the run."""
    for arguments in (["--help"], ["runs/x", "--help"]):
        command = [sys.executable, "-m", "him", "resume", *arguments]
        said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
        assert "resume RUN [flags]" in said and "resume runs/NAME --num_epochs 20" in said
        assert "--dataset sample " not in said


@pytest.mark.parametrize(
    ("command", "arguments", "hint"),
    [
        ("resume", ["runs/x"], "him resume runs/x"),
        ("train", ["--resume", "runs/x"], "him train --resume runs/x"),
    ],
)
def test_the_hint_after_a_signal_can_be_typed(monkeypatch, capsys, command, arguments, hint):
    def stop(*_: object) -> None:
        raise Interrupted(2, Path("runs/x"))

    monkeypatch.setattr("him.workflows.resume.resume", stop)
    module = importlib.import_module(f"him.cli.{command}")
    assert module.run(arguments, Program(f"him {command}", f"him {command}")) == 130
    assert capsys.readouterr().out == f"stopped; go on with: {hint}\n"
