"""Checks that a run is whole and repeatable: `python scripts/verify.py RUN`.

Compares every file of its checkpoints and models with its checksum, looks for numbers that are not finite, then makes
the last steps again from the checkpoint before the newest one and says whether the bits agree. Exit status 1: something
is not as it should be. Nothing in the run is changed.
"""

import argparse
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from him.cli.command import print_json, run_command  # noqa: E402
from him.cli.parser import Parser  # noqa: E402


def main() -> int:
    parser = Parser("verify.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of the run, such as runs/NAME")
    parser.add_argument("--no-replay", action="store_true", help="only check the files")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    arguments = parser.parse_args()

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


if __name__ == "__main__":
    sys.exit(run_command(main, "verify.py"))
