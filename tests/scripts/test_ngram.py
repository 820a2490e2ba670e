"""The n-gram models beside a run: the formulas by hand and against slow ones, what they learn, and the command."""

import json
import shutil
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from him.config import Config
from him.core.files import write_checksums
from him.tasks.lm.windows import ScoringWindows
from scripts.benchmarks.ngram import USUAL_DISCOUNTS, discounts, ngram_bits_per_byte, ngram_probabilities, ngram_table
from tests.small_runs import Finished, assert_one_line, call_script, trained_writer, tree


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, np.uint16)


def probabilities(train: np.ndarray, validation: np.ndarray, vocab_size: int, order: int) -> np.ndarray:
    """Those of the model of one order."""
    return list(ngram_probabilities(train, validation, vocab_size, order))[-1]


def chain(num_tokens: int, vocab_size: int, seed: int) -> np.ndarray:
    """Random tokens, rare and frequent ones, each drawn by the two before it."""
    rng = np.random.default_rng(seed)
    table = rng.dirichlet(np.full(vocab_size, 0.2), (vocab_size, vocab_size))
    made = [0, 1]
    while len(made) < num_tokens:
        made.append(int(rng.choice(vocab_size, p=table[made[-2], made[-1]])))
    return ids(*made)


# -- the formulas ------------------------------------------------------------------------------------------------------


def test_discounts_by_hand():
    """8, 3, 2 and 1 grams of the counts 1 to 4: Y = 8 / 14, D1 = 1 - 2Y 3/8, D2 = 2 - 3Y 2/3, D3 = 3 - 4Y 1/2."""
    counts = np.array([0] * 5 + [1] * 8 + [2] * 3 + [3] * 2 + [4] + [9] * 7)
    assert discounts(counts) == pytest.approx((4 / 7, 6 / 7, 13 / 7))


@pytest.mark.parametrize("numbers", [(0, 3, 2, 1), (8, 0, 2, 1), (8, 3, 0, 1), (8, 3, 2, 0), (9, 1, 9, 1)])
def test_discounts_of_too_little_text(numbers):
    """No grams of a count, or so many of the count 3 that D2 would be 2 - 3 * 9/11 * 9 < 0."""
    counts = np.repeat([1, 2, 3, 4], numbers)
    assert discounts(counts) == USUAL_DISCOUNTS


def test_probabilities_by_hand():
    """0 1 0 1 0 of 3 tokens, with the usual discounts.

    Before 0 and before 1 there is one token each: 1/2 * 1/2 + 1/2 * 1/3 = 5/12 for both, 1/2 * 1/3 = 2/12 for 2. 0 1
    and 1 0 occur twice, less 1: 1/2 + 1/2 * 5/12 = 17/24 for 1 after 0, 1/2 * 5/12 for 1 after 1. Nothing follows 2.
    """
    found = list(ngram_probabilities(ids(0, 1, 0, 1, 0), ids(0, 1, 1, 2, 1), 3, 2))
    # Tokens themselves are counted by the model of order 1: 3 and 2 of 5, less 1.5 and 1.
    assert found[0] == pytest.approx([1 / 5 + 1 / 6, 1 / 5 + 1 / 6, 1 / 6, 1 / 5 + 1 / 6])
    assert found[1] == pytest.approx([17 / 24, 5 / 24, 2 / 24, 5 / 12])


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize(("num_tokens", "vocab_size"), [(4, 4), (60, 6), (3000, 25)])
def test_probabilities_are_those_of_slow_formulas(num_tokens, vocab_size, order):
    train, validation = chain(num_tokens, vocab_size, seed=1), chain(120, vocab_size, seed=2)
    validation[60:] = chain(3000, vocab_size, seed=1)[-60:]  # also what is in the longest training text
    slow = SlowModel(tuple(train.tolist()), vocab_size, order)
    found = probabilities(train, validation, vocab_size, order)
    tokens = validation.tolist()
    expected = [
        slow.probability(tuple(tokens[max(0, place - order + 1) : place]), tokens[place])
        for place in range(1, len(tokens))
    ]
    assert np.abs(found - expected).max() < 1e-9
    if num_tokens == 3000 and order > 1:
        assert slow.discounts(2) != USUAL_DISCOUNTS, "also estimated ones are compared"


class SlowModel:
    """Interpolated modified Kneser-Ney as it is written down, by loops over tuples."""

    def __init__(self, train: tuple[int, ...], vocab_size: int, order: int) -> None:
        self.train = train
        self.vocab_size = vocab_size
        self.order = order
        self.counts, self.discounts = cache(self._counts), cache(self._discounts)

    def grams(self, length: int) -> list[tuple[int, ...]]:
        return [self.train[start : start + length] for start in range(len(self.train) - length + 1)]

    def _counts(self, length: int) -> Counter:
        if length == self.order:
            return Counter(self.grams(length))
        return Counter(gram[1:] for gram in set(self.grams(length + 1)))

    def _discounts(self, length: int) -> tuple[float, ...]:
        n = Counter(self.counts(length).values())
        if not all(n[count] for count in (1, 2, 3, 4)):
            return USUAL_DISCOUNTS
        share = n[1] / (n[1] + 2 * n[2])
        found = tuple(count - (count + 1) * share * n[count + 1] / n[count] for count in (1, 2, 3))
        return found if min(found) > 0 else USUAL_DISCOUNTS

    def probability(self, context: tuple[int, ...], token: int) -> float:
        lower = self.probability(context[1:], token) if context else 1 / self.vocab_size
        counts, taken_off = self.counts(len(context) + 1), self.discounts(len(context) + 1)
        followers = {gram[-1]: count for gram, count in counts.items() if gram[:-1] == context}
        if not followers:
            return lower
        own = max(0.0, followers[token] - taken_off[min(followers[token], 3) - 1]) if token in followers else 0.0
        reserved = sum(taken_off[min(count, 3) - 1] for count in followers.values())
        return (own + reserved * lower) / sum(followers.values())


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_of_all_tokens_sum_to_one(order):
    """After what the text ends with, after a token that is never followed, after one that it lacks, after one only."""
    train = np.append(chain(800, 9, seed=3), ids(9))
    for context in (train[-6:-1], ids(0, 1, 2, 3, 9), ids(10, 10, 10, 10, 10), ids(4)):
        each = [probabilities(train, np.append(context, ids(token)), 11, order)[-1] for token in range(11)]
        assert min(each) > 0
        assert sum(each) == pytest.approx(1.0, abs=1e-12)


# -- what they are for -------------------------------------------------------------------------------------------------


def test_targets_are_those_of_a_run():
    """Every validation token but the first, in the order of the run's windows."""
    validation = chain(101, 9, seed=4)
    windows = ScoringWindows(validation, length=16, stride=16)
    batch = windows.batch(np.arange(len(windows.lengths)))
    targets = batch["labels"][batch["is_target"]].numpy()
    found = probabilities(validation, validation, 9, 1)
    frequency = {token: found[place] for place, token in enumerate(targets.tolist())}
    assert len(found) == len(targets) and len(set(found)) > 4
    assert found.tolist() == [frequency[token] for token in targets.tolist()]


def test_longer_contexts_help_where_the_text_has_them():
    """Words of four tokens that begin alike: the fourth is told by the three before it."""
    rng = np.random.default_rng(5)
    words = [[1, 2, 3, 4], [1, 3, 3, 5], [2, 2, 3, 6], [2, 3, 3, 7]]
    text = np.concatenate([words[number] for number in rng.integers(4, size=1500)]).astype(np.uint16)
    bits = ngram_bits_per_byte(text[:5000], text[5000:], 1000, 8, (5, 1, 2, 3))
    assert list(bits) == [5, 1, 2, 3]
    assert bits[5] < bits[3] - 0.1 and bits[3] < bits[2] - 0.1 and bits[2] < bits[1] - 0.1
    assert bits[5] == pytest.approx(2 * 250 / 1000, rel=0.1), "two bits a word"


def test_bits_per_byte_by_hand():
    """17/24 and 5/24, see above, over 3 bytes; an order that no text is long enough for is no harm."""
    bits = ngram_bits_per_byte(ids(0, 1, 0, 1, 0), ids(0, 1, 1), 3, 3, (2, 9))
    assert bits[2] == pytest.approx(-np.log2(17 / 24 * 5 / 24) / 3)
    assert np.isfinite(bits[9])


# -- the command -------------------------------------------------------------------------------------------------------


def test_a_run_is_compared_on_its_own_data():
    _, run = trained_writer("lm")
    before = tree(run.parent)
    finished = call_script("benchmark.py", "ngram", run, "--orders", "1", "5", "--json")
    assert finished.status == 0, finished.err
    assert tree(run.parent) == before, "nothing is written beside the run"
    result = json.loads(finished.out)
    assert set(result) == {
        *("benchmark", "run", "data", "run_bits_per_byte", "ngram_bits_per_byte", "difference", "seconds")
    }
    measured = json.loads((run / "best" / "metrics.json").read_text(encoding="utf-8"))
    assert result["run_bits_per_byte"] == measured["Bits_Per_Byte"]
    # The same targets and bytes: what the run measured tells how many there were of each.
    data, nats_per_byte = result["data"], measured["Bits_Per_Byte"] * np.log(2)
    targets_per_byte = (data["validation_tokens"] - 1) / data["validation_bytes"]
    assert nats_per_byte / measured["Loss"] == pytest.approx(targets_per_byte)
    bits = result["ngram_bits_per_byte"]
    assert list(bits) == ["1-gram", "5-gram"] and bits["5-gram"] < bits["1-gram"]
    assert result["difference"] == measured["Bits_Per_Byte"] - bits["5-gram"]
    table = ngram_table(result).splitlines()
    assert [line.split()[0] for line in table[4:6]] == ["1-gram", "5-gram"]
    assert table[3] == f"the run     {measured['Bits_Per_Byte']:14.4f}"
    word = "less" if result["difference"] < 0 else "more"
    assert table[-1].startswith("the run needs ") and f" bits per byte {word} than the best" in table[-1]


@pytest.fixture
def copied_run(tmp_path):
    """A copy of a run of lm, which a test may harm, beside a validation text that is not its own."""
    shutil.copytree(trained_writer("lm")[1], tmp_path / "run")
    (tmp_path / "other.txt").write_text("Another text than before. " * 40, encoding="utf-8")
    return tmp_path / "run"


def compare(run: Path) -> Finished:
    return call_script("benchmark.py", "ngram", run)


def assert_refused(run: Path, *parts: str) -> None:
    assert_one_line(compare(run), *parts, prog="benchmark.py")


def change_json(path: Path, **changes) -> None:
    """Changes values, and the checksums beside them; None takes a value away."""
    values = json.loads(path.read_text(encoding="utf-8")) | changes
    kept = {name: value for name, value in values.items() if value is not None}
    path.write_text(json.dumps(kept), encoding="utf-8")
    write_checksums(path.parent)


def test_changed_text_is_told(copied_run):
    change_json(copied_run / "best" / "config.json", validation_file=str(copied_run.parent / "other.txt"))
    finished = compare(copied_run)
    assert finished.status == 2 and finished.out == ""
    line = finished.err.splitlines()[-1]  # after the notes about the data
    assert f"{copied_run}: its text has changed since it was trained; restore the text, or train" in line
    shutil.rmtree(copied_run / "checkpoints")
    finished = compare(copied_run)
    assert finished.status == 0
    assert f"{copied_run}: no checkpoint is left that tells whether its data is still the same" in finished.err


def test_damaged_runs_are_one_line(copied_run):
    change_json(copied_run / "best" / "metrics.json", Bits_Per_Byte=None)
    assert_refused(copied_run, "metrics.json: tells no Bits_Per_Byte", "train the run again")
    (copied_run / "best" / "metrics.json").write_text("{}", encoding="utf-8")
    assert_refused(copied_run, "metrics.json: damaged, its checksum is another one")
    shutil.rmtree(copied_run / "best")
    assert_refused(copied_run, f"{copied_run}: no model of the stage trained there; train the run first")


def test_a_damaged_checkpoint_is_named(copied_run):
    state = max((copied_run / "checkpoints").glob("step_*/state.json"))
    change_json(state, data=None)
    finished = compare(copied_run)
    assert finished.status == 2
    assert f"{state}: cannot be read ('data'); restore it, or remove its folder" in finished.err.splitlines()[-1]


def test_only_runs_of_lm_are_compared(tmp_path):
    assert_refused(tmp_path / "nowhere", "nowhere: no such run; name its folder, such as runs/NAME")
    best = tmp_path / "run" / "best"
    best.mkdir(parents=True)
    (best / "model.safetensors").touch()
    Config(task_type="squad").save(best / "config.json")
    assert_refused(best.parent, "run: a run of squad, and n-gram models do what lm does; name a run of lm")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "the following arguments are required: RUN"),
        (["run", "--orders", "0"], "0 is not a whole number of at least 1"),
        (["run", "--rounds", "2"], "--rounds"),
    ],
)
def test_a_wrong_flag_is_one_line(arguments, part):
    assert_one_line(call_script("benchmark.py", "ngram", *arguments), part, prog="benchmark.py")
