"""Decay groups and updates against numbers worked out by hand; what a second process goes on from."""

import dataclasses

import pytest
import torch
from torch import nn

from him.config import Config
from him.model.encoder import Encoder, EncoderShape
from him.runs.checkpoint import optimizer_tensors, restore_optimizers
from him.training.optimizers import BUILDERS, build_optimizers, decay_groups
from him.training.schedule import lr_at


@pytest.mark.parametrize("norm_first", [True, False])
def test_decay_on_matrices_only(norm_first):
    """With zero gradients AdamW only decays: by the factor 1 - rate * decay, or not at all."""
    torch.manual_seed(0)
    model = Encoder(EncoderShape(2, 8, 2, 16, norm_first=norm_first))
    model.table = nn.Embedding(5, 8)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    (optimizer,) = build_optimizers(model, Config(learning_rate=0.25, weight_decay=0.5))
    grouped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len(grouped) == len(before) == len({id(parameter) for parameter in grouped})

    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()

    decayed = set()
    for name, parameter in model.named_parameters():
        if torch.equal(parameter, before[name]):
            continue
        torch.testing.assert_close(parameter.detach(), before[name] * (1 - 0.25 * 0.5))
        decayed.add(name)
    matrices = ["attention.query_key_value", "attention.output", "feed_forward.expand", "feed_forward.contract"]
    assert decayed == {f"blocks.{i}.{name}.weight" for i in range(2) for name in matrices} | {"table.weight"}


def test_optimizer_takes_its_settings():
    (optimizer,) = build_optimizers(
        nn.Linear(2, 2), Config(learning_rate=0.125, beta1=0.5, beta2=0.75, weight_decay=0.25)
    )
    matrices, vectors = optimizer.param_groups
    assert matrices["lr"] == vectors["lr"] == 0.125
    assert matrices["betas"] == (0.5, 0.75)
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.25, 0.0)


def test_frozen_parameters_stay_out():
    model = nn.Linear(2, 2)
    model.bias.requires_grad = False
    assert [len(group["params"]) for group in build_optimizers(model, Config())[0].param_groups] == [1, 0]


# --- Muon -------------------------------------------------------------------------------------------------------------

MUON = {"optimizer": "muon", "learning_rate": 0.01, "muon_learning_rate": 0.05, "weight_decay": 0.25}
INNER = ("attention.query_key_value", "attention.output", "feed_forward.expand", "feed_forward.contract")


class Writer(nn.Module):
    """An encoder among matrices that are not in its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(7, 8)
        self.encoder = Encoder(EncoderShape(2, 8, 2, 16, conv_kernel_size=3, causal=True))
        self.head = nn.Linear(8, 8)


def writer() -> Writer:
    torch.manual_seed(0)
    model = Writer()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def give_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_muon_has_the_matrices_of_the_layers():
    """And AdamW all else: embeddings, heads, biases, norms and convolutions; every parameter is in one group."""
    model = writer()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    adamw, muon = build_optimizers(model, Config(**MUON))
    assert (type(adamw), type(muon)) == (torch.optim.AdamW, torch.optim.Muon)
    matrices, vectors, hidden = (
        {names[id(parameter)] for parameter in group["params"]} for group in (*adamw.param_groups, *muon.param_groups)
    )
    assert hidden == {f"encoder.blocks.{i}.{name}.weight" for i in range(2) for name in INNER}
    convolutions = {f"encoder.blocks.{i}.convolution.convolution.weight" for i in range(2)}
    assert matrices == {"tokens.weight", "head.weight", *convolutions}
    assert vectors == set(names.values()) - hidden - matrices
    assert len(names) == len(hidden) + len(matrices) + len(vectors)
    decays = [group["weight_decay"] for group in (*adamw.param_groups, *muon.param_groups)]
    assert decays == [0.25, 0.0, 0.25]


def test_one_schedule_serves_both_optimizers():
    """The rate of a group is that of the step times `lr_ratio`, so that it is highest where its own flag says."""
    config = Config(**MUON)
    adamw, muon = build_optimizers(writer(), config)
    assert [group["lr_ratio"] for group in adamw.param_groups] == [1.0, 1.0]
    (group,) = muon.param_groups
    assert group["lr_ratio"] == pytest.approx(5.0, rel=1e-12)
    assert group["lr"] == 0.05
    assert group["lr_ratio"] * lr_at(2, config, 10) == pytest.approx(0.05 * lr_at(2, config, 10) / 0.01)


def test_muon_makes_updates_orthogonal():
    """All singular values of an update are about the rate, where the gradient's are far apart; decay comes on top.

    Five Newton-Schulz steps, made to be fast, leave them between 0.5 and 1.5.
    """
    model = writer()
    weight = model.encoder.blocks[0].attention.output.weight
    before = weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    weight.grad = torch.randn(8, 8, generator=torch.Generator().manual_seed(1))
    assert torch.linalg.cond(weight.grad) > 4
    _, muon = build_optimizers(model, Config(**MUON))
    muon.step()
    update = (before * (1 - 0.05 * 0.25) - weight.detach()) / 0.05
    values = torch.linalg.svdvals(update)
    assert 0.5 < values.min() and values.max() < 1.5


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_optimizers_go_on_from_what_was_saved(optimizer):
    """The same next updates, bit for bit, in a second model; and others without what was saved."""
    config = Config(**{**MUON, "optimizer": optimizer})
    model = writer()
    optimizers = build_optimizers(model, config)

    def update(model, optimizers, seed):
        give_gradients(model, seed)
        for each in optimizers:
            each.step()

    for seed in range(3):
        update(model, optimizers, seed)
    saved = {name: tensor.clone() for name, tensor in optimizer_tensors(model, optimizers).items()}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    expected_kinds = {"step", "exp_avg", "exp_avg_sq"} | ({"momentum_buffer"} if optimizer == "muon" else set())
    assert {name.rsplit(".", 1)[1] for name in saved} == expected_kinds
    assert {name.rsplit(".", 1)[0] for name in saved} == {name for name, _ in model.named_parameters()}
    for seed in (3, 4):
        update(model, optimizers, seed)

    for is_restored in (True, False):
        other = writer()
        other.load_state_dict(weights)
        fresh = build_optimizers(other, config)
        if is_restored:
            restore_optimizers(other, fresh, {name: tensor.clone() for name, tensor in saved.items()})
            found = optimizer_tensors(other, fresh)
            assert found.keys() == saved.keys()
            assert all(torch.equal(found[name], tensor) for name, tensor in saved.items())
        for seed in (3, 4):
            update(other, fresh, seed)
        equal = [torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True)]
        assert all(equal) if is_restored else not any(equal)


def test_muon_without_layers_is_adamw():
    (optimizer,) = build_optimizers(nn.Linear(2, 2), Config(**MUON))
    assert type(optimizer) is torch.optim.AdamW


# --- another optimizer ------------------------------------------------------------------------------------------------


def test_each_choice_has_its_builder():
    """To add an optimizer is to add a choice and a builder."""
    (optimizer,) = (each for each in dataclasses.fields(Config) if each.name == "optimizer")
    assert tuple(optimizer.metadata["choices"]) == tuple(BUILDERS)


def test_a_builder_is_all_that_another_optimizer_needs(monkeypatch):
    def nadam(parameters, config):
        return [torch.optim.NAdam(decay_groups(parameters, config), lr=config.learning_rate)]

    monkeypatch.setitem(BUILDERS, "adamw", nadam)
    model = writer()
    (optimizer,) = build_optimizers(model, Config(learning_rate=0.125, weight_decay=0.25))
    assert type(optimizer) is torch.optim.NAdam
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(0.125, 0.25), (0.125, 0.0)]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
