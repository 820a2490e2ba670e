"""The order of examples: a pure function of (seed, epoch), with little padding."""

import numpy as np
import pytest

from him.data.batching import SamplingWeights, bucket_length, epoch_batches, evaluation_batches

LENGTHS = np.random.default_rng(0).integers(20, 385, 5003)


@pytest.mark.parametrize(("num_examples", "batch_size"), [(5003, 32), (1, 32), (32, 32), (33, 32), (100, 1), (5003, 7)])
def test_every_example_once(num_examples, batch_size):
    batches = epoch_batches(LENGTHS[:num_examples], batch_size, seed=1, epoch=2)
    assert sorted(np.concatenate(batches).tolist()) == list(range(num_examples))
    assert len(batches) == -(-num_examples // batch_size)  # the number of steps that the schedule counts on
    assert max(map(len, batches)) <= batch_size


def test_only_seed_and_epoch_decide():
    np.random.seed(1)
    first = epoch_batches(LENGTHS, 32, seed=4, epoch=0)
    np.random.seed(2)
    again = epoch_batches(LENGTHS.copy(), 32, seed=4, epoch=0)
    assert [batch.tolist() for batch in first] == [batch.tolist() for batch in again]


@pytest.mark.parametrize("other", [(4, 1), (5, 0), (0, 4)])
def test_other_seeds_and_epochs_differ(other):
    """Not only another order of the same batches: other examples meet."""
    batches = {frozenset(batch.tolist()) for batch in epoch_batches(LENGTHS, 32, seed=4, epoch=0)}
    others = {frozenset(batch.tolist()) for batch in epoch_batches(LENGTHS, 32, *other)}
    assert len(batches & others) < 5


def test_batches_come_in_no_order_of_length():
    """Short ones first would make the loss of the first steps another task's."""
    means = np.array([LENGTHS[batch].mean() for batch in epoch_batches(LENGTHS, 32, seed=0, epoch=0)])
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.2
    assert abs(means[:20].mean() - means.mean()) < 50


def test_little_padding():
    """2.2 % without buckets; rounding up to 32 adds 16 positions to rows of 202 on average. A random order has 45 %."""

    def padding(batches, multiple):
        positions = sum(bucket_length(LENGTHS[batch].max(), 384, multiple) * len(batch) for batch in batches)
        return 1 - LENGTHS[np.concatenate(batches)].sum() / positions

    batches = epoch_batches(LENGTHS, 32, seed=0, epoch=0)
    assert padding(batches, 1) < 0.025
    assert padding(batches, 32) < 0.025 + 16 / 202
    assert padding(np.split(np.random.default_rng(0).permutation(4992), 156), 1) > 0.4


def test_evaluation_takes_the_longest_first():
    lengths = np.array([5, 9, 7, 9, 1])
    assert [batch.tolist() for batch in evaluation_batches(lengths, 2)] == [[1, 3], [2, 0], [4]]
    assert evaluation_batches(lengths[:0], 2) == []


@pytest.mark.parametrize(
    ("longest", "most", "expected"),
    [(1, 384, 32), (32, 384, 32), (33, 384, 64), (370, 384, 384), (370, 375, 375), (11, 16, 16), (400, 384, 400)],
)
def test_bucket_length(longest, most, expected):
    assert bucket_length(longest, most) == expected


# -- several training sets ---------------------------------------------------------------------------------------------

SOURCE_IDS = np.repeat([0, 1, 2], [100, 301, 99])


def seen_in(epoch: int, weights: tuple[float, ...], **more) -> np.ndarray:
    """How often each example is in an epoch."""
    batches = epoch_batches(LENGTHS[:500], 32, 1, epoch, SamplingWeights(SOURCE_IDS, weights), **more)
    return np.bincount(np.concatenate(batches), minlength=500)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (2.0, 0.5, 0.0), (1.5, 0.25, 4.0)])
def test_examples_are_seen_as_often_as_their_set_weighs(weights):
    for epoch in range(3):
        times = seen_in(epoch, weights)
        assert times.sum() == SamplingWeights(SOURCE_IDS, weights).num_examples
        for number, weight in enumerate(weights):
            of_set = times[SOURCE_IDS == number]
            assert of_set.sum() == round(weight * len(of_set))
            assert set(of_set.tolist()) <= {int(weight), int(weight) + 1}, "as even as can be"


def test_other_examples_of_a_set_in_other_epochs():
    of_set = [set(np.flatnonzero(seen_in(epoch, (0.0, 0.5, 0.0))).tolist()) for epoch in range(6)]
    assert len(of_set[0] & of_set[1]) < 0.7 * len(of_set[0])
    assert len(set.union(*of_set)) > 0.95 * 301


def test_without_weights_nothing_changes():
    plain = epoch_batches(LENGTHS[:500], 32, 1, 0)
    assert sorted(np.concatenate(plain).tolist()) == list(range(500))


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (2.0, 0.5, 1.0), (0.0, 1.0, 1.0)])
def test_the_first_set_may_come_last(weights):
    batches = epoch_batches(LENGTHS[:500], 32, 1, 4, SamplingWeights(SOURCE_IDS, weights), end_with_first_source=True)
    shares = [(SOURCE_IDS[batch] == 0).mean() for batch in batches]
    num_others = SamplingWeights(SOURCE_IDS, (0.0, *weights[1:])).num_examples
    num_before = -(-num_others // 32)
    assert all(share == 1 for share in shares[num_before:])
    assert sum((SOURCE_IDS[batch] == 0).sum() for batch in batches[:num_before]) == min(
        32 * num_before - num_others, round(100 * weights[0])
    )
    assert [len(batch) for batch in batches].count(32) >= len(batches) - 1
    assert np.array_equal(
        np.bincount(np.concatenate(batches), minlength=500), seen_in(4, weights, end_with_first_source=True)
    )
