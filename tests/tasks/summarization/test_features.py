"""Documents and summaries as rows, by hand; and prepared data from the cache.

Ids of the shared tokenizer: 2 [CLS], 3 [SEP], 0 [PAD]; who 5, sat 6, the 7, cat 8, ##s 9, on 10, red 11, mat 12, . 13.
"""

import numpy as np
import pytest
import torch

from him.data.records import Pair, PairData
from him.tasks.summarization import features as pair_features
from him.tasks.summarization.features import (
    PairBatches,
    build_pair_features,
    document_room,
    prepare_pairs,
)
from him.text.tokenizer import SPECIAL_TOKENS

PAIRS = PairData(
    (
        Pair("a", "The cats sat on the red mat.", ("Red mat", "quiz")),
        Pair("b", "Who sat?", ("The cat sat on the cats.",)),
        Pair("c", "cat", ()),
    ),
    "by hand",
)
DOCUMENTS = [[7, 8, 9, 6, 10, 7, 11, 12, 13], [5, 6, 14], [8]]
SUMMARIES = [[11, 12], [7, 8, 6, 10, 7, 8, 9, 13], []]


@pytest.fixture
def features(tokenizer):
    return build_pair_features(PAIRS, tokenizer)


def batches_of(features, max_seq_len=64, max_target_len=20):
    return PairBatches(features, 2, 3, 0, max_seq_len, max_target_len)


def rows(ragged):
    return [row.tolist() for row in ragged]


def test_features_by_hand(features):
    """Uncut, without special tokens, of the first summary."""
    assert (rows(features.documents), rows(features.summaries)) == (DOCUMENTS, SUMMARIES)
    assert features.documents.values.dtype == features.summaries.values.dtype == np.int32
    assert len(features) == 3


def test_batch_by_hand(features):
    batch = batches_of(features).batch(np.array([1, 2, 0]))
    ids = [
        [2, 5, 6, 14, 3, 7, 8, 6, 10, 7, 8, 9, 13],
        [2, 8, 3],
        [2, 7, 8, 9, 6, 10, 7, 11, 12, 13, 3, 11, 12],
    ]
    prompt_lengths = [5, 3, 11]
    assert batch["input_ids"].tolist() == [[*row, *[0] * (32 - len(row))] for row in ids]
    assert batch["attention_mask"].tolist() == [[place < len(row) for place in range(32)] for row in ids]
    assert batch["token_type_ids"].tolist() == [[int(place >= n) for place in range(32)] for n in prompt_lengths]
    labels = [[7, 8, 6, 10, 7, 8, 9, 13, 3], [3], [11, 12, 3]]
    width = batch["labels"].shape[1]
    assert 9 <= width <= 16, "a little wider than needed, so that there are few widths"
    assert batch["labels"].tolist() == [[*row, *[-1] * (width - len(row))] for row in labels]
    assert batch["label_positions"][0, :9].tolist() == [4, 5, 6, 7, 8, 9, 10, 11, 12]
    assert batch["label_positions"][1, :1].tolist() == [2]
    assert batch["label_positions"][2, :3].tolist() == [10, 11, 12]
    integers = ("input_ids", "token_type_ids", "labels", "label_positions")
    assert {batch[name].dtype for name in integers} == {torch.int64}
    assert batch["attention_mask"].dtype is torch.bool
    assert batch.keys() == {*integers, "attention_mask"}


def test_a_label_is_behind_the_place_that_predicts_it(features):
    """Also in rows that are cut: the token behind the place, and the end behind the last one of all."""
    for max_seq_len, max_target_len in ((64, 20), (12, 4), (9, 6), (6, 2), (4, 2)):
        batch = batches_of(features, max_seq_len, max_target_len).batch(np.arange(3))
        assert batch["input_ids"].shape[1] <= max_seq_len
        for row in range(3):
            length = int(batch["attention_mask"][row].sum())
            counted = batch["labels"][row] >= 0
            positions, labels = batch["label_positions"][row, counted], batch["labels"][row, counted]
            first = int((batch["token_type_ids"][row] == 0).sum()) - 1
            assert positions.tolist() == list(range(first, length))
            assert batch["input_ids"][row, first] == 3
            assert torch.equal(batch["input_ids"][row, positions[1:]], labels[:-1])
            assert labels[-1] == 3
        assert batch["label_positions"].max() < batch["input_ids"].shape[1]


@pytest.mark.parametrize(
    ("max_seq_len", "max_target_len", "room", "documents", "summaries"),
    [
        (64, 20, 43, 0, 0),
        (14, 4, 9, 0, 1),  # [CLS], nine, [SEP], three of the summary: one place is for the end, which is not read
        (13, 4, 8, 1, 1),
        (20, 9, 10, 0, 0),
        (20, 8, 11, 0, 1),
        (6, 2, 3, 1, 2),
        (5, 2, 2, 2, 2),
        (5, 3, 1, 2, 1),
    ],
)
def test_what_is_cut(features, max_seq_len, max_target_len, room, documents, summaries):
    batches = batches_of(features, max_seq_len, max_target_len)
    assert document_room(max_seq_len, max_target_len) == batches.document_room == room
    assert (batches.num_cut_documents, batches.num_cut_summaries) == (documents, summaries)
    batch = batches.batch(np.arange(3))
    assert batches.lengths.tolist() == batch["attention_mask"].sum(dim=1).tolist()
    for number in range(3):
        prompt = [2, *DOCUMENTS[number][:room], 3]
        row = [*prompt, *SUMMARIES[number][: max_target_len - 1]]
        assert batches.prompt(number) == prompt
        assert batch["input_ids"][number, : len(row)].tolist() == row
        assert len(row) <= max_seq_len


def test_a_long_row_is_as_long_as_it_may_be(features):
    """A row of 13 tokens: not padded to a multiple of 32 where that would be longer than `max_seq_len`."""
    assert batches_of(features, 14, 4).batch(np.array([0]))["input_ids"].shape == (1, 14)
    assert batches_of(features, 64, 4).batch(np.array([0]))["input_ids"].shape == (1, 32)


def test_the_longest_text_fits_into_the_positions(features):
    """A full prompt and `max_target_len` written tokens, of which the last is not read: `max_seq_len` at most."""
    batches = batches_of(features, 11, 4)
    assert batches.num_cut_documents == 1
    assert len(batches.prompt(0)) + 4 - 1 == 11


# --- cache ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def validation():
    return PairData((Pair("d", "The dog ran.", ("dog",)),), "by hand")


def prepare(tmp_path, validation, tokenizer, train=PAIRS, kind="wordpiece", vocab_size=60):
    return prepare_pairs(train, validation, tokenizer, kind, vocab_size, tmp_path)


def check_equal(one, other):
    assert one.tokenizer.to_str() == other.tokenizer.to_str()
    for mine, theirs in ((one.train, other.train), (one.validation, other.validation)):
        for name in ("documents", "summaries"):
            found, expected = getattr(mine, name), getattr(theirs, name)
            assert rows(found) == rows(expected)
            assert found.values.dtype == expected.values.dtype == np.int32
            assert found.offsets.dtype == expected.offsets.dtype == np.int64


@pytest.fixture
def counted(monkeypatch):
    """How often features were built."""
    calls = []
    build = pair_features.build_pair_features
    monkeypatch.setattr(pair_features, "build_pair_features", lambda *args: calls.append(1) or build(*args))
    return calls


@pytest.mark.parametrize("is_given", [True, False])
def test_a_second_time_from_the_cache(tmp_path, validation, tokenizer, counted, is_given):
    given = tokenizer if is_given else None
    built = prepare(tmp_path, validation, given)
    assert len(counted) == 2
    loaded = prepare(tmp_path, validation, given)
    assert len(counted) == 2
    check_equal(built, loaded)
    expected = build_pair_features(PAIRS, built.tokenizer)
    assert rows(loaded.train.documents) == rows(expected.documents)
    if is_given:
        assert rows(loaded.train.documents) == DOCUMENTS
        assert rows(loaded.validation.summaries) == [[15]]
    batch = batches_of(loaded.train).batch(np.arange(3))  # from memory that cannot be written to
    assert torch.equal(batch["input_ids"], batches_of(built.train).batch(np.arange(3))["input_ids"])


def test_whatever_made_the_data_names_it(tmp_path, validation, tokenizer, counted):
    """Another text, another order, another tokenizer: nothing is taken from the cache."""
    changed = PairData((*PAIRS.pairs[:2], Pair("c", "cats", ())), "by hand")
    summary = PairData((Pair("a", PAIRS.pairs[0].document, ("Red cat", "quiz")), *PAIRS.pairs[1:]), "by hand")
    swapped = PairData(PAIRS.pairs[::-1], "by hand")
    calls = [
        {},
        {"train": changed},
        {"train": summary},
        {"train": swapped},
        {"validation": changed},
        {"tokenizer": None},
        {"tokenizer": None, "vocab_size": 61},
        {"tokenizer": None, "kind": "char", "vocab_size": 261},
    ]
    for number, settings in enumerate(calls, start=1):
        prepare(tmp_path, **{"validation": validation, "tokenizer": tokenizer, **settings})
        assert len(counted) == 2 * number
    assert len(list(tmp_path.iterdir())) == len(calls)


@pytest.mark.parametrize("damage", ["cut short", "empty", "missing", "no tokenizer", "bad tokenizer", "half"])
@pytest.mark.parametrize("is_given", [True, False])
def test_a_damaged_cache_is_built_anew(tmp_path, validation, tokenizer, counted, damage, is_given):
    given = tokenizer if is_given else None
    built = prepare(tmp_path, validation, given)
    (folder,) = tmp_path.iterdir()
    file = folder / ("validation" if damage == "half" else "train") / "documents.arrow"
    if damage == "cut short":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage in ("missing", "half"):
        file.unlink()
    elif damage == "no tokenizer":
        (folder / "train" / "tokenizer.json").unlink()
    else:
        (folder / "train" / "tokenizer.json").write_text("{")
    check_equal(prepare(tmp_path, validation, given), built)
    assert len(counted) == 4
    check_equal(prepare(tmp_path, validation, given), built)
    assert len(counted) == 4
    assert len(list(tmp_path.iterdir())) == 1 and len(list(folder.iterdir())) == 2


def test_a_trained_tokenizer_knows_the_training_texts_only(tmp_path, tokenizer):
    """Lower-cased, so that "The" and "the" are the same token, and of the summaries those that are trained on."""
    validation = PairData((Pair("d", "zebra", ("zebra",)),), "by hand")
    prepared = prepare(tmp_path, validation, None, vocab_size=100)
    vocabulary = set(prepared.tokenizer.get_vocab())
    assert not any(letter in token for token in vocabulary - set(SPECIAL_TOKENS) for letter in "zqT")
    assert "the" in vocabulary
    (document, *_), (summary, *_) = rows(prepared.train.documents), rows(prepared.train.summaries)
    assert document[0] == prepared.tokenizer.token_to_id("the")
    assert summary == document[-1 - len(summary) : -1]
