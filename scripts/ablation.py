"""Why does a model not learn? Trains the steps from one that does not to one that does, for several seeds.

python scripts/ablation.py --train_file data/train.json --validation_file data/validation.json --seeds 0 1 2 \\
    --extra_files wiki.json reddit.json amazon.json --init_from MINILM

One run after the other, in folders OUTPUT_DIR/STEP-SEED; after each, OUTPUT_DIR/ablation.md, .json and .png are written
anew. The same command goes on where it was stopped, and trains nothing twice.
"""

import argparse
import shlex
import sys
from contextlib import redirect_stdout
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # `import evaluate` shall not find scripts/evaluate.py

from him.cli.command import print_json, run_command  # noqa: E402
from him.cli.parser import Parser  # noqa: E402


def build_parser() -> Parser:
    """The flags."""
    parser = Parser("ablation.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_file", nargs="+", required=True, metavar="FILE", help="SQuAD JSON")
    parser.add_argument("--validation_file", required=True, metavar="FILE", help="SQuAD JSON")
    parser.add_argument("--extra_files", nargs="+", default=(), metavar="FILE", help="more to train on, from 6_data on")
    parser.add_argument("--init_from", metavar="FOLDER", help="a pretrained BERT encoder, for 7_warm_start")
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=(0,), metavar="N", help="each step is trained for each [0]"
    )
    parser.add_argument("--output_dir", type=Path, default=Path("runs/ablation"), help="of the runs [runs/ablation]")
    parser.add_argument(
        "--configs", type=Path, default=ROOT / "configs" / "ablation", help="folder of the steps [configs/ablation]"
    )
    parser.add_argument("--only", nargs="+", default=(), metavar="STEP", help="train, and report on, these only")
    parser.add_argument("--num_threads", type=int, help="CPU threads")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object and nothing else")
    return parser


def main() -> int:
    arguments = vars(build_parser().parse_args())
    as_json = arguments.pop("json")

    from him.training.trainer import Interrupted
    from scripts.experiments.ablation import Ablation, run_ablation

    try:
        with redirect_stdout(sys.stderr if as_json else sys.stdout):  # what is said on the way
            report = run_ablation(Ablation(**arguments))
    except Interrupted as interrupted:
        print(f"stopped; go on with: {shlex.join(['python', *sys.argv])}", file=sys.stderr, flush=True)
        return 128 + interrupted.signal
    if as_json:
        print_json(report)
        return 0
    print(report["table"])
    print(f"picture: {report['picture']}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, "ablation.py"))
