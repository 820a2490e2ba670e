"""`him export` and `scripts/export.py`: writes a trained run in a form that other programs open."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from him.cli.command import Program, command_parser, print_json
from him.cli.parser import Parser
from him.core.errors import ConfigError

DESCRIPTION = """\
Writes a trained run in a form that other programs open.

{line} RUN --format onnx [--file FILE]    ONNX files, float and int8; measured on a file of the task
{line} RUN --format transformers          a folder for AutoModelForQuestionAnswering or ...CausalLM
"""

STAGES = ("trained", "pruned", "fine_tuned")


def build_parser(program: Program) -> Parser:
    """The flags."""
    parser = command_parser(program, DESCRIPTION)
    parser.add_argument("run", metavar="RUN", help="folder of the run, such as runs/NAME")
    parser.add_argument("--format", required=True, choices=("onnx", "transformers"), help="what to write")
    parser.add_argument("--stage", choices=STAGES, default="trained", help="which model of the run [trained]")
    parser.add_argument("--output", metavar="FOLDER", help="folder to write [RUN/export/FORMAT]")
    parser.add_argument("--file", help="onnx: also evaluate on this file of the task's format")
    parser.add_argument("--num_threads", type=int, help="CPU threads")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return parser


def run(argv: Sequence[str], program: Program) -> None:
    """Runs the command; see `him.cli.main`."""
    arguments = build_parser(program).parse_args(argv)
    if arguments.file is not None and arguments.format != "onnx":
        raise ConfigError("--file is for --format onnx; leave it out")

    from him.export.folders import check_output
    from him.runs.untrusted import check_writable
    from him.workflows.predict import load

    predictor = load(arguments.run, arguments.stage, device="cpu", precision="fp32", num_threads=arguments.num_threads)
    if arguments.output is None:
        check_writable(Path(arguments.run))
    shown = arguments.output or Path(arguments.run) / "export" / arguments.format
    output = Path(shown).resolve()
    check_output(output)
    if arguments.format == "onnx":
        from him.export.onnx import export_onnx

        report = export_onnx(predictor, output, arguments.file, arguments.stage)
    else:
        from him.export.transformers import export_transformers

        report = export_transformers(predictor, output, arguments.stage)
    if arguments.json:
        print_json({"run": arguments.run, "output": str(shown), **report})
    else:
        print(f"{shown}: {summary(report)}")


def summary(report: dict[str, Any]) -> str:
    """What was written, for people."""
    if report["format"] == "transformers":
        return (
            f"{report['class']}, {report['file_mb']:.2f} MB, at most {report['max_difference']:.1e} from the trained "
            f"model; open it with transformers.{report['open_with']}.from_pretrained and AutoTokenizer.from_pretrained"
        )
    written = [form for form in report["forms"] if "file" in form]
    files = ", ".join(f"{form['file']} {form['file_mb']:.2f} MB" for form in written)
    return (
        f"{files}, opset {report['opset']}; the first is at most {report['max_difference']:.1e} from the trained "
        f"model; open them with onnxruntime.InferenceSession, see export.json\n{table(report['forms'])}"
    )


def table(forms: list[dict[str, Any]]) -> str:
    """A line for each number, a column for each form."""
    names = [name for name in forms[0] if name != "form"]
    width = max(map(len, names))
    lines = [" " * (width + 2) + "".join(f"{form['form']:>12}" for form in forms)]
    lines += [f"  {name:<{width}}" + "".join(f"{form[name]:12.4f}" for form in forms) for name in names]
    return "\n".join(lines)
