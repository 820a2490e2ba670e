"""Prunes, fine-tunes and quantizes the best model of a finished run, and measures what it brought.

python scripts/compress.py RUN --pruning_amount 0.5            in the place of the earlier result
python scripts/compress.py RUN --sweep 0 0.2 0.4 0.6           how size, speed and quality go together
"""

import argparse
import shlex
import sys
from contextlib import redirect_stdout
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from him.cli.command import print_json, run_command  # noqa: E402
from him.cli.parser import Parser, add_settings  # noqa: E402
from him.config.options import with_role  # noqa: E402

SETTINGS = with_role("compression")
# Where the data and what is recorded are now, and the machine.
PLACES = tuple(name for name in with_role("data", "report", "cache") if name in with_role("path"))
MOVED = (*PLACES, *with_role("machine"))


def build_parser() -> Parser:
    """The flags."""
    parser = Parser("compress.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of the run, such as runs/NAME")
    add_settings(parser.add_argument_group("what is done, where it differs from the run's settings"), SETTINGS)
    add_settings(parser.add_argument_group("data that moved, and the machine"), MOVED)
    parser.add_argument("--sweep", nargs="+", metavar="P", help="compress once for each of these pruning amounts")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object and nothing else")
    return parser


def main() -> int:
    arguments = build_parser().parse_args()
    changes = {name: getattr(arguments, name) for name in (*SETTINGS, *MOVED) if hasattr(arguments, name)}

    from him.training.trainer import Interrupted
    from him.workflows.compress import compress_run, sweep

    try:
        with redirect_stdout(sys.stderr if arguments.json else sys.stdout):  # what is said on the way
            if arguments.sweep is not None:
                report = sweep(arguments.run, changes, arguments.sweep)
            else:
                report = compress_run(arguments.run, changes)
    except Interrupted as interrupted:
        print(f"stopped; go on with: {shlex.join(['python', *sys.argv])}", file=sys.stderr, flush=True)
        return 128 + interrupted.signal
    if arguments.json:
        print_json(report)
        return 0
    print(report["table"])
    print(report["summary"])
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, "compress.py"))
