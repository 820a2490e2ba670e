"""The chunked cross-entropy against `F.cross_entropy`.

# N targets   D embed_dim   V vocabulary
"""

import math

import pytest
import torch
import torch.nn.functional as F

from him.model import cross_entropy
from him.model.cross_entropy import CHUNK_ROWS, SoftTargets, cross_entropy_of, cross_entropy_sum

D, V = 8, 37
SIZES = [1, CHUNK_ROWS - 1, CHUNK_ROWS, 2 * CHUNK_ROWS, 2 * CHUNK_ROWS + 276]


def inputs(num_targets, dtype=torch.float32, seed=0):
    """Hidden vectors, weights, biases and targets; logits are far from even."""
    random = torch.Generator().manual_seed(seed)
    hidden = 1.5 * torch.randn(num_targets, D, generator=random)
    weight, bias = torch.randn(V, D, generator=random), torch.randn(V, generator=random)
    targets = torch.randint(V, (num_targets,), generator=random)
    return hidden.to(dtype), weight, bias, targets


def compare(ours, theirs, leaves, upstream, rtol):
    """Values, and gradients after a multiplication by `upstream`; the leaves are shared."""
    found = torch.autograd.grad(ours * upstream, leaves)
    expected = torch.autograd.grad(theirs * upstream, leaves)
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=rtol)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype is other.dtype
        torch.testing.assert_close(one, other, rtol=rtol, atol=rtol * (1.0 + float(other.abs().max())))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("num_targets", SIZES)
def test_value_and_gradients(num_targets, label_smoothing):
    *leaves, targets = inputs(num_targets)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    ours, num_correct = cross_entropy_sum(*leaves, targets, label_smoothing)
    logits = F.linear(*leaves)
    theirs = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=label_smoothing)
    compare(ours, theirs, leaves, upstream=-0.3, rtol=2e-5)
    assert ours.dtype is torch.float32 and ours.shape == ()
    assert num_correct.item() == int((logits.argmax(dim=-1) == targets).sum())
    assert num_targets == 1 or 0 < num_correct < num_targets
    assert not num_correct.requires_grad


def test_no_target_at_all():
    *leaves, targets = inputs(0)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    loss, num_correct = cross_entropy_sum(*leaves, targets, 0.1)
    assert (loss.item(), num_correct.item()) == (0.0, 0)
    loss.backward()
    assert all((leaf.grad == 0).all() for leaf in leaves)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_by_hand(label_smoothing):
    """Logits ln 1, ln 2, ln 5 of the only weight: probabilities 1/8, 2/8, 5/8, and the target is the second."""
    weight = torch.tensor([1.0, 2.0, 5.0]).log()[:, None]
    hidden = torch.ones(1, 1, requires_grad=True)
    loss, num_correct = cross_entropy_sum(hidden, weight, torch.zeros(3), torch.tensor([1]), label_smoothing)
    each = [math.log(8 / part) for part in (1, 2, 5)]
    assert loss.item() == pytest.approx((1 - label_smoothing) * each[1] + label_smoothing * sum(each) / 3, rel=1e-6)
    assert num_correct.item() == 0
    assert cross_entropy_sum(hidden, weight, torch.zeros(3), torch.tensor([2]))[1].item() == 1


def test_large_logits_are_no_danger():
    hidden, weight, bias, targets = inputs(20)
    hidden = (1e4 * hidden).requires_grad_()
    loss, _ = cross_entropy_sum(hidden, weight, bias, targets)
    theirs = F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="sum")
    compare(loss, theirs, [hidden], 1.0, rtol=1e-5)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_under_autocast(label_smoothing):
    """bf16 products: the loss as near as three digits of each logit, gradients of weights in float32."""
    hidden, weight, bias, targets = inputs(1300, torch.bfloat16)
    leaves = [leaf.requires_grad_() for leaf in (hidden, weight, bias)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = cross_entropy_sum(*leaves, targets, label_smoothing)
    exact = [leaf.detach().float().requires_grad_() for leaf in leaves]
    logits = F.linear(*exact)
    theirs = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=label_smoothing)
    assert loss.dtype is torch.float32
    assert loss.item() == pytest.approx(theirs.item(), rel=2e-3)
    found = torch.autograd.grad(loss, leaves)
    for one, other, leaf in zip(found, torch.autograd.grad(theirs, exact), leaves, strict=True):
        assert one.dtype is leaf.dtype
        assert (one.float() - other).norm() < 0.01 * other.norm()


def test_the_scale_from_above_is_not_rounded():
    """1 / 9,999 is 0.13 % larger in bf16, and so were all gradients below, while those of the output layer were not."""
    hidden, weight, bias, targets = inputs(1300, torch.bfloat16)
    hidden.requires_grad_()
    loss, _ = cross_entropy_sum(hidden, weight, bias, targets)
    (whole,) = torch.autograd.grad(loss, hidden, retain_graph=True)
    (scaled,) = torch.autograd.grad(loss / 9_999, hidden)
    ratio = (scaled.double() * whole.double()).sum() / whole.double().square().sum()
    assert ratio.item() * 9_999 == pytest.approx(1.0, abs=3e-4)


@pytest.mark.parametrize("needing", ["hidden", "weight", "none", "no_grad"])
def test_only_what_is_needed(needing):
    hidden, weight, bias, targets = inputs(600)
    hidden.requires_grad_(needing in ("hidden", "no_grad"))
    weight.requires_grad_(needing in ("weight", "no_grad"))
    expected = F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="sum")
    with torch.set_grad_enabled(needing != "no_grad"):
        loss, _ = cross_entropy_sum(hidden, weight, bias, targets)
    torch.testing.assert_close(loss, expected.detach() if needing == "no_grad" else expected)
    assert loss.requires_grad == (needing in ("hidden", "weight"))
    if loss.requires_grad:
        (leaf,) = [leaf for leaf in (hidden, weight) if leaf.requires_grad]
        compare(loss, expected, [leaf], 2.0, rtol=2e-5)


def test_inference_mode():
    hidden, weight, bias, targets = inputs(600)
    with torch.inference_mode():
        loss, _ = cross_entropy_sum(hidden, weight.requires_grad_(), bias, targets)
    torch.testing.assert_close(loss, F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="sum").detach())


def test_inputs_stay_as_they_are():
    *leaves, targets = inputs(600)
    before = [leaf.clone() for leaf in leaves]
    loss, _ = cross_entropy_sum(leaves[0].requires_grad_(), *leaves[1:], targets, 0.1)
    loss.backward()
    assert all(torch.equal(leaf, old) for leaf, old in zip(leaves, before, strict=True))


def test_never_all_logits_at_once(monkeypatch):
    """No product is larger than a chunk."""
    rows = []
    linear = F.linear
    monkeypatch.setattr(cross_entropy.F, "linear", lambda x, *more: rows.append(len(x)) or linear(x, *more))
    *leaves, targets = inputs(1300)
    cross_entropy_sum(*leaves, targets)
    assert rows == [CHUNK_ROWS, CHUNK_ROWS, 1300 - 2 * CHUNK_ROWS]


# -- a teacher's predictions as targets --------------------------------------------------------------------------------


def teacher(num_targets, share, dtype=torch.float32, width=D + 3):
    """A teacher of another width."""
    random = torch.Generator().manual_seed(9)
    hidden = torch.randn(num_targets, width, generator=random).to(dtype)
    return SoftTargets(hidden, torch.randn(V, width, generator=random), torch.randn(V, generator=random), share)


def taught_loss(leaves, targets, label_smoothing, soft):
    """By autograd, from all logits at once."""
    logits = F.linear(*leaves)
    labels = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=label_smoothing)
    taught = F.linear(soft.hidden_ND, soft.weight_VD, soft.bias_V).log_softmax(dim=1)
    divergence = F.kl_div(logits.log_softmax(dim=1), taught, reduction="sum", log_target=True)
    return (1 - soft.share) * labels + soft.share * divergence


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("num_targets", [1, CHUNK_ROWS, 2 * CHUNK_ROWS + 276])
def test_a_teacher_by_autograd(num_targets, label_smoothing, share):
    *leaves, targets = inputs(num_targets)
    leaves, soft = [leaf.requires_grad_() for leaf in leaves], teacher(num_targets, share)
    ours, num_correct = cross_entropy_sum(*leaves, targets, label_smoothing, soft)
    theirs = taught_loss(leaves, targets, label_smoothing, soft)
    compare(ours, theirs, leaves, upstream=-0.3, rtol=3e-5)
    assert num_correct.item() == int((F.linear(*leaves).argmax(dim=-1) == targets).sum())


def test_a_teacher_by_hand():
    """Probabilities 1/2, 1/2 taught to a student that has 1/4, 3/4; the label is the second class."""
    weight = torch.tensor([1.0, 3.0]).log()[:, None]
    soft = SoftTargets(torch.ones(1, 1), torch.zeros(2, 1), torch.zeros(2), 0.4)
    loss, _ = cross_entropy_sum(torch.ones(1, 1), weight, torch.zeros(2), torch.tensor([1]), soft=soft)
    divergence = 0.5 * math.log((1 / 2) / (1 / 4)) + 0.5 * math.log((1 / 2) / (3 / 4))
    assert loss.item() == pytest.approx(0.6 * math.log(4 / 3) + 0.4 * divergence, rel=1e-6)


def test_a_teacher_that_says_the_same_has_nothing_to_teach():
    hidden, weight, bias, targets = inputs(600)
    leaves = [leaf.requires_grad_() for leaf in (hidden, weight, bias)]
    soft = SoftTargets(*(leaf.detach() for leaf in leaves), 1.0)
    loss, _ = cross_entropy_sum(*leaves, targets, 0.1, soft)
    assert abs(loss.item()) < 1e-3
    assert all(gradient.abs().max() < 1e-4 for gradient in torch.autograd.grad(loss, leaves))


def test_a_teacher_gets_no_gradient():
    *leaves, targets = inputs(20)
    soft = teacher(20, 0.5)
    parts = [part.requires_grad_() for part in (soft.hidden_ND, soft.weight_VD, soft.bias_V)]
    loss, _ = cross_entropy_sum(leaves[0].requires_grad_(), *leaves[1:], targets, soft=soft)
    loss.backward()
    assert all(part.grad is None for part in parts)


def test_a_teacher_under_autocast():
    hidden, weight, bias, targets = inputs(1300, torch.bfloat16)
    leaves, soft = [leaf.requires_grad_() for leaf in (hidden, weight, bias)], teacher(1300, 0.5, torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = cross_entropy_sum(*leaves, targets, 0.1, soft)
    exact = [leaf.detach().float().requires_grad_() for leaf in leaves]
    theirs = taught_loss(exact, targets, 0.1, SoftTargets(soft.hidden_ND.float(), soft.weight_VD, soft.bias_V, 0.5))
    assert loss.item() == pytest.approx(theirs.item(), rel=3e-3)
    for one, other in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(theirs, exact), strict=True):
        assert (one.float() - other).norm() < 0.01 * other.norm()


# -- any output layer --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_targets", [0, *SIZES])
def test_any_output_layer_has_the_same_sums(num_targets):
    hidden, weight, bias, targets = inputs(num_targets)
    found = cross_entropy_of(lambda x: F.linear(x, weight, bias), hidden, targets)
    for one, other in zip(found, cross_entropy_sum(hidden, weight, bias, targets), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-3)


def test_any_output_layer_shares_ties_out():
    """Of 37 equally high logits, the target is one."""
    hidden, weight, bias, targets = inputs(10)
    for found in (
        cross_entropy_of(lambda x: torch.zeros(len(x), V), hidden, targets),
        cross_entropy_sum(hidden, 0 * weight, 0 * bias, targets),
    ):
        assert found[0].item() == pytest.approx(10 * math.log(V), rel=1e-6)
        assert found[1].item() == pytest.approx(10 / V, rel=1e-5)
