"""The environment that a run is trained in: what the bits of a result depend on beside data and settings."""

from typing import Any

import torch

from him.core.compute import Compute


def describe_environment(compute: Compute) -> dict[str, Any]:
    """Version of PyTorch, device, precision, threads and instruction set, as a checkpoint records them."""
    if compute.device.type == "cuda":
        hardware = torch.cuda.get_device_name(compute.device)
    else:
        found = torch.cpu.get_capabilities()
        used = [name for name in ("avx512_bf16", "avx512_vnni", "amx_bf16") if found.get(name)]
        hardware = " ".join([torch.backends.cpu.get_cpu_capability(), *used])
    return {
        "torch": torch.__version__,
        "device": compute.device.type,
        "hardware": hardware,
        "bf16": compute.bf16,
        "num_threads": torch.get_num_threads(),
    }


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """How the environment differs from that of a checkpoint: `torch 2.12.0 → 2.13.0`."""
    return [f"{name} {before.get(name)} → {value}" for name, value in now.items() if before.get(name) != value]
