"""Pruning: importance against its definition, how much goes, and that what is left is an ordinary, smaller model."""

import re

import pytest
import torch
from torch import nn

import him
from him.compression.pruning import (
    HEAD_TIME,
    NEURON_GROUP,
    Importance,
    LayerUnits,
    choose_units,
    magnitude_masks,
    pruned_weights,
    taylor_importance,
    unit_costs,
)
from him.config import Config
from him.core.errors import ConfigError
from him.runs.checkpoint import save_model
from tests.compression.tiny import TASKS, compressed_run, loaded, new_model, outputs, random_batch, stage_of

VARIANTS = pytest.mark.parametrize(
    "changes",
    [
        {"norm_first": True, "conv_kernel_size": 0},
        {"norm_first": False, "conv_kernel_size": 3},
        {"norm_first": True, "conv_kernel_size": 3, "positions": "learned"},
        {"norm_first": False, "conv_kernel_size": 0, "positions": "learned", "activation": "relu_squared"},
    ],
    ids=["pre-LN", "post-LN, convolution", "pre-LN, convolution, learned positions", "post-LN, learned positions"],
)
EVERY_TASK = pytest.mark.parametrize("task_type", TASKS)


def blocks_of(model: nn.Module) -> nn.ModuleList:
    return model.encoder.blocks


def num_weights(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in blocks_of(model).parameters())


# -- importance --------------------------------------------------------------------------------------------------------


@EVERY_TASK
@pytest.mark.parametrize("norm_first", [True, False])
def test_importance_is_the_squared_slope_of_each_example(task_type, norm_first):
    """Slopes of each example's loss alone, from two losses with the unit's output at 98 and at 102 percent."""
    task, model = new_model(task_type, norm_first=norm_first, embed_dim=16, num_heads=2, dim_feedforward=6)
    batches = [random_batch(task, 2, 20, seed=1), random_batch(task, 1, 24, seed=2)]
    found = taylor_importance(model, batches, lambda batch: task.loss(model, batch).loss)
    examples = [
        {name: value[row : row + 1] for name, value in batch.items()}
        for batch in batches
        for row in range(len(batch["input_ids"]))
    ]
    for number, block in enumerate(blocks_of(model)):
        attention = block.attention
        for scores, layer, width in (
            (found.heads[number], attention.output, attention.head_width),
            (found.neurons[number], block.feed_forward.contract, 1),
        ):
            columns = [slice(unit * width, (unit + 1) * width) for unit in range(len(scores))]
            slopes = [[slope(task, model, layer, each, example) for example in examples] for each in columns]
            expected = torch.tensor(slopes).square().sum(dim=1)
            assert scores.shape == expected.shape
            assert expected.max() > 1e-4
            torch.testing.assert_close(scores, expected, rtol=0.03, atol=0.003 * float(expected.max()))


def slope(task, model, layer, columns, example) -> float:
    losses = []
    before = layer.weight.data.clone()
    for scale in (1.02, 0.98):
        layer.weight.data[:, columns] *= scale
        with torch.no_grad():
            losses.append(task.loss(model, example).loss.item())
        layer.weight.data.copy_(before)
    return (losses[0] - losses[1]) / 0.04


def test_importance_adds_up_over_examples_whatever_the_batches():
    task, model = new_model("squad")
    batch = random_batch(task, 4)
    halves = [{name: value[part] for name, value in batch.items()} for part in (slice(0, 1), slice(1, 4))]
    whole, parts = (taylor_importance(model, each, lambda b: task.loss(model, b).loss) for each in ([batch], halves))
    for one, other in zip((*whole.heads, *whole.neurons), (*parts.heads, *parts.neurons), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("fails", [False, True])
def test_importance_leaves_the_model_as_it_was(fails):
    """No hook stays, what was frozen stays frozen and the rest not, no gradient is left, even after an error."""
    task, model = new_model("lm")
    batch = random_batch(task)
    frozen = model.output_bias.requires_grad_(False)
    before = outputs(task, model, batch)

    def loss_of(batch):
        loss = task.loss(model, batch).loss
        if fails:
            raise RuntimeError("out of memory")
        return loss

    if fails:
        with pytest.raises(RuntimeError, match="out of memory"):
            taylor_importance(model, [batch], loss_of)
    else:
        taylor_importance(model, [batch], loss_of)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == ["output_bias"]
    assert frozen.grad is None and all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(outputs(task, model, batch), before)


# -- choice ------------------------------------------------------------------------------------------------------------


def importance_of(model: nn.Module, seed: int = 0) -> Importance:
    random = torch.Generator().manual_seed(seed)
    heads = [torch.rand(block.attention.num_heads, generator=random) for block in blocks_of(model)]
    neurons = [torch.rand(block.feed_forward.contract.in_features, generator=random) for block in blocks_of(model)]
    return Importance(heads, [each / 10 for each in neurons])


@pytest.mark.parametrize("amount", [0.01, 0.1, 0.3, 0.5, 0.7])
@pytest.mark.parametrize("shape", [{}, {"num_encoder_layers": 3, "dim_feedforward": 300, "num_heads": 8}])
def test_the_share_is_reached_within_one_unit(amount, shape):
    task, model = new_model("squad", **shape)
    kept = choose_units(model, importance_of(model), amount)
    costs = [unit_costs(block) for block in blocks_of(model)]
    removed = sum(
        (block.attention.num_heads - len(units.heads)) * of_head
        + (block.feed_forward.contract.in_features - len(units.neurons)) * of_neuron
        for block, units, (of_head, of_neuron) in zip(blocks_of(model), kept, costs, strict=True)
    )
    largest = max(max(of_head, NEURON_GROUP * of_neuron) for of_head, of_neuron in costs)
    assert amount * num_weights(model) <= removed < amount * num_weights(model) + largest
    for units in kept:
        assert units.heads and units.neurons
        assert units.heads == sorted(set(units.heads)) and units.neurons == sorted(set(units.neurons))


@EVERY_TASK
def test_costs_are_the_parameters_that_go(task_type):
    """Counted in models with one head, and with one neuron, less."""
    changes = {"num_encoder_layers": 1, "conv_kernel_size": 3}
    (whole, without_head, without_neuron) = (
        num_weights(new_model(task_type, **changes, **more)[1])
        for more in ({}, {"layer_heads": (3,)}, {"layer_feedforward": (95,)})
    )
    of_head, of_neuron = unit_costs(blocks_of(new_model(task_type, **changes)[1])[0])
    assert (whole - without_head, whole - without_neuron) == (of_head, of_neuron)


def test_the_least_important_units_go_wherever_they_are():
    """Everything of the first layer matters more than everything of the second one."""
    _, model = new_model("squad")
    importance = importance_of(model)
    importance.heads[0] += 100
    importance.neurons[0] += 100
    kept = choose_units(model, importance, 0.3)
    assert (len(kept[0].heads), len(kept[0].neurons)) == (4, 96)
    second, scores = kept[1], (importance.heads[1], importance.neurons[1])
    for stay, score in zip((second.heads, second.neurons), scores, strict=True):
        gone = [unit for unit in range(len(score)) if unit not in stay]
        assert gone and score[gone].max() < score[stay].min()


@pytest.mark.parametrize(("head_per_weight", "goes"), [(0.7 * HEAD_TIME, "head"), (1.4 * HEAD_TIME, "neurons")])
def test_a_head_has_to_be_worth_its_time(head_per_weight, goes):
    """Neurons are worth 1 a weight; heads, which take `HEAD_TIME` as long, a little less or more than that times it."""
    _, model = new_model("lm", num_encoder_layers=1)
    of_head, of_neuron = unit_costs(blocks_of(model)[0])
    importance = Importance([torch.full((4,), head_per_weight * of_head)], [torch.full((96,), float(of_neuron))])
    (units,) = choose_units(model, importance, 0.01)
    assert (len(units.heads) == 3) == (goes == "head")
    assert (len(units.neurons) < 96) == (goes == "neurons")


@pytest.mark.parametrize("shape", [{}, {"num_heads": 1}, {"dim_feedforward": 8, "num_heads": 8}])
def test_too_large_an_amount_is_refused_with_the_largest_that_is_not(shape):
    _, model = new_model("squad", **shape)
    importance = importance_of(model)
    with pytest.raises(ConfigError, match=r"--pruning_amount 0\.99 is more than there is to remove") as error:
        choose_units(model, importance, 0.99)
    largest = float(re.search(r"use ([\d.]+) or less", str(error.value))[1])
    assert all(units.heads and units.neurons for units in choose_units(model, importance, largest))
    with pytest.raises(ConfigError, match=f"use {largest:g} or less"):
        choose_units(model, importance, largest + 0.0101)


# -- removal -----------------------------------------------------------------------------------------------------------

KEPT = [LayerUnits([1], [*range(10), *range(40, 90)]), LayerUnits([0, 2, 3], [5, 95])]


def pruned(task_type, **changes):
    """A model whose units outside `KEPT` say nothing, and the same model without them."""
    task, model = new_model(task_type, **changes)
    for block, units in zip(blocks_of(model), KEPT, strict=True):
        width = block.attention.head_width
        for head in {0, 1, 2, 3} - set(units.heads):
            block.attention.output.weight.data[:, head * width : (head + 1) * width] = 0.0
        block.feed_forward.contract.weight.data[:, sorted(set(range(96)) - set(units.neurons))] = 0.0
    heads, neurons = ([len(getattr(units, kind)) for units in KEPT] for kind in ("heads", "neurons"))
    other_task, smaller = new_model(task_type, **changes, layer_heads=heads, layer_feedforward=neurons)
    smaller.load_state_dict(pruned_weights(model, KEPT))
    return task, model, other_task, smaller


@EVERY_TASK
@VARIANTS
def test_units_that_say_nothing_can_go(task_type, changes):
    """Any other cut of the joint projection, or of its biases, would be heard: all weights and biases are large."""
    task, model, _, smaller = pruned(task_type, **changes)
    batch = random_batch(task)
    expected, found = outputs(task, model, batch), outputs(task, smaller, batch)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    losses = [task.loss(each, batch).loss.item() for each in (model, smaller)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert num_weights(smaller) < 0.7 * num_weights(model)


@pytest.mark.parametrize("task_type", ["summarization", "lm"])
@VARIANTS
def test_a_pruned_model_writes_alike_with_and_without_a_cache(task_type, changes):
    task, _, _, model = pruned(task_type, **changes)
    ids = random_batch(task)["input_ids"].tolist()
    prompts, more = [row[:9] for row in ids], [row[9:13] for row in ids]
    with torch.no_grad():
        first, decoding = model.prefill(prompts, 1)
        steps = [first] + [model.decode_step(torch.tensor(column), decoding) for column in zip(*more, strict=True)]
        for number, step in enumerate(steps):
            anew = model.recompute(prompts, [row[:number] for row in more])
            torch.testing.assert_close(step, anew, rtol=1e-4, atol=1e-4)
    assert (steps[0] - steps[1]).abs().max() > 0.1


@EVERY_TASK
def test_a_pruned_model_is_saved_and_loaded(task_type, tmp_path):
    _, _, task, model = pruned(task_type)
    save_model(tmp_path / "best", task.config, model, task, {})
    predictor = him.load(tmp_path, precision="fp32")
    assert (predictor.config.layer_heads, predictor.config.layer_feedforward) == ((1, 3), (60, 2))
    batch = random_batch(task)
    assert torch.equal(outputs(task, predictor.model, batch), outputs(task, model, batch))


@EVERY_TASK
def test_a_pruned_model_shows_its_attention(task_type):
    _, _, task, model = pruned(task_type)
    batch = random_batch(task)
    weights = model(batch, return_weights=True).attention_weights
    assert [layer.shape[1] for layer in weights] == [1, 3]
    for layer in weights:
        torch.testing.assert_close(layer.sum(dim=-1), torch.ones(layer.shape[:-1]))


@EVERY_TASK
def test_the_pruned_stage_is_a_smaller_model(task_type):
    """Of the run that was compressed on its own: what `config.json` says, the file has."""
    task, model = loaded(task_type, "pruned")
    config = Config.load(stage_of(compressed_run(task_type).run, "pruned") / "config.json")
    assert config.layer_heads == tuple(block.attention.num_heads for block in blocks_of(model))
    assert config.layer_feedforward == tuple(block.feed_forward.contract.in_features for block in blocks_of(model))
    share = 1 - num_weights(model) / num_weights(loaded(task_type, "trained")[1])
    assert 0.3 <= share < 0.45


def test_a_pruned_model_can_be_trained_on(tmp_path):
    settings, run, _ = compressed_run("lm")
    named = {**settings, "init_from": str(run / "compressed" / "fine_tuned"), "run_name": "on", "max_steps": 1}
    pruned_config = Config.load(stage_of(run, "pruned") / "config.json")
    shape = {name: getattr(pruned_config, name) for name in ("layer_heads", "layer_feedforward")}
    result = him.train(Config(**{**named, **shape, "output_dir": str(tmp_path), "compress": False}))
    assert Config.load(tmp_path / "on" / "best" / "config.json").layer_heads == pruned_config.layer_heads
    assert result["metrics"]["Loss"] < 6.5


# -- zeroed weights ----------------------------------------------------------------------------------------------------


@EVERY_TASK
@pytest.mark.parametrize("amount", [0.001, 0.3, 0.9])
def test_exactly_the_share_of_the_smallest_weights_is_zeroed(task_type, amount):
    _, model = new_model(task_type, conv_kernel_size=3)
    masks = magnitude_masks(model, amount)
    weights = dict(model.named_parameters())
    assert set(masks) == {name for name, weight in weights.items() if ".blocks." in name and weight.dim() == 2}
    number, total = (sum(int(each.sum()) for each in masks.values()), sum(each.numel() for each in masks.values()))
    assert total - number == int(amount * total)
    gone = torch.cat([weights[name][~mask].abs() for name, mask in masks.items()])
    stay = torch.cat([weights[name][mask].abs() for name, mask in masks.items()])
    assert gone.max() < stay.min()
