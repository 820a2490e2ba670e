"""Uses a trained run: `python scripts/predict.py RUN`; `--help` lists the flags."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # `import evaluate` shall not find scripts/evaluate.py

from him.cli.main import run_shim  # noqa: E402

if __name__ == "__main__":
    sys.exit(run_shim("predict", "scripts/predict.py"))
