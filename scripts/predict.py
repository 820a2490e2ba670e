"""Uses a trained run.

python scripts/predict.py RUN --question "Who ...?" --context "..."     a squad run answers
python scripts/predict.py RUN --text "..."                              summarizes, or continues a text
python scripts/predict.py RUN --file FILE [--json]                      all of a file of the task's format
python scripts/predict.py RUN --example                                 on built-in data
python scripts/predict.py RUN                                           asks at the terminal
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from him.cli.command import print_json, run_command, use_parser  # noqa: E402
from him.cli.parser import Parser, add_settings  # noqa: E402
from him.config.options import with_role  # noqa: E402
from him.core.errors import ConfigError  # noqa: E402

INPUTS = ("question", "context", "text")


def build_parser() -> Parser:
    """The flags."""
    parser = use_parser("predict.py", __doc__)
    parser.add_argument("--question", help="squad: a question")
    parser.add_argument("--context", help="squad: the text that answers it")
    parser.add_argument("--text", help="a document to summarize, or a text to go on with")
    parser.add_argument("--file", help="squad: SQuAD JSON; summarization: JSONL, CSV or Parquet; lm: text or JSONL")
    parser.add_argument("--example", action="store_true", help="an example of the built-in data")
    add_settings(parser.add_argument_group("generating text"), with_role("decoding"))
    add_settings(parser, with_role("records"))
    return parser


def main() -> None:
    parser = build_parser()
    arguments = parser.parse_args()
    given = {name: getattr(arguments, name) for name in INPUTS if getattr(arguments, name) is not None}
    if (given != {}) + (arguments.file is not None) + arguments.example > 1:
        raise ConfigError("--file, --example and a text of one's own are three ways; use one of them")

    from him.workflows.predict import load

    where = {"device": arguments.device, "num_threads": arguments.num_threads}
    predictor = load(arguments.run, arguments.stage, **where, **changes(arguments))
    wanted = predictor.task.inputs
    if given and set(given) != set(wanted):
        flags = " and ".join(f"--{name}" for name in wanted)
        raise ConfigError(f"{arguments.run} is a {predictor.task.name} run, which takes {flags}; give just that")
    if arguments.file is not None:
        answers = predictor.predict_file(arguments.file)
        if arguments.json:
            print_json({id: asdict(answer) for id, answer in answers.items()})
        else:
            for id, answer in answers.items():
                print(f"{id}\t{' '.join(predictor.task.line(answer).split())}")
    elif given:
        show(predictor, given, arguments.json)
    elif arguments.example:
        example = predictor.task.example_inputs()
        if not arguments.json:
            print("\n\n".join(reversed(example.values())))
        show(predictor, example, arguments.json)
    else:
        ask(predictor)


def changes(arguments: argparse.Namespace) -> dict[str, str]:
    """The settings that were given."""
    names = with_role("decoding", "records")
    return {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}


def show(predictor, inputs: dict[str, str], as_json: bool) -> None:
    """Prints the answer to one input, as it is made where that can be."""
    if as_json:
        print_json(asdict(predictor.predict(**inputs)))
        return
    pieces = predictor.stream(**inputs)
    if pieces is None:
        line = predictor.task.line(predictor.predict(**inputs))
        print(f"→ {line}")
        return
    print("→ ", end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def ask(predictor) -> None:
    """Reads inputs from the terminal until an empty line or the end of the input; what is read once stays."""
    *once, often = sorted(predictor.task.inputs)
    given = {}
    for name in once:
        given[name] = read(f"{name}: ")
        if not given[name]:
            return
    while text := read(f"{often}: "):
        show(predictor, {**given, often: text}, as_json=False)


def read(prompt: str) -> str:
    """A line from the terminal."""
    try:
        return input(prompt if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""


if __name__ == "__main__":
    sys.exit(run_command(main, "predict.py"))
