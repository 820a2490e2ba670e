"""The model of an earlier run, to begin from or to learn from."""

from pathlib import Path

from him.compression.quantization import DESCRIPTION
from him.config import Config
from him.core.errors import CheckpointError
from him.core.files import find_folder
from him.runs.untrusted import check_files


def find_model(flag: str, name: str, task_type: str) -> Path:
    """Folder of the model that a flag names: a run's best one, or one of another stage such as RUN/compressed/pruned.

    Args:
        flag: for messages, such as `--init_from`.
        name: of the run or model folder.
        task_type: that it has to be of.

    Raises:
        CheckpointError: it holds no model, or one of another task.
    """
    best = find_folder(Path(name) / "best")
    if not best.is_dir() and (Path(name) / "model.safetensors").is_file():
        best = Path(name)
    if not best.is_dir():
        raise CheckpointError(f"{flag} {name}: no finished model there (no folder best); name a run")
    if (best / DESCRIPTION).is_file():
        raise CheckpointError(f"{flag} {name}: an int8 model cannot be trained, nor teach; name another stage")
    check_files(best)
    found = Config.load(best / "config.json").task_type
    if found != task_type:
        raise CheckpointError(
            f"{flag} {name}: a {found} model, and --task_type is {task_type}; name a run of {task_type}"
        )
    return best
