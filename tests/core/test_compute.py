"""The choice of device, precision and threads."""

import ctypes
import sys

import pytest
import torch

from him.core import compute
from him.core.compute import Compute, choose_compute, has_fast_bf16, keep_freed_memory
from him.core.errors import ConfigError


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:1", "cuda:200", "cuda:99999999999999999999"])
def test_a_gpu_that_is_not_there(monkeypatch, device):
    """`torch.device("cuda:200")` is cuda:-56, and a longer number a RuntimeError."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match=f"^--device {device}: there are 0 GPUs; use --device cpu$"):
        choose_compute(device=device)


def test_auto_without_a_gpu_is_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_compute(device="auto").device == torch.device("cpu")
    assert choose_compute(device="cpu").device == torch.device("cpu")


def test_auto_takes_the_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert choose_compute(device="auto") == Compute(torch.device("cuda"), bf16=True)


@pytest.mark.parametrize(
    ("precision", "fast", "bf16"),
    [
        ("auto", True, True),
        ("auto", False, False),
        ("bf16", False, True),
        ("bf16", True, True),
        ("fp32", True, False),
        ("fp32", False, False),
    ],
)
def test_precision(monkeypatch, precision, fast, bf16):
    monkeypatch.setattr(compute, "has_fast_bf16", lambda device: fast)
    chosen = choose_compute(precision=precision, device="cpu")
    assert chosen.bf16 is bf16
    assert chosen.dtype is (torch.bfloat16 if bf16 else torch.float32)
    with chosen.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is chosen.dtype


@pytest.mark.parametrize(
    ("capabilities", "fast"),
    [({}, False), ({"avx512_bf16": False}, False), ({"avx512_bf16": True}, True), ({"amx_bf16": True}, True)],
)
def test_fast_bf16_of_a_cpu(monkeypatch, capabilities, fast):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert has_fast_bf16(torch.device("cpu")) is fast


def test_num_threads_holds_for_the_process():
    before = torch.get_num_threads()
    other = 1 if before > 1 else 2
    try:
        choose_compute(device="cpu")
        assert torch.get_num_threads() == before
        choose_compute(device="cpu", num_threads=other)
        assert torch.get_num_threads() == other
    finally:
        torch.set_num_threads(before)


def test_a_batch_for_the_cpu_is_left_alone():
    batch = {"input_ids": torch.arange(4)}
    assert Compute(torch.device("cpu"), bf16=False).to_device(batch) is batch


def test_keep_freed_memory_asks_glibc_for_it(monkeypatch):
    calls = []
    library = type("Library", (), {"mallopt": staticmethod(lambda *arguments: calls.append(arguments))})
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(sys, "platform", "linux")
    keep_freed_memory()
    # The numbers are those of malloc.h: M_TRIM_THRESHOLD is -1, M_MMAP_MAX -4.
    assert calls == [(-1, 2**31 - 1), (-4, 0)]
    monkeypatch.setattr(sys, "platform", "darwin")
    keep_freed_memory()
    assert len(calls) == 2


@pytest.mark.parametrize("library", [OSError("no libc.so.6"), object()])
def test_keep_freed_memory_does_without_glibc(monkeypatch, library):
    def load(name):
        if isinstance(library, OSError):
            raise library
        return library

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert keep_freed_memory() is None
