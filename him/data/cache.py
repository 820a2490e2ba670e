"""The cache of prepared data, in Arrow: written once under a hash of all that made it, memory-mapped afterwards."""

import hashlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa

from him.config import Config
from him.core.errors import CheckpointError
from him.core.files import add_folder, verify_folder
from him.core.ragged import Ragged

Columns = dict[str, np.ndarray | Ragged]
T = TypeVar("T")


def fingerprint(*parts: object) -> str:
    """Hash of anything whose `repr` tells it completely, as 32 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part).encode("utf-8", "surrogatepass"))
        digest.update(b"\0")
    return digest.hexdigest()[:32]


def cache_folder(config: Config) -> Path:
    """Where prepared data is kept."""
    return Path(config.cache_dir or Path(config.output_dir) / ".cache")


def cached_folder(cache_dir: Path, name: str) -> Path:
    """Where prepared data of a name is or will be; a link there, which could lead anywhere, is removed."""
    folder = cache_dir / name
    if folder.is_symlink():
        folder.unlink()
    return folder


def load_cached(folder: Path, load: Callable[[Path], T], last: str = "") -> T | None:
    """What is in the cache, or None where it has to be made anew; what is damaged is removed.

    Args:
        folder: of the cache.
        load: reads it.
        last: the folder in it that is written last, if it is written in parts: without it, another process may be
            writing, and nothing is removed.
    """
    try:
        return load(folder)
    except (OSError, ValueError, KeyError, TypeError, CheckpointError):
        if (folder / last).is_dir():
            shutil.rmtree(folder, ignore_errors=True)
        return None


def content_digest(*columns: np.ndarray | Ragged) -> str:
    """Hash of the content of columns, as 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for column in columns:
        parts = (column.offsets, column.values) if isinstance(column, Ragged) else (column,)
        for part in parts:
            digest.update(np.ascontiguousarray(part))
    return digest.hexdigest()[:16]


def save_columns(folder: Path, columns: Mapping[str, np.ndarray | Ragged], texts: Mapping[str, str]) -> None:
    """Writes columns and texts to a folder of their own; it appears whole or not at all.

    A folder that is there already has the same content by its name, and is kept.
    """

    def fill(aside: Path) -> None:
        for name, column in columns.items():
            _write_column(aside / f"{name}.arrow", column)
        for name, text in texts.items():
            (aside / name).write_text(text, encoding="utf-8")

    add_folder(folder, fill)


def load_columns(folder: Path) -> Columns:
    """Maps the columns of a folder into memory.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    verify_folder(folder)
    return {path.stem: _read_column(path) for path in sorted(folder.glob("*.arrow"))}


def _write_column(path: Path, column: np.ndarray | Ragged) -> None:
    values, offsets = (column.values, column.offsets) if isinstance(column, Ragged) else (column, None)
    # Arrow keeps one dimension: the width of two-dimensional values goes into the schema.
    width = values.shape[1] if values.ndim == 2 else 0
    arrays = {"values": values} | ({} if offsets is None else {"offsets": offsets})
    with pa.OSFile(str(path), "wb") as file:
        for name, array in arrays.items():
            flat = pa.array(np.ascontiguousarray(array).reshape(-1))
            schema = pa.schema([(name, flat.type)], metadata={"width": str(width)})
            with pa.ipc.new_stream(file, schema) as writer:
                writer.write_batch(pa.record_batch([flat], schema=schema))


def _read_column(path: Path) -> np.ndarray | Ragged:
    parts = []
    with pa.memory_map(str(path)) as file:
        while file.tell() < file.size():
            with pa.ipc.open_stream(file) as reader:
                width = int(reader.schema.metadata[b"width"])
                (batch,) = list(reader)
                flat = batch.column(0).to_numpy(zero_copy_only=True)
                parts.append(flat.reshape(-1, width) if width and not parts else flat)
    return parts[0] if len(parts) == 1 else Ragged(*parts)
