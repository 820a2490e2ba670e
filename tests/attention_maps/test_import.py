"""What importing the package costs."""

import subprocess
import sys
from pathlib import Path


def test_import_is_cheap_and_silent():
    """Start-up: `main.py --help` must not pay for matplotlib, and a task that imports `AttentionExample` neither."""
    heavy = ("matplotlib", "seaborn", "PIL", "torch")
    code = f"import him.attention_maps, sys; print([m for m in {heavy} if m in sys.modules])"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "[]" and done.stderr == ""
