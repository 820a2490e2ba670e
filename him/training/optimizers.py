"""Optimizers by the names of `--optimizer`: to add one, name it among the option's choices and add a row to BUILDERS.

A checkpoint holds whatever their `state` holds, by parameter and key.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from him.config import Config

Parameters = Sequence[tuple[str, nn.Parameter]]  # by name, those that are trained


def build_optimizers(model: nn.Module, config: Config) -> list[torch.optim.Optimizer]:
    """Optimizers of a model's trainable parameters, each parameter in one group of one of them.

    Each group's `lr_ratio` is its rate as a multiple of `--learning_rate`, so that one schedule serves all.
    """
    parameters = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return BUILDERS[config.optimizer or "adamw"](parameters, config)


def decay_groups(parameters: Parameters, config: Config) -> list[dict]:
    """Parameter groups with decay on matrices, none on biases and norms; their rate is `--learning_rate`."""
    matrices, others = [p for _, p in parameters if p.dim() >= 2], [p for _, p in parameters if p.dim() < 2]
    return [
        {"params": matrices, "weight_decay": config.weight_decay, "lr_ratio": 1.0},
        {"params": others, "weight_decay": 0.0, "lr_ratio": 1.0},
    ]


def adamw(parameters: Parameters, config: Config) -> list[torch.optim.Optimizer]:
    """AdamW (Loshchilov and Hutter 2017, arXiv:1711.05101) with decay on matrices, none on biases and norms."""
    groups, betas = decay_groups(parameters, config), (config.beta1, config.beta2)
    return [torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, eps=1e-8, fused=True)]


def muon(parameters: Parameters, config: Config) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks") for the matrices of the
    encoder's layers, which makes each update of a matrix orthogonal; AdamW for the rest."""
    hidden = [(name, p) for name, p in parameters if "blocks." in name and p.dim() == 2]
    taken = {name for name, _ in hidden}
    optimizers = adamw([(name, p) for name, p in parameters if name not in taken], config)
    if hidden:
        lr_ratio = config.muon_learning_rate / config.learning_rate
        group = {"params": [p for _, p in hidden], "lr_ratio": lr_ratio}
        optimizers.append(torch.optim.Muon([group], lr=config.muon_learning_rate, weight_decay=config.weight_decay))
    return optimizers


BUILDERS: dict[str, Callable[[Parameters, Config], list[torch.optim.Optimizer]]] = {"adamw": adamw, "muon": muon}
