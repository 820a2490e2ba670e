"""`him predict` and `scripts/predict.py`: uses a trained run."""

import sys
from collections.abc import Sequence
from dataclasses import asdict

from him.cli.command import Program, print_json, use_parser
from him.cli.parser import Parser, add_settings, given_settings
from him.config.options import with_role
from him.core.errors import ConfigError

DESCRIPTION = """\
Uses a trained run.

{line} RUN --question "Who ...?" --context "..."     a squad run answers
{line} RUN --text "..."                              summarizes, or continues a text
{line} RUN --file FILE [--json]                      all of a file of the task's format
{line} RUN --example                                 on built-in data
{line} RUN                                           asks at the terminal
"""

INPUTS = ("question", "context", "text")


def build_parser(program: Program) -> Parser:
    """The flags."""
    parser = use_parser(program, DESCRIPTION)
    parser.add_argument("--question", help="squad: a question")
    parser.add_argument("--context", help="squad: the text that answers it")
    parser.add_argument("--text", help="a document to summarize, or a text to go on with")
    parser.add_argument("--file", help="squad: SQuAD JSON; summarization: JSONL, CSV or Parquet; lm: text or JSONL")
    parser.add_argument("--example", action="store_true", help="an example of the built-in data")
    add_settings(parser.add_argument_group("generating text"), with_role("decoding"))
    add_settings(parser, with_role("records"))
    return parser


def run(argv: Sequence[str], program: Program) -> None:
    """Runs the command; see `him.cli.main`."""
    arguments = build_parser(program).parse_args(argv)
    given = {name: getattr(arguments, name) for name in INPUTS if getattr(arguments, name) is not None}
    if (given != {}) + (arguments.file is not None) + arguments.example > 1:
        raise ConfigError("--file, --example and a text of one's own are three ways; use one of them")

    from him.workflows.predict import load

    changes = given_settings(arguments, with_role("decoding", "records"))
    where = {"device": arguments.device, "num_threads": arguments.num_threads}
    predictor = load(arguments.run, arguments.stage, **where, **changes)
    wanted = predictor.task.inputs
    if given and set(given) != set(wanted):
        taken = " and ".join(f"--{name}" for name in wanted)
        raise ConfigError(f"{arguments.run} is a {predictor.task.name} run, which takes {taken}; give just that")
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


def show(predictor, inputs: dict[str, str], as_json: bool) -> None:
    """Prints the answer to one input, as it is made where that can be."""
    if as_json:
        print_json(asdict(predictor.predict(**inputs)))
        return
    pieces = predictor.stream(**inputs)
    if pieces is None:
        print(f"→ {predictor.task.line(predictor.predict(**inputs))}")
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
