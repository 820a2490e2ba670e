"""The folder of a run: what is where in it, how it is made, found and locked. Nothing else in HIM knows these names.

runs/NAME/
├── config.json, command.txt    settings, and the command that started it
├── metrics.jsonl               the curves, also in TensorBoard's files beside it
├── checkpoints/                what an interrupted run goes on from
├── best/                       the best model, a `ModelFolder`
├── predictions.json            of the best model on the validation data
├── pretraining/                a run within the run
├── compressed/                 the smaller models, a `CompressionFolder`
└── sweep/AMOUNT/               the same for each of several pruning amounts
"""

import shlex
import shutil
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from him.config.bert import BertEncoder, is_bert, read_bert
from him.config.config import Config
from him.core.errors import CheckpointError, ConfigError
from him.core.files import add_folder, cannot_write, find_folder, locked, remove_leftovers, replace_folder

TRAINED, PRUNED, FINE_TUNED, INT8 = STAGES = ("trained", "pruned", "fine_tuned", "int8")
_BEST, _COMPRESSED, _SWEEP = "best", "compressed", "sweep"


def _below(name: str, doc: str) -> Any:
    """A property: the path of a file or folder of this name."""
    return property(lambda folder: folder.path / name, doc=doc)


@dataclass(frozen=True)
class ModelFolder:
    """A model on the disk that can be used: weights, settings, metrics and the files of its task.

    Attributes:
        path: such as `runs/NAME/best`.
    """

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    config = _below("config.json", "The settings it was made with.")
    weights = _below("model.safetensors", "The weights.")
    metrics = _below("metrics.json", "Its metrics on the validation data, and the step it is of.")
    tokenizer = _below("tokenizer.json", "The tokenizer.")

    @property
    def is_there(self) -> bool:
        """Whether there are weights."""
        return self.weights.is_file()

    @property
    def is_compressed(self) -> bool:
        """Whether it is of a stage after training, by where it is."""
        if self.path.name == _BEST:
            return self.path.parent.name == FINE_TUNED
        return bool({_COMPRESSED, _SWEEP} & {parent.name for parent in list(self.path.parents)[:2]})


@dataclass(frozen=True)
class CompressionFolder:
    """The smaller models of a run and their report.

    While it is being made it is `NAME.part`, which takes the place of NAME at the end.

    Attributes:
        path: `runs/NAME/compressed` or `runs/NAME/sweep/AMOUNT`.
    """

    path: Path

    report = _below("report.json", "Settings, stages and measurements as JSON.")
    picture = _below("report.png", "The same as a picture.")
    progress = _below("progress.json", "Which stages are done; gone when all are.")

    @property
    def part(self) -> "CompressionFolder":
        """Where it is made."""
        return CompressionFolder(self.path.with_name(f"{self.path.name}.part"))

    @property
    def fine_tuning(self) -> "RunFolder":
        """The training after pruning, a run within the run."""
        return RunFolder(self.path / FINE_TUNED)

    def find(self) -> "CompressionFolder":
        """The same, to read from: also while it is being replaced."""
        return CompressionFolder(find_folder(self.path))

    def model(self, stage: str) -> Path:
        """Where the model of a stage after training is."""
        return self.fine_tuning.best if stage == FINE_TUNED else self.path / stage

    def remove_leftovers(self) -> None:
        """Removes what a kill between the last renames has left beside a finished report."""
        remove_leftovers(self.path)
        if self.report.is_file():
            self.progress.unlink(missing_ok=True)

    def put_in_place(self) -> None:
        """Puts `part`, whose report is written, in the place of what is there."""
        replace_folder(self.path, self.part.path)
        self.remove_leftovers()


@dataclass(frozen=True)
class RunFolder:
    """A run on the disk.

    Attributes:
        path: `runs/NAME`.
    """

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """Of the run."""
        return self.path.name

    config = _below("config.json", "All settings.")
    command = _below("command.txt", "The command that started it.")
    metrics = _below("metrics.jsonl", "The curves, a JSON object a line.")
    checkpoints = _below("checkpoints", "Folder of what an interrupted run goes on from.")
    # As it is written; `find_best` also finds it in the middle of being replaced.
    best = _below(_BEST, "Folder of the best model.")
    # Written when training has ended.
    predictions = _below("predictions.json", "Predictions of the best model on the validation data.")
    sweep = _below(_SWEEP, "Folder of the models of several pruning amounts.")
    sweep_report = _below(f"{_SWEEP}/sweep.json", "Size, speed and quality by pruning amount.")
    sweep_picture = _below(f"{_SWEEP}/sweep.png", "The same as a picture.")

    def find_best(self) -> Path:
        """Folder of the best model, to read from."""
        return find_folder(self.best)

    @property
    def pretraining(self) -> "RunFolder":
        """The pretraining, a run within the run."""
        return RunFolder(self.path / "pretraining")

    @property
    def compressed(self) -> CompressionFolder:
        """The smaller models and their report."""
        return CompressionFolder(self.path / _COMPRESSED)

    def at_amount(self, amount: float) -> CompressionFolder:
        """The smaller models of one pruning amount of a sweep."""
        return CompressionFolder(self.sweep / f"{amount:g}")

    def compressions(self) -> list[CompressionFolder]:
        """All that there may be, to read from: of the run itself, then of the amounts of its sweep."""
        return [self.compressed.find(), *(CompressionFolder(path) for path in sorted(self.sweep.glob("*")))]

    def quarantined(self) -> list[Path]:
        """What was found damaged and put out of the way; see `him.core.files.quarantine`."""
        return sorted([*self.path.glob("*.damaged"), *self.checkpoints.glob("*.damaged")])

    def model(self, stage: str) -> Path:
        """Where the model of a stage is, to read from."""
        return self.find_best() if stage == TRAINED else self.compressed.find().model(stage)

    def check_begun(self, flag: str = "") -> None:
        """Sees to it that a run was begun here; `flag` names it in messages, such as `--resume `. Raises
        CheckpointError: there is no such folder, or no run in it."""
        if flag and not self.path.is_dir():
            raise CheckpointError(f"{flag}{self}: no such folder; name a run, such as runs/NAME")
        if not self.config.is_file():
            raise CheckpointError(f"{flag}{self}: no run there (it has no config.json); name a run, such as runs/NAME")

    def check_trained(self) -> None:
        """Sees to it that the run has a model. Raises CheckpointError: there is no such folder, or no model in it
        yet."""
        if not self.path.is_dir():
            raise CheckpointError(f"{self}: no such run; name its folder, such as runs/NAME")
        if not ModelFolder(self.find_best()).is_there:
            raise CheckpointError(f"{self}: no finished model there; train the run first, or go on with --resume")

    def find_model(self, stage: str) -> Path:
        """Folder of the model that a stage left. Raises ConfigError: it is none of `STAGES`; CheckpointError: the run
        has no such model."""
        if stage not in STAGES:
            raise ConfigError(f"--stage {stage} is not known; use {', '.join(STAGES[:-1])} or {STAGES[-1]}")
        there = [each for each in STAGES if ModelFolder(self.model(each)).is_there]
        if stage not in there:
            fix = "train the run first" if stage == TRAINED else f"make it with scripts/compress.py {self}"
            known = f", only {', '.join(there)}" if there else ""
            raise CheckpointError(f"{self}: no model of the stage {stage} there{known}; {fix}")
        return self.model(stage)

    @classmethod
    def for_new_run(cls, config: Config) -> "RunFolder":
        """Where a new run will be; nothing is written yet. Raises ConfigError: the folder is there already, or cannot
        be one."""
        output = Path(config.output_dir)
        if output.exists() and not output.is_dir():
            raise ConfigError(f"--output_dir {output} is a file; name a folder")
        if config.run_name is None:
            name = f"{config.task_type}-{datetime.now():%Y%m%d-%H%M%S}"
            taken = sum(1 for path in output.glob(f"{name}*")) if output.is_dir() else 0
            return cls(output / (f"{name}-{taken + 1}" if taken else name))
        folder = output / config.run_name
        if folder.exists():
            raise ConfigError(f"{folder} exists; choose another --run_name, remove it, or go on with --resume {folder}")
        return cls(folder)

    def create(self, config: Config) -> None:
        """Makes the folder with the configuration and the command that started the run: both, or no folder. Raises
        ConfigError: it is there already; CannotWrite: there is no space, or the disk fails."""

        def fill(aside: Path) -> None:
            config.save(RunFolder(aside).config)
            command = shlex.join(["python", *sys.argv]) if sys.argv and sys.argv[0] else "python"
            RunFolder(aside).command.write_text(command + "\n", encoding="utf-8")

        try:
            is_new = add_folder(self.path, fill, with_checksums=False)
        except OSError as error:
            raise cannot_write(error, self.path) from None
        if not is_new:
            raise ConfigError(f"{self} exists; choose another --run_name, or go on with --resume {self}")

    def begin_anew(self) -> None:
        """Empties the folder of a run within the run that has no checkpoint: its records would be there twice."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir()

    def locked(self) -> AbstractContextManager[None]:
        """Keeps a second process from writing to the run while entered. Raises CheckpointError: another process has
        it."""
        return locked(self.path)


def read_earlier(init_from: str | None) -> Config | BertEncoder | None:
    """What the folder that `--init_from` names says about its model: the settings of an earlier run, or of a model of
    one, or the description of a pretrained encoder; read without PyTorch, and without the weights. None where no model
    is named, or the folder holds none: whoever loads the weights says so.

    Raises CheckpointError: a file is damaged, or the encoder is of a kind that HIM does not compute.
    """
    if not init_from:
        return None
    folder = Path(init_from)
    if is_bert(folder):
        return read_bert(folder)
    places = (ModelFolder(RunFolder(folder).best), ModelFolder(folder))
    found = [place.config for place in places if place.config.is_file()]
    return Config.load(found[0]) if found else None
