"""Folders that are whole or absent: a fault, or a kill, is injected before every single call to the file system."""

import errno
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from unittest import mock

import pytest

from him.core.errors import CheckpointError
from him.core.files import (
    CHECKSUMS,
    LOCK,
    CannotWrite,
    add_folder,
    cannot_write,
    checksum,
    find_folder,
    locked,
    remove_leftovers,
    replace_folder,
    sync,
    verify_folder,
    write_folder,
    write_json,
)
from him.runs.records import AppendedFile

WATCHED = (
    (os, "rename"),
    (os, "replace"),
    (os, "fsync"),
    (os, "open"),
    (os, "close"),
    (Path, "mkdir"),
    (Path, "write_text"),
    (Path, "iterdir"),
)
MOST_CALLS = 60


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Waiting for the disk would be most of the time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def fill(content: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "a.txt").write_text(content)
        write_json(folder / "b.json", {"content": content})

    return write


def content(folder: Path) -> str:
    """The content of a folder that is whole."""
    found = find_folder(folder)
    verify_folder(found)
    assert {path.name for path in found.iterdir()} == {"a.txt", "b.json", CHECKSUMS}
    text = (found / "a.txt").read_text()
    assert json.loads((found / "b.json").read_text()) == {"content": text}
    return text


def run_with(number: int, action: Callable[[], None], work: Callable[[], None]) -> bool:
    """Runs `work` with `action` before the watched call of this number; whether that call came."""
    left = number

    def watched(original: Callable) -> Callable:
        def call(*args, **kwargs):
            nonlocal left
            left -= 1
            if left == 0:
                action()
            return original(*args, **kwargs)

        return call

    with ExitStack() as patches:
        for owner, name in WATCHED:
            patches.enter_context(mock.patch.object(owner, name, watched(getattr(owner, name))))
        work()
    return left <= 0


@pytest.mark.parametrize("is_there", [True, False], ids=["replaced", "new"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "a fault"), KeyboardInterrupt()])
def test_a_fault_at_any_call_leaves_the_old_or_the_new_folder(tmp_path, error, is_there):
    def fail() -> None:
        raise error

    seen = set()
    for number in range(1, MOST_CALLS):
        folder = tmp_path / str(number) / "best"
        if is_there:
            write_folder(folder, fill("old"))
        try:
            reached = run_with(number, fail, partial(write_folder, folder, fill("new")))
        except (type(error), CannotWrite):
            reached = True
            seen.add(content(folder) if folder.exists() else None)
        if not reached:
            break
        # The old version stays beside a new one that is whole when only its removal failed.
        left = {path.name for path in folder.parent.glob("*")}
        assert left <= {"best", "best.old"}
        assert "best.old" not in left or content(folder) == "new"
        write_folder(folder, fill("newer"))
        assert content(folder) == "newer"
        assert [path.name for path in folder.parent.iterdir()] == ["best"]
    else:
        raise AssertionError("more calls than expected")
    # The last call is the flush after the renames, when the new folder is in its place.
    assert seen == {"old" if is_there else None, "new"}


@pytest.mark.run
@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_a_kill_at_any_call_leaves_the_old_or_the_new_folder(tmp_path):
    """The same, where nobody cleans up: the next writer does."""
    seen, places = set(), set()
    for number in range(1, MOST_CALLS):
        folder = tmp_path / str(number) / "best"
        write_folder(folder, fill("old"))
        child = os.fork()
        if child == 0:
            run_with(number, lambda: os.kill(os.getpid(), signal.SIGKILL), partial(write_folder, folder, fill("new")))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert content(folder) == "new"
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        seen.add(content(folder))
        places.add(find_folder(folder).name)
        remove_leftovers(folder)
        assert {path.name for path in folder.parent.iterdir()} == {"best"}
        assert content(folder) in ("old", "new")
        write_folder(folder, fill("newer"))
        assert content(folder) == "newer"
    else:
        raise AssertionError("more calls than expected")
    assert seen == {"old", "new"}
    assert places == {"best", "best.old"}, "one kill fell between the renames"


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs the paths of open files")
def test_everything_is_on_the_disk_before_the_old_folder_goes(tmp_path, monkeypatch):
    write_folder(tmp_path / "best", fill("old"))
    done = []

    def rename(*paths: Path) -> None:
        done.append("rename")
        os.replace(*paths)

    monkeypatch.setattr(os, "fsync", lambda handle: done.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name))
    monkeypatch.setattr(os, "rename", rename)
    write_folder(tmp_path / "best", fill("new"))
    assert {"a.txt", "b.json", CHECKSUMS} < set(done[: done.index("rename")])
    assert done[-3:] == ["rename", "rename", tmp_path.name]
    assert content(tmp_path / "best") == "new"


def test_a_full_disk_is_one_line(tmp_path):
    def fail(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    write_folder(tmp_path / "best", fill("old"))
    with pytest.raises(CheckpointError, match=r"best: no space to write it \(\d+\.\d MB free\); make room; what was"):
        write_folder(tmp_path / "best", fail)
    assert content(tmp_path / "best") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_other_errors_stay_what_they_are(tmp_path):
    error = PermissionError(errno.EACCES, "Permission denied")
    assert cannot_write(error, tmp_path) is error


def test_free_space_of_a_folder_that_is_not_there_yet(tmp_path):
    message = str(cannot_write(OSError(errno.ENOSPC, ""), tmp_path / "not" / "there" / "yet"))
    assert re.search(r"yet: no space to write it \(\d+\.\d MB free\)", message)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "a fault"), KeyboardInterrupt(), MemoryError()])
def test_a_fault_at_any_call_leaves_an_added_folder_whole_or_absent(tmp_path, error):
    def fail() -> None:
        raise error

    seen = set()
    for number in range(1, MOST_CALLS):
        folder = tmp_path / str(number) / "set"
        try:
            reached = run_with(number, fail, partial(add_folder, folder, fill("new")))
        except type(error):
            reached = True
            seen.add(content(folder) if folder.exists() else None)
        if not reached:
            break
        assert not folder.parent.exists() or {path.name for path in folder.parent.iterdir()} <= {"set"}
    else:
        raise AssertionError("more calls than expected")
    assert seen == {None, "new"}


def test_the_quicker_writer_is_kept(tmp_path):
    """Also one that comes while the other writes, and what a third one has put aside stays."""

    def fill_slowly(folder: Path) -> None:
        fill("slow")(folder)
        assert add_folder(tmp_path / "set", fill("quick"))

    (tmp_path / ".set-12ab34cd").mkdir()
    assert not add_folder(tmp_path / "set", fill_slowly)
    assert not add_folder(tmp_path / "set", fill("late"))
    assert content(tmp_path / "set") == "quick"
    assert {path.name for path in tmp_path.iterdir()} == {"set", ".set-12ab34cd"}


def test_a_folder_that_cannot_be_filled_is_an_error_beside_another_one(tmp_path):
    """A full disk is not a quicker writer."""

    def fail(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "full")

    add_folder(tmp_path / "set", fill("quick"))
    with pytest.raises(OSError, match="full"):
        add_folder(tmp_path / "set", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_an_added_folder_may_go_without_checksums(tmp_path):
    assert add_folder(tmp_path / "deep" / "run", fill("new"), with_checksums=False)
    assert {path.name for path in (tmp_path / "deep" / "run").iterdir()} == {"a.txt", "b.json"}


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs the paths of open files")
def test_an_added_folder_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = []

    def rename(*paths: Path) -> None:
        done.append("rename")
        os.replace(*paths)

    monkeypatch.setattr(os, "fsync", lambda handle: done.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name))
    monkeypatch.setattr(os, "rename", rename)
    add_folder(tmp_path / "set", fill("new"))
    assert {"a.txt", "b.json", CHECKSUMS} < set(done[: done.index("rename")])
    assert done[-2:] == ["rename", tmp_path.name]


def test_a_stop_between_the_renames_of_a_replacement_keeps_the_old_folder(tmp_path):
    """Until the next call, which must not take the old one for a leftover."""
    for name in ("new", "folder"):
        write_folder(tmp_path / name, fill(name))

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_with(2, stop, partial(replace_folder, tmp_path / "folder", tmp_path / "new"))
    assert content(tmp_path / "folder") == "folder"
    assert content(replace_folder(tmp_path / "folder", tmp_path / "new")) == "folder"
    assert content(tmp_path / "folder") == "new"


def test_leftovers_of_other_folders_stay(tmp_path):
    for name in (".best-12ab34cd", ".other-12ab34cd", "best", "best.old"):
        (tmp_path / name).mkdir()
    remove_leftovers(tmp_path / "best")
    assert {path.name for path in tmp_path.iterdir()} == {"best", ".other-12ab34cd"}


def test_the_old_folder_is_found_and_put_back(tmp_path):
    write_folder(tmp_path / "best", fill("old"))
    os.rename(tmp_path / "best", tmp_path / "best.old")
    assert find_folder(tmp_path / "best") == tmp_path / "best.old"
    assert content(tmp_path / "best") == "old"
    remove_leftovers(tmp_path / "best")
    assert find_folder(tmp_path / "best") == tmp_path / "best"
    assert content(tmp_path / "best") == "old"


def test_one_changed_bit_is_found(tmp_path):
    write_folder(tmp_path / "best", fill("old"))
    damaged = bytearray((tmp_path / "best" / "a.txt").read_bytes())
    damaged[1] ^= 1
    (tmp_path / "best" / "a.txt").write_bytes(damaged)
    with pytest.raises(CheckpointError, match=r"best/a\.txt: damaged, its checksum is another one"):
        verify_folder(tmp_path / "best")


@pytest.mark.parametrize("name", ["a.txt", "more.txt"])
def test_missing_and_unknown_files_are_named(tmp_path, name):
    write_folder(tmp_path / "best", fill("old"))
    path = tmp_path / "best" / name
    path.unlink() if path.exists() else path.write_text("?")
    with pytest.raises(CheckpointError, match=rf"best: files are missing or do not belong there \({re.escape(name)}\)"):
        verify_folder(tmp_path / "best")


@pytest.mark.parametrize("sums", [None, "", "{", "[]", "\x00", "3"])
def test_checksums_that_cannot_be_read(tmp_path, sums):
    write_folder(tmp_path / "best", fill("old"))
    path = tmp_path / "best" / CHECKSUMS
    path.unlink() if sums is None else path.write_text(sums)
    with pytest.raises(CheckpointError, match="best.*(cannot be read|files are missing|it is not as it was written)"):
        verify_folder(tmp_path / "best")


def test_checksum_is_sha256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert checksum(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_json_is_replaced_whole(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"name": "Zoë"})
    with pytest.raises(TypeError):
        write_json(path, {"name": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == {"name": "Zoë"}
    assert "Zoë" in path.read_text(encoding="utf-8")
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


# -- as on Windows -----------------------------------------------------------------------------------------------------


@pytest.fixture
def as_on_windows(monkeypatch):
    """Folders cannot be opened, and what is open for reading cannot be flushed."""
    original = os.open

    def open_file(path, flags, *args, **kwargs):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return original(path, flags, *args, **kwargs)

    def flush(handle):
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(os, "open", open_file)
    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(shutil, "_use_fd_functions", False)  # rmtree opens folders, but not on Windows


@pytest.mark.usefixtures("as_on_windows")
def test_everything_is_saved_where_folders_cannot_be_flushed(tmp_path):
    for text in ("first", "second"):
        write_folder(tmp_path / "best", fill(text))
        assert content(tmp_path / "best") == text
    write_json(tmp_path / "a.json", {"a": 1})
    file = AppendedFile(tmp_path / "records")
    file.write(b"abc")
    file.flush(to_disk=True)
    file.close()
    assert {path.name for path in tmp_path.iterdir()} == {"best", "a.json", "records"}


def test_a_file_that_may_not_be_read_is_not_taken_for_flushed(tmp_path, monkeypatch):
    (tmp_path / "a").touch()
    monkeypatch.setattr(os, "open", mock.Mock(side_effect=PermissionError(errno.EACCES, "Permission denied")))
    with pytest.raises(PermissionError):
        sync(tmp_path / "a")


# -- locks -------------------------------------------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
if sys.argv[2] == "no fcntl":
    sys.modules["fcntl"] = None
from him.core.errors import CheckpointError
from him.core.files import locked
try:
    with locked(Path(sys.argv[1])):
        print("has it", flush=True)
        sys.stdin.read()
except CheckpointError as error:
    print(error)
"""


@pytest.mark.parametrize("system", ["fcntl", "no fcntl"])
def test_one_process_at_a_time_and_a_killed_one_lets_go(tmp_path, system):
    def begin() -> subprocess.Popen:
        command = [sys.executable, "-W", "ignore", "-c", HOLD, tmp_path, system]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        return subprocess.Popen(command, text=True, cwd=Path(__file__).parents[2], **pipes)

    refusal = f"{tmp_path}: another process writes to this run; wait for it, or stop it\n"
    first = begin()
    assert first.stdout.readline() == "has it\n"
    assert begin().communicate()[0] == refusal
    first.kill()
    first.communicate()
    assert first.returncode == -signal.SIGKILL
    second = begin()
    assert second.stdout.readline() == "has it\n"
    assert begin().communicate()[0] == refusal
    second.communicate()  # ends by itself
    assert begin().communicate()[0] == "has it\n"
    assert {path.name for path in tmp_path.iterdir()} == ({LOCK} if system == "fcntl" else set())


def test_two_at_once_in_a_process(tmp_path):
    for _ in range(2):
        with (
            locked(tmp_path),
            pytest.raises(CheckpointError, match="another process writes to this run"),
            locked(tmp_path),
        ):
            pytest.fail("both have it")
    assert (tmp_path / LOCK).read_bytes() == b""


@pytest.mark.parametrize("code", ["ENOLCK", "EOPNOTSUPP", "ENOSYS", "EROFS"])
def test_a_file_system_without_locks(tmp_path, monkeypatch, code):
    number = getattr(errno, code)
    monkeypatch.setattr(fcntl, "flock", mock.Mock(side_effect=OSError(number, os.strerror(number))))
    with locked(tmp_path):
        (tmp_path / "written").touch()
    with locked(tmp_path):
        pass
