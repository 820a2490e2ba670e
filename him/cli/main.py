"""The commands of HIM by name, and the ways to them: `him NAME`, `python -m him NAME`, `main.py` and `scripts/NAME.py`.

Nothing heavy is imported here, and a command's module only when it is called: `--help` is quick, and from the first
moment on a signal ends the process quietly.
"""

import importlib
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from him.core.signals import exit_at_once, send_to

# Each is a module of him/cli with a function `run(arguments, program)`.
COMMANDS = {
    "train": "trains a model",
    "resume": "goes on with an interrupted run, exactly",
    "predict": "uses a trained run",
    "evaluate": "measures a trained run on a file of its task's format",
    "compress": "prunes, fine-tunes and quantizes a finished run",
    "export": "writes a trained run in a form that other programs open",
    "verify": "checks that a run is whole and repeatable",
    "compare": "draws the curves of several runs into one picture",
}


def main() -> int:
    """The entry point `him`, also of `python -m him`; returns the exit status."""
    send_to(exit_at_once)  # until `run_command` listens: nothing is lost yet
    typed = "him" if Path(sys.argv[0]).stem == "him" else "python -m him"
    name, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("", [])
    if name in ("-h", "--help"):
        print(_overview(typed))
        return 0
    sys.argv[:1] = ["-m", "him"]  # a run's command.txt and hints repeat `python` and these
    if name not in COMMANDS:
        from him.cli.command import run_command

        return run_command(partial(_refuse, name), "him")
    return run_as(name, arguments, f"him {name}", f"{typed} {name}")


def run_shim(name: str, path: str) -> int:
    """Runs a command under the name of the script that was called, and returns the exit status.

    Args:
        name: a key of `COMMANDS`.
        path: of the script as one types it after `python`, such as scripts/predict.py.
    """
    send_to(exit_at_once)  # until `run_command` listens: nothing is lost yet
    return run_as(name, sys.argv[1:], Path(path).name, f"python {path}")


def run_as(name: str, arguments: Sequence[str], prog: str, line: str) -> int:
    """Runs a command, and returns the exit status; see `him.cli.command.run_command`.

    Args:
        name: a key of `COMMANDS`.
        arguments: what follows its name.
        prog, line: see `him.cli.command.Program`.
    """
    from him.cli.command import Program, run_command

    command = importlib.import_module(f"him.cli.{name}")
    return run_command(partial(command.run, arguments, Program(prog, line)), prog)


def _overview(typed: str) -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join([f"usage: {typed} COMMAND ...", "", *lines, "", f"{typed} COMMAND --help lists its flags"])


def _refuse(name: str) -> None:
    from difflib import get_close_matches

    from him.core.errors import ConfigError

    if not name:
        raise ConfigError(f"no command; use {', '.join(COMMANDS)}, or see --help")
    meant = get_close_matches(name, COMMANDS, 1)
    hint = f"did you mean {meant[0]}?" if meant else f"use {', '.join(COMMANDS)}"
    raise ConfigError(f"{name}: no such command; {hint}")
