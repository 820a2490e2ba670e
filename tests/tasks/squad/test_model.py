"""The whole question answering model: neither padding nor company changes a row, and every parameter learns."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from him.tasks.squad.batches import SquadBatches
from him.tasks.squad.features import FeatureOptions, build_features
from him.tasks.squad.model import FORBIDDEN_LOGIT

VARIANTS = [
    pytest.param(
        {"norm_first": norm_first, "rotary": rotary, "lexical": lexical, "conv_kernel_size": conv_kernel_size}, id=name
    )
    for norm_first, rotary, lexical, conv_kernel_size, name in (
        (True, True, True, 0, "pre-LN rotary lexical"),
        (False, True, True, 0, "post-LN rotary lexical"),
        (True, False, True, 0, "pre-LN learned lexical"),
        (False, False, False, 0, "post-LN learned plain"),
        (True, True, False, 0, "pre-LN rotary plain"),
        (True, True, True, 5, "pre-LN rotary lexical convolution"),
        (False, False, True, 5, "post-LN learned lexical convolution"),
    )
]


@pytest.fixture(scope="module")
def batches(tokenizer, squad_data):
    """Seven windows of 7 to 96 tokens, with the fields of real batches."""
    random = np.random.default_rng(4)
    vocabulary = ["the", "cats", "Cat", "sat", "sitting", "on", "red", "mat", "dog", "1999", "."]

    def text(length):
        return " ".join(vocabulary[n] for n in random.integers(0, 11, length))

    paragraphs = [
        (context, [("who sat on the mat ?", [(context.split()[0], 0)])])
        for context in map(text, (1, 5, 12, 25, 40, 60, 70))
    ]
    features, _ = build_features(squad_data(*paragraphs), tokenizer, FeatureOptions(128, 16), None)
    made = SquadBatches(features, (0, 2, 3), 128, lexical=True)
    assert len(made.lengths) == 7
    return made


def logits(model, batch):
    with torch.no_grad():
        output = model.eval()(batch)
    return torch.stack((output.start_logits_BL, output.end_logits_BL))


def assert_row(found, row, expected, length):
    """Logits of one row, in places where answers may be; elsewhere exactly the forbidden logit."""
    torch.testing.assert_close(found[:, row, :length], expected[:, 0, :length], rtol=1e-5, atol=1e-5)
    assert (found[:, row, length:] == FORBIDDEN_LOGIT).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_company_and_order_change_nothing(batches, make_model, variant):
    model = make_model(**variant)
    alone = [logits(model, batches.batch([window])) for window in range(7)]
    spread = torch.cat([each[each > FORBIDDEN_LOGIT / 2] for each in alone]).std()
    assert spread > 0.2  # the inputs are felt, or the tolerance would mean nothing
    for order in ([0, 1, 2, 3, 4, 5, 6], [6, 2, 4, 0], [5, 5, 1]):
        together = logits(model, batches.batch(order))
        for row, window in enumerate(order):
            assert_row(together, row, alone[window], int(batches.lengths[window]))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_bucket_changes_nothing(batches, make_model, variant):
    """More padding, with whatever in it that is not masked by name."""
    model = make_model(**variant)
    batch = batches.batch([1, 2])
    length = batch["input_ids"].shape[1]
    wider = {
        name: F.pad(value, (0, 0, 0, 37) if name == "scalars" else (0, 37)) if value.dim() > 1 else value
        for name, value in batch.items()
    }
    wider["input_ids"][:, length:] = 7
    wider["token_type_ids"][:, length:] = 1
    expected, found = logits(model, batch), logits(model, wider)
    torch.testing.assert_close(found[..., :length], expected, rtol=1e-5, atol=1e-5)
    assert (found[..., length:] == FORBIDDEN_LOGIT).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_gets_a_gradient(batches, make_model, variant):
    model = make_model(**variant).train()
    batch = batches.batch(range(7))
    output = model(batch)
    loss = 0.0
    for side, found in (("start", output.start_logits_BL), ("end", output.end_logits_BL)):
        loss = loss - (batch[f"{side}_targets"] * F.log_softmax(found, dim=1)).sum()
    assert torch.isfinite(loss)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        if name == "span.bias":
            # The same number on every start logit: the softmax does not see it. It is there for the stock classes.
            assert parameter.grad.abs().max() < 1e-5
            continue
        rows = parameter.grad.abs().flatten(1).amax(dim=1) if parameter.dim() > 1 else parameter.grad.abs()
        if "embedding" in name and ("tokens" in name or "tables" in name or "positions" in name):
            rows = rows.amax(keepdim=True)  # rows of tokens that are not in the batch get none
        assert (rows > 0).float().mean() > 0.6, name


def test_forbidden_positions(batches, make_model):
    batch = batches.batch([2, 3])
    output = make_model()(batch)
    for found, allowed in ((output.start_logits_BL, batch["may_start"]), (output.end_logits_BL, batch["may_end"])):
        assert found.dtype is torch.float32
        assert (found[~allowed] == FORBIDDEN_LOGIT).all()
        assert (found[allowed].abs() < 100).all()
        assert allowed[:, 0].all()
    # The two columns of the head are start and end.
    hidden = make_model().encoder(make_model().embedding(batch), batch["attention_mask"]).hidden_BLD
    weight, bias = make_model().span.weight, make_model().span.bias
    start = (hidden @ weight[0] + bias[0])[batch["may_start"]]
    torch.testing.assert_close(output.start_logits_BL[batch["may_start"]], start, rtol=1e-5, atol=1e-5)


def test_masked_positions_have_no_weight(batches, make_model):
    batch = batches.batch([0, 6])
    output = make_model()(batch, return_weights=True)
    assert len(output.attention_weights) == 3
    for weights in output.attention_weights:
        assert (weights.movedim(-1, 1)[~batch["attention_mask"]] == 0).all()
    assert make_model()(batch).attention_weights == []


def test_autocast_gives_float32_logits(batches, make_model):
    batch = batches.batch([1, 2])
    model = make_model().eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(batch)
    assert rough.start_logits_BL.dtype is torch.float32
    allowed = batch["may_start"]
    difference = (rough.start_logits_BL - model(batch).start_logits_BL)[allowed].abs().max()
    assert 0 < difference < 0.3  # logits of deviation 1 with three digits through three layers
    assert (rough.start_logits_BL[~allowed] == FORBIDDEN_LOGIT).all()


def test_what_the_question_asks_is_felt(batches, make_model):
    """Not only the context decides: another question, match class or focus word changes the logits."""
    model, batch = make_model(), batches.batch([3])
    base = logits(model, batch)
    allowed = base > FORBIDDEN_LOGIT / 2
    for name, place in (("input_ids", 2), ("match", 10), ("shape", 10), ("class_shape", 10), ("focus_ids", None)):
        changed = {key: value.clone() for key, value in batch.items()}
        changed[name][0 if place is None else (0, place)] = 3
        assert (logits(model, changed) - base)[allowed].abs().max() > 1e-3, name
