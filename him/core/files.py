"""Atomic writes: files and folders that appear whole or not at all, with checksums and locks."""

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from him.core.errors import CheckpointError

CHECKSUMS = "checksums.json"
LOCK = ".lock"  # in a run's folder; it says nothing, and stays when the run has ended
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FAILING = (errno.EIO, errno.EROFS, errno.ESTALE, errno.ETIMEDOUT)  # of a disk or a network folder; may pass


class CannotWrite(CheckpointError):
    """The disk is full, broken or write-protected; what was there before stays, and another try may succeed."""


def write_folder(folder: Path, fill: Callable[[Path], None], num_bytes: int = 0) -> None:
    """Writes a folder aside, with the checksums of its files, and puts it in the place of the old one.

    Whoever looks sees the old folder or the new one, whenever the process or the machine stops: between the two
    renames the old one is `NAME.old`, where `find_folder` looks too.

    Args:
        folder: its final place.
        fill: writes the files into the folder that it is given.
        num_bytes: about how many these are; if they are more than the disk has, nothing is begun.

    Raises:
        CannotWrite: there is no space, or the disk fails; what was there before stays.
    """
    aside = _aside(folder)
    try:
        remove_leftovers(folder)
        aside.mkdir(parents=True)
        if num_bytes > shutil.disk_usage(aside).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fill(aside)
        write_checksums(aside)
        sync_folder(aside)
        old = replace_folder(folder, aside)
        sync(folder.parent)
    except BaseException as error:
        with suppress(OSError):  # a disk that fails may fail here too; whoever reads looks for what is left
            remove_leftovers(folder)
        if isinstance(error, OSError):
            raise cannot_write(error, folder, num_bytes) from None
        raise
    shutil.rmtree(old, ignore_errors=True)


def add_folder(folder: Path, fill: Callable[[Path], None], with_checksums: bool = True) -> bool:
    """Writes a folder aside and gives it its name; if another writer is quicker, or was there before, keeps theirs.

    Several may write the same folder at the same time, so what another one has put aside is let be.

    Args:
        folder: its final place; the folders above it are made.
        fill: writes the files into the folder that it is given.
        with_checksums: whether it gets the checksums of its files, for `verify_folder`.

    Returns:
        Whether it is this one's.

    Raises:
        OSError: the disk fails or is full; the folder is whole, or nothing of it is left.
    """
    aside = _aside(folder)
    try:
        aside.mkdir(parents=True)
        fill(aside)
        if with_checksums:
            write_checksums(aside)
        sync_folder(aside)
        try:
            os.rename(aside, folder)
        except OSError:
            if not folder.is_dir():
                raise
            shutil.rmtree(aside, ignore_errors=True)
            return False
    except BaseException:  # Ctrl-C too
        shutil.rmtree(aside, ignore_errors=True)
        raise
    sync(folder.parent)
    return True


def replace_folder(folder: Path, whole: Path) -> Path:
    """Puts a folder that is whole into the place of another one, and returns the name that this one has now.

    If the process stops between the two renames, `find_folder` finds the old one.
    """
    old = folder.with_name(f"{folder.name}.old")
    if folder.exists():  # if not, an earlier call was stopped here, and what is at `old` is to be kept until the next
        shutil.rmtree(old, ignore_errors=True)
        os.rename(folder, old)
    os.rename(whole, folder)
    return old


def _aside(folder: Path) -> Path:
    """A name of this writer's own, beside a folder; `remove_leftovers` knows it."""
    return folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")


def cannot_write(error: OSError, path: Path, num_bytes: int = 0) -> Exception:
    """A CannotWrite that says what is full or broken, or the error itself when it is about something else.

    Args:
        path: what was to be written.
        num_bytes: that it needs, if this is known.
    """
    if error.errno in NO_SPACE:
        free = shutil.disk_usage(path.parent if path.parent.exists() else ".").free
        needed = f"{num_bytes / 1e6:.1f} MB needed, " if num_bytes else ""
        return CannotWrite(
            f"{path}: no space to write it ({needed}{free / 1e6:.1f} MB free); make room; what was saved before is "
            "unharmed"
        )
    if error.errno in FAILING:
        return CannotWrite(f"{path}: cannot be written ({error.strerror}); what was saved before is unharmed")
    return error


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
    listed = folder / CHECKSUMS
    try:
        try:
            text = listed.read_text(encoding="utf-8")
            sums = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{listed}: damaged, it cannot be read ({error})") from None
        if text != _checksums_text(sums):
            raise CheckpointError(f"{listed}: damaged, it is not as it was written")
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


def write_checksums(folder: Path) -> None:
    """Writes down the checksums of all files of a folder, beside them."""
    sums = {path.name: checksum(path) for path in sorted(folder.iterdir()) if path.name != CHECKSUMS}
    (folder / CHECKSUMS).write_text(_checksums_text(sums), encoding="utf-8")


def _checksums_text(sums: dict[str, str]) -> str:
    return json.dumps(sums, indent=2) + "\n"


def quarantine(path: Path) -> Path:
    """Gives what is damaged another name, `NAME.damaged`, where nothing looks for it, and returns it."""
    aside = path.with_name(f"{path.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(path, aside)
    return aside


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps a second process from writing to a run while this one does; ends with the process, however it ends.

    Where a file system knows no locks, as in some network folders, nothing is kept.

    Raises:
        CheckpointError: another process has it.
    """
    from filelock import FileLock, SoftFileLock, Timeout  # 30 ms, which `--help` does not have to wait for

    # Removed, its name could be locked again while another process still waits for the file that had it.
    lock = FileLock(folder / LOCK, preserve_lock_file=FileLock is not SoftFileLock)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise CheckpointError(f"{folder}: another process writes to this run; wait for it, or stop it") from None
    except OSError:  # a network folder that knows no locks
        pass
    try:
        yield
    finally:
        lock.release()


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, data: Any) -> None:
    """Writes JSON as `write_file` does."""
    write_file(path, (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))


def write_file(path: Path, content: bytes) -> None:
    """Writes a file aside, waits until the disk has it, and renames it into place."""
    aside = path.with_name(f".{path.name}.tmp")
    try:
        with _named(path):
            aside.write_bytes(content)
        sync(aside)
        os.replace(aside, path)
    except BaseException:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Waits until the files of a folder, and their names, are on the disk."""
    for path in (*folder.iterdir(), folder):
        sync(path)


def sync(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk; Windows flushes no folders."""
    try:
        _flush(path, os.O_RDONLY)
    except PermissionError:
        if not path.is_dir():
            raise
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        _flush(path, os.O_RDWR)  # Windows flushes only what is open for writing


def _flush(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        with _named(path):
            os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Puts the name of a file into errors of writing and flushing, which have none."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
