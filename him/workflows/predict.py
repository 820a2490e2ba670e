"""Inference with a finished run: `load` gives a predictor."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from him.config import Config
from him.config.resolve import with_changes
from him.core.compute import choose_compute, keep_freed_memory
from him.core.errors import ConfigError
from him.model.embeddings import hold_in_bf16
from him.runs.folder import TRAINED, ModelFolder, RunFolder
from him.runs.models import load_stage
from him.runs.untrusted import check_files
from him.tasks import task_class
from him.tasks.base import Evaluation, StreamingTask


class Predictor:
    """The best model of a run, with its task and on its device.

    Args:
        run: folder of the run, or of a model.
        stage: whose model: `trained`, `pruned`, `fine_tuned` or `int8`.
        changes: settings to change for the use, such as `device` or `num_threads`.

    Raises:
        CheckpointError: there is no finished model of this stage, or it is damaged.
        ConfigError: there is no stage of this name.
    """

    def __init__(self, run: str | Path, stage: str = TRAINED, **changes: Any) -> None:
        model = _find_model(Path(run), stage)
        check_files(model)
        config = Config.load(ModelFolder(model).config)
        self.config = with_changes(config, changes)
        self.compute = choose_compute(self.config.device, self.config.precision, self.config.num_threads)
        keep_freed_memory()
        self.task = task_class(self.config.task_type).restore(self.config, model)
        self.model = load_stage(self.task, model, self.compute)
        if self.compute.bf16:
            hold_in_bf16(self.model)

    def predict(self, **inputs: Any) -> Any:
        """Answers one input: `question` and `context` for squad, `text` for summarization and lm."""
        return self.task.predict(self.model, self.compute, **inputs)

    def stream(self, **inputs: Any) -> Iterator[str] | None:
        """Answers one input piece by piece, or None where that cannot be (see `StreamingTask.stream`)."""
        return self.task.stream(self.model, self.compute, **inputs) if isinstance(self.task, StreamingTask) else None

    def predict_file(self, path: str) -> dict[str, Any]:
        """Answers by id for a file of the task's format."""
        return self.task.predict_file(self.model, self.compute, path)

    def evaluate(self, path: str) -> Evaluation:
        """Metrics, by TensorBoard tag without `/val`, and predictions on a file of the task's format."""
        return self.task.evaluate_file(self.model, self.compute, path)


def _find_model(folder: Path, stage: str) -> Path:
    """The folder itself if it is a model, or that of a run's stage."""
    if not ModelFolder(folder).is_there:
        RunFolder(folder).check_trained()
        return RunFolder(folder).find_model(stage)
    if stage != TRAINED:
        raise ConfigError(f"{folder} is one model, not a run with stages; leave --stage {stage} out")
    return folder


def load(run: str | Path, stage: str = TRAINED, **changes: Any) -> Predictor:
    """Loads the best model of a run, or of another stage: `load("runs/NAME").predict(question=..., context=...)`."""
    return Predictor(run, stage, **changes)
