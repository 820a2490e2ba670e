"""Measures a trained run on a file of its task's format: `python scripts/evaluate.py RUN --file FILE`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from him.cli.command import metric_table, print_json, run_command, use_parser  # noqa: E402
from him.cli.parser import add_settings  # noqa: E402
from him.config.options import with_role  # noqa: E402
from him.core.errors import ConfigError  # noqa: E402

# How texts are written, and how a file is read and measured; samples are drawn with the run's own seed.
SETTINGS = tuple(name for name in with_role("decoding", "records", "evaluation") if name != "seed")


def main() -> None:
    parser = use_parser("evaluate.py", __doc__)
    parser.add_argument("--file", required=True, help="SQuAD JSON; JSONL, CSV or Parquet with summaries; text for lm")
    parser.add_argument("--output", help="also write the predictions there (squad: in the official format)")
    add_settings(parser, SETTINGS)
    arguments = parser.parse_args()

    from him.workflows.predict import load

    changes = {name: getattr(arguments, name) for name in SETTINGS if hasattr(arguments, name)}
    # What the run was validated on was its own choice; this file is measured whole if nothing else is said.
    changes.setdefault("validation_size", None)
    where = {"device": arguments.device, "num_threads": arguments.num_threads}
    predictor = load(arguments.run, arguments.stage, **where, **changes)
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


if __name__ == "__main__":
    sys.exit(run_command(main, "evaluate.py"))
