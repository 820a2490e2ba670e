"""Non-finite source: where a NaN or an infinity came from."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SHOWN = 8  # examples that a line names
SMALL = 4096  # numbers: tensors of fewer are joined, as a norm of its own takes longer than reading them


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Name of the first tensor with a NaN or an infinity, or None."""
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    return next((name for name, tensor in floats.items() if not torch.isfinite(tensor).all()), None)


@torch.no_grad()
def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether no tensor holds a NaN or an infinity: one fast pass over memory (1 ms for 5 million numbers)."""
    small = [tensor.flatten() for tensor in tensors if tensor.numel() < SMALL]
    large = [tensor for tensor in tensors if tensor.numel() >= SMALL]
    devices = {tensor.device for tensor in small}
    joined = [torch.cat([tensor for tensor in small if tensor.device == device]) for device in devices]
    if torch.isfinite(nn.utils.get_total_norm([*joined, *large])):
        return True
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)  # the sum of squares may have overflowed


def find_non_finite_source(
    model: nn.Module,
    parts: Sequence[tuple[np.ndarray, dict[str, Tensor]]],
    forward: Callable[[dict[str, Tensor]], Any],
    loss_is_finite: bool,
    gradients: Mapping[str, Tensor],
) -> str:
    """Says what was the first to be not finite in a step: an input, the output of a layer, the loss, or a gradient.

    Args:
        model: as it was in the step; its weights are finite.
        parts: the micro-batches of the step with the numbers of their examples.
        forward: computes the loss of one of them in the way of the step.
        loss_is_finite: whether the step's was.
        gradients: of the step, by parameter name, in the order of the forward pass.
    """
    for examples, batch in parts:
        if name := first_not_finite(batch):
            return f"the input {name} of {_named(_bad_rows(batch[name], examples))}"
        found = _first_bad_layer(model, lambda batch=batch: forward(batch))
        if found is not None:
            name, output = found
            return f"the output of {name} for {_named(_bad_rows(output, examples))}"
    of_batch = f"for {_named(np.concatenate([examples for examples, _ in parts]))}"
    if not loss_is_finite:
        return f"the loss {of_batch}"
    bad = [name for name, gradient in gradients.items() if not torch.isfinite(gradient).all()]
    # The backward pass goes from the last layer to the first.
    return f"the gradient of {bad[-1]} {of_batch}" if bad else f"the norm of all gradients {of_batch}"


def _first_bad_layer(model: nn.Module, forward: Callable[[], Any]) -> tuple[str, Tensor] | None:
    """The first layer of a forward pass whose output is not finite, with this output."""
    found: list[tuple[str, Tensor]] = []

    def look(name: str, output: Any) -> None:
        if not found and isinstance(output, Tensor) and not torch.isfinite(output).all():
            found.append((name, output.detach()))

    leaves = [(name, module) for name, module in model.named_modules() if not list(module.children())]
    handles = [
        module.register_forward_hook(lambda module, inputs, output, name=name: look(name, output))
        for name, module in leaves
    ]
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _bad_rows(tensor: Tensor, examples: np.ndarray) -> np.ndarray:
    """The examples whose rows of a tensor are not finite; all of them if its rows are not the examples."""
    if tensor.dim() == 0 or len(tensor) != len(examples):
        return examples
    return examples[(~torch.isfinite(tensor.flatten(1) if tensor.dim() > 1 else tensor[:, None])).any(1).cpu().numpy()]


def _named(examples: np.ndarray) -> str:
    """Examples by their numbers in the training data, counted from 0, each once."""
    numbers = list(dict.fromkeys(examples.tolist()))
    more = f" and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else ""
    plural = "s" if len(numbers) > 1 else ""
    return f"training example{plural} {', '.join(map(str, numbers[:SHOWN]))}{more}"
