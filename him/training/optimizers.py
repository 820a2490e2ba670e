"""The optimizer, the learning rate as a pure function of the step, and EMA weights."""

import math

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from him.config import Config


def lr_at(step: int, config: Config, max_steps: int, plateau_reductions: int = 0) -> float:
    """Learning rate of the update number `step`, counted from 0.

    A linear rise over `warmup_ratio` of all steps, never from 0, so that the first update is not lost; then

    - `cosine`: half a cosine down to 0 (Loshchilov and Hutter 2016, arXiv:1608.03983, without restarts);
    - `linear`: straight down to 0;
    - `constant`: stays;
    - `plateau`: stays, and halves with each reduction, which the trainer counts when an epoch brings nothing.
    """
    num_warmup = math.ceil(config.warmup_ratio * max_steps)
    if step < num_warmup:
        return config.learning_rate * (step + 1) / num_warmup
    progress = (step - num_warmup) / max(1, max_steps - num_warmup)
    factor = {
        "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
        "linear": 1.0 - progress,
        "constant": 1.0,
        "plateau": 0.5**plateau_reductions,
    }[config.schedule]
    return config.learning_rate * factor


def build_optimizers(model: nn.Module, config: Config) -> list[torch.optim.Optimizer]:
    """AdamW (Loshchilov and Hutter 2017, arXiv:1711.05101) with decay on matrices, none on biases and norms.

    With `--optimizer muon` the matrices of the encoder's layers are Muon's (Jordan et al. 2024, "Muon: An optimizer for
    hidden layers in neural networks"), which makes each update of a matrix orthogonal. Each group's `lr_ratio` is its
    rate as a multiple of `--learning_rate`, so that one schedule serves all.
    """
    parameters = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    hidden = [p for name, p in parameters if config.optimizer == "muon" and "blocks." in name and p.dim() == 2]
    taken = {id(p) for p in hidden}
    rest = [p for _, p in parameters if id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": config.weight_decay, "lr_ratio": 1.0},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0, "lr_ratio": 1.0},
    ]
    betas = (config.beta1, config.beta2)
    optimizers = [torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, eps=1e-8, fused=True)]
    if hidden:
        group = {"params": hidden, "lr_ratio": config.muon_learning_rate / config.learning_rate}
        optimizers.append(torch.optim.Muon([group], lr=config.muon_learning_rate, weight_decay=config.weight_decay))
    return optimizers


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
        update = get_ema_multi_avg_fn(decay)
        update(list(self.weights.values()), [current[name] for name in self.weights], None)

    def swap(self, model: nn.Module) -> dict[str, Tensor]:
        """Puts the average into the model and returns the weights that were there."""
        before = {name: value.detach().clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.weights)
        return before
