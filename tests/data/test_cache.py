"""Columns on disk: they come back as they were, whole or not at all."""

import errno
import os
import threading

import numpy as np
import pyarrow as pa
import pytest

from him.core.ragged import Ragged
from him.data import cache
from him.data.cache import fingerprint, load_cached, load_columns, save_columns

COLUMNS = {
    "int32": np.array([3, -1, 2**31 - 1], np.int32),
    "int64": np.array([-(2**63), 2**63 - 1], np.int64),
    "uint8": np.arange(256, dtype=np.uint8),
    "float16": np.array([0.5, -65504, np.inf], np.float16),
    "float32": np.array([1e-45, np.pi], np.float32),
    "empty": np.zeros(0, np.int32),
    "matrix": np.arange(6, dtype=np.float16).reshape(2, 3),
    "empty matrix": np.zeros((0, 3), np.int32),
    "one row": np.arange(3, dtype=np.int32).reshape(1, 3),
    "rows": Ragged.from_rows([[1, 2], [], [3]], np.int32),
    "rows.with.dots": Ragged.from_rows([[7]], np.uint8),
    "no rows": Ragged.from_rows([], np.int32),
    "empty rows": Ragged.from_rows([[], []], np.uint8),
    "rows of vectors": Ragged.from_arrays([np.ones((2, 11), np.float16), np.zeros((0, 11), np.float16)]),
    "no vectors": Ragged(np.zeros((0, 3), np.int32), np.zeros(4, np.int64)),
    "not contiguous": np.arange(12, dtype=np.int32).reshape(3, 4)[:, ::2],
}


def assert_same(found, expected):
    assert type(found) is type(expected)
    pairs = [(found, expected)]
    if isinstance(expected, Ragged):
        pairs = [(found.values, expected.values), (found.offsets, expected.offsets)]
    for one, other in pairs:
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        np.testing.assert_array_equal(one, other)


def test_round_trip(tmp_path):
    save_columns(tmp_path / "set", COLUMNS, {"note.json": '{"é": 1}'})
    found = load_columns(tmp_path / "set")
    assert found.keys() == COLUMNS.keys()
    for name, column in COLUMNS.items():
        assert_same(found[name], column)
    assert (tmp_path / "set" / "note.json").read_text(encoding="utf-8") == '{"é": 1}'
    assert os.listdir(tmp_path) == ["set"]


def test_columns_outlive_their_folder(tmp_path):
    """They are mapped, not read: what is used later must still be there when the loader has closed its files."""
    save_columns(tmp_path / "set", {"many": np.arange(10**6)}, {})
    column = load_columns(tmp_path / "set")["many"]
    for path in (tmp_path / "set").iterdir():
        path.unlink()
    assert int(column.sum()) == 10**6 * (10**6 - 1) // 2
    with pytest.raises(ValueError, match="read-only"):
        column[0] = 1


@pytest.mark.parametrize(
    "fault",
    [OSError(errno.ENOSPC, "No space left on device"), pa.ArrowInvalid("no"), KeyboardInterrupt(), MemoryError()],
    ids=lambda fault: type(fault).__name__,
)
def test_a_crash_in_the_middle_leaves_nothing(tmp_path, monkeypatch, fault):
    written = []

    def write(path, column):
        if written:
            raise fault
        written.append(path)
        path.write_bytes(b"half")

    monkeypatch.setattr(cache, "_write_column", write)
    with pytest.raises(type(fault)):
        save_columns(tmp_path / "set", {"a": COLUMNS["int32"], "b": COLUMNS["int32"]}, {})
    assert written and os.listdir(tmp_path) == []


def test_what_is_damaged_is_removed_and_what_another_writes_is_not(tmp_path):
    """Of two parts, the one that is written last says whether the writer was done."""

    def load(folder):
        return [load_columns(folder / name) for name in ("first", "last")]

    assert load_cached(tmp_path / "set", load, last="last") is None
    save_columns(tmp_path / "set" / "first", {"a": np.array([1])}, {})
    assert load_cached(tmp_path / "set", load, last="last") is None
    assert os.listdir(tmp_path / "set") == ["first"]
    save_columns(tmp_path / "set" / "last", {"a": np.array([2])}, {})
    assert [int(part["a"][0]) for part in load_cached(tmp_path / "set", load, last="last")] == [1, 2]
    (tmp_path / "set" / "first" / "a.arrow").write_bytes(b"")
    assert load_cached(tmp_path / "set", load, last="last") is None
    assert not (tmp_path / "set").exists()


def test_other_faults_of_loading_are_not_taken_for_damage(tmp_path):
    save_columns(tmp_path / "set", {"a": np.array([1])}, {})
    with pytest.raises(ZeroDivisionError):
        load_cached(tmp_path / "set", lambda folder: 1 // 0)
    assert (tmp_path / "set").is_dir()


def test_a_second_writer_is_harmless(tmp_path):
    save_columns(tmp_path / "set", {"a": np.array([1])}, {})
    before = (tmp_path / "set" / "a.arrow").stat().st_ino
    save_columns(tmp_path / "set", {"a": np.array([1])}, {})
    assert (tmp_path / "set" / "a.arrow").stat().st_ino == before
    assert os.listdir(tmp_path) == ["set"]


def test_writers_at_the_same_time(tmp_path):
    faults = []

    def write():
        try:
            save_columns(tmp_path / "deep" / "set", {"a": np.arange(10**5)}, {"b.txt": "b"})
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert os.listdir(tmp_path / "deep") == ["set"]
    np.testing.assert_array_equal(load_columns(tmp_path / "deep" / "set")["a"], np.arange(10**5))


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        save_columns(tmp_path / "file" / "set", {"a": np.array([1])}, {})


def test_fingerprint_is_stable():
    """A change would make every cache of the users worthless; the value is SHA-256 of `1\\0'a'\\0`."""
    assert fingerprint(1, "a") == "7c693b70f95bcba4fc5bae12d4b377fc"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((1, "a"), (1, "b")),
        ((1,), ("1",)),
        (("ab", "c"), ("a", "bc")),
        (("a",), ("a", "")),
        ((None,), ("None",)),
        ((384, 128), (128, 384)),
        (("\ud800",), ("\ud801",)),
    ],
)
def test_fingerprint_differs(one, other):
    assert fingerprint(*one) != fingerprint(*other)


def test_fingerprint_of_data(squad_data):
    data = squad_data(("The cat sat.", [("Who sat?", [("cat", 4)])]))
    same = squad_data(("The cat sat.", [("Who sat?", [("cat", 4)])]))
    assert fingerprint(data.paragraphs) == fingerprint(same.paragraphs)
    others = (
        squad_data(("The cat sat!", [("Who sat?", [("cat", 4)])])),
        squad_data(("The cat sat.", [("Who sat!", [("cat", 4)])])),
        squad_data(("The cat sat.", [("Who sat?", [("sat", 8)])])),
        squad_data(("The cat sat.", [("Who sat?", [])])),
        squad_data(("The cat sat.", [("Who sat?", [("cat", 4), ("cat", 4)])])),
    )
    assert len({fingerprint(other.paragraphs) for other in (data, *others)}) == 6
