"""Exponential moving average (EMA) of the weights, which is evaluated and kept in their place."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class ExponentialMovingAverage:
    """Exponential moving average of a model's weights (Polyak and Juditsky 1992; Tarvainen and Valpola 2017).

    The decay starts low, min(decay, (1 + n) / (10 + n)) after n updates, so that the first weights are forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, num_updates: int) -> None:
        """Moves the average towards the model."""
        decay = min(self.decay, (1 + num_updates) / (10 + num_updates))
        current = model.state_dict()
        get_ema_multi_avg_fn(decay)(list(self.weights.values()), [current[name] for name in self.weights], None)

    @contextmanager
    def swapped_into(self, model: nn.Module) -> Iterator[None]:
        """While entered, the model has the average for its weights; its own are put back at the end."""
        before = {name: value.detach().clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.weights)
        try:
            yield
        finally:
            model.load_state_dict(before)
