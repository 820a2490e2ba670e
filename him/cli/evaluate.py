"""`him evaluate` and `scripts/evaluate.py`: measures a trained run on a file of its task's format."""

from collections.abc import Sequence
from pathlib import Path

from him.cli.command import Program, metric_table, print_json, use_parser
from him.cli.parser import Parser, add_settings, given_settings
from him.config.options import with_role
from him.core.errors import ConfigError

DESCRIPTION = """\
Measures a trained run on a file of its task's format: `{line} RUN --file FILE`.
"""

# How texts are written, and how a file is read and measured; samples are drawn with the run's own seed.
SETTINGS = tuple(name for name in with_role("decoding", "records", "evaluation") if name != "seed")


def build_parser(program: Program) -> Parser:
    """The flags."""
    parser = use_parser(program, DESCRIPTION)
    parser.add_argument("--file", required=True, help="SQuAD JSON; JSONL, CSV or Parquet with summaries; text for lm")
    parser.add_argument("--output", help="also write the predictions there (squad: in the official format)")
    add_settings(parser, SETTINGS)
    return parser


def run(argv: Sequence[str], program: Program) -> None:
    """Runs the command; see `him.cli.main`."""
    arguments = build_parser(program).parse_args(argv)
    from him.workflows.predict import load

    changes = given_settings(arguments, SETTINGS)
    # What the run was validated on was its own choice; this file is measured whole if nothing else is said.
    changes.setdefault("validation_size", None)
    predictor = load(
        arguments.run, arguments.stage, device=arguments.device, num_threads=arguments.num_threads, **changes
    )
    if arguments.output is not None and not Path(arguments.output).parent.is_dir():
        raise ConfigError(f"--output {arguments.output}: there is no such folder; make it first")
    evaluation = predictor.evaluate(arguments.file)
    if arguments.output is not None:
        from him.core.files import write_json

        if not evaluation.predictions:
            raise ConfigError("--output with --eval_samples 0: nothing was written; leave one of them out")
        write_json(Path(arguments.output), evaluation.predictions["predictions.json"])
    if arguments.json:
        print_json({"run": arguments.run, "file": arguments.file, "metrics": evaluation.metrics})
    else:
        print(metric_table(evaluation.metrics))
