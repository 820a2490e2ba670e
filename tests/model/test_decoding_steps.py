"""Steps from a cache give what reading everything anew gives: for all kinds of models, lengths and windows.

# B prompts   N hypotheses, W of each prompt   V vocabulary
"""

import pytest
import torch

from him.model.generation import CachedSteps, RecomputedSteps
from him.model.generative import last_positions, padded
from him.model.kv_cache import FIRST_CAPACITY

KINDS = ("lm", "summaries", "copying")
PROMPTS = ([2], [2, 9, 5, 14, 3, 9, 3], [2, 6, 5, 3])


def walk(model, prompts, num_hypotheses, num_steps, seed=0):
    """Both kinds of steps along the same random texts, whose hypotheses change places within their prompt.

    Yields a pair of log-probabilities (N, V) for each step.
    """
    random = torch.Generator().manual_seed(seed)
    sources = [kind(model, prompts, num_hypotheses) for kind in (CachedSteps, RecomputedSteps)]
    vocab_size = len(model.output_bias)
    yield tuple(source.first() for source in sources)
    written = [[] for _ in range(len(prompts) * num_hypotheses)]
    for number in range(num_steps):
        origins = None
        if number % 3 and num_hypotheses > 1:  # not None, also where nothing changes its place
            within = torch.randint(num_hypotheses, (len(prompts), num_hypotheses), generator=random)
            origins = (within + num_hypotheses * torch.arange(len(prompts))[:, None]).flatten().tolist()
        tokens = torch.randint(vocab_size, (len(written),), generator=random).tolist()
        kept = written if origins is None else [written[origin] for origin in origins]
        written = [[*ids, token] for ids, token in zip(kept, tokens, strict=True)]
        yield tuple(source.next(written, origins) for source in sources)


def check_walk(model, prompts, num_hypotheses, num_steps):
    found = []
    with torch.inference_mode():
        for cached_NV, recomputed_NV in walk(model, prompts, num_hypotheses, num_steps):
            torch.testing.assert_close(cached_NV, recomputed_NV, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(cached_NV.exp().sum(dim=-1), torch.ones(len(cached_NV)))
            found.append(cached_NV)
    assert len(found) == num_steps + 1
    for one, other in zip(found, found[1:], strict=False):
        assert (one - other).abs().max() > 0.1, "steps that are alike would show nothing"


@pytest.mark.parametrize("conv_kernel_size", [0, 5])
@pytest.mark.parametrize("rotary", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_cached_equals_recomputed(make_writer, kind, norm_first, rotary, conv_kernel_size):
    activation = "relu_squared" if norm_first == rotary else "gelu"
    model = make_writer(
        kind, norm_first=norm_first, rotary=rotary, conv_kernel_size=conv_kernel_size, activation=activation
    )
    check_walk(model, PROMPTS, num_hypotheses=3, num_steps=8)


@pytest.mark.parametrize("conv_kernel_size", [1, 9])
def test_convolutions_narrow_and_wider_than_the_prompts(make_writer, conv_kernel_size):
    check_walk(make_writer("copying", conv_kernel_size=conv_kernel_size), PROMPTS, num_hypotheses=2, num_steps=12)


@pytest.mark.parametrize("kind", KINDS)
def test_more_tokens_than_there_is_room_for_at_first(make_writer, kind):
    check_walk(make_writer(kind, conv_kernel_size=3), PROMPTS, num_hypotheses=2, num_steps=2 * FIRST_CAPACITY + 2)


@pytest.mark.parametrize("rotary", [True, False])
@pytest.mark.parametrize("context_length", [1, 2, 7, 8])
@pytest.mark.parametrize("num_hypotheses", [1, 3])
def test_the_window_moves(make_writer, rotary, context_length, num_hypotheses):
    """Far beyond the context, from prompts shorter and longer than it, which reach its end at different steps."""
    model = make_writer("lm", rotary=rotary, conv_kernel_size=3, max_seq_len=context_length)
    prompts = ([2], [2, 9, 5, 14, 3, 9, 3], [*range(5, 20), 3, 8])
    check_walk(model, prompts, num_hypotheses, num_steps=3 * context_length + 4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_the_same_alone(make_writer, kind):
    """Padding, and what is beside a row, change nothing."""
    model = make_writer(kind, conv_kernel_size=5, max_seq_len=8 if kind == "lm" else 128)
    for number, prompt in enumerate(PROMPTS):
        with torch.inference_mode():
            texts = [[7, 8, 9, 10, 11][:length] for length in (1, 2, 3, 4, 5)]
            beside = CachedSteps(model, PROMPTS, 1)
            alone = CachedSteps(model, [prompt], 1)
            torch.testing.assert_close(beside.first()[number], alone.first()[0], rtol=1e-5, atol=1e-5)
            for text in texts:
                both = beside.next([text] * len(PROMPTS), None)[number], alone.next([text], None)[0]
                torch.testing.assert_close(*both, rtol=1e-5, atol=1e-5)
                written = model.recompute(PROMPTS, [text, text[:1], []])[0]
                torch.testing.assert_close(written, model.recompute([PROMPTS[0]], [text])[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_stays_near(make_writer, kind):
    """Through the cache under autocast; the weights are large, so that three digits leave some tenths."""
    model = make_writer(kind, conv_kernel_size=3)
    texts = [[7, 8, 9], [10, 11, 12], [13, 14, 5]]
    exact = model.recompute(PROMPTS, texts)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        steps = CachedSteps(model, PROMPTS, 1)
        steps.first()
        for length in (1, 2, 3):
            found = steps.next([text[:length] for text in texts], None)
    assert found.dtype is torch.float32
    assert 0 < (found.exp() - exact.exp()).abs().max() < 0.05


# --- windows and rows -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context_length", [1, 2, 3, 5, 8, 9])
def test_window_is_never_too_long_nor_short(make_writer, context_length):
    model = make_writer("lm", max_seq_len=context_length)
    starts = [model.window_start(length) for length in range(1, 60)]
    for length, start in enumerate(starts, start=1):
        if length <= context_length:
            assert start == 0
        else:  # at least half a context is seen
            assert (context_length + 1) // 2 <= length - start <= context_length
    assert starts == sorted(starts)
    changes = sum(one != other for one, other in zip(starts, starts[1:], strict=False))
    assert changes <= -(-60 // max(1, context_length // 2))


def test_window_by_hand(make_writer):
    """A context of 4 moves by 2."""
    model = make_writer("lm", max_seq_len=4)
    assert [model.window_start(length) for length in range(1, 10)] == [0, 0, 0, 0, 2, 2, 4, 4, 6]
    assert model.window([1, 2, 3, 4, 5, 6, 7]) == [5, 6, 7]
    assert make_writer("copying").window_start(10**6) == 0


def test_rows_and_their_last_positions():
    ids, mask = padded([[5, 6, 7], [8], [9, 10]], torch.device("cpu"))
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0], [9, 10, 0]]
    assert mask.tolist() == [[True, True, True], [True, False, False], [True, True, False]]
    assert padded([[5], [6, 7]], torch.device("cpu"), pad_id=4)[0].tolist() == [[5, 4], [6, 7]]
    assert last_positions(ids[:, :, None], mask).tolist() == [[7], [8], [10]]
