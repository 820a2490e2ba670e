"""`him train` and `main.py`: trains a model, or goes on with an interrupted run."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from him.cli import parser
from him.cli.command import Program, metric_table
from him.config import Config
from him.config.resolve import resolve
from him.runs.folder import read_earlier

DESCRIPTION = """\
HIM trains a small transformer encoder from scratch, shows whether it learns and why not,
and hands over a small, fast model.

  {line} --dataset sample                                  the built-in data, no network
  {line} --train_file train.json --validation_file dev.json
  {line} --resume runs/NAME                                go on with an interrupted run
"""


def build_parser(
    program: Program, task: str | None, description: str = DESCRIPTION, usage: str | None = None
) -> parser.Parser:
    """The flags, with the defaults of a task; `{line}` in the description becomes what one types."""
    made = parser.build_parser(description.format(line=program.line), task)
    made.prog, made.usage = program.prog, usage
    return made


def run(arguments: Sequence[str], program: Program, resume_flag: str = " --resume") -> int:
    """Runs the command; see `him.cli.main`.

    Args:
        resume_flag: what stands between the command and the run in the line that goes on with a run.
    """
    settings, folder, allow_inexact = parser.parse_command_line(
        build_parser(program, parser.named_task(arguments)), arguments
    )
    config = None
    if folder is None:
        config = Config(**settings)
        config = resolve(config, read_earlier(config.init_from))

    from him.training.trainer import Interrupted  # PyTorch is loaded only when the flags are sound
    from him.workflows.resume import resume
    from him.workflows.train import train

    try:
        result = train(config, show) if config is not None else resume(Path(folder), settings, show, allow_inexact)
    except Interrupted as interrupted:
        print(f"stopped; go on with: {program.line}{resume_flag} {shlex.quote(str(interrupted.folder))}", flush=True)
        return 128 + interrupted.signal
    if "compression" in result:
        print(result["compression"]["table"], result["compression"]["summary"], sep="\n")
    return 0


def show(result: dict[str, Any]) -> None:
    """Prints what the training brought."""
    print(f"best model: {result['run']}/best, of epoch {result['best_epoch']:g}")
    print(metric_table(result["metrics"]))
    print(f"trained in {result['train_seconds']:.0f} s at {result['tokens_per_second']:,.0f} tokens/s", flush=True)
