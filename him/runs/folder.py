"""The folder of a run: what is where in it. Nothing else in HIM knows these names."""

from dataclasses import dataclass
from pathlib import Path

from him.core.files import find_folder


@dataclass(frozen=True)
class RunFolder:
    """A run on the disk.

    Attributes:
        path: `runs/NAME`.
    """

    path: Path

    @property
    def name(self) -> str:
        """Of the run."""
        return self.path.name

    @property
    def config(self) -> Path:
        """All settings."""
        return self.path / "config.json"

    @property
    def command(self) -> Path:
        """The command that started it."""
        return self.path / "command.txt"

    @property
    def metrics(self) -> Path:
        """The curves, a JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of what an interrupted run goes on from."""
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        """Folder of the best model, as it is written; `find_best` also finds it in the middle of being replaced."""
        return self.path / "best"

    def find_best(self) -> Path:
        """Folder of the best model, to read from."""
        return find_folder(self.best)

    @property
    def compressed(self) -> Path:
        """Folder of the smaller models and their report, as it is written."""
        return self.path / "compressed"

    def find_compressed(self) -> Path:
        """Folder of the smaller models, to read from."""
        return find_folder(self.compressed)

    @property
    def sweep(self) -> Path:
        """Folder of the models of several pruning amounts."""
        return self.path / "sweep"

    @property
    def predictions(self) -> Path:
        """Predictions of the best model on the validation data, written when training has ended."""
        return self.path / "predictions.json"

    @property
    def pretraining(self) -> "RunFolder":
        """The pretraining, a run within the run."""
        return RunFolder(self.path / "pretraining")
