"""Dynamic int8: weights as whole numbers with a scale for each output channel, activations rounded as they come.

Weights are symmetric around 0 (Wu et al. 2020, arXiv:2004.09602, sections 3.1 and 3.3); the range of the activations is
that of each tensor, found while computing. The rows of the token embedding have scales too, so that a tied output layer
is an int8 layer with the same numbers. Everything is kept in safetensors and JSON; the kernels that PyTorch has for
this machine get the weights in their own order when a model is loaded.

# B batch   L length   N output channels   K input channels   V vocabulary   D embed_dim
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from him.model.embeddings import TokenEmbedding
from him.model.generative import GenerativeModel
from him.model.int8_kernels import LARGEST, Product, choose_product

# Smaller layers stay floats: they are nothing in the file and in the time, and decide a lot (span and copy gate).
LEAST_CHANNELS = 32
FORMAT_VERSION = 1
SCHEME = "int8, symmetric, a scale for each row; activations are rounded to 8 bits as they come"


def quantized_rows(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds each row to -127 ... 127 times its own scale; returns int8 (N, K) and float32 (N,)."""
    scale_N = weight_NK.detach().abs().amax(dim=1).float() / LARGEST
    scale_N = scale_N.where(scale_N > 0, torch.ones_like(scale_N))
    return (weight_NK.detach().float() / scale_N[:, None]).round_().to(torch.int8), scale_N


class Int8Weight(nn.Module):
    """A matrix `weight` (N, K) in int8 with a float32 `scale` (N,) for its rows, and the product with it."""

    def __init__(self, num_rows: int, num_columns: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(num_rows, num_columns, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(num_rows))
        self._product: Product | None = None

    def set(self, weight_NK: Tensor) -> None:
        """Takes the numbers of a float matrix."""
        weight, scale = quantized_rows(weight_NK)
        self.weight.copy_(weight)
        self.scale.copy_(scale)

    def pack(self, bias_N: Tensor | None, backend: str | None, bf16: bool) -> None:
        """Gets ready for products; see `choose_product`."""
        self._product = choose_product(self.weight, self.scale, bias_N, backend, bf16)

    def product(self, x: Tensor, bias_N: Tensor | None) -> Tensor:
        """x @ weight.T + bias, (..., N) in the type of x; after `pack`, with the bias that was packed."""
        assert self._product is not None, "pack first"
        return self._product(x, bias_N)


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


def describe(model: nn.Module) -> dict[str, Any]:
    """What has to be known about the numbers of a quantized model to read them, for JSON."""
    layers = {name: list(each.weight.shape) for name, each in model.named_modules() if isinstance(each, Int8Weight)}
    return {"format_version": FORMAT_VERSION, "weights": SCHEME, "layers": layers}
