"""Trains a model: `python main.py --task_type squad`; `python main.py --help` lists the flags."""

import sys

from him.cli.main import run_shim

if __name__ == "__main__":
    sys.exit(run_shim("train", "main.py"))
