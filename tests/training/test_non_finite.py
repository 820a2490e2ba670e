"""What is named as the first thing that is not finite."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from him.training.non_finite import SMALL, all_finite, find_non_finite_source, first_not_finite

BAD = (math.nan, math.inf, -math.inf)


@pytest.mark.parametrize("value", BAD)
def test_first_not_finite_is_the_first_by_order(value):
    tensors = {
        "a": torch.ones(3),
        "ids": torch.tensor([2**62]),
        "b": torch.tensor([1.0, value]),
        "c": torch.tensor(value),
    }
    assert first_not_finite(tensors) == "b"
    assert first_not_finite({name: tensors[name] for name in ("a", "ids")}) is None
    assert first_not_finite({}) is None


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("place", [0, 500, 999])
@pytest.mark.parametrize("bad", range(4))
def test_all_finite_sees_one_bad_number(value, place, bad):
    """Small tensors, which are joined, of several types, and a large one."""
    shapes = {(10,): torch.float64, (50, 20): torch.float32, (): torch.bfloat16, (SMALL, 2): torch.float32}
    tensors = [torch.ones(shape, dtype=dtype) for shape, dtype in shapes.items()]
    assert all_finite(tensors)
    tensors[bad].view(-1)[place % tensors[bad].numel()] = value
    assert not all_finite(tensors)


def test_all_finite_is_not_deceived_by_large_numbers():
    """Their squares are infinite."""
    assert all_finite([torch.full((10,), 1e38), torch.ones(3)])
    assert not all_finite([torch.full((10,), 1e38), torch.tensor([math.nan])])


# -- the source ----------------------------------------------------------------------------------------------------


class Spoiler(nn.Module):
    """Puts a number into the row of an example, known by its input."""

    def __init__(self, example: int = -1, value: float = math.nan) -> None:
        super().__init__()
        self.example, self.value = example, value

    def forward(self, x: Tensor, examples: Tensor) -> Tensor:
        return torch.where((examples == self.example)[:, None], self.value, x)


class Model(nn.Module):
    """Two layers, and what spoils the outputs behind each."""

    def __init__(self, first: Spoiler | None = None, second: Spoiler | None = None) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 3), nn.Linear(3, 1)
        self.after_first, self.after_second = first or Spoiler(), second or Spoiler()

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        x = self.after_first(self.first(batch["x"]), batch["id"])
        return self.after_second(self.second(x), batch["id"])


def non_finite_source(
    model: nn.Module, *parts: list[int], bad_inputs: tuple[int, ...] = (), loss_is_finite: bool = False, **gradients
) -> str:
    batches = []
    for numbers in parts:
        ids = torch.tensor(numbers)
        x = torch.ones(len(numbers), 2)
        x[torch.isin(ids, torch.tensor(bad_inputs)), 1] = math.inf
        batches.append((np.array(numbers), {"id": ids, "x": x}))
    return find_non_finite_source(model, batches, model, loss_is_finite, gradients)


def test_the_input_and_its_examples():
    assert non_finite_source(Model(), [3, 7, 5], bad_inputs=(7,)) == "the input x of training example 7"
    assert non_finite_source(Model(), [3, 7], [5, 9], bad_inputs=(9, 5)) == "the input x of training examples 5, 9"


@pytest.mark.parametrize("value", BAD)
def test_the_first_layer_in_the_order_of_the_forward_pass(value):
    both = Model(Spoiler(7, value), Spoiler(3, value))
    assert non_finite_source(both, [3, 7, 5]) == "the output of after_first for training example 7"
    assert non_finite_source(both, [3, 5]) == "the output of after_second for training example 3"
    assert non_finite_source(both, [1, 2], [3, 7]) == "the output of after_first for training example 7"


def test_an_input_is_named_before_what_it_spoils():
    assert non_finite_source(Model(Spoiler(7)), [7, 3], bad_inputs=(3,)) == "the input x of training example 3"


def test_an_output_whose_rows_are_not_the_examples_names_them_all():
    model = Model()
    model.first.register_forward_hook(lambda module, inputs, output: output.flatten() * math.nan)
    model.forward = lambda batch: model.first(batch["x"])
    assert non_finite_source(model, [3, 7]) == "the output of first for training examples 3, 7"


def test_the_loss_if_all_before_it_is_finite():
    assert non_finite_source(Model(), [3, 7], [5]) == "the loss for training examples 3, 7, 5"


def test_the_last_layer_whose_gradient_is_bad():
    """The backward pass began there."""
    bad, good = torch.tensor([1.0, math.nan]), torch.ones(2)
    found = non_finite_source(Model(), [3], loss_is_finite=True, first=bad, second=bad, third=good)
    assert found == "the gradient of second for training example 3"
    assert non_finite_source(Model(), [3], loss_is_finite=False, first=bad) == "the loss for training example 3"


def test_gradients_that_are_finite_one_by_one():
    found = non_finite_source(Model(), [3], loss_is_finite=True, first=torch.full((2,), 3e38))
    assert found == "the norm of all gradients for training example 3"


def test_many_examples_are_counted_and_none_is_named_twice():
    assert non_finite_source(Model(), list(range(10, 18))).endswith("examples 10, 11, 12, 13, 14, 15, 16, 17")
    assert non_finite_source(Model(), list(range(10, 21))).endswith(
        "examples 10, 11, 12, 13, 14, 15, 16, 17 and 3 more"
    )
    assert non_finite_source(Model(), [4, 9, 4], [4]) == "the loss for training examples 4, 9"
    assert non_finite_source(Model(), [4, 4]) == "the loss for training example 4"


def test_no_hook_stays_in_the_model():
    model = Model(Spoiler(3))
    non_finite_source(model, [3])
    assert not any(module._forward_hooks for module in model.modules())
    model.forward = lambda batch: 1 / 0
    with pytest.raises(ZeroDivisionError):
        non_finite_source(model, [3])
    assert not any(module._forward_hooks for module in model.modules())
