"""What all command lines share: one line for an expected error, exit status, tables, JSON."""

import argparse
import errno
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from him.cli.parser import Parser
from him.core.errors import HimError
from him.core.files import FAILING, NO_SPACE
from him.core.messages import line_of
from him.core.signals import signal_of, stopping

EXPECTED = (*NO_SPACE, *FAILING, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)


def run_command(command: Callable[[], int | None], prog: str) -> int:
    """Runs a command; what is the input's or the machine's fault becomes one line on stderr. Returns the exit status:
    0, what the command returned, or 2 after an expected error."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")
    threading.excepthook = _report_of_thread
    try:
        with stopping():
            return command() or 0
    except KeyboardInterrupt as stopped:
        print(f"{prog}: stopped", file=sys.stderr)
        return 128 + signal_of(stopped)
    except BrokenPipeError:  # whoever read the output has gone; a run can be gone on with
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except HimError as error:
        message = str(error)
    except OSError as error:
        if error.errno not in EXPECTED:
            raise
        message = f"{error.filename or 'a file'}: {error.strerror}; make room, or name another place"
    print(f"{prog}: error: {line_of(message)}", file=sys.stderr)
    return 2


class Program(NamedTuple):
    """How a command was called.

    Attributes:
        prog: its name in messages, such as predict.py or him predict.
        line: how it is typed, such as python scripts/predict.py or him predict.
    """

    prog: str
    line: str


def command_parser(program: Program, description: str) -> Parser:
    """A parser without flags; `{line}` in the description becomes what one types."""
    form = argparse.RawDescriptionHelpFormatter
    return Parser(program.prog, description=description.format(line=program.line), formatter_class=form)


def use_parser(program: Program, description: str) -> Parser:
    """A parser for a command that uses a finished run: the run, where to compute, and whether to print JSON."""
    parser = command_parser(program, description)
    parser.add_argument("run", metavar="RUN", help="folder of the run, such as runs/NAME")
    parser.add_argument("--stage", default="trained", help="whose model: trained, pruned, fine_tuned or int8 [trained]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--num_threads", type=int, help="CPU threads")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return parser


def _report_of_thread(args: threading.ExceptHookArgs) -> None:
    """Keeps a thread that finds the disk full quiet: TensorBoard's writer hands its error to the main thread too."""
    if not (isinstance(args.exc_value, OSError) and args.exc_value.errno in NO_SPACE):
        threading.__excepthook__(args)


def metric_table(metrics: Mapping[str, float]) -> str:
    """Metrics as lines of name and value."""
    width = max(map(len, metrics), default=0)
    return "\n".join(f"  {name:<{width}}  {value:10.4f}" for name, value in metrics.items())


def print_json(data: Any) -> None:
    """Prints one JSON object."""
    print(json.dumps(data, ensure_ascii=False))
