"""Device, precision (bf16 or float32), threads and memory of the process that computes a model."""

import ctypes
import gc
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from him.core.errors import ConfigError

# mallopt(3): parameters and the values that keep freed memory in the process.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
LARGEST_INT = 2**31 - 1
# How the CPU's allocator, oneDNN, C++ and cuBLAS say it.
OUT_OF_MEMORY = ("can't allocate memory", "could not create a primitive", "std::bad_alloc", "STATUS_ALLOC_FAILED")
T = TypeVar("T")


@dataclass(frozen=True)
class Compute:
    """A device and the precision of matrix products on it; weights and sums stay float32 either way."""

    device: torch.device
    bf16: bool

    @property
    def dtype(self) -> torch.dtype:
        """What matrix products are computed in."""
        return torch.bfloat16 if self.bf16 else torch.float32

    def autocast(self) -> AbstractContextManager:
        """Context in which a forward pass runs."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)

    def to_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch on the device; from pinned memory, so that a GPU does not wait for the copy."""
        if self.device.type == "cpu":
            return batch
        whole = {name: tensor.contiguous() for name, tensor in batch.items()}  # pinning fails on expanded tensors
        return {name: tensor.pin_memory().to(self.device, non_blocking=True) for name, tensor in whole.items()}


def choose_compute(device: str = "auto", precision: str = "auto", num_threads: int | None = None) -> Compute:
    """Settles `--device`, `--precision` and `--num_threads`, the last for the whole process.

    Args:
        device: auto, cpu, cuda or cuda:N.
        precision: auto, bf16 or fp32.
        num_threads: of the CPU; None is PyTorch's choice.

    Raises:
        ConfigError: the device is not there.
    """
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    name = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")  # by hand: `torch.device` turns cuda:200 into cuda:-56
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"--device {device}: there are {torch.cuda.device_count()} GPUs; use --device cpu")
    chosen = torch.device(name)
    return Compute(chosen, bf16=has_fast_bf16(chosen) if precision == "auto" else precision == "bf16")


def memory_bytes() -> float:
    """Memory of this machine; infinite where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return math.inf


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bf16 products are faster than float32 ones: AVX512-BF16 or AMX on a CPU, Ampere or later on a GPU."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def keep_freed_memory() -> None:
    """Tells glibc to keep freed memory for the next step instead of handing it back and asking for it again.

    A training step frees and takes the same tensors of some MB each time; the page faults were 6 to 20 % of it. Does
    nothing where the C library is another one.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_TRIM_THRESHOLD, LARGEST_INT)
    mallopt(M_MMAP_MAX, 0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a GPU or the machine has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)


def release_memory() -> None:
    """Gives back what a pass that failed has left, as far as nothing refers to it any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def in_parts(indices: np.ndarray, work: Callable[[np.ndarray], T]) -> Iterator[tuple[np.ndarray, T]]:
    """Does work for a batch of examples; where memory runs out, for its halves one after the other.

    Args:
        indices: of the examples.
        work: takes indices, all of these or some.

    Yields:
        The indices worked on, and what came of it.
    """
    try:
        done = work(indices)
    except (RuntimeError, MemoryError) as error:
        if len(indices) == 1 or not is_out_of_memory(error):
            raise
    else:
        yield indices, done
        return
    release_memory()
    for half in np.array_split(indices, 2):
        yield from in_parts(half, work)
