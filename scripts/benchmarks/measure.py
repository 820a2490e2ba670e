"""What a benchmark run measures: tokens, time and memory of a system, and what the machine could do at best."""

import resource
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from him.core.compute import Compute

GEMM_SIZE = {"cpu": 2048, "cuda": 8192}  # large enough to reach the peak, small enough to leave no mark on memory
GEMM_RUNS = 10


class Meter:
    """Counts real tokens and seconds between the end of the warm-up and the last step.

    The clock is read twice only, so that a GPU is not made to wait for each step. Between the two lies all that a step
    is: making the batch, forward and backward pass, update, schedule.

    Args:
        compute: where the steps run.
        num_warmup: steps before the clock starts, at least 1.
        num_timed: steps that are timed.
    """

    def __init__(self, compute: Compute, num_warmup: int, num_timed: int) -> None:
        assert num_warmup >= 1 and num_timed >= 1
        self.compute = compute
        self.num_warmup = num_warmup
        self.num_timed = num_timed
        self.num_steps = 0
        self.seconds = 0.0
        self.imports_mb = 0.0
        self._started_at = 0.0
        self._row_lengths: list[Tensor] = []

    def imports_done(self) -> None:
        """Remembers the memory that the process has before it loads data or builds a model."""
        self.imports_mb = resident_mb("VmRSS")

    def watch(self, model: nn.Module) -> None:
        """Counts what `attention_mask` admits in each forward pass, whether it comes by name or in a batch dict."""
        model.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        if self.num_warmup <= self.num_steps < self.num_warmup + self.num_timed:
            fields = kwargs if "attention_mask" in kwargs else args[0]
            self._row_lengths.append(fields["attention_mask"].sum(dim=1))

    def step_done(self) -> bool:
        """Counts a step; True after the last one."""
        self.num_steps += 1
        if self.num_steps == self.num_warmup:
            self._started_at = now(self.compute)
        if self.num_steps == self.num_warmup + self.num_timed:
            self.seconds = now(self.compute) - self._started_at
        return self.num_steps >= self.num_warmup + self.num_timed

    @property
    def row_lengths(self) -> list[int]:
        """Real tokens of each row of the timed steps."""
        return torch.cat(self._row_lengths).tolist()


def now(compute: Compute) -> float:
    """Seconds on a clock, read when the device has done all that it was given."""
    if compute.device.type == "cuda":
        torch.cuda.synchronize(compute.device)
    return time.perf_counter()


def training_flops(row_lengths: list[int], num_encoder_layers: int, embed_dim: int, dim_feedforward: int) -> float:
    """Floating-point operations that training on rows of these lengths needs, whoever does it.

        sum over rows of  6 * P * n  +  12 * layers * D * n * n,     P = layers * (4 * D * D + 2 * D * F) + 2 * D

    n are a row's real tokens: what padding costs is no useful work. P are the weights of the matrices: queries, keys,
    values, output, feed-forward and the span head; embeddings are looked up and HIM's lexical inputs are left out, so
    that the same work counts the same for all. A multiplication and an addition per weight and token make 2, and the
    backward pass twice the forward one: 6. Scores and weighted sums are 2 * D * n operations per token and layer each,
    4 in all, and 12 with the backward pass.
    """
    weights = num_encoder_layers * (4 * embed_dim**2 + 2 * embed_dim * dim_feedforward) + 2 * embed_dim
    attention = 12 * num_encoder_layers * embed_dim
    return float(sum(6 * weights * length + attention * length**2 for length in row_lengths))


def gemm_peak(compute: Compute) -> float:
    """Operations per second of a large square matrix product in the precision of `compute`: the best of some runs."""
    size = GEMM_SIZE.get(compute.device.type, 2048)
    left, right = (torch.randn(size, size, device=compute.device).to(compute.dtype) for _ in range(2))
    best = float("inf")
    for _ in range(GEMM_RUNS):
        started_at = now(compute)
        left @ right
        best = min(best, now(compute) - started_at)
    return 2 * size**3 / best


def resident_mb(field: str) -> float:
    """`VmRSS` (memory held now) or `VmHWM` (most so far) of the process, in MB of 10^6 bytes.

    Not `ru_maxrss` where it can be had otherwise: on Linux that starts from what the parent process held.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{field}:"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def device_peak_mb(compute: Compute) -> float | None:
    """Most GPU memory that tensors took, in MB of 10^6 bytes; None on a CPU."""
    if compute.device.type != "cuda":
        return None
    return torch.cuda.max_memory_allocated(compute.device) / 1e6
