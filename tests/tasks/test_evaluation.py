"""The evaluation loop: every example once, sums in the order of the batches, half a batch where memory runs out."""

import numpy as np
import pytest
import torch
from torch import nn

from him.core.compute import Compute
from him.metrics.running import RunningMean
from him.tasks import evaluation
from him.tasks.base import LossSums
from him.tasks.evaluation import BertScores, TargetMeans, diversity, forward_passes, mean_loss

COMPUTE = Compute(torch.device("cpu"), bf16=False)


class Numbers:
    """Examples that are their own number, as many times as they are long."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = np.array(lengths)

    def batch(self, numbers: np.ndarray) -> dict[str, torch.Tensor]:
        return {"values": torch.tensor([[float(number)] for number in numbers])}


def test_every_example_is_passed_once_longest_first():
    seen = [
        (numbers.tolist(), output.tolist())
        for numbers, _, output in forward_passes(
            Numbers([3, 9, 1, 7, 9]), 2, COMPUTE, lambda batch: batch["values"][:, 0] * 10
        )
    ]
    assert seen == [([1, 4], [10, 40]), ([3, 0], [30, 0]), ([2], [20])]


def test_a_batch_that_does_not_fit_is_halved():
    def forward(batch):
        if len(batch["values"]) > 2:
            raise MemoryError
        return len(batch["values"])

    parts = [(numbers.tolist(), number) for numbers, _, number in forward_passes(Numbers([1] * 5), 5, COMPUTE, forward)]
    assert parts == [([0, 1], 2), ([2], 1), ([3, 4], 2)]


def test_other_errors_are_not_hidden():
    with pytest.raises(RuntimeError, match="^shape$"):
        list(forward_passes(Numbers([1, 1]), 2, COMPUTE, lambda batch: (_ for _ in ()).throw(RuntimeError("shape"))))


def test_bf16_is_for_the_forward_pass_only():
    linear = nn.Linear(1, 1)
    compute = Compute(torch.device("cpu"), bf16=True)
    passes = forward_passes(Numbers([1]), 1, compute, lambda batch: linear(batch["values"]))
    for _, batch, output in passes:
        assert output.dtype is torch.bfloat16
        assert linear(batch["values"]).dtype is torch.float32


def test_sums_are_added_batch_by_batch():
    """In float64 in the order of the batches, as a loop by hand adds them: not a bit differs."""
    torch.manual_seed(0)
    weights, lengths = torch.rand(37), list(range(37))

    def loss(model, batch):
        values = weights[batch["values"][:, 0].long()]
        return LossSums(values.sum(), len(values), (values > 0.5).sum())

    model = nn.Linear(1, 1)
    means = mean_loss(model, Numbers(lengths), 4, COMPUTE, loss)
    total, correct = RunningMean(), RunningMean()
    for start in range(36, -1, -4):
        numbers = list(range(start, max(-1, start - 4), -1))
        total.add(weights[numbers].sum(), len(numbers))
        correct.add((weights[numbers] > 0.5).sum(), len(numbers))
    assert not model.training
    assert (means.loss.total, means.loss.count) == (total.total, 37)
    assert means.metrics()["Accuracy"] == 100.0 * correct.mean
    assert means.metrics()["Perplexity"] == pytest.approx(np.exp(total.mean))


def test_accuracy_may_be_of_other_targets_than_the_loss():
    means = TargetMeans()
    means.add(LossSums(torch.tensor(6.0), 3, torch.tensor(0)), LossSums(torch.tensor(9.0), 4, torch.tensor(3)))
    assert (means.metrics()["Loss"], means.metrics()["Accuracy"]) == (2.0, 75.0)


def test_diversity_by_hand():
    assert diversity(["a b a", "a"]) == {"Diversity/distinct-1": 0.5, "Diversity/distinct-2": 1.0}


def test_the_scorer_is_loaded_once_and_only_for_texts(monkeypatch):
    loaded = []

    class Scorer:
        def __init__(self, name, device):
            loaded.append((name, device))

        def f1(self, texts, references):
            assert [len(texts), type(references[0])] == [1, list]
            return 0.25

    monkeypatch.setattr(evaluation, "BertScorer", Scorer)
    scores = BertScores("a folder")
    assert scores.metrics([], [], COMPUTE) == {} and loaded == []
    for _ in range(2):
        assert scores.metrics(("a",), (("b", "c"),), COMPUTE) == {"BERTScore_F1": 0.25}
    assert loaded == [("a folder", "cpu")]


def test_without_its_encoder_there_is_no_score(monkeypatch):
    monkeypatch.setattr(evaluation, "find_scorer_model", lambda wanted: None)
    assert BertScores(None).metrics(["a"], [["b"]], COMPUTE) == {}
