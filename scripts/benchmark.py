"""Measures HIM against what one would otherwise use, on this machine, in alternating runs and equal conditions.

python scripts/benchmark.py train --num_threads 2
python scripts/benchmark.py train --train_file train.json --systems plain him --rounds 5
python scripts/benchmark.py features --train_file train.json
python scripts/benchmark.py lm --train_file input.txt --num_threads 2
python scripts/benchmark.py generate --num_threads 2
python scripts/benchmark.py ngram runs/NAME
"""

import argparse
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # `import evaluate` shall not find scripts/evaluate.py

from him.cli.command import print_json, run_command  # noqa: E402
from him.cli.parser import Parser, add_settings  # noqa: E402
from him.config.config import Config  # noqa: E402
from him.core.errors import ConfigError  # noqa: E402
from scripts.benchmarks.benchmark_run import SYSTEMS  # noqa: E402
from scripts.benchmarks.generate import GenerationPlan  # noqa: E402
from scripts.benchmarks.lm import LM_SETTINGS, LmPlan  # noqa: E402

DATA_FLAGS = ("train_file", "dataset", "sample_size", "tokenizer", "vocab_size", "max_seq_len", "doc_stride", "seed")
SHAPE_FLAGS = ("num_encoder_layers", "embed_dim", "num_heads", "dim_feedforward")
HIM_FLAGS = ("positions", "conv_kernel_size", "activation")  # the plain models take no notice of them
MACHINE_FLAGS = ("num_threads", "device", "precision")
FLAGS = {
    "train": (*DATA_FLAGS, *SHAPE_FLAGS, "batch_size", *MACHINE_FLAGS),
    "features": DATA_FLAGS,
    "lm": (
        *("train_file", "validation_file", "corpus_dir", "dataset", "tokenizer", "tokenizer_type", "vocab_size"),
        *(*SHAPE_FLAGS, "max_seq_len", "batch_size", "learning_rate", "warmup_ratio", "weight_decay", "beta1", "beta2"),
        *("seed", *HIM_FLAGS, "optimizer", "muon_learning_rate", *MACHINE_FLAGS),
    ),
    "generate": ("task_type", "num_beams", "vocab_size", "seed", *SHAPE_FLAGS, *HIM_FLAGS, *MACHINE_FLAGS),
    "ngram": (),  # all is in the run's config.json
}
# What differs from a run of HIM where nobody says anything.
DEFAULTS = {"lm": LM_SETTINGS, "generate": {"task_type": "lm", "vocab_size": 8192}}
HELP = {
    "train": "the training step of question answering",
    "features": "building the features of question answering",
    "lm": "training a language model; without flags, in nanoGPT's configuration for CPUs",
    "generate": "writing texts with a cache and without",
    "ngram": "a finished run of lm beside n-gram models of the same text, in bits per byte",
}
OWN_HELP = {
    "dataset": "hub name, or `sample` for the built-in data [sample, without --train_file]",
    "device": "auto, cpu or cuda",
    "task_type": "whose model writes: lm or summarization [lm]",
    "num_beams": "hypotheses of beam search; 1 is greedy [1]",
}
COUNTS = {
    "train": {
        "steps": "timed steps of a run",
        "padded_steps": "those of `trainer`, whose steps are all of one shape, and slow",
        "warmup_steps": "steps before the clock starts",
        "search_steps": "timed steps of each try in the search for the Trainer's best settings",
    },
    "features": {},
    "lm": {"steps": "timed steps of a run", "warmup_steps": "steps before the clock starts"},
    "generate": {
        "num_documents": "documents that are continued",
        "prompt_tokens": "tokens of each",
        "max_new_tokens": "new tokens of each",
    },
    "ngram": {},
}


def build_parser() -> Parser:
    """Flags of all benchmarks; those that are HIM's own say and mean the same as in `main.py`."""
    parser = Parser("benchmark.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    defaults = {"train": {"steps": 24, "padded_steps": 4, "warmup_steps": 6, "search_steps": 12}}
    defaults |= {"features": {}, "lm": plan_defaults(LmPlan), "generate": plan_defaults(GenerationPlan)}
    added = {}
    for name, text in HELP.items():
        command = added[name] = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        add_settings(command, FLAGS[name], OWN_HELP)
        if name != "ngram":  # which gives the same each time
            command.add_argument("--rounds", type=count, default=3, metavar="N", help="runs of each [3]")
        command.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
        for flag, meaning in COUNTS[name].items():
            value = defaults[name][flag]
            command.add_argument(f"--{flag}", type=count, default=value, metavar="N", help=f"{meaning} [{value}]")
    added["train"].add_argument(
        "--systems",
        "--contestants",
        nargs="+",
        choices=SYSTEMS,
        default=SYSTEMS,
        help="which are measured: HIM and its baselines [all]",
    )
    steps = defaults["lm"]["train_steps"]
    added["lm"].add_argument(
        "--train_steps",
        type=count_or_none,
        default=steps,
        metavar="N",
        help=f"steps of the training after which the loss is measured; 0 leaves it out [{steps}]",
    )
    added["lm"].add_argument(
        "--him_train_steps",
        type=count,
        metavar="N",
        help="those of HIM, to compare the time to the same loss [as many]",
    )
    added["generate"].add_argument(
        "--batch_size", type=count, metavar="N", help="documents that HIM writes side by side [all]"
    )
    sizes = defaults["generate"]["peer_batch_sizes"]
    added["generate"].add_argument(
        "--peer_batch_sizes",
        type=count,
        nargs="+",
        default=sizes,
        metavar="N",
        help=f"those of the ways without a cache [{' '.join(map(str, sizes))}]",
    )
    added["ngram"].add_argument("run", metavar="RUN", type=Path, help="folder of the run, such as runs/NAME")
    added["ngram"].add_argument(
        "--orders", type=count, nargs="+", default=[2, 3, 5], metavar="N", help="those of the models [2 3 5]"
    )
    return parser


def plan_defaults(plan: type) -> dict[str, Any]:
    """The defaults of a plan's fields, by name."""
    return {each.name: each.default for each in fields(plan) if each.default is not MISSING}


def count(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return int(text)


def count_or_none(text: str) -> int:
    """A whole number, 0 included."""
    return 0 if text == "0" else count(text)


def settings_of(arguments: argparse.Namespace) -> Config:
    """HIM's settings among the flags; the built-in sample where data is needed and none is named."""
    names = FLAGS[arguments.command]
    given = {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}
    if "dataset" in names and not {"train_file", "corpus_dir"} & set(given):
        given.setdefault("dataset", "sample")
    if str(given.get("device", "auto")) not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"--device {given['device']}: the benchmark takes auto, cpu or cuda")
    return Config(**{**DEFAULTS.get(arguments.command, {}), **given})


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
    if arguments.command == "lm":
        from scripts.benchmarks.lm import compare_language_models, language_model_table

        result = compare_language_models(config, plan_of(LmPlan, arguments))
        return result, language_model_table(result)
    if arguments.command == "generate":
        from scripts.benchmarks.generate import compare_generation, generation_table

        result = compare_generation(config, plan_of(GenerationPlan, arguments))
        return result, generation_table(result)
    if arguments.command == "ngram":
        from scripts.benchmarks.ngram import compare_with_ngrams, ngram_table

        result = compare_with_ngrams(arguments.run, arguments.orders)
        return result, ngram_table(result)
    from scripts.benchmarks.requirements import require_peers

    require_peers()
    if arguments.command == "features":
        from scripts.benchmarks.features import compare_features, features_table

        result = compare_features(config, arguments.rounds)
        return result, features_table(result)
    from scripts.benchmarks.train import Plan, compare_training, training_table

    result = compare_training(config, plan_of(Plan, arguments))
    return result, training_table(result)


def plan_of(plan: type, arguments: argparse.Namespace) -> Any:
    """A plan whose fields are the flags of the same names."""
    return plan(**{each.name: getattr(arguments, each.name) for each in fields(plan)})


if __name__ == "__main__":
    sys.exit(run_command(main, "benchmark.py"))
