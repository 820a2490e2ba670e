"""Measures a trained run on a file of its task's format: `python scripts/evaluate.py RUN --file FILE`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from him.command_line import metric_table, print_json, run_command, use_parser  # noqa: E402


def main() -> None:
    parser = use_parser("evaluate.py", __doc__)
    parser.add_argument("--file", required=True, help="data with answers, in SQuAD JSON")
    parser.add_argument("--output", help="also write the predictions there, in the official format")
    arguments = parser.parse_args()

    from him.predict import load

    predictor = load(arguments.run, device=arguments.device, num_threads=arguments.num_threads)
    evaluation = predictor.evaluate(arguments.file)
    if arguments.output is not None:
        from him.training.files import write_json

        write_json(Path(arguments.output), evaluation.predictions["predictions.json"])
    if arguments.json:
        print_json({"run": arguments.run, "file": arguments.file, "metrics": evaluation.metrics})
    else:
        print(metric_table(evaluation.metrics))


if __name__ == "__main__":
    sys.exit(run_command(main, "evaluate.py"))
