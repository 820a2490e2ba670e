"""int8 models on the disk: safetensors as of any model, and a description of the numbers beside it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from him.config import Config
from him.core.errors import CheckpointError
from him.model.int8 import FORMAT_VERSION, describe
from him.runs.checkpoint import save_model

DESCRIPTION = "quantization.json"


def save_int8(folder: Path, config: Config, model: nn.Module, task: Any, metrics: Mapping[str, Any]) -> None:
    """Writes what `save_model` writes, and `quantization.json` about the numbers in `model.safetensors`."""
    save_model(folder, config, model, task, metrics, more={DESCRIPTION: describe(model)})


def check_description(folder: Path) -> None:
    """Raises CheckpointError if an int8 model was not written in this format."""
    path = folder / DESCRIPTION
    try:
        version = json.loads(path.read_text(encoding="utf-8"))["format_version"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); make it again with scripts/compress.py") from None
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format {version}, and this HIM reads format {FORMAT_VERSION}; make it again with "
            "scripts/compress.py"
        )
