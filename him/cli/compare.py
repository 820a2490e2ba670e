"""`him compare` and `scripts/compare.py`: draws the curves of several runs into one picture."""

from collections.abc import Sequence
from pathlib import Path

from him.cli.command import Program, command_parser, print_json
from him.cli.parser import Parser
from him.core.errors import ConfigError
from him.workflows.compare import draw_curves, read_curve, usual_tags

DESCRIPTION = """\
Draws the curves of several runs into one picture, and prints their last values.

{line} runs/pre_ln runs/post_ln --tags F1/val Loss/train --output curves.png
"""


def build_parser(program: Program) -> Parser:
    """The flags."""
    parser = command_parser(program, DESCRIPTION)
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="folders of the runs")
    parser.add_argument("--tags", nargs="+", help="TensorBoard tags [the task's main metric and Loss/val]")
    parser.add_argument("--labels", nargs="+", help="names in the legend, one a run")
    parser.add_argument("--output", type=Path, default=Path("curves.png"), help="the picture [curves.png]")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return parser


def run(argv: Sequence[str], program: Program) -> None:
    """Runs the command; see `him.cli.main`."""
    arguments = build_parser(program).parse_args(argv)
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
