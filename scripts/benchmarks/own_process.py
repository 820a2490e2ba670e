"""A function called in a process of its own, so that peak memory and the allocator's settings are its own too."""

import multiprocessing
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from him.core.errors import HimError


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function in a new process and returns its result; what libraries print there goes to stderr.

    Raises:
        HimError: the process was killed.
        Exception: whatever the function raises.
    """
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, mp_context=context, initializer=_hush) as pool:
            return pool.submit(function, *arguments).result()
    except BrokenProcessPool:
        raise HimError(
            "a benchmark's process was killed, most likely for memory; lower --batch_size, or leave the system out "
            "with --systems"
        ) from None


def _hush() -> None:
    """Keeps stdout for the result, and libraries as quiet as they can be told to be before they are imported."""
    os.dup2(2, 1)
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    warnings.filterwarnings("ignore")
