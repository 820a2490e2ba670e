"""The causal language model: nothing later is seen, every token counts once, and training reaches every weight.

# B batch   L length   D embed_dim   V vocabulary
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from him.data.batching import evaluation_batches
from him.tasks.lm.model import LanguageModel
from him.tasks.lm.windows import RandomWindows, ScoringWindows

L = 10


def tokens(*shape, seed=0):
    return torch.randint(5, 20, shape, generator=torch.Generator().manual_seed(seed))


def settings():
    """Norm order, positions and convolution that differ from each other."""
    return pytest.mark.parametrize(
        "settings",
        [
            {"norm_first": True, "rotary": True, "conv_kernel_size": 5},
            {"norm_first": False, "rotary": True, "conv_kernel_size": 0, "activation": "relu_squared"},
            {"norm_first": False, "rotary": False, "conv_kernel_size": 3},
        ],
        ids=["pre", "post", "post, learned positions"],
    )


@settings()
def test_later_tokens_are_not_seen(make_writer, settings):
    """Another token changes its own output and later ones, but not a bit of the earlier ones."""
    model = make_writer("lm", **settings)
    ids = tokens(3, L)
    before = model({"input_ids": ids}).hidden_BLD
    for place in range(L):
        changed = ids.clone()
        changed[:, place] = 5 + (changed[:, place] - 5 + 7) % 15
        after = model({"input_ids": changed}).hidden_BLD
        torch.testing.assert_close(after[:, :place], before[:, :place], rtol=1e-6, atol=1e-6)
        assert ((after - before)[:, place:].abs().amax(dim=-1) > 1e-3).all()


@settings()
def test_padding_at_the_end_is_not_seen(make_writer, settings):
    model = make_writer("lm", **settings)
    ids = tokens(2, L)
    padded = torch.cat((ids, torch.zeros(2, 4, dtype=torch.int64)), dim=1)
    found, expected = model({"input_ids": padded}).hidden_BLD[:, :L], model({"input_ids": ids}).hidden_BLD
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_attention_is_triangular(make_writer):
    weights = make_writer("lm")({"input_ids": tokens(2, L)}, return_weights=True).attention_weights
    assert len(weights) == 2
    for layer in weights:
        assert (layer.triu(1) == 0).all()
        torch.testing.assert_close(layer.sum(dim=-1), torch.ones(2, 2, L))


@settings()
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_loss_is_the_cross_entropy_of_the_next_token(make_writer, settings, label_smoothing):
    model = make_writer("lm", **settings)
    ids = tokens(3, L + 1)
    batch = {"input_ids": ids[:, :-1], "labels": ids[:, 1:]}
    loss, num_correct = model.loss(batch, label_smoothing)
    logits = model(batch).hidden_BLD @ model.embedding.tokens.weight.T + model.output_bias
    each = F.cross_entropy(
        logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none", label_smoothing=label_smoothing
    )
    torch.testing.assert_close(loss, each.sum())
    right = (logits.argmax(dim=-1) == ids[:, 1:]).flatten()
    assert num_correct.item() == int(right.sum())
    counting = torch.zeros(3, L, dtype=torch.bool)
    counting[0, 3], counting[2, 5:] = True, True
    loss, num_correct = model.loss({**batch, "is_target": counting}, label_smoothing)
    torch.testing.assert_close(loss, each[counting.flatten()].sum())
    assert num_correct.item() == int(right[counting.flatten()].sum())


@settings()
def test_loss_agrees_with_what_is_written(make_writer, settings):
    """Minus the sum of log-probabilities that generation would give to each token."""
    model = make_writer("lm", **settings)
    ids = tokens(2, L + 1)
    prefixes = [ids[row, : place + 1].tolist() for row in range(2) for place in range(L)]
    log_probabilities = model.recompute(prefixes, [[]] * len(prefixes))
    expected = -log_probabilities.gather(1, ids[:, 1:].reshape(-1, 1)).sum()
    torch.testing.assert_close(model.loss({"input_ids": ids[:, :-1], "labels": ids[:, 1:]})[0], expected)


@settings()
def test_every_parameter_gets_a_gradient(make_writer, settings):
    model = make_writer("lm", **settings, max_seq_len=L).train()
    ids = tokens(4, L + 1)
    model.loss({"input_ids": ids[:, :-1], "labels": ids[:, 1:]}, 0.1)[0].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-4, name


@pytest.mark.parametrize("norm_first", [True, False])
def test_starts_undecided(make_writer, norm_first):
    """The first loss is near that of guessing evenly among 1,000 tokens."""
    model = make_writer("lm", norm_first=norm_first, conv_kernel_size=3, vocab_size=1000, large_weights=False)
    ids = torch.randint(1000, (20, L + 1), generator=torch.Generator().manual_seed(0))
    loss, _ = model.loss({"input_ids": ids[:, :-1], "labels": ids[:, 1:]})
    assert loss.item() / (20 * L) == pytest.approx(math.log(1000), abs=0.05)


@pytest.mark.run
@pytest.mark.parametrize("norm_first", [True, False])
def test_overfits_a_text(make_writer, norm_first):
    """200 random tokens in random windows: only by heart, because what follows is even; ln 15 = 2.7 is guessing."""
    model = make_writer("lm", norm_first=norm_first, conv_kernel_size=3, large_weights=False).train()
    windows = RandomWindows(tokens(200).numpy().astype(np.uint16), 40)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    torch.manual_seed(0)
    for _ in range(150):
        batch = windows.batch(np.arange(len(windows.lengths)))
        loss = model.loss(batch)[0] / batch["labels"].numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1.0


@pytest.mark.parametrize(("length", "stride"), [(12, 12), (12, 5), (12, 1), (80, 80)])
def test_windows_give_the_loss_of_each_token_in_its_context(make_writer, length, stride):
    """One forward pass for each token with the same tokens before it; the batch size is of no account."""
    model: LanguageModel = make_writer("lm", conv_kernel_size=3, max_seq_len=length)
    ids = tokens(60, seed=3).numpy().astype(np.uint16)
    num_targets, length = len(ids) - 1, min(length, len(ids) - 1)
    expected = 0.0
    with torch.inference_mode():
        for target in range(1, len(ids)):
            moves = max(0, -(-(target - length) // stride))
            start = min(moves * stride, num_targets - length)
            log_probabilities = model.recompute([ids[start:target].tolist()], [[]])
            expected -= log_probabilities[0, int(ids[target])].item()
        for batch_size in (1, 3, 64):
            windows = ScoringWindows(ids, length, stride)
            batches = [windows.batch(numbers) for numbers in evaluation_batches(windows.lengths, batch_size)]
            assert sum(int(batch["is_target"].sum()) for batch in batches) == num_targets
            found = sum(model.loss(batch)[0].item() for batch in batches)
            assert found == pytest.approx(expected, rel=1e-5)
