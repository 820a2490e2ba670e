"""The encoder against PyTorch's own, in both norm orders."""

import pytest
import torch
from torch import nn

from him.model import encoder as encoder_module
from him.model.attention import attention_bias
from him.model.convolution import DepthwiseConvolution
from him.model.encoder import Encoder, EncoderBlock, EncoderShape

D, H, F = 32, 4, 48
LENGTHS = (11, 6, 1, 9)


@pytest.fixture
def batch():
    x = torch.randn(4, 11, D, generator=torch.Generator().manual_seed(0))
    return x, torch.arange(11)[None] < torch.tensor(LENGTHS)[:, None]


def randomize(module):
    """Weights, biases and norms that all matter."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.3 if parameter.dim() > 1 else 0.5))
    return module


def names(reference: nn.TransformerEncoderLayer) -> dict[str, nn.Parameter]:
    """The reference's parameters by the names of `EncoderBlock`."""
    return {
        "attention.query_key_value.weight": reference.self_attn.in_proj_weight,
        "attention.query_key_value.bias": reference.self_attn.in_proj_bias,
        "attention.output.weight": reference.self_attn.out_proj.weight,
        "attention.output.bias": reference.self_attn.out_proj.bias,
        "attention_norm.weight": reference.norm1.weight,
        "attention_norm.bias": reference.norm1.bias,
        "feed_forward.expand.weight": reference.linear1.weight,
        "feed_forward.expand.bias": reference.linear1.bias,
        "feed_forward.contract.weight": reference.linear2.weight,
        "feed_forward.contract.bias": reference.linear2.bias,
        "feed_forward_norm.weight": reference.norm2.weight,
        "feed_forward_norm.bias": reference.norm2.bias,
    }


def compare(ours, theirs, x, mask, parameters):
    """Output, gradient of the input and of all parameters; only real tokens have a gradient from above."""
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)) * mask[:, :, None]
    results = []
    for run in (ours, theirs):
        leaf = x.clone().requires_grad_()
        y = run(leaf)
        y.backward(upstream)
        results.append((y, leaf.grad))
    (y, gradient), (expected, expected_gradient) = results
    torch.testing.assert_close(y[mask], expected[mask], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient[mask], expected_gradient[mask], rtol=1e-4, atol=1e-5)
    for name, (one, other) in parameters.items():
        assert one.grad.abs().max() > 1e-3, name
        # Sums over 27 tokens of terms around 1: float32 leaves 1e-5 of the largest.
        limit = 1e-5 * max(1.0, float(other.grad.abs().max()))
        torch.testing.assert_close(
            one.grad, other.grad, rtol=1e-4, atol=limit, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("norm_first", [True, False])
def test_block_equals_pytorch(batch, norm_first):
    x, mask = batch
    reference = nn.TransformerEncoderLayer(D, H, F, 0.0, "gelu", batch_first=True, norm_first=norm_first)
    randomize(reference)
    block = EncoderBlock(EncoderShape(1, D, H, F, norm_first), H, F)
    block.load_state_dict(names(reference))
    ours = dict(block.named_parameters())
    pairs = {name: (ours[name], parameter) for name, parameter in names(reference).items()}
    assert pairs.keys() == ours.keys()
    bias = attention_bias(mask)
    compare(lambda x: block(x, bias)[0], lambda x: reference(x, src_key_padding_mask=~mask), x, mask, pairs)


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("mask_kind", ["padding", "causal"])
def test_stack_equals_pytorch(batch, norm_first, mask_kind):
    x, mask = batch
    layer = nn.TransformerEncoderLayer(D, H, F, 0.0, "gelu", batch_first=True, norm_first=norm_first)
    norm = nn.LayerNorm(D) if norm_first else None
    reference = randomize(nn.TransformerEncoder(layer, 4, norm, enable_nested_tensor=False))
    encoder = Encoder(EncoderShape(4, D, H, F, norm_first=norm_first, rotary=False))
    named = {f"blocks.{n}.{name}": p for n, each in enumerate(reference.layers) for name, p in names(each).items()}
    if norm_first:
        named |= {"final_norm.weight": reference.norm.weight, "final_norm.bias": reference.norm.bias}
    encoder.load_state_dict(named)
    ours = dict(encoder.named_parameters())
    assert ours.keys() == named.keys()
    pairs = {name: (ours[name], parameter) for name, parameter in named.items()}
    causal = torch.ones(11, 11, dtype=torch.bool).tril()
    if mask_kind == "padding":
        allowed, theirs = mask, {"src_key_padding_mask": ~mask}
    else:
        allowed, theirs = causal.expand(4, 11, 11), {"mask": ~causal}
        mask = torch.ones_like(mask)
    compare(lambda x: encoder(x, allowed).hidden_BLD, lambda x: reference(x, **theirs), x, mask, pairs)


def test_the_two_orders_differ(batch):
    x, mask = batch
    torch.manual_seed(0)
    pre, post = Encoder(EncoderShape(2, D, H, F, norm_first=True)), Encoder(EncoderShape(2, D, H, F, norm_first=False))
    post.load_state_dict({name: value for name, value in pre.state_dict().items() if not name.startswith("final_norm")})
    assert (pre(x, mask).hidden_BLD - post(x, mask).hidden_BLD).abs().max() > 0.1
    assert isinstance(post.final_norm, nn.Identity)


@pytest.mark.parametrize("norm_first", [True, False])
def test_attention_weights_on_request(batch, norm_first):
    x, mask = batch
    encoder = randomize(Encoder(EncoderShape(3, D, H, F, norm_first=norm_first))).eval()
    plain, asked = encoder(x, mask), encoder(x, mask, return_weights=True)
    assert plain.attention_weights == []
    assert torch.equal(plain.hidden_BLD, asked.hidden_BLD)
    assert [weights.shape for weights in asked.attention_weights] == [(4, H, 11, 11)] * 3
    for weights in asked.attention_weights:
        assert (weights.movedim(-1, 1)[~mask] == 0).all()
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(4, H, 11))


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("conv_kernel_size", [0, 3])
def test_autocast(batch, norm_first, conv_kernel_size):
    """bfloat16 through and through, near the float32 result, and gradients in float32."""
    x, mask = batch
    torch.manual_seed(0)
    encoder = Encoder(EncoderShape(2, D, H, F, norm_first=norm_first, conv_kernel_size=conv_kernel_size))
    exact = encoder(x, mask).hidden_BLD
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = encoder(x, mask).hidden_BLD
    assert rough.dtype is torch.bfloat16
    assert (rough.float() - exact)[mask].abs().max() < 0.1  # values around 1, three digits, two layers
    rough.float().pow(3).sum().backward()
    assert {parameter.grad.dtype for parameter in encoder.parameters()} == {torch.float32}
    encoder.train()
    encoder.blocks[0].dropout.p = 0.5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(encoder(x, mask).hidden_BLD).all()


def test_rotary_is_used_only_if_wanted(batch):
    """Without positions, swapping two tokens swaps their outputs; with rotary ones it changes them."""
    x, _ = batch
    mask = torch.ones(4, 11, dtype=torch.bool)
    order = torch.tensor([0, 5, 2, 3, 4, 1, 6, 7, 8, 9, 10])
    for rotary in (False, True):
        encoder = randomize(Encoder(EncoderShape(2, D, H, F, rotary=rotary))).eval()
        difference = (encoder(x, mask).hidden_BLD[:, order] - encoder(x[:, order], mask).hidden_BLD).abs().max()
        assert (difference.item() > 1e-4) == rotary


# --- depthwise convolution --------------------------------------------------------------------------------------------


def test_convolution_by_hand():
    """Each channel with its own three weights over its neighbours, zero beyond the ends and in padding."""
    block = EncoderBlock(EncoderShape(1, 2, 1, 4, conv_kernel_size=3), 1, 4)
    with torch.no_grad():
        block.convolution.convolution.weight.copy_(torch.tensor([[[1.0, 10, 100]], [[0, 1, 0]]]))
        block.convolution.convolution.bias.copy_(torch.tensor([0.0, 0.5]))
    x = torch.tensor([[[1.0, 1], [2, 2], [3, 3], [9, 9]]])
    present = torch.tensor([[[1.0], [1], [1], [0]]])
    y = block.convolution(x, present)
    assert y[0, :3].tolist() == [[210, 1.5], [321, 2.5], [32, 3.5]]


def test_convolution_is_the_one_of_pytorch():
    """Forward and all gradients, against `nn.Conv1d` on transposed data, with padding in between."""
    torch.manual_seed(0)
    ours = DepthwiseConvolution(6, 5)
    x = torch.randn(3, 8, 6, requires_grad=True)
    present = (torch.arange(8)[None] < torch.tensor([8, 3, 1])[:, None])[:, :, None].float()
    upstream = torch.randn(3, 8, 6)
    expected = ours.convolution((x * present).transpose(1, 2)).transpose(1, 2)
    parameters = [x, *ours.parameters()]
    theirs = torch.autograd.grad(expected, parameters, upstream)
    found = ours(x, present)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for mine, reference in zip(torch.autograd.grad(found, parameters, upstream), theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-5)


# --- causal convolution -----------------------------------------------------------------------------------------------


def causal_reference(ours, x):
    """`F.conv1d` over as many zeros on the left as there are positions before the last of the window."""
    left = nn.functional.pad(x.transpose(1, 2), (ours.width - 1, 0))
    weight, bias = ours.convolution.weight, ours.convolution.bias
    return nn.functional.conv1d(left, weight, bias, groups=len(bias)).transpose(1, 2)


@pytest.mark.parametrize("width", [1, 3, 5, 9])
@pytest.mark.parametrize("length", [1, 2, 8])
def test_causal_convolution_is_the_one_of_pytorch(width, length):
    """Forward and all gradients; also where the window is wider than the sequence."""
    torch.manual_seed(0)
    ours = DepthwiseConvolution(6, width, causal=True)
    x, upstream = torch.randn(3, length, 6, requires_grad=True), torch.randn(3, length, 6)
    parameters = [x, *ours.parameters()]
    found, expected = ours(x), causal_reference(ours, x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    theirs = torch.autograd.grad(expected, parameters, upstream)
    for mine, reference in zip(torch.autograd.grad(found, parameters, upstream), theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_gradients_of_the_convolution(causal):
    """Against differences, in float64."""
    torch.manual_seed(0)
    convolution = DepthwiseConvolution(3, 5, causal).double()
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    present = torch.tensor([4, 2])[:, None, None] > torch.arange(4)[None, :, None]

    def run(x, weight, bias):
        parameters = {"convolution.weight": weight, "convolution.bias": bias}
        return torch.func.functional_call(convolution, parameters, (x, present.double()))

    assert torch.autograd.gradcheck(run, (x, *convolution.parameters()))


def test_causal_convolution_by_hand():
    """The last weight is for the place itself."""
    convolution = DepthwiseConvolution(1, 3, causal=True)
    with torch.no_grad():
        convolution.convolution.weight.copy_(torch.tensor([[[1.0, 10, 100]]]))
        convolution.convolution.bias.fill_(0.5)
    assert convolution(torch.tensor([[[1.0], [2], [3], [4]]])).flatten().tolist() == [100.5, 210.5, 321.5, 432.5]


def test_a_centred_convolution_has_to_know_the_padding():
    with pytest.raises(AssertionError, match="where the padding is"):
        DepthwiseConvolution(2, 3)(torch.zeros(1, 4, 2))


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("activation", ["gelu", "relu_squared"])
def test_activations_by_hand(norm_first, activation):
    """One unit: x / 2 (1 + erf(x / sqrt 2)) or the square of what is above zero."""
    block = EncoderBlock(EncoderShape(1, 2, 1, 1, norm_first, activation=activation), 1, 1)
    with torch.no_grad():
        for parameter in block.feed_forward.parameters():
            parameter.fill_(0.0)
        block.feed_forward.expand.weight[0, 0] = 1.0
        block.feed_forward.contract.weight[0, 0] = 1.0
    x = torch.tensor([[[-2.0, 0], [0, 5], [0.5, 5], [3, 5]]])
    expected = [0, 0, 0.25, 9] if activation == "relu_squared" else [-0.045500, 0, 0.345731, 2.995950]
    torch.testing.assert_close(block.feed_forward(x)[0, :, 0], torch.tensor(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("rotary", [True, False])
def test_layers_of_different_shapes(rotary):
    """As pruning leaves them: heads keep their width, and what was cut away is what zeroed weights would add."""
    torch.manual_seed(0)
    full = Encoder(EncoderShape(2, 16, 4, 8, rotary=rotary)).eval()
    small = Encoder(EncoderShape(2, 16, 4, 8, rotary=rotary, layer_heads=(1, 4), layer_feedforward=(8, 3))).eval()
    weights = small.state_dict()
    for name, value in full.state_dict().items():
        weights[name] = value.clone()
    first, second = full.blocks
    for part in range(3):  # only head 2 of the first layer stays
        rows = slice(part * 16 + 8, part * 16 + 12)
        for kind in ("weight", "bias"):
            kept = getattr(first.attention.query_key_value, kind)[rows]
            at = f"blocks.0.attention.query_key_value.{kind}"
            weights[at] = kept if part == 0 else torch.cat((weights[at], kept))
    weights["blocks.0.attention.output.weight"] = first.attention.output.weight[:, 8:12]
    first.attention.output.weight.data[:, :8] = 0
    first.attention.output.weight.data[:, 12:] = 0
    for at in ("expand.weight", "expand.bias"):  # the first three neurons of the second layer
        weights[f"blocks.1.feed_forward.{at}"] = weights[f"blocks.1.feed_forward.{at}"][:3]
    weights["blocks.1.feed_forward.contract.weight"] = second.feed_forward.contract.weight[:, :3]
    second.feed_forward.contract.weight.data[:, 3:] = 0
    small.load_state_dict(weights)
    x_BLD, mask_BL = torch.randn(2, 5, 16), torch.ones(2, 5, dtype=torch.bool)
    output = small(x_BLD, mask_BL, return_weights=True)
    torch.testing.assert_close(output.hidden_BLD, full(x_BLD, mask_BL).hidden_BLD)
    assert [tuple(layer.shape) for layer in output.attention_weights] == [(2, 1, 5, 5), (2, 4, 5, 5)]


# -- kept tables -------------------------------------------------------------------------------------------------------


def made_tables(monkeypatch):
    """Counts how often tables are made."""
    calls = []
    original = encoder_module.rotary_tables
    monkeypatch.setattr(encoder_module, "rotary_tables", lambda *args: calls.append(args) or original(*args))
    return calls


def test_tables_are_made_once_for_a_length(batch, monkeypatch):
    x, mask = batch
    encoder = randomize(Encoder(EncoderShape(2, D, H, F))).eval()
    expected = encoder(x, mask).hidden_BLD
    calls = made_tables(monkeypatch)
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(encoder(x, mask).hidden_BLD, expected.detach(), rtol=1e-5, atol=1e-5)
    assert len(calls) == 1
    encoder(x, mask)
    assert len(calls) == 2, "in training they are not kept: lengths change, and memory is short"


@pytest.mark.parametrize("first", ["longer", "shorter"])
def test_tables_of_another_length_are_not_taken(batch, first):
    x, mask = batch
    encoder = randomize(Encoder(EncoderShape(2, D, H, F))).eval()
    parts = {"longer": (x, mask), "shorter": (x[:, :6], mask[:, :6])}
    expected = {name: encoder(*part).hidden_BLD.detach() for name, part in parts.items()}
    with torch.inference_mode():
        for name in (first, *parts, *reversed(parts)):
            torch.testing.assert_close(encoder(*parts[name]).hidden_BLD, expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("first", [torch.float32, torch.bfloat16])
def test_tables_of_another_type_are_not_taken(batch, first):
    """Against encoders that have only ever computed in one type."""

    def computed(encoder, dtype):
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            return encoder(*batch).hidden_BLD

    both = randomize(Encoder(EncoderShape(2, D, H, F))).eval()
    computed(both, first)
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(computed(both, dtype), computed(randomize(Encoder(EncoderShape(2, D, H, F))).eval(), dtype))


def test_tables_kept_by_an_evaluation_can_be_trained_beside(batch):
    """Made under `inference_mode`, they must reach neither the graph of a later step nor what a teacher says."""
    x, mask = batch
    encoder = randomize(Encoder(EncoderShape(2, D, H, F)))
    with torch.inference_mode():
        encoder(x, mask)
    with torch.no_grad():
        taught = encoder(x, mask).hidden_BLD
    assert not taught.is_inference()
    (encoder(x, mask).hidden_BLD - taught + 1).square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_tables_of_layers_with_different_heads_are_kept(batch):
    x, mask = batch
    encoder = randomize(Encoder(EncoderShape(3, D, H, F, layer_heads=(1, 4, 2), layer_feedforward=(8, 16, 24)))).eval()
    expected = encoder(x, mask).hidden_BLD.detach()
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(encoder(x, mask).hidden_BLD, expected, rtol=1e-5, atol=1e-5)
    assert not [name for name in encoder.state_dict() if "rotary" in name], "they are not saved"
