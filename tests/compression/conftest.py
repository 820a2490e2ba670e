"""Measurements are short in all tests of this folder, and each gets a copy of a tiny run when it changes one."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.compression.tiny import compressed_run, quickly


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    """See `quickly`."""
    with quickly():
        yield


@pytest.fixture
def copied(tmp_path) -> Callable[..., Path]:
    """Copies the tiny run of a task, compressed or as it was before."""

    def copy(task_type: str, compressed: bool = True, name: str = "run") -> Path:
        ignored = None if compressed else shutil.ignore_patterns("compressed")
        return Path(shutil.copytree(compressed_run(task_type).run, tmp_path / name, ignore=ignored))

    return copy
