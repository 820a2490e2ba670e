"""The tasks; their names are in `him.config.options`, from which class and folder follow."""

import importlib
import inspect

from him.config.options import spec_of
from him.tasks.base import Task


def task_class(name: str) -> type[Task]:
    """The class of a task: the one in `him/tasks/NAME/task.py`. Loaded when asked for, as it brings PyTorch with it.

    Raises:
        ConfigError: there is none of this name.
    """
    spec_of(name)
    module = importlib.import_module(f"{__name__}.{name}.task")
    (found,) = (
        each
        for each in vars(module).values()
        if inspect.isclass(each) and issubclass(each, Task) and each.__module__ == module.__name__
    )
    return found
