"""The kernels that multiply int8 weights on CPUs, and which of them a layer gets.

They are private operators of PyTorch, with no promise that another version has them: beside `cpu_kernels` this is the
only file that names such operators, and a test names the version they were tried with.

# N output channels   K input channels
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# What these operators were tried with. They have no promise: an upgrade has to look at each of them, and measure.
TORCH_VERSION = "2.13.0"
BACKENDS = ("onednn", "x86", "fbgemm", "qnnpack")  # the first that is there is the fastest on the CPUs tried
# On CPUs with units for bf16 the products of int8 are not worth the rounding of the activations, which takes longer
# than the product (12,288 x 256 x 512: 2.4 ms, in bf16 1.4), but where the output is WIDE times as wide as the input
# and the layer has WIDE_WEIGHTS, as an output layer has (384 rows, one thread of a Zen 4: 256 -> 8,192 13 ms, in bf16
# 27; 64 -> 2,048 0.42 ms, in bf16 0.55). What pruning leaves of an encoder may be as wide, but is small (32 -> 256
# 0.09 ms, in bf16 0.06). It is a rule because the kernels round differently: if times chose, metrics would vary.
# Up to FEW_ROWS, as when text is written token by token, a kernel of its own reads int8 weights in a third of the time.
WIDE = 8
WIDE_WEIGHTS = 2**17
FEW_ROWS = 8
WHOLE_VECTORS = 32  # input channels have to be a multiple: that kernel reads past the end of other rows
LARGEST = 127
OFFSET = 128  # of activations: CPUs without AMX multiply unsigned by signed bytes, and signed ones 500 times slower
LEAST_RANGE = 1e-8  # of activations, so that a tensor of zeros has a scale


# x and bias to x @ weight.T + bias, (..., N) in the type of x; the bias is the one that the kernel was chosen with.
Product = Callable[[Tensor, Tensor | None], Tensor]


def choose_product(
    weight_NK: Tensor, scale_N: Tensor, bias_N: Tensor | None, backend: str | None, bf16: bool
) -> Product:
    """The kernel for a layer, with its weights in the order that it wants.

    Args:
        weight_NK: int8.
        scale_N: float32, of each row.
        bias_N: float32, what will be added.
        backend: one of `BACKENDS`; None: floats, for machines without any.
        bf16: whether inputs will be bf16.
    """
    product: Product
    if backend is not None and not (bf16 and backend == "onednn"):
        product = DynamicProduct(weight_NK, scale_N, bias_N)
    elif backend is not None and is_faster_in_int8(*weight_NK.shape):
        product = OffsetProduct(weight_NK, scale_N)
    else:
        product = FloatProduct((weight_NK * scale_N[:, None]).to(torch.bfloat16 if bf16 else torch.float32))
    if backend == "onednn" and weight_NK.shape[1] % WHOLE_VECTORS == 0:
        return FewRowsProduct(weight_NK, scale_N.bfloat16(), of_many=product)
    return product


@dataclass(frozen=True, eq=False)
class FloatProduct:
    """With the weights as floats, for machines without kernels and where bf16 is faster."""

    floats_NK: Tensor

    def __call__(self, x: Tensor, bias_N: Tensor | None) -> Tensor:
        return F.linear(x, self.floats_NK, bias_N)


class DynamicProduct:
    """With activations that are rounded to 8 bits between their least and largest; the sums are float32."""

    def __init__(self, weight_NK: Tensor, scale_N: Tensor, bias_N: Tensor | None) -> None:
        zeros_N = torch.zeros(len(scale_N), dtype=torch.long)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that such tensors will go; the kernels take nothing else
            weight = torch._make_per_channel_quantized_tensor(weight_NK, scale_N, zeros_N, 0)
        self.packed = torch.ops.quantized.linear_prepack(weight, bias_N)

    def __call__(self, x: Tensor, bias_N: Tensor | None) -> Tensor:
        found = torch.ops.quantized.linear_dynamic(x.float(), self.packed, reduce_range=_overflows())
        return found.to(x.dtype)


class OffsetProduct:
    """From bf16 to bf16, with 8-bit activations that are symmetric around 0 and stored with `OFFSET` added."""

    def __init__(self, weight_NK: Tensor, scale_N: Tensor) -> None:
        self.packed, self.scale_N = torch.ops.onednn.qlinear_prepack(weight_NK, None), scale_N
        self.zeros_N = torch.zeros(len(scale_N), dtype=torch.int32)

    def __call__(self, x: Tensor, bias_N: Tensor | None) -> Tensor:
        dtype, x = x.dtype, x.bfloat16()
        low, high = torch.aminmax(x)
        scale = max(-float(low), float(high), LEAST_RANGE) / LARGEST
        rounded = (x * (1.0 / scale)).round_().add_(OFFSET).to(torch.uint8)
        kernel = torch.ops.onednn.qlinear_pointwise
        of_input, of_weight = (scale, OFFSET), (self.packed, self.scale_N, self.zeros_N)
        return kernel(rounded, *of_input, *of_weight, bias_N, 1.0, 0, torch.bfloat16, "none", [], "").to(dtype)


@dataclass(frozen=True, eq=False)
class FewRowsProduct:
    """Up to `FEW_ROWS` rows in bf16, without rounding them; more by another kernel."""

    weight_NK: Tensor
    scale_in_bf16_N: Tensor
    of_many: Product

    def __call__(self, x: Tensor, bias_N: Tensor | None) -> Tensor:
        if x.numel() > FEW_ROWS * x.shape[-1]:
            return self.of_many(x, bias_N)
        rows = x.flatten(0, -2).bfloat16().contiguous()
        found = torch._weight_int8pack_mm(rows, self.weight_NK, self.scale_in_bf16_N)
        found = found.view(*x.shape[:-1], -1).to(x.dtype)
        return found if bias_N is None else found.add_(bias_N)


def is_faster_in_int8(num_rows: int, num_columns: int) -> bool:
    """Whether a matrix (N, K) is multiplied in int8 although there is bf16; see `WIDE`.

    Never without VNNI: other x86 CPUs add up products of unsigned bytes in 16 bits, which overflow.
    """
    is_wide = num_rows >= WIDE * num_columns and num_rows * num_columns >= WIDE_WEIGHTS
    return is_wide and _has_vnni()


def _has_vnni() -> bool:
    """Whether an x86 CPU sums products of bytes in 32 bits."""
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_vnni") or found.get("avx_vnni"))


def _overflows() -> bool:
    """Whether sums of products of bytes may overflow: older x86 CPUs need activations of 7 bits."""
    return torch.cpu.get_capabilities().get("architecture") == "x86_64" and not _has_vnni()


def find_backend(device: torch.device) -> str | None:
    """The int8 kernels to use on a device, or None where there are none: they are for CPUs only."""
    supported = torch.backends.quantized.supported_engines if device.type == "cpu" else ()
    return next((name for name in BACKENDS if name in supported), None)


def backend_note(backend: str | None, bf16: bool, device: torch.device) -> str:
    """A line for people about what computes the int8 model."""
    if backend is None:
        return (
            f"no int8 kernels for {device} here (looked for {', '.join(BACKENDS)}): the int8 model is computed with "
            "floats; the file is as small, the speed is that of floats"
        )
    if bf16 and backend == "onednn":
        return (
            "int8 weights; large products are made in bf16, which is faster on this machine than rounding activations"
        )
    return f"int8 weights and activations, multiplied by the {backend} kernels"
