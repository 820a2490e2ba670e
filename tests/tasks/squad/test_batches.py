"""Batches of windows against arrays written out by hand."""

import numpy as np
import pytest
import torch

from him.tasks.squad.batches import SquadBatches
from him.tasks.squad.features import FeatureOptions, build_features, first_pieces, last_pieces
from him.tasks.squad.lexical import QUESTION_CLASSES, SCALARS, SHAPES

SPECIAL_IDS = (0, 2, 3)
#          0   4    9  12
CONTEXT = "The cats sat."


@pytest.fixture(scope="module")
def batches(tokenizer, squad_data):
    def make(*paragraphs, max_seq_len=16, doc_stride=2, lexical=True):
        features, _ = build_features(squad_data(*paragraphs), tokenizer, FeatureOptions(max_seq_len, doc_stride), None)
        return SquadBatches(features, SPECIAL_IDS, max_seq_len, lexical)

    return make


def positions(row):
    """Where a row is not zero, with the value there."""
    return {place: float(value) for place, value in enumerate(row) if value}


def test_fields_by_hand(batches):
    batch = batches((CONTEXT, [("Who sat?", [("cats", 4)]), ("a", [])])).batch([0, 1])
    shapes = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in batch.items()}
    whole, real, truth = ((2, 16), torch.int64), ((2, 16), torch.float32), ((2, 16), torch.bool)
    assert shapes == {
        "input_ids": whole,
        "token_type_ids": whole,
        "attention_mask": truth,
        "word_ids": whole,
        "may_start": truth,
        "may_end": truth,
        "start_targets": real,
        "end_targets": real,
        "match": whole,
        "shape": whole,
        "class_shape": whole,
        "scalars": ((2, 16, len(SCALARS)), torch.float32),
        "focus_ids": ((2,), torch.int64),
    }
    # [CLS] who sat [UNK] [SEP] the cat ##s sat . [SEP], since "?" is known here as id 14
    assert batch["input_ids"].tolist() == [
        [2, 5, 6, 14, 3, 7, 8, 9, 6, 13, 3, 0, 0, 0, 0, 0],
        [2, 17, 3, 7, 8, 9, 6, 13, 3, 0, 0, 0, 0, 0, 0, 0],
    ]
    assert batch["token_type_ids"].tolist() == [[0] * 5 + [1] * 6 + [0] * 5, [0] * 3 + [1] * 6 + [0] * 7]
    assert batch["attention_mask"].tolist() == [[True] * 11 + [False] * 5, [True] * 9 + [False] * 7]
    assert batch["word_ids"].tolist() == [[-1] * 5 + [0, 1, 1, 2, 3] + [-1] * 6, [-1] * 3 + [0, 1, 1, 2, 3] + [-1] * 8]
    assert [positions(row) for row in batch["may_start"]] == [
        dict.fromkeys((0, 5, 6, 8, 9), 1),
        dict.fromkeys((0, 3, 4, 6, 7), 1),
    ]
    assert [positions(row) for row in batch["may_end"]] == [
        dict.fromkeys((0, 5, 7, 8, 9), 1),
        dict.fromkeys((0, 3, 5, 6, 7), 1),
    ]
    # "cats" starts with its first piece and ends with its last; the other question has no answer
    assert [positions(row) for row in batch["start_targets"]] == [{6: 1.0}, {0: 1.0}]
    assert [positions(row) for row in batch["end_targets"]] == [{7: 1.0}, {0: 1.0}]


def test_lexical_fields_by_hand(batches):
    made = batches((CONTEXT, [("Who sat?", [("cats", 4)])]))
    batch = made.batch([0])
    # who: none, sat: exact, ?: none; The: none, cats: none on both pieces, sat: exact, .: none
    assert batch["match"][0].tolist() == [0, 1, 4, 1, 0, 5, 5, 5, 8, 5, 0, 0, 0, 0, 0, 0]
    lower, capital, mark = (SHAPES.index(name) for name in ("lower", "capital", "punctuation"))
    shapes = [0, capital, lower, mark, 0, capital, lower, lower, lower, mark, 0, 0, 0, 0, 0, 0]
    assert batch["shape"][0].tolist() == shapes
    first = 1 + QUESTION_CLASSES.index("who") * len(SHAPES)
    assert batch["class_shape"][0].tolist() == [0] * 5 + [first + shape for shape in shapes[5:10]] + [0] * 6
    assert batch["focus_ids"].tolist() == [6]
    scalars = batch["scalars"][0]
    assert not scalars[[0, 4, 10, 11, 15]].any()
    position = SCALARS.index("position")
    assert scalars[5:10, position].tolist() == [0, 0.25, 0.25, 0.5, 0.75]  # by word, of four
    assert scalars[:, SCALARS.index("IDF if matched")].tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]


def test_without_lexical_inputs(batches):
    batch = batches((CONTEXT, [("Who sat?", [])]), lexical=False).batch([0])
    assert set(batch) == {
        "input_ids",
        "token_type_ids",
        "attention_mask",
        "word_ids",
        "may_start",
        "may_end",
        "start_targets",
        "end_targets",
    }


def test_soft_targets_over_annotators(batches):
    """Three say cats, one of them from inside the word; one says The cats; one cats sat."""
    answers = [("cats", 4), ("cats", 4), ("ats", 5), ("The cats", 0), ("cats sat", 4)]
    batch = batches((CONTEXT, [("Who sat?", answers)])).batch([0])
    assert positions(batch["start_targets"][0]) == pytest.approx({5: 1 / 5, 6: 4 / 5})
    assert positions(batch["end_targets"][0]) == pytest.approx({7: 4 / 5, 8: 1 / 5})


def test_answer_split_by_a_window_edge(batches):
    """Windows of 5 pieces that share 2: [the cat ##s sat on], [sat on red mat .]."""
    made = batches(
        ("The cats sat on red mat.", [("Who?", [("on red", 13)]), ("Who?", [("cats sat on red", 4)])]),
        max_seq_len=10,
    )
    features = made.features
    windows = list(zip(features.window_start.tolist(), features.window_end.tolist(), strict=True))
    assert windows == [(0, 5), (3, 8)] * 2
    batch = made.batch(range(4))
    # "on red" lies in the second window only: the first one has no answer
    assert [positions(row) for row in batch["start_targets"]] == [{0: 1}, {5: 1}, {0: 1}, {0: 1}]
    assert [positions(row) for row in batch["end_targets"]] == [{0: 1}, {6: 1}, {0: 1}, {0: 1}]
    assert batch["word_ids"].tolist()[:2] == [[-1] * 4 + [0, 1, 1, 2, 3, -1], [-1] * 4 + [2, 3, 4, 5, 6, -1]]


def test_word_split_by_a_window_edge(batches):
    """Windows of 2 pieces, [the cat], [##s sat], [.]: cats starts in the first and ends in the second."""
    asked = [("Who?", [answer]) for answer in (("cats", 4), ("The cat", 0), ("s sat", 7))]
    batch = batches((CONTEXT, asked), max_seq_len=7, doc_stride=0).batch(range(9))
    # The last two answers lie in one window, but their words do not.
    assert [positions(row) for row in batch["start_targets"]] == [{0: 1}] * 9
    assert [positions(row) for row in batch["end_targets"]] == [{0: 1}] * 9
    batch = {name: tensor[:3] for name, tensor in batch.items()}
    assert batch["input_ids"][:, 4:].tolist() == [[7, 8, 3], [9, 6, 3], [13, 3, 0]]
    assert batch["may_start"][:, 4:].tolist() == [[True, True, False], [False, True, False], [True, False, False]]
    assert batch["may_end"][:, 4:].tolist() == [[True, False, False], [True, True, False], [True, False, False]]


def test_one_annotator_of_two_in_the_window(batches):
    made = batches(("The cats sat on red mat.", [("Who?", [("The", 0), ("sat", 9), ("mat", 20)])]), max_seq_len=10)
    batch = made.batch([0, 1])
    assert [positions(row) for row in batch["start_targets"]] == [{4: 0.5, 7: 0.5}, {4: 0.5, 7: 0.5}]


def test_invariants_on_random_data(batches, squad_data, tokenizer):
    """Targets add up to 1 and lie where answers may be; rows are the same in every company."""
    random = np.random.default_rng(0)
    vocabulary = ["the", "cats", "sitting", "on", "red", "mat", ".", "xyz"]
    paragraphs = []
    for _ in range(12):
        context = " ".join(vocabulary[n] for n in random.integers(0, 8, random.integers(1, 60)))
        asked = []
        for _ in range(3):
            spans = (sorted(random.integers(0, len(context) + 1, 2).tolist()) for _ in range(random.integers(0, 4)))
            asked.append(("who sat?", [(context[a:b], a) for a, b in spans if context[a:b].strip()]))
        paragraphs.append((context, asked))
    made = batches(*paragraphs, max_seq_len=30, doc_stride=5)
    order = random.permutation(len(made.lengths))
    batch = made.batch(order)
    for side in ("start", "end"):
        targets, allowed = batch[f"{side}_targets"], batch[f"may_{side}"]
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(len(order)))
        assert not targets[~allowed].any()
        assert not (allowed & ~batch["attention_mask"]).any()
    assert (batch["start_targets"][:, 0] == batch["end_targets"][:, 0]).all()
    assert 0 < batch["start_targets"][:, 0].mean() < 1
    for row, window in enumerate(order.tolist()):
        alone = made.batch([window])
        for name, tensor in alone.items():
            together = batch[name][row]
            if tensor.dim() > 1:
                together = together[: tensor.shape[1]]
            assert torch.equal(tensor[0], together), name


@pytest.mark.parametrize(("num_words", "length"), [(5, 32), (27, 32), (28, 64), (59, 64), (60, 66), (200, 66)])
def test_padded_to_buckets_up_to_the_longest_sequence(batches, num_words, length):
    """2 + num_words + 3 tokens."""
    made = batches(("cat " * num_words, [("who sat", [])]), max_seq_len=66)
    batch = made.batch([0])
    assert batch["input_ids"].shape == (1, length)
    assert batch["attention_mask"].sum() == min(num_words + 5, 66)


def test_first_and_last_pieces():
    words = np.array([0, 0, 1, 2, 2, 2])
    assert first_pieces(words).tolist() == [True, False, True, True, False, False]
    assert last_pieces(words).tolist() == [False, True, True, False, False, True]
