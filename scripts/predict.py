"""Answers questions with a trained run.

python scripts/predict.py RUN --question "Who ...?" --context "..."
python scripts/predict.py RUN --file questions.json        all questions of a file in SQuAD JSON
python scripts/predict.py RUN                              asks for a context and questions
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from him.command_line import print_json, run_command, use_parser  # noqa: E402
from him.errors import ConfigError  # noqa: E402


def build_parser() -> argparse.ArgumentParser:
    parser = use_parser("predict.py", __doc__)
    parser.add_argument("--question", help="a question; needs --context")
    parser.add_argument("--context", help="the text that the answer is a part of")
    parser.add_argument("--file", help="questions in SQuAD JSON; answers in it are not needed")
    parser.add_argument("--example", action="store_true", help="a question of the built-in data")
    return parser


def main() -> None:
    arguments = build_parser().parse_args()
    if (arguments.question is None) != (arguments.context is None):
        raise ConfigError("--question and --context belong together; give both, or --file FILE, or none to be asked")

    from him.predict import load

    predictor = load(arguments.run, device=arguments.device, num_threads=arguments.num_threads)
    if arguments.file is not None:
        answers = predictor.predict_file(arguments.file)
        if arguments.json:
            print_json({id: asdict(answer) for id, answer in answers.items()})
        else:
            for id, answer in answers.items():
                print(f"{id}\t{_line(answer)}")
    elif arguments.question is not None:
        _show(predictor.predict(question=arguments.question, context=arguments.context), arguments.json)
    elif arguments.example:
        question, context = predictor.task.example_inputs().values()
        print(f"{context}\n\n{question}")
        _show(predictor.predict(question=question, context=context), arguments.json)
    else:
        _ask(predictor)


def _ask(predictor) -> None:
    """Reads a context and questions about it from the terminal until an empty line or the end of the input."""
    if not (context := _read("context: ")):
        return
    while question := _read("question: "):
        _show(predictor.predict(question=question, context=context), as_json=False)


def _read(prompt: str) -> str:
    try:
        return input(prompt if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""


def _show(answer, as_json: bool) -> None:
    if as_json:
        print_json(asdict(answer))
    else:
        print(f"→ {_line(answer)}")


def _line(answer) -> str:
    said = answer.text if answer.answerable else f"no answer, or at best: {answer.text}"
    return (
        f"{said}  (score {answer.score:.3f}, characters {answer.start} to {answer.end}, "
        f"no answer {answer.no_answer_probability:.3f})"
    )


if __name__ == "__main__":
    sys.exit(run_command(main, "predict.py"))
