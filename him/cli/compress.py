"""`him compress` and `scripts/compress.py`: prunes, fine-tunes and quantizes a finished run."""

import shlex
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

from him.cli.command import Program, command_parser, print_json
from him.cli.parser import Parser, add_settings, given_settings
from him.config.options import with_role

DESCRIPTION = """\
Prunes, fine-tunes and quantizes the best model of a finished run, and measures what it brought.

{line} RUN --pruning_amount 0.5            in the place of the earlier result
{line} RUN --sweep 0 0.2 0.4 0.6           how size, speed and quality go together
"""

SETTINGS = with_role("compression")
# Where the data and what is recorded are now, and the machine.
PLACES = tuple(name for name in with_role("data", "report", "cache") if name in with_role("path"))
MOVED = (*PLACES, *with_role("machine"))


def build_parser(program: Program) -> Parser:
    """The flags."""
    parser = command_parser(program, DESCRIPTION)
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of the run, such as runs/NAME")
    add_settings(parser.add_argument_group("what is done, where it differs from the run's settings"), SETTINGS)
    add_settings(parser.add_argument_group("data that moved, and the machine"), MOVED)
    parser.add_argument("--sweep", nargs="+", metavar="P", help="compress once for each of these pruning amounts")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object and nothing else")
    return parser


def run(argv: Sequence[str], program: Program) -> int:
    """Runs the command; see `him.cli.main`."""
    arguments = build_parser(program).parse_args(argv)
    changes = given_settings(arguments, (*SETTINGS, *MOVED))

    from him.training.trainer import Interrupted
    from him.workflows.compress import compress_run, sweep

    try:
        with redirect_stdout(sys.stderr if arguments.json else sys.stdout):  # what is said on the way
            amounts = arguments.sweep
            report = compress_run(arguments.run, changes) if amounts is None else sweep(arguments.run, changes, amounts)
    except Interrupted as interrupted:
        print(f"stopped; go on with: {shlex.join(['python', *sys.argv])}", file=sys.stderr, flush=True)
        return 128 + interrupted.signal
    if arguments.json:
        print_json(report)
    else:
        print(report["table"], report["summary"], sep="\n")
    return 0
