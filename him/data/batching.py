"""Length-grouped batches: a pure function of (seed, epoch), so that resuming anywhere in an epoch costs nothing."""

from dataclasses import dataclass

import numpy as np

# Batches are cut from pools of this many batches, sorted by length inside: nearly no padding, and still other examples
# side by side in every epoch.
POOL_BATCHES = 50


@dataclass(frozen=True)
class SamplingWeights:
    """Sampling weights of several training files: how often the examples of each are seen in an epoch.

    Attributes:
        source_ids: (N,) index of the file that each example is from.
        weights: of each file: 1 is each example once, 0.5 another half of them in each epoch, 2 each twice.
    """

    source_ids: np.ndarray
    weights: tuple[float, ...]

    @property
    def num_examples(self) -> int:
        """Examples in an epoch, the same number in each."""
        counts = np.bincount(self.source_ids, minlength=len(self.weights))
        return sum(round(weight * count) for weight, count in zip(self.weights, counts.tolist(), strict=True))

    def choose(self, random: np.random.Generator) -> np.ndarray:
        """Indices of the examples of an epoch: all of a file as often as its weight has whole parts, and a random rest.

        Args:
            random: what the rest is drawn with.
        """
        chosen = []
        for source_id, weight in enumerate(self.weights):
            examples = np.flatnonzero(self.source_ids == source_id)
            wanted = round(weight * len(examples))
            times = wanted // max(1, len(examples))
            rest = random.permutation(examples)[: wanted - times * len(examples)]
            chosen += [np.repeat(examples, times), rest]
        return np.concatenate(chosen)


def epoch_batches(
    lengths: np.ndarray,
    batch_size: int,
    seed: int,
    epoch: int,
    sampling: SamplingWeights | None = None,
    end_with_first_source: bool = False,
) -> list[np.ndarray]:
    """Batches of one training epoch: neighbours in length together, batches in random order.

    Args:
        lengths: (N,) tokens of each example.
        batch_size: examples in a batch; the last ones may make a smaller one.
        seed, epoch: decide the order, nothing else does.
        sampling: how often each example is in it; once, if there is none.
        end_with_first_source: whether the examples of the first file come after all others, but for those that fill
            the last batch of these up.

    Returns:
        Arrays of example indices.
    """
    random = np.random.default_rng((seed, epoch))
    chosen = np.arange(len(lengths)) if sampling is None else sampling.choose(random)
    shuffled = chosen[random.permutation(len(chosen))]
    num_before = 0  # batches with examples of other files
    if sampling is not None and end_with_first_source:
        is_first = sampling.source_ids[shuffled] == 0
        shuffled = np.concatenate((shuffled[~is_first], shuffled[is_first]))
        num_before = -(-int((~is_first).sum()) // batch_size)
    positions = np.arange(len(chosen))
    pools = positions // (batch_size * POOL_BATCHES)
    parts = positions >= num_before * batch_size
    ordered = shuffled[np.lexsort((lengths[shuffled], pools, parts))]
    num_batches = -(-len(chosen) // batch_size)
    order = np.concatenate((random.permutation(num_before), num_before + random.permutation(num_batches - num_before)))
    return [ordered[start : start + batch_size] for start in (batch_size * order).tolist()]


def evaluation_batches(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Batches of an evaluation: every example once, longest first, so that a lack of memory shows at once.

    Args:
        lengths: (N,) tokens of each example.
        batch_size: examples in a batch; the last one may be smaller.

    Returns:
        Arrays of example indices.
    """
    longest_first = np.argsort(-lengths, kind="stable")
    return [longest_first[start : start + batch_size] for start in range(0, len(lengths), batch_size)]


def bucket_length(longest: int, most: int, multiple: int = 32) -> int:
    """The padded length of a batch: few different shapes, and rows that kernels like.

    Args:
        longest: tokens of its longest example.
        most: the model's longest input, which rounding does not exceed.
        multiple: what `longest` is rounded up to.
    """
    return min(-(-longest // multiple) * multiple, max(longest, most))
