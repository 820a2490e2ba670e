"""Files and folders that appear whole or not at all."""

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from him.errors import CheckpointError

CHECKSUMS = "checksums.json"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Writes a folder aside, with the checksums of its files, and puts it in the place of the old one.

    Whoever looks sees the old folder or the new one, whenever the process or the machine stops: between the two
    renames the old one is `NAME.old`, where `find_folder` looks too.

    Args:
        folder: its final place.
        fill: writes the files into the folder that it is given.

    Raises:
        CheckpointError: there is no space; what was there before stays.
    """
    remove_leftovers(folder)
    aside = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
    old = folder.with_name(f"{folder.name}.old")
    try:
        aside.mkdir(parents=True)
        fill(aside)
        sums = {path.name: checksum(path) for path in sorted(aside.iterdir())}
        (aside / CHECKSUMS).write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")
        for path in aside.iterdir():
            _flush(path)
        _flush(aside)
        if folder.exists():
            os.rename(folder, old)
        os.rename(aside, folder)
        _flush(folder.parent)
    except BaseException as error:
        remove_leftovers(folder)
        if isinstance(error, OSError):
            raise no_space(error, folder) from None
        raise
    shutil.rmtree(old, ignore_errors=True)


def no_space(error: OSError, path: Path) -> Exception:
    """A CheckpointError that says what is full, or the error itself when it is another one."""
    if error.errno not in NO_SPACE:
        return error
    free = shutil.disk_usage(path.parent if path.parent.exists() else ".").free
    return CheckpointError(
        f"{path}: no space to write it ({free / 1e6:.1f} MB free); make room, then go on with --resume; what was saved "
        "before is unharmed"
    )


def find_folder(folder: Path) -> Path:
    """The folder, or its old version if the process stopped between the renames of `write_folder`."""
    old = folder.with_name(f"{folder.name}.old")
    return old if old.is_dir() and not folder.is_dir() else folder


def remove_leftovers(folder: Path) -> None:
    """Removes what an interrupted `write_folder` left; puts an old version back into its place."""
    old = folder.with_name(f"{folder.name}.old")
    if old.is_dir():
        if folder.is_dir():
            shutil.rmtree(old)
        else:
            os.rename(old, folder)
    for aside in folder.parent.glob(f".{folder.name}-*"):
        shutil.rmtree(aside, ignore_errors=True)


def verify_folder(folder: Path, others_allowed: bool = False) -> None:
    """Compares every file of a folder with its checksum.

    Args:
        folder: written by `write_folder`.
        others_allowed: whether files that have none are let be.

    Raises:
        CheckpointError: a file is missing, changed or unknown.
    """
    try:
        sums = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
        present = {path.name for path in folder.iterdir()} - {CHECKSUMS}
        if others_allowed:
            present &= set(sums)
        if present != set(sums):
            odd = ", ".join(sorted(present ^ set(sums)))
            raise CheckpointError(f"{folder}: files are missing or do not belong there ({odd})")
        for name, expected in sums.items():
            if checksum(folder / name) != expected:
                raise CheckpointError(f"{folder / name}: damaged, its checksum is another one")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{folder}: cannot be read ({error})") from None


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, data: Any) -> None:
    """Writes JSON aside and renames it into place."""
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(aside, path)


def _flush(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
