"""What a layer keeps: attention through it equals attention over everything, and hypotheses may change places.

# B prompts   N hypotheses, W of each prompt   P longest prompt   T written tokens   D embed_dim
# H heads   K width of one head
"""

import pytest
import torch
from torch import nn

from him.model.attention import SelfAttention, attention_bias, rotary_tables
from him.model.convolution import DepthwiseConvolution
from him.model.kv_cache import FIRST_CAPACITY, DecodingCache, LayerCache

P, D, H, K = 7, 16, 2, 8
LENGTHS = torch.tensor([7, 1, 4])
PRESENT = torch.arange(P) < LENGTHS[:, None]


@pytest.fixture
def layer():
    torch.manual_seed(0)
    made = SelfAttention(D, H, K)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    return made


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rotary", [True, False])
@pytest.mark.parametrize("causal_prompt", [True, False])
@pytest.mark.parametrize("num_hypotheses", [1, 3])
@torch.no_grad()
def test_attention_through_the_cache(layer, rotary, causal_prompt, num_hypotheses):
    """Against each hypothesis alone, its prompt without padding and all it wrote in one sequence."""
    num_written = FIRST_CAPACITY + 3
    prompts, written = random(3, P, D), random(3 * num_hypotheses, num_written, D, seed=1)

    def tables(positions):
        return rotary_tables(positions, H, K, prompts) if rotary else None

    def mask(prompt_length, length):
        allowed = torch.ones(length, length, dtype=torch.bool).tril()
        if not causal_prompt:
            allowed[:prompt_length, :prompt_length] = True
        return allowed

    cache = LayerCache(LENGTHS, num_hypotheses)
    assert not cache.is_filled
    bias = attention_bias(mask(P, P)[None] & PRESENT[:, None, :])
    layer(prompts, bias, tables(torch.arange(P)), cache=cache)
    assert cache.is_filled
    positions = LENGTHS.repeat_interleave(num_hypotheses)[:, None]
    found = []
    for number in range(num_written):
        x_N1D = written[:, number : number + 1]
        found.append(layer(x_N1D, attention_bias(PRESENT), tables(positions + number), cache=cache)[0])
    found = torch.cat(found, dim=1)
    assert cache.num_written == num_written
    for row in range(3 * num_hypotheses):
        prompt_length = int(LENGTHS[row // num_hypotheses])
        whole = torch.cat((prompts[row // num_hypotheses, :prompt_length], written[row]))[None]
        bias = attention_bias(mask(prompt_length, whole.shape[1])[None])
        expected, _ = layer(whole, bias, tables(torch.arange(whole.shape[1])))
        torch.testing.assert_close(found[row], expected[0, prompt_length:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("width", [1, 3, 5, 11])
@torch.no_grad()
def test_convolution_step_by_step(width):
    """Against each row alone in one sequence; prompts shorter than the window have zeros before them."""
    torch.manual_seed(0)
    convolution = DepthwiseConvolution(D, width, causal=True)
    prompts, written = random(3, P, D), random(6, 5, D, seed=1)
    cache = LayerCache(LENGTHS, 2)
    padded = convolution(prompts, cache=cache)
    cache.fill(torch.zeros(3, H, P, K), torch.zeros(3, H, P, K))
    steps = torch.cat([convolution(written[:, number : number + 1], cache=cache) for number in range(5)], dim=1)
    for row in range(6):
        length = int(LENGTHS[row // 2])
        whole = convolution(torch.cat((prompts[row // 2, :length], written[row]))[None])[0]
        torch.testing.assert_close(padded[row // 2, :length], whole[:length], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(steps[row], whole[length:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("num_prompts", "num_hypotheses", "origins"),
    [(2, 3, [1, 1, 0, 5, 3, 4]), (6, 1, [1, 1, 0, 5, 3, 4])],
    ids=["shared prompts", "own prompts"],
)
def test_hypotheses_change_places(num_prompts, num_hypotheses, origins):
    """Everything of a hypothesis goes with it; a prompt that several share stays where it is."""
    lengths = torch.tensor([3, 1, 2, 3, 2, 1][:num_prompts])
    mask = torch.arange(3) < lengths[:, None]
    cache = DecodingCache.empty(mask, 2, num_hypotheses)
    assert cache.positions_N.tolist() == lengths.repeat_interleave(num_hypotheses).tolist()
    before = []
    for number, layer in enumerate(cache.layers):
        layer.keep_last(random(num_prompts, 3, D, seed=number), 2)
        keys, values = random(2, num_prompts, H, 3, K, seed=10 + number)
        layer.fill(keys, values)
        for token in range(4):
            kept = layer.append(*random(2, 6, H, 1, K, seed=20 + 5 * number + token))
        before.append((keys, values, *(part.clone() for part in kept), layer.shift_in(torch.zeros(6, 1, D))[:, 1:]))
    cache.reorder(torch.tensor(origins))
    own = origins if num_hypotheses == 1 else list(range(num_prompts))
    assert torch.equal(cache.prompt_mask_BP, mask[own])
    assert cache.positions_N.tolist() == lengths.repeat_interleave(num_hypotheses)[origins].tolist()
    for layer, (keys, values, own_keys, own_values, last_inputs) in zip(cache.layers, before, strict=True):
        assert torch.equal(layer.prompt_keys_BHPK, keys[own])
        assert torch.equal(layer.prompt_values_BHPK, values[own])
        found = layer.append(torch.zeros(6, H, 1, K), torch.zeros(6, H, 1, K))
        assert torch.equal(found[0][:, :, :4], own_keys[origins])
        assert torch.equal(found[1][:, :, :4], own_values[origins])
        assert torch.equal(layer.shift_in(torch.zeros(6, 1, D))[:, :2], last_inputs[origins])


def test_last_inputs_by_hand():
    """Of prompts of three, one and two tokens, the last two; zeros where there is none."""
    cache = LayerCache(torch.tensor([3, 1, 2]), 1)
    cache.keep_last(torch.tensor([[1.0, 2, 3], [4, 9, 9], [5, 6, 9]])[:, :, None], 2)
    window = cache.shift_in(torch.tensor([7.0, 8, 9])[:, None, None])
    assert window[:, :, 0].tolist() == [[2, 3, 7], [0, 4, 8], [5, 6, 9]]
    assert cache.shift_in(torch.zeros(3, 1, 1))[:, :, 0].tolist() == [[3, 7, 0], [4, 8, 0], [6, 9, 0]]


def test_room_is_made_when_it_is_needed():
    cache = LayerCache(torch.tensor([1]), 1)
    cache.fill(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))
    for number in range(3 * FIRST_CAPACITY):
        keys, values = cache.append(torch.full((1, 1, 1, 1), float(number)), torch.full((1, 1, 1, 1), -float(number)))
        assert keys.flatten().tolist() == list(range(number + 1))
        assert values.flatten().tolist() == [-each for each in range(number + 1)]
