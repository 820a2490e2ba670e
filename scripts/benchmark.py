"""Times HIM against what one would otherwise use, on this machine, in turn and in equal conditions.

python scripts/benchmark.py train --num_threads 2
python scripts/benchmark.py train --train_file train.json --contestants plain him --rounds 5
python scripts/benchmark.py features --train_file train.json
"""

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from him.benchmark.turn import CONTESTANTS  # noqa: E402
from him.command_line import print_json, run_command  # noqa: E402
from him.config import Config  # noqa: E402
from him.errors import ConfigError  # noqa: E402
from him.flags import Parser, add_settings  # noqa: E402

DATA_FLAGS = ("train_file", "dataset", "sample_size", "tokenizer", "vocab_size", "max_seq_len", "doc_stride", "seed")
MODEL_FLAGS = ("num_encoder_layers", "embed_dim", "num_heads", "dim_feedforward", "batch_size")
MACHINE_FLAGS = ("num_threads", "device", "precision")
OWN_HELP = {
    "dataset": "hub name, or `sample` for the built-in data [sample, without --train_file]",
    "device": "auto, cpu or cuda",
}


def build_parser() -> Parser:
    """Flags of both benchmarks; those that are HIM's own say and mean the same as in `main.py`."""
    parser = Parser("benchmark.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    train = commands.add_parser("train", help="the training step", allow_abbrev=False)
    features = commands.add_parser("features", help="building the features", allow_abbrev=False)
    for command, names in ((train, DATA_FLAGS + MODEL_FLAGS + MACHINE_FLAGS), (features, DATA_FLAGS)):
        add_settings(command, names, OWN_HELP)
        command.add_argument("--rounds", type=count, default=3, metavar="N", help="turns of each [3]")
        command.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    train.add_argument(
        "--contestants", nargs="+", choices=CONTESTANTS, default=CONTESTANTS, help="who takes part [all]"
    )
    for flag, default, text in (
        ("steps", 24, "timed steps of a turn"),
        ("padded_steps", 4, "those of `trainer`, whose steps are all of one shape, and slow"),
        ("warmup_steps", 6, "steps before the clock starts"),
        ("search_steps", 12, "timed steps of each try in the search for the Trainer's best settings"),
    ):
        train.add_argument(f"--{flag}", type=count, default=default, metavar="N", help=f"{text} [{default}]")
    return parser


def count(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return int(text)


def settings_of(arguments: argparse.Namespace) -> Config:
    """HIM's settings among the flags; the built-in sample where no data is named."""
    given = {each.name: getattr(arguments, each.name) for each in fields(Config) if hasattr(arguments, each.name)}
    if "train_file" not in given:
        given.setdefault("dataset", "sample")
    if str(given.get("device", "auto")) not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"--device {given['device']}: the benchmark takes auto, cpu or cuda")
    return Config(**given)


def main() -> None:
    arguments = build_parser().parse_args()
    config = settings_of(arguments)
    result, table = run(arguments, config)
    if arguments.json:
        print_json(result)
    else:
        print(table)


def run(arguments: argparse.Namespace, config: Config) -> tuple[dict[str, Any], str]:
    """The benchmark's result and its table."""
    from him.benchmark.requirements import require_peers

    require_peers()
    if arguments.command == "features":
        from him.benchmark.features import compare_features, features_table

        result = compare_features(config, arguments.rounds)
        return result, features_table(result)
    from him.benchmark.train import Plan, compare_training, training_table

    plan = Plan(**{each.name: getattr(arguments, each.name) for each in fields(Plan)})
    result = compare_training(config, plan)
    return result, training_table(result)


if __name__ == "__main__":
    sys.exit(run_command(main, "benchmark.py"))
