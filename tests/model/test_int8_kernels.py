"""Which kernel an int8 layer gets, how fast it is, and where private operators of PyTorch are named.

# N output channels   K input channels
"""

import ast
import re
import statistics
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from him.core.compute import has_fast_bf16
from him.model.int8_kernels import (
    TORCH_VERSION,
    DynamicProduct,
    FewRowsProduct,
    FloatProduct,
    OffsetProduct,
    backend_note,
    choose_product,
    find_backend,
    is_faster_in_int8,
)
from tests.model.test_int8 import THERE, computed_in, packed_layer, random

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
ONEDNN = pytest.mark.skipif("onednn" not in THERE, reason="oneDNN is missing")

# -- private operators -------------------------------------------------------------------------------------------------


def private_operators(source):
    """What a source names of PyTorch that has no promise: `torch.ops`, and attributes that begin with an underscore."""
    found, tree = set(), ast.parse(source)
    names = {"torch"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None) or ""
            for alias in node.names:
                full = f"{module}.{alias.name}".strip(".")
                if full.split(".")[0] == "torch":
                    names.add(alias.asname or alias.name.split(".")[0])
                    found |= {full} if _is_private(full) else set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            full = ast.unparse(node)
            if re.fullmatch(r"[\w.]+", full) and full.split(".")[0] in names and _is_private(full):
                found.add(full)
    return found


def _is_private(name):
    parts = name.split(".")[1:]
    return "ops" in parts or any(part.startswith("_") and not part.endswith("__") for part in parts)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("torch.ops.aten.mm(a, b)", {"torch.ops", "torch.ops.aten", "torch.ops.aten.mm"}),
        ("import torch\ntorch._foreach_add_(a, b)", {"torch._foreach_add_"}),
        ("import torch.nn.functional as F\nF._scaled(a)", {"F._scaled"}),
        ("from torch._C import _x", {"torch._C._x"}),
        ("from torch import _dynamo, nn", {"torch._dynamo"}),
        ("torch.__version__, self._x, torch.nn.functional.linear(x), np.ops", set()),
    ],
)
def test_the_search_itself(source, expected):
    assert private_operators(source) == expected


def test_private_operators_are_named_in_the_files_of_kernels_only():
    """What an upgrade of PyTorch may break has to be looked for in these two files, and nowhere else."""
    files = [*(ROOT / "him").rglob("*.py"), *(ROOT / "scripts").rglob("*.py"), ROOT / "main.py"]
    assert len(files) > 100
    allowed = {ROOT / "him" / "model" / name for name in ("cpu_kernels.py", "int8_kernels.py")}
    found = {str(path): private_operators(path.read_text(encoding="utf-8")) for path in files if path not in allowed}
    assert {path: names for path, names in found.items() if names} == {}
    assert private_operators((ROOT / "him/model/int8_kernels.py").read_text(encoding="utf-8"))


def test_the_version_that_private_operators_were_tried_with():
    """Fails with another PyTorch, on purpose: it may lack them, or mean something else by their arguments."""
    assert torch.__version__.split("+")[0] == TORCH_VERSION, (
        f"him/model/int8_kernels.py was tried with torch {TORCH_VERSION}, this is {torch.__version__}: compare the "
        "signatures below, run tests/model/test_int8*.py, see whether the choice of kernels still holds (the test of "
        "widths that pruning can leave measures it), and then write the new version into TORCH_VERSION"
    )
    assert f"torch=={TORCH_VERSION}" in (ROOT / "requirements.txt").read_text(encoding="utf-8").split()


@ONEDNN
@pytest.mark.parametrize(
    ("operator", "arguments"),
    [
        (torch.ops.quantized.linear_prepack, "W B"),
        (torch.ops.quantized.linear_dynamic, "X W_prepack reduce_range"),
        (torch.ops.onednn.qlinear_prepack, "weight x_shape"),
        (
            torch.ops.onednn.qlinear_pointwise,
            "qx x_scale x_zero_point qw w_scale w_zero_point bias output_scale output_zero_point output_dtype "
            "post_op_name post_op_args post_op_algorithm",
        ),
        (torch.ops.aten._weight_int8pack_mm, "self mat2 scales"),
        (torch.ops.aten._make_per_channel_quantized_tensor, "self scale zero_point axis"),
    ],
    ids=str,
)
def test_signatures_of_the_private_operators(operator, arguments):
    assert " ".join(each.name for each in operator.default._schema.arguments) == arguments


# -- which kernel ------------------------------------------------------------------------------------------------------

# What pruning leaves of an encoder of 256 channels with 8 heads of 32: (N, K), and what its layers are elsewhere.
OUTPUTS = [(256, 32 * heads) for heads in range(1, 9)]
INPUTS = [(96 * heads, 256) for heads in range(1, 9)]
NEURONS = (32, 33, 64, 100, 256, 512, 1024)
LEFT = [*OUTPUTS, *INPUTS, *((256, width) for width in NEURONS), *((width, 256) for width in NEURONS)]
IN_BF16 = pytest.mark.skipif(
    THERE[:1] != ["onednn"] or not has_fast_bf16(CPU), reason="bf16 is slow here, or oneDNN is missing"
)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"architecture": "x86_64", "avx512_vnni": True}, True),
        ({"architecture": "x86_64", "avx_vnni": True}, True),
        ({"architecture": "x86_64"}, False),
        ({"architecture": "aarch64"}, False),
    ],
)
def test_output_layers_are_multiplied_in_int8_and_what_pruning_leaves_is_not(monkeypatch, capabilities, expected):
    """A rule: timing each layer could choose another kernel, and so another result, each time a model is loaded."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert not any(is_faster_in_int8(*shape) for shape in LEFT)
    assert not any(is_faster_in_int8(embed_dim, embed_dim // 8) for embed_dim in (256, 512, 768)), "one head of eight"
    for shape in ((8192, 256), (2048, 256), (30522, 768), (2048, 64)):
        assert is_faster_in_int8(*shape) == expected, shape
    assert not is_faster_in_int8(8192, 2048)


@ONEDNN
@pytest.mark.parametrize(
    ("shape", "bf16", "few", "many"),
    [
        ((2048, 64), True, FewRowsProduct, OffsetProduct),
        ((1040, 130), True, OffsetProduct, OffsetProduct),
        ((256, 32), True, FewRowsProduct, FloatProduct),
        ((256, 33), True, FloatProduct, FloatProduct),
        ((256, 32), False, FewRowsProduct, DynamicProduct),
        ((2048, 100), False, DynamicProduct, DynamicProduct),
    ],
)
def test_the_kernel_of_a_layer(monkeypatch, shape, bf16, few, many):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64", "avx512_vnni": True})
    weight, scale, bias = torch.ones(shape, dtype=torch.int8), torch.ones(shape[0]), torch.zeros(shape[0])
    product = choose_product(weight, scale, bias, "onednn", bf16)
    assert (type(product), type(getattr(product, "of_many", product))) == (few, many)
    assert type(choose_product(weight, scale, bias, None, bf16)) is FloatProduct


@ONEDNN
@pytest.mark.skipif(not is_faster_in_int8(2048, 64), reason="this CPU multiplies in bf16")
@pytest.mark.parametrize(("N", "K"), [(2048, 64), (1040, 130)])
def test_an_offset_of_the_activations_changes_no_bit(N, K):
    """Against the same kernel with signed activations, which is hundreds of times slower on CPUs without AMX."""
    layer, _ = packed_layer(N, K, "onednn", bf16=True)
    product = getattr(layer._product, "of_many", layer._product)
    x = random(9, K, seed=3).bfloat16()
    scale = float(x.abs().max()) / 127
    rounded = (x * (1.0 / scale)).round().to(torch.int8)
    of_weight = (product.packed, layer.scale, torch.zeros(N, dtype=torch.int32))
    expected = torch.ops.onednn.qlinear_pointwise(
        rounded, scale, 0, *of_weight, layer.bias, 1.0, 0, torch.bfloat16, "none", [], ""
    )
    with computed_in(True):
        assert torch.equal(layer(x), expected)


def median_ms(runs, turns):
    """Of each of some calls, made in turns, so that a machine that gets busy slows all alike."""
    milliseconds = [[] for _ in runs]
    for _ in range(1 + turns):
        for run, times in zip(runs, milliseconds, strict=True):
            started_at = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - started_at))
    return [statistics.median(times[1:]) for times in milliseconds]


def slower_than_bf16(shape, num_rows):
    """How a layer's times in int8 and in bf16 differ, if int8 takes more than twice as long; else None.

    A tenth of a millisecond is the module's own and the machine's; what seems slow is measured again, for longer.
    """
    N, K = shape
    layer, (weight, bias) = packed_layer(N, K, find_backend(CPU), bf16=True)
    x, weight, bias = random(1, num_rows, K, seed=3).bfloat16(), weight.bfloat16(), bias.bfloat16()
    for turns in (3, 9, 21):
        int8, bf16 = median_ms((lambda: layer(x), lambda: F.linear(x, weight, bias)), turns)
        if int8 < 2 * bf16 + 0.1:
            return None
    return f"{K} -> {N}, {num_rows} rows: {int8:.2f} ms, in bf16 {bf16:.2f}"


@pytest.fixture
def one_thread():
    """Two threads that wait for each other on a busy machine take a hundred times as long, whatever they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.timing
@IN_BF16
@torch.inference_mode()
def test_no_width_that_pruning_can_leave_is_slow(one_thread):
    """One head of eight left an output projection of 32 -> 256 whose kernel took 31 ms for 128 rows, bf16 0.05."""
    shapes = [*dict.fromkeys(LEFT), (8192, 256)]
    with computed_in(True):
        found = [slower_than_bf16(shape, rows) for rows in (1, 128, 384) for shape in shapes]
        found += [slower_than_bf16(shape, 32 * 384) for shape in (*OUTPUTS, (96, 256), (1024, 256), (256, 1024))]
    assert [line for line in found if line] == []


# -- backends ----------------------------------------------------------------------------------------------------------


def test_the_backend_is_the_first_that_is_there(monkeypatch):
    assert find_backend(CPU) == (THERE[0] if THERE else None)
    assert find_backend(torch.device("cuda")) is None
    assert "x86 kernels" in backend_note("x86", False, CPU)
    assert "bf16" in backend_note("onednn", True, CPU)
    monkeypatch.setattr(torch._C, "_supported_qengines", lambda: [0])
    assert find_backend(CPU) is None
