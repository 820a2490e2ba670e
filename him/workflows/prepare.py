"""What is there before the first step: the task with its data and its tokenizer."""

from pathlib import Path

from torch import nn

from him.compression.pruning import check_amount
from him.config import Config
from him.core.errors import CheckpointError, ConfigError
from him.data.document_files import check_names
from him.runs.folder import ModelFolder, RunFolder
from him.tasks import task_class
from him.tasks.base import Task
from him.tasks.building import check_capabilities
from him.text.tokenizer import parse_tokenizer
from him.workflows.initial_weights import initial_folder
from him.workflows.teacher import teacher_folder


def prepare_task(config: Config, run: RunFolder | None = None) -> Task:
    """The task with its data.

    Args:
        config: with the task's defaults.
        run: that is gone on with, or None for a new one.

    Raises:
        HimError: a setting or the data do not allow it.
    """
    if config.pretrain_files and not config.pretrain_epochs:
        raise ConfigError("--pretrain_files without --pretrain_epochs: nothing would read them; name how many epochs")
    if run is None:
        check_names(config.pretrain_files)
    cls = task_class(config.task_type)
    check_capabilities(cls, config)
    return cls.prepare(config, tokenizer_folder=_tokenizer_folder(config, run))


def _tokenizer_folder(config: Config, run: RunFolder | None) -> Path | None:
    """Where a tokenizer is taken from: the model that the run begins from, its teacher, or else its own best model."""
    if run is not None and config.init_from is not None and not Path(config.init_from).exists():
        if not (own := run.find_best()).is_dir():
            raise CheckpointError(
                f"--init_from {config.init_from} is gone, and with it the tokenizer; name its new place with the flag"
            )
        return own
    initial, teacher = initial_folder(config), teacher_folder(config)
    if initial is not None and teacher is not None:
        first, second = (parse_tokenizer(ModelFolder(folder).tokenizer).to_str() for folder in (initial, teacher))
        if first != second:
            raise ConfigError(
                f"--teacher {config.teacher} has another tokenizer than --init_from {config.init_from}; use models "
                "with the same one"
            )
    return initial or teacher


def check_pruning(model: nn.Module, config: Config) -> None:
    """Refuses an amount that cannot be pruned before the hours of training, not after them."""
    if config.compress and config.pruning_method == "taylor":
        check_amount(model, config.pruning_amount)
