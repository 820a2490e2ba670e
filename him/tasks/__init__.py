"""The tasks: `TASKS` is the one place where they are looked up by name."""

import difflib
import importlib

from him.core.errors import ConfigError
from him.tasks.base import Task

# name -> module and class. Loaded when asked for, because a task brings PyTorch with it.
TASKS = {
    "squad": ("him.tasks.squad.task", "SquadTask"),
    "summarization": ("him.tasks.summarization.task", "SummarizationTask"),
    "lm": ("him.tasks.lm.task", "LanguageModelingTask"),
}


def task_class(name: str) -> type[Task]:
    """The class of a task.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, 1)
        raise ConfigError(
            f"--task_type {name} is not known; use {' or '.join(TASKS)}" + (f" ({near[0]}?)" if near else "")
        )
    module, class_name = TASKS[name]
    return getattr(importlib.import_module(module), class_name)
