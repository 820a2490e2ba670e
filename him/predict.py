"""A finished run as something that answers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from him.compute import choose_compute, keep_freed_memory
from him.config import Config
from him.errors import CheckpointError
from him.tasks import task_class
from him.tasks.base import Evaluation
from him.training.checkpoint import load_weights
from him.training.files import find_folder


class Predictor:
    """The best model of a run, with its task and on its device.

    Args:
        run: folder of the run, or of a model.
        changes: settings to change for the use, such as `device` or `num_threads`.

    Raises:
        CheckpointError: there is no finished model, or it is damaged.
    """

    def __init__(self, run: str | Path, **changes: Any) -> None:
        folder = Path(run)
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: no such run; name its folder, such as runs/NAME")
        best = find_folder(folder / "best")
        if not best.is_dir():
            best = folder
        if not (best / "model.safetensors").is_file():
            raise CheckpointError(f"{folder}: no finished model there; train the run first, or go on with --resume")
        config = Config.load(best / "config.json")
        self.config = Config(**{**config.to_dict(), **changes})
        self.compute = choose_compute(self.config)
        keep_freed_memory()
        self.task = task_class(self.config.task_type).restore(self.config, best)
        self.model = self.task.build_model()
        load_weights(self.model, best)
        self.model.to(self.compute.device).eval()

    def predict(self, **inputs: Any) -> Any:
        """Answers one input: `question` and `context` for squad, `text` for summarization and lm."""
        return self.task.predict(self.model, self.compute, **inputs)

    def stream(self, **inputs: Any) -> Iterator[str] | None:
        """Answers one input piece by piece, or None where that cannot be (see `Task.stream`)."""
        return self.task.stream(self.model, self.compute, **inputs)

    def predict_file(self, path: str) -> dict[str, Any]:
        """Answers by id for a file of the task's format."""
        return self.task.predict_file(self.model, self.compute, path)

    def evaluate(self, path: str) -> Evaluation:
        """Metrics, by TensorBoard tag without `/val`, and predictions on a file of the task's format."""
        return self.task.evaluate_file(self.model, self.compute, path)


def load(run: str | Path, **changes: Any) -> Predictor:
    """Loads the best model of a run: `load("runs/NAME").predict(question=..., context=...)`."""
    return Predictor(run, **changes)
