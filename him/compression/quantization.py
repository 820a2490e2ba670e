"""Dynamic int8: weights as whole numbers with a scale for each output channel, activations rounded as they come.

Weights are symmetric around 0 (Wu et al. 2020, arXiv:2004.09602, sections 3.1 and 3.3); the range of the activations is
that of each tensor, found while computing. The rows of the token embedding have scales too, so that a tied output layer
is an int8 layer with the same numbers. Everything is kept in safetensors and JSON; the kernels that PyTorch has for
this machine get the weights in their own order when a model is loaded.

# B batch   L length   N output channels   K input channels   V vocabulary   D embed_dim
"""

import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from him.config import Config
from him.core.errors import CheckpointError
from him.model.embeddings import TokenEmbedding
from him.model.generative import GenerativeModel
from him.runs.checkpoint import save_model

# Smaller layers stay floats: they are nothing in the file and in the time, and decide a lot (span and copy gate).
LEAST_CHANNELS = 32
BACKENDS = ("onednn", "x86", "fbgemm", "qnnpack")  # the first that is there is the fastest on the CPUs tried
DESCRIPTION = "quantization.json"
FORMAT_VERSION = 1
SCHEME = "int8, symmetric, a scale for each row; activations are rounded to 8 bits as they come"
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


def quantized_rows(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds each row to -127 ... 127 times its own scale; returns int8 (N, K) and float32 (N,)."""
    scale_N = weight_NK.detach().abs().amax(dim=1).float() / LARGEST
    scale_N = scale_N.where(scale_N > 0, torch.ones_like(scale_N))
    return (weight_NK.detach().float() / scale_N[:, None]).round_().to(torch.int8), scale_N


class Int8Weight(nn.Module):
    """A matrix (N, K) in int8 with a scale for each row, and the product with it.

    Attributes:
        weight: int8 (N, K).
        scale: float32 (N,).
    """

    def __init__(self, num_rows: int, num_columns: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(num_rows, num_columns, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(num_rows))
        self._packed: Any = None
        self._packed_for_bf16: Tensor | None = None
        self._zeros_N: Tensor | None = None
        self._scale_in_bf16: Tensor | None = None
        self._floats_NK: Tensor | None = None

    def set(self, weight_NK: Tensor) -> None:
        """Takes the numbers of a float matrix."""
        weight, scale = quantized_rows(weight_NK)
        self.weight.copy_(weight)
        self.scale.copy_(scale)

    def pack(self, bias_N: Tensor | None, backend: str | None, bf16: bool) -> None:
        """Gets ready for products.

        Args:
            bias_N: what `product` will add.
            backend: whose kernels to use; None: floats, for machines without any.
            bf16: whether inputs will be bf16.
        """
        if backend is None:
            self._floats_NK = (self.weight * self.scale[:, None]).to(torch.bfloat16 if bf16 else torch.float32)
            return
        num_rows, num_columns = self.weight.shape
        if backend == "onednn" and num_columns % WHOLE_VECTORS == 0:
            self._scale_in_bf16 = self.scale.bfloat16()
        zeros_N = torch.zeros(num_rows, dtype=torch.long)
        if not bf16 or backend != "onednn":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # that such tensors will go; the kernels take nothing else
                weight = torch._make_per_channel_quantized_tensor(self.weight, self.scale, zeros_N, 0)
            self._packed = torch.ops.quantized.linear_prepack(weight, bias_N)
            return
        if is_faster_in_int8(num_rows, num_columns):
            self._packed_for_bf16 = torch.ops.onednn.qlinear_prepack(self.weight, None)
            self._zeros_N = zeros_N.int()
        else:
            self._floats_NK = (self.weight * self.scale[:, None]).bfloat16()

    def product(self, x: Tensor, bias_N: Tensor | None) -> Tensor:
        """x @ weight.T + bias, (..., N) in the type of x; after `pack`, with the bias that was packed."""
        if self._scale_in_bf16 is not None and x.numel() <= FEW_ROWS * x.shape[-1]:
            return self._product_of_few_rows(x, bias_N)
        if self._floats_NK is not None:
            return F.linear(x, self._floats_NK, bias_N)
        if self._packed_for_bf16 is not None:
            return self._product_in_bf16(x.bfloat16(), bias_N).to(x.dtype)
        assert self._packed is not None, "pack first"
        found = torch.ops.quantized.linear_dynamic(x.float(), self._packed, reduce_range=_overflows())
        return found.to(x.dtype)

    def _product_of_few_rows(self, x: Tensor, bias_N: Tensor | None) -> Tensor:
        rows = x.flatten(0, -2).bfloat16().contiguous()
        found = torch._weight_int8pack_mm(rows, self.weight, self._scale_in_bf16)
        found = found.view(*x.shape[:-1], -1).to(x.dtype)
        return found if bias_N is None else found.add_(bias_N)

    def _product_in_bf16(self, x: Tensor, bias_N: Tensor | None) -> Tensor:
        """Of 8-bit activations, symmetric around 0 (stored with `OFFSET` added), from bf16 to bf16."""
        low, high = torch.aminmax(x)
        scale = max(-float(low), float(high), LEAST_RANGE) / LARGEST
        rounded = (x * (1.0 / scale)).round_().add_(OFFSET).to(torch.uint8)
        kernel = torch.ops.onednn.qlinear_pointwise
        of_input, of_weight = (scale, OFFSET), (self._packed_for_bf16, self.scale, self._zeros_N)
        return kernel(rounded, *of_input, *of_weight, bias_N, 1.0, 0, torch.bfloat16, "none", [], "")


class Int8Linear(Int8Weight):
    """An `nn.Linear` in int8; its bias stays float32."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(out_features, in_features)
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("bias", torch.zeros(out_features) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.bias)


class Int8Embedding(Int8Weight):
    """A `TokenEmbedding` in int8."""

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__(num_embeddings, embedding_dim)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim

    def forward(self, ids: Tensor) -> Tensor:
        """Float32 vectors (..., D)."""
        return F.embedding(ids, self.weight) * self.scale[ids][..., None]

    def project(self, hidden: Tensor, bias_V: Tensor) -> Tensor:
        """Logits of all tokens, (..., V), from (..., D)."""
        return self.product(hidden, bias_V)


def quantize(model: nn.Module) -> nn.Module:
    """Puts int8 in the place of a float model's large Linear layers and of its token embedding; returns the model."""
    for parent, name, module in list(_quantizable(model)):
        if isinstance(module, TokenEmbedding):
            replacement: Int8Weight = Int8Embedding(module.num_embeddings, module.embedding_dim)
        else:
            replacement = Int8Linear(module.in_features, module.out_features, module.bias is not None)
            if module.bias is not None:
                replacement.bias.copy_(module.bias.detach())
        replacement.set(module.weight)
        setattr(parent, name, replacement)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def _quantizable(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """The layers that become int8, each with its parent and its name there."""
    for parent in model.modules():
        for name, module in parent.named_children():
            is_large = isinstance(module, nn.Linear) and min(module.in_features, module.out_features) >= LEAST_CHANNELS
            if is_large or isinstance(module, TokenEmbedding):
                yield parent, name, module


def pack(model: nn.Module, backend: str | None, bf16: bool) -> None:
    """Gets a quantized model ready to compute.

    Args:
        model: from `quantize`, with its final numbers, on its device.
        backend: one of `BACKENDS`, or None to compute with floats.
        bf16: whether it will be computed under autocast to bf16.
    """
    if backend is not None:
        torch.backends.quantized.engine = backend
    for module in model.modules():
        if isinstance(module, Int8Linear):
            module.pack(module.bias, backend, bf16)
        elif isinstance(module, Int8Embedding) and isinstance(model, GenerativeModel):
            module.pack(model.output_bias, backend, bf16)


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


def save_int8(folder: Path, config: Config, model: nn.Module, task: Any, metrics: Mapping[str, Any]) -> None:
    """Writes what `save_model` writes, and `quantization.json` about the numbers in `model.safetensors`."""
    layers = {name: list(each.weight.shape) for name, each in model.named_modules() if isinstance(each, Int8Weight)}
    description = {"format_version": FORMAT_VERSION, "weights": SCHEME, "layers": layers}
    save_model(folder, config, model, task, metrics, more={DESCRIPTION: description})


def check_description(folder: Path) -> None:
    """Raises CheckpointError if an int8 model was not written in this format."""
    path = folder / DESCRIPTION
    try:
        version = json.loads(path.read_text(encoding="utf-8"))["format_version"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); make it again with scripts/compress.py") from None
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format {version}, and this HIM reads format {FORMAT_VERSION}; make it again with "
            "scripts/compress.py"
        )


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
