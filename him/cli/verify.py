"""`him verify` and `scripts/verify.py`: checks that a run is whole and repeatable."""

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path

from him.cli.command import Program, command_parser, print_json
from him.cli.parser import Parser

DESCRIPTION = """\
Checks that a run is whole and repeatable: `{line} RUN`.

Compares every file of its checkpoints and models with its checksum, looks for numbers that are not finite, then makes
the last steps again from the checkpoint before the newest one and says whether the bits agree. Exit status 1: something
is not as it should be. Nothing in the run is changed.
"""


def build_parser(program: Program) -> Parser:
    """The flags."""
    parser = command_parser(program, DESCRIPTION)
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of the run, such as runs/NAME")
    parser.add_argument("--no-replay", action="store_true", help="only check the files")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return parser


def run(argv: Sequence[str], program: Program) -> int:
    """Runs the command; see `him.cli.main`."""
    arguments = build_parser(program).parse_args(argv)
    from him.workflows.verify import replay, verify_files

    findings = []
    with redirect_stdout(sys.stderr if arguments.json else sys.stdout):  # what is said on the way
        for finding in verify_files(arguments.run):
            findings.append(finding)
            print(f"{'good' if finding.is_good else 'BAD '}  {finding.what}: {finding.note}", flush=True)
        if not arguments.no_replay and all(finding.is_good for finding in findings):
            findings.append(replay(arguments.run))
            print(f"{'good' if findings[-1].is_good else 'BAD '}  {findings[-1].what}: {findings[-1].note}", flush=True)
    is_good = all(finding.is_good for finding in findings)
    if arguments.json:
        print_json({"run": str(arguments.run), "good": is_good, "findings": [asdict(each) for each in findings]})
    return 0 if is_good else 1
