"""A file that grows by all that was collected or by nothing, whatever the disk does."""

import errno
import os
from unittest import mock

import pytest

from him.core.files import CannotWrite
from him.runs.records import AppendedFile


@pytest.fixture
def file(tmp_path):
    (tmp_path / "file").write_bytes(b"before\n")
    return AppendedFile(tmp_path / "file")


def failing_write(most_calls: int, number: int, most_bytes: int = 3):
    """An `os.write` that takes a few bytes so many times and then fails."""
    original, calls = os.write, []

    def write(handle: int, data) -> int:
        calls.append(handle)
        if len(calls) > most_calls:
            raise OSError(number, os.strerror(number))
        return original(handle, bytes(data[:most_bytes]))

    return mock.patch.object(os, "write", write)


def test_nothing_is_written_before_the_flush(file):
    assert file.write(b"one\n") == 4
    assert file.path.read_bytes() == b"before\n"
    file.flush()
    file.flush()
    assert file.path.read_bytes() == b"before\none\n"


def test_a_disk_that_takes_a_few_bytes_at_a_time_gets_them_all(file):
    data = bytes(range(256)) * 5
    file.write(data)
    with failing_write(10**9, errno.EIO, most_bytes=7):
        file.flush()
    assert file.path.read_bytes() == b"before\n" + data


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
@pytest.mark.parametrize("most_calls", [0, 1, 2])
def test_a_part_is_taken_back_and_the_next_flush_writes_all(file, number, most_calls):
    file.write(b"one\n")
    file.write(b"two\n")
    for _ in range(2):
        with failing_write(most_calls, number), pytest.raises(CannotWrite, match="file: "):
            file.flush()
        assert file.path.read_bytes() == b"before\n"
    file.write(b"three\n")
    file.flush()
    assert file.path.read_bytes() == b"before\none\ntwo\nthree\n"
    file.write(b"four\n")
    file.flush()
    assert file.path.read_bytes() == b"before\none\ntwo\nthree\nfour\n"


def test_what_the_disk_did_not_keep_is_written_again(file):
    """fsync is where a network folder or a failing disk says so."""
    file.write(b"one\n")
    with mock.patch.object(os, "fsync", side_effect=OSError(errno.EIO, "Input/output error")):
        with pytest.raises(CannotWrite):
            file.flush(to_disk=True)
    assert file.path.read_bytes() == b"before\n"
    file.flush(to_disk=True)
    assert file.path.read_bytes() == b"before\none\n"


@pytest.mark.parametrize("to_disk", [False, True])
def test_it_waits_for_the_disk_where_it_is_asked_to(file, to_disk):
    file.write(b"one\n")
    with mock.patch.object(os, "fsync") as fsync:
        file.flush(to_disk=to_disk)
    assert fsync.call_count == to_disk


def test_other_errors_are_not_turned_into_a_full_disk(file):
    file.write(b"one\n")
    with failing_write(1, errno.EBADF), pytest.raises(OSError) as raised:
        file.flush()
    assert raised.value.errno == errno.EBADF
    assert file.path.read_bytes() == b"before\n"


def test_close_writes_what_waits(file):
    file.write(b"one\n")
    file.close()
    assert file.path.read_bytes() == b"before\none\n"
    assert file._file.closed


def test_close_closes_on_a_full_disk(file):
    file.write(b"one\n")
    with failing_write(1, errno.ENOSPC), pytest.raises(CannotWrite):
        file.close()
    assert file._file.closed
    assert file.path.read_bytes() == b"before\n"
