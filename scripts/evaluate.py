"""Measures a trained run on a file of its task's format: `python scripts/evaluate.py RUN --file FILE`."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # `import evaluate` shall not find scripts/evaluate.py

from him.cli.main import run_shim  # noqa: E402

if __name__ == "__main__":
    sys.exit(run_shim("evaluate", "scripts/evaluate.py"))
