"""Draws the curves of several runs into one picture, and prints their last values.

python scripts/compare.py runs/pre_ln runs/post_ln --tags F1/val Loss/train --output curves.png
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from him.cli.command import print_json, run_command  # noqa: E402
from him.cli.parser import Parser  # noqa: E402
from him.core.errors import ConfigError  # noqa: E402
from him.workflows.compare import draw_curves, read_curve, usual_tags  # noqa: E402


def main() -> None:
    parser = Parser("compare.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="folders of the runs")
    parser.add_argument("--tags", nargs="+", help="TensorBoard tags [the task's main metric and Loss/val]")
    parser.add_argument("--labels", nargs="+", help="names in the legend, one a run")
    parser.add_argument("--output", type=Path, default=Path("curves.png"), help="the picture [curves.png]")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    arguments = parser.parse_args()
    labels = arguments.labels or [run.name for run in arguments.runs]
    if len(labels) != len(arguments.runs):
        raise ConfigError(f"--labels: {len(labels)} names for {len(arguments.runs)} runs; give one a run")
    tags = arguments.tags or usual_tags(arguments.runs[0])
    draw_curves(arguments.runs, labels, tags, arguments.output)
    last = {
        label: {tag: read_curve(run, tag)[1][-1] for tag in tags}
        for label, run in zip(labels, arguments.runs, strict=True)
    }
    if arguments.json:
        print_json({"picture": str(arguments.output), "last": last})
        return
    for label, values in last.items():
        print(f"{label:<24}" + "  ".join(f"{tag} {value:.4g}" for tag, value in values.items()))
    print(f"picture: {arguments.output}")


if __name__ == "__main__":
    sys.exit(run_command(main, "compare.py"))
