"""Copying from the source: probabilities by hand, and nothing from where nothing is.

# N rows   T positions that predict   S source length   D embed_dim   V vocabulary
"""

import math

import pytest
import torch

from him.tasks.summarization.copy_head import CopyHead, copied_log_probabilities, mixed_probabilities

N, T, S, D, V = 3, 4, 6, 8, 11
LENGTHS = torch.tensor([6, 2, 1])


@pytest.fixture
def head():
    torch.manual_seed(0)
    made = CopyHead(D)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made


@pytest.fixture
def source(head):
    torch.manual_seed(1)
    ids = torch.tensor([[2, 7, 7, 9, 7, 3], [2, 3, 0, 0, 0, 0], [2, 0, 0, 0, 0, 0]])
    return head.source(torch.randn(N, S, D), torch.randn(N, S, D), ids, torch.arange(S) < LENGTHS[:, None])


def test_copied_by_hand():
    """Weights 1/2, 1/8 and 3/8 on the tokens 5, 6, 5: the token 5 has 7/8, 6 has 1/8, and 7 as good as nothing."""
    log_weights = torch.tensor([4 / 8, 1 / 8, 3 / 8]).log().expand(3, 3)
    found = copied_log_probabilities(log_weights, torch.tensor([[5, 6, 5]] * 3), torch.tensor([5, 6, 7]))
    assert found[:2].tolist() == pytest.approx([math.log(7 / 8), math.log(1 / 8)], rel=1e-6)
    assert -1.1e9 < found[2] < -0.9e9


def test_no_gradient_through_what_is_not_there():
    """A very low number has a gradient of 0, where -inf would have NaN."""
    weights = torch.tensor([0.5, 0.5]).log().repeat(2, 1).requires_grad_()
    copied = copied_log_probabilities(weights, torch.tensor([[5, 6], [5, 6]]), torch.tensor([5, 7]))
    torch.logaddexp(copied, torch.tensor(-2.0)).sum().backward()
    assert torch.isfinite(weights.grad).all()
    assert weights.grad[0, 0] > 0 and (weights.grad.flatten()[1:] == 0).all()


def test_mixed_by_hand():
    """A gate of 3/4 between (1/2, 1/4, 1/4, 0) and 5/8 of the token 3 and 3/8 of the token 0."""
    vocabulary = torch.tensor([[0.5, 0.25, 0.25, 0.0]])
    log_weights = torch.tensor([[3 / 8, 3 / 8, 2 / 8]]).log()
    mixed = mixed_probabilities(vocabulary, log_weights, torch.tensor([math.log(3.0)]), torch.tensor([[3, 0, 3]]))
    assert mixed[0].tolist() == pytest.approx([1 / 8 + 9 / 32, 1 / 16, 1 / 16, 15 / 32], rel=1e-6)


def at_each_place(head, source):
    """Log-weights, gate logits and source ids of N * T positions, in rows."""
    torch.manual_seed(2)
    log_weights, gate = head(torch.randn(N, T, D), torch.randn(N, T, D), source)
    assert log_weights.dtype is gate.dtype is torch.float32
    return log_weights.flatten(0, 1), gate.flatten(), source.ids_NS.repeat_interleave(T, dim=0)


def test_both_ways_to_the_probability_of_a_target_agree(head, source):
    """The training loss takes logarithms of one target; generation makes probabilities of all; and all make 1."""
    log_weights, gate, ids = at_each_place(head, source)
    vocabulary = torch.randn(N * T, V).softmax(dim=-1)
    targets = torch.randint(V, (N * T,))
    chosen = vocabulary.gather(1, targets[:, None])[:, 0].log()
    copied = copied_log_probabilities(log_weights, ids, targets)
    wanted = torch.logaddexp(gate.sigmoid().log() + copied, (-gate).sigmoid().log() + chosen)
    mixed = mixed_probabilities(vocabulary, log_weights, gate, ids)
    torch.testing.assert_close(mixed.sum(dim=-1), torch.ones(N * T))
    torch.testing.assert_close(mixed.gather(1, targets[:, None])[:, 0].log(), wanted, rtol=1e-5, atol=1e-6)


def test_nothing_is_copied_from_the_padding(head, source):
    """Weights are on tokens only, and what the padding holds does not matter."""
    log_weights, gate, ids = at_each_place(head, source)
    present = source.mask_NS.repeat_interleave(T, dim=0)
    torch.testing.assert_close(log_weights.exp().sum(dim=-1), torch.ones(N * T))
    assert (log_weights.exp()[~present] == 0).all()
    assert (log_weights.exp()[present] > 0).all()
    mixed = mixed_probabilities(torch.zeros(N * T, V), log_weights, gate, ids)
    for row in range(N * T):
        assert set(mixed[row].nonzero().flatten().tolist()) == set(ids[row, present[row]].tolist())
    source.keys_NSD.data[~source.mask_NS] = 1e3
    assert torch.equal(at_each_place(head, source)[0], log_weights)


def test_scores_by_hand(head):
    """Query and key are sums over a place and its token or the token before; the first source token has none."""
    torch.manual_seed(3)
    hidden, embedded, positions, previous = (torch.randn(1, 3, D) for _ in range(4))
    source = head.source(hidden, embedded, torch.tensor([[2, 5, 3]]), torch.ones(1, 3, dtype=torch.bool))
    log_weights, gate = head(positions, previous, source)
    for t in range(3):
        query = head.query(positions[0, t]) + head.previous_query(previous[0, t])
        scores = []
        for s in range(3):
            before = embedded[0, s - 1] if s else torch.zeros(D)
            scores.append(query @ (head.key(hidden[0, s]) + head.previous_key(before)) / math.sqrt(D))
        torch.testing.assert_close(log_weights[0, t], torch.stack(scores).log_softmax(dim=0), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gate[0, t], head.gate(positions[0, t])[0])


def test_each_row_several_times(source):
    repeated = source.repeat(2)
    for name, part in vars(source).items():
        assert torch.equal(getattr(repeated, name), part[[0, 0, 1, 1, 2, 2]])
