"""Trains a model: `python main.py --task_type squad`; `python main.py --help` lists the flags."""

import shlex
import sys
from pathlib import Path
from typing import Any

from him.core.signals import exit_at_once, send_to

if __name__ == "__main__":
    send_to(exit_at_once)  # until `run_command` listens: nothing is lost yet

from him.cli.command import metric_table, run_command  # noqa: E402
from him.cli.parser import build_parser, named_task, parse_command_line  # noqa: E402
from him.config import Config  # noqa: E402
from him.config.earlier import read_earlier  # noqa: E402
from him.config.resolve import resolve  # noqa: E402

DESCRIPTION = """\
HIM trains a small transformer encoder from scratch, shows whether it learns and why not,
and hands over a small, fast model.

  python main.py --dataset sample                                  the built-in data, no network
  python main.py --train_file train.json --validation_file dev.json
  python main.py --resume runs/NAME                                go on with an interrupted run
"""


def main() -> int:
    settings, run, allow_inexact = parse_command_line(build_parser(DESCRIPTION, named_task(sys.argv[1:])), sys.argv[1:])
    config = None
    if run is None:
        config = Config(**settings)
        config = resolve(config, read_earlier(config.init_from))

    from him.training.trainer import Interrupted  # PyTorch is loaded only when the flags are sound
    from him.workflows.train import resume, train

    try:
        result = train(config, show) if config is not None else resume(Path(run), settings, show, allow_inexact)
    except Interrupted as interrupted:
        print(f"stopped; go on with: python main.py --resume {shlex.quote(str(interrupted.folder))}", flush=True)
        return 128 + interrupted.signal
    if "compression" in result:
        print(result["compression"]["table"])
        print(result["compression"]["summary"])
    return 0


def show(result: dict[str, Any]) -> None:
    """Prints what the training brought."""
    print(f"best model: {result['run']}/best, of epoch {result['best_epoch']:g}")
    print(metric_table(result["metrics"]))
    print(f"trained in {result['train_seconds']:.0f} s at {result['tokens_per_second']:,.0f} tokens/s", flush=True)


if __name__ == "__main__":
    sys.exit(run_command(main, "main.py"))
