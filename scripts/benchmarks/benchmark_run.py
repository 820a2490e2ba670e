"""A benchmark run: in a process of its own, HIM or one of its baselines trains a few steps and is measured."""

import dataclasses
import importlib
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from him.config import Config


@dataclass(frozen=True)
class System:
    """What is measured: HIM, or a baseline.

    Attributes:
        label: its name in the table.
        module, function: what trains it; loaded in its own process only, so that nobody pays for another's imports.
        precision: overrides `--precision`, if set.
    """

    label: str
    module: str
    function: str
    precision: str | None = None


SYSTEMS = {
    "trainer": System("HF Trainer, run_qa defaults", "hf_trainer", "run_trainer_default", "fp32"),
    "trainer_best": System("HF Trainer, at its best", "hf_trainer", "run_trainer_best"),
    "plain": System("nn.TransformerEncoder, plain loop", "plain_loop", "run_plain"),
    "him": System("HIM", "him_step", "run_him"),
}


@dataclass(frozen=True)
class Job:
    """What a run is to do.

    Attributes:
        system: a key of `SYSTEMS`.
        config: sizes, batch, seed, threads, device.
        folder: with the data that `prepare` laid out.
        num_warmup, num_timed: steps.
        options: what only this system takes.
    """

    system: str
    config: Config
    folder: Path
    num_warmup: int
    num_timed: int
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BenchmarkRun:
    """What was measured in a run.

    Attributes:
        tokens_per_second: real tokens, padding not counted.
        share_of_peak: useful operations per second (`training_flops`) as a share of `gemm_gflops`.
        ms_per_step: milliseconds.
        peak_mb: most memory that the process held, in MB of 10^6 bytes; `above_imports_mb` leaves out what it held
            before it loaded data and built the model.
        device_mb: most GPU memory of tensors; None on a CPU.
        gemm_gflops: a large matrix product in the same process and precision, in 10^9 operations per second.
        tokens_per_step: real tokens of a timed step, on average.
        precision: bf16 or fp32.
        device: name of the processor or the GPU.
        num_threads: CPU threads.
    """

    tokens_per_second: float
    share_of_peak: float
    ms_per_step: float
    peak_mb: float
    above_imports_mb: float
    device_mb: float | None
    gemm_gflops: float
    tokens_per_step: float
    precision: str
    device: str
    num_threads: int


def measure_run(job: Job) -> BenchmarkRun:
    """Measures the machine's peak, lets the system train, and returns what came out."""
    from him.core.compute import choose_compute
    from scripts.benchmarks.measure import Meter, gemm_peak

    system = SYSTEMS[job.system]
    config = dataclasses.replace(job.config, precision=system.precision or job.config.precision)
    compute = choose_compute(config.device, config.precision, config.num_threads)
    peak = gemm_peak(compute)
    train: Callable[..., None] = getattr(
        importlib.import_module(f"scripts.benchmarks.{system.module}"), system.function
    )
    meter = Meter(compute, job.num_warmup, job.num_timed)
    meter.imports_done()
    train(config, job.folder, compute, meter, **job.options)
    return _measured(config, compute, meter, peak)


def _measured(config: Config, compute: Any, meter: Any, peak: float) -> BenchmarkRun:
    import torch

    from scripts.benchmarks.measure import device_peak_mb, resident_mb, training_flops

    lengths, peak_mb = meter.row_lengths, resident_mb("VmHWM")
    flops = training_flops(lengths, config.num_encoder_layers, config.embed_dim, config.dim_feedforward)
    return BenchmarkRun(
        tokens_per_second=sum(lengths) / meter.seconds,
        share_of_peak=flops / meter.seconds / peak,
        ms_per_step=1000 * meter.seconds / meter.num_timed,
        peak_mb=peak_mb,
        above_imports_mb=peak_mb - meter.imports_mb,
        device_mb=device_peak_mb(compute),
        gemm_gflops=peak / 1e9,
        tokens_per_step=sum(lengths) / meter.num_timed,
        precision="bf16" if compute.bf16 else "fp32",
        device=torch.cuda.get_device_name(compute.device) if compute.device.type == "cuda" else cpu_name(),
        num_threads=torch.get_num_threads(),
    )


def cpu_name() -> str:
    """The processor's name as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
