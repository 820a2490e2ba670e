"""Which batches are timed: few, but with the lengths of the whole epoch."""

from collections.abc import Sequence

import numpy as np


def choose_batches(batches: Sequence[np.ndarray], lengths: np.ndarray, num_batches: int) -> list[np.ndarray]:
    """Batches that stand for all: one from the middle of each of `num_batches` equal parts of the epoch by size.

    The first batches of an epoch would not do: the Trainer's groups of like length come longest first, fifty of them.

    Args:
        batches: an epoch's batches, as numbers of examples. The smaller last one is left out.
        lengths: (N,) tokens of each example.
        num_batches: how many are wanted; with fewer in the epoch some are taken again.

    Returns:
        The chosen ones in an order that a fixed seed decides, so that lengths come mixed, as in training.
    """
    size = max(map(len, batches))
    by_tokens = sorted((batch for batch in batches if len(batch) == size), key=lambda batch: int(lengths[batch].sum()))
    positions = (np.arange(num_batches) + 0.5) * len(by_tokens) / num_batches
    order = np.random.default_rng(0).permutation(num_batches)
    return [by_tokens[int(position)] for position in positions[order]]


def plan_steps(batches: Sequence[np.ndarray], lengths: np.ndarray, num_warmup: int, num_timed: int) -> list[np.ndarray]:
    """The batches of a run: first that of the longest example, so that memory grows, more warm-up, the timed ones."""
    longest = max(batches, key=lambda batch: (int(lengths[batch].max()), len(batch)))
    return [
        longest,
        *choose_batches(batches, lengths, num_warmup)[: num_warmup - 1],
        *choose_batches(batches, lengths, num_timed),
    ]


def random_batches(num_examples: int, batch_size: int, seed: int) -> list[np.ndarray]:
    """An epoch in random order, as the Trainer's default sampler makes it."""
    order = np.random.default_rng(seed).permutation(num_examples)
    return [order[start : start + batch_size] for start in range(0, num_examples, batch_size)]
