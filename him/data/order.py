"""Which examples make up which batch: a pure function of (seed, epoch), so that resuming at any place costs nothing."""

import numpy as np

# Batches are cut from pools of this many batches, sorted by length inside: nearly no padding, and still a new mix of
# examples in every epoch.
POOL_BATCHES = 50


def epoch_batches(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Batches of one training epoch: every example once, neighbours in length together, batches in random order.

    Args:
        lengths: (N,) tokens of each example.
        batch_size: examples in a batch; the last ones may make a smaller one.
        seed, epoch: decide the order, nothing else does.

    Returns:
        Arrays of example numbers.
    """
    random = np.random.default_rng((seed, epoch))
    shuffled = random.permutation(len(lengths))
    pools = np.arange(len(lengths)) // (batch_size * POOL_BATCHES)
    ordered = shuffled[np.lexsort((lengths[shuffled], pools))]
    starts = batch_size * random.permutation(-(-len(lengths) // batch_size))
    return [ordered[start : start + batch_size] for start in starts.tolist()]


def evaluation_batches(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Every example once, longest first, so that a lack of memory shows at once."""
    longest_first = np.argsort(-lengths, kind="stable")
    return [longest_first[start : start + batch_size] for start in range(0, len(lengths), batch_size)]


def bucket_length(longest: int, most: int, multiple: int = 32) -> int:
    """`longest` rounded up to a multiple, at most `most`: few different shapes, and rows that kernels like."""
    return min(-(-longest // multiple) * multiple, max(longest, most))
