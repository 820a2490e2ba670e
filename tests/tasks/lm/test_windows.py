"""Random windows to train on and windows to score with, on streams in which every token is its own number."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from him.data.batching import evaluation_batches
from him.tasks.lm.windows import RandomWindows, ScoringWindows


def stream(total):
    return np.arange(total, dtype=np.uint16)


# --- random windows -------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=100, derandomize=True)
@given(length=st.integers(1, 40), more=st.integers(1, 200), seed=st.integers(0, 1000))
def test_windows_lie_within_the_stream(length, more, seed):
    """And the labels are the inputs one token later."""
    windows = RandomWindows(stream(length + more), length)
    torch.manual_seed(seed)
    batch = windows.batch(np.arange(len(windows.lengths)))
    assert batch["input_ids"].shape == (len(windows.lengths), length)
    assert batch["input_ids"].dtype is batch["labels"].dtype is torch.int64
    assert batch["attention_mask"].dtype is torch.bool and batch["attention_mask"].all()
    assert (batch["input_ids"].diff(dim=1) == 1).all()
    assert torch.equal(batch["labels"], batch["input_ids"] + 1)
    assert batch["input_ids"].min() >= 0 and batch["labels"].max() <= length + more - 1
    assert len(windows.lengths) == max(1, (length + more - 1) // length)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(length=st.integers(1, 20), more=st.integers(1, 80))
def test_each_position_can_be_the_start_of_a_window(length, more):
    """So nothing is left out for good, neither the first token nor the last."""
    windows = RandomWindows(stream(length + more), length)
    torch.manual_seed(0)
    starts = torch.cat([windows.batch(np.arange(len(windows.lengths)))["input_ids"][:, 0] for _ in range(40 * length)])
    assert set(starts.tolist()) == set(range(more))


def test_an_epoch_passes_over_nearly_everything_once():
    """Tokens between the ends are targets once on average: within five deviations of 400 epochs."""
    windows = RandomWindows(stream(101), 10)
    torch.manual_seed(0)
    counts = torch.zeros(101)
    for _ in range(400):
        counts += torch.bincount(windows.batch(np.arange(len(windows.lengths)))["labels"].flatten(), minlength=101)
    assert len(windows.lengths) == 10
    assert (abs(counts[10:90] / 400 - 1) < 5 * 0.6 / 20).all()  # a token is seen 0, 1 or 2 times: deviation 0.6 at most


def test_windows_are_a_function_of_the_seed_of_torch():
    windows, numbers = RandomWindows(stream(500), 16), np.array([4, 0, 17, 4])

    def batch(seed):
        torch.manual_seed(seed)
        return windows.batch(numbers)["input_ids"]

    assert torch.equal(batch(3), batch(3))
    assert not torch.equal(batch(3), batch(4))
    np.random.seed(0)
    assert torch.equal(batch(3), batch(3))


def test_window_number_i_starts_in_the_ith_stretch():
    windows, numbers = RandomWindows(stream(500), 16), np.array([4, 0, 17, 4])
    torch.manual_seed(0)
    for _ in range(100):
        assert (windows.batch(numbers)["input_ids"][:, 0].numpy() // 16 == numbers).all()


def test_micro_batches_have_the_windows_of_the_batch():
    windows, numbers = RandomWindows(stream(500), 16), np.arange(31)
    torch.manual_seed(5)
    whole = windows.batch(numbers)["input_ids"]
    torch.manual_seed(5)
    parts = [windows.batch(part)["input_ids"] for part in np.array_split(numbers, 4)]
    assert torch.equal(torch.cat(parts), whole)


def test_a_stream_without_a_window():
    with pytest.raises(AssertionError):
        RandomWindows(stream(16), 16)


# --- windows ----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=300, derandomize=True)
@given(length=st.integers(1, 24), total=st.integers(2, 120), batch_size=st.integers(1, 9), data=st.data())
def test_each_token_but_the_first_is_a_target_once(length, total, batch_size, data):
    """With at least `length - stride` tokens before the one that predicts it, or all there are."""
    stride = data.draw(st.integers(1, length))
    made = ScoringWindows(stream(total), length, stride)
    batches = [made.batch(numbers) for numbers in evaluation_batches(made.lengths, batch_size)]
    targets = []
    for batch in batches:
        rows = len(batch["input_ids"])
        assert rows == batch_size or (batch is batches[-1] and rows < batch_size)
        assert {each.shape for each in batch.values()} == {(rows, min(length, total - 1))}
        assert batch["attention_mask"].all()
        assert torch.equal(batch["labels"], batch["input_ids"] + 1)
        assert (batch["input_ids"].diff(dim=1) == 1).all()
        scored = batch["labels"][batch["is_target"]]
        num_seen = torch.arange(batch["labels"].shape[1]).expand_as(batch["labels"])[batch["is_target"]] + 1
        assert (num_seen >= scored.clamp(max=length - stride + 1)).all()
        targets += scored.tolist()
    assert targets == list(range(1, total))
    windows = torch.cat([batch["is_target"].sum(dim=1) for batch in batches])
    assert windows[0] == min(length, total - 1) and (windows[1:-1] == stride).all() and (windows > 0).all()


def test_windows_by_hand():
    """Seven targets, windows of four, of which each later one scores two, and the last one only one."""
    batch = ScoringWindows(stream(8), 4, 2).batch(np.arange(3))
    assert batch["input_ids"].tolist() == [[0, 1, 2, 3], [2, 3, 4, 5], [3, 4, 5, 6]]
    assert batch["labels"].tolist() == [[1, 2, 3, 4], [3, 4, 5, 6], [4, 5, 6, 7]]
    assert batch["is_target"].int().tolist() == [[1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]]
