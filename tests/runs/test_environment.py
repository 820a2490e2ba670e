"""What a checkpoint says about the machine it was made on."""

import json
from unittest import mock

import pytest
import torch

from him.core.compute import Compute
from him.runs.environment import describe_environment, differences

CPU = Compute(torch.device("cpu"), bf16=False)


def test_it_is_plain_data_and_the_same_each_time():
    described = describe_environment(CPU)
    assert json.loads(json.dumps(described)) == described == describe_environment(CPU)
    assert described["torch"] == torch.__version__
    assert (described["device"], described["bf16"]) == ("cpu", False)
    assert described["num_threads"] == torch.get_num_threads()


def test_precision_and_threads_count():
    before = describe_environment(CPU)
    threads = torch.get_num_threads()
    with mock.patch.object(torch, "get_num_threads", lambda: threads + 1):
        now = describe_environment(Compute(torch.device("cpu"), bf16=True))
    assert differences(before, now) == ["bf16 False → True", f"num_threads {threads} → {threads + 1}"]


@pytest.mark.parametrize(
    "capability, found, expected",
    [
        (
            "AVX512",
            {"avx512_bf16": True, "avx512_vnni": True, "amx_bf16": True},
            "AVX512 avx512_bf16 avx512_vnni amx_bf16",
        ),
        ("AVX512", {"avx512_vnni": True, "amx_bf16": False, "sve": True}, "AVX512 avx512_vnni"),
        ("AVX2", {}, "AVX2"),
    ],
)
def test_the_instructions_that_kernels_are_chosen_by(capability, found, expected):
    with (
        mock.patch.object(torch.backends.cpu, "get_cpu_capability", lambda: capability),
        mock.patch.object(torch.cpu, "get_capabilities", lambda: found),
    ):
        assert describe_environment(CPU)["hardware"] == expected


def test_a_gpu_has_its_name():
    with mock.patch.object(torch.cuda, "get_device_name", lambda device: f"GPU of {device}"):
        described = describe_environment(Compute(torch.device("cuda:1"), bf16=True))
    assert (described["device"], described["hardware"]) == ("cuda", "GPU of cuda:1")


def test_differences_are_named_with_both_values():
    before, now = {"torch": "2.12.0", "device": "cpu"}, {"torch": "2.13.0", "device": "cpu", "new": 1}
    assert differences(before, now) == ["torch 2.12.0 → 2.13.0", "new None → 1"]
    assert differences(now, now) == []
