"""Features of texts that are made of training data: in parts, and as rare as in new articles."""

import numpy as np
import pytest

from him.core.ragged import Ragged
from him.data.sample import squad_sample
from him.tasks.squad import prepared as squad_prepared
from him.tasks.squad.augmentation import augment
from him.tasks.squad.features import FeatureOptions, build_features, count_articles, joined
from him.tasks.squad.prepared import prepare_features
from him.tasks.squad.reader import squad_from_document
from him.text.training import train_tokenizer


@pytest.fixture(scope="module")
def data():
    train, _ = squad_sample(num_train=300)
    return squad_from_document(train, "the sample")


@pytest.fixture(scope="module")
def tokenizer(data):
    return train_tokenizer([paragraph.context for paragraph in data.paragraphs], 400)


def columns_of(features):
    columns = features.to_columns()
    flat = {f"{name}.offsets": each.offsets for name, each in columns.items() if isinstance(each, Ragged)}
    return flat | {name: each.values if isinstance(each, Ragged) else each for name, each in columns.items()}


def assert_same(one, other):
    one, other = columns_of(one), columns_of(other)
    assert one.keys() == other.keys()
    for name, column in one.items():
        assert column.dtype == other[name].dtype, name
        np.testing.assert_array_equal(column, other[name], name)


def test_of_the_training_data_itself_they_are_the_same(data, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(squad_prepared, "PARAGRAPHS_AT_ONCE", 7)
    whole, frequencies = build_features(data, tokenizer, FeatureOptions(64, 8), None)
    articles = count_articles(data, whole)
    assert len(articles) > 1
    settings = (tokenizer, FeatureOptions(64, 8), frequencies, articles, tmp_path)
    assert_same(prepare_features(data, *settings), whole)
    assert_same(prepare_features(data, *settings), whole)  # from the cache
    assert len(list(tmp_path.iterdir())) == 1


def test_other_texts_and_other_counts_are_other_features(data, tokenizer, tmp_path):
    whole, frequencies = build_features(data, tokenizer, FeatureOptions(64, 8), None)
    articles = count_articles(data, whole)
    made = augment(data, 1, 0)
    own = prepare_features(made, tokenizer, FeatureOptions(64, 8), frequencies, articles, tmp_path)
    other = prepare_features(made, tokenizer, FeatureOptions(64, 8), frequencies, {}, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert len(own.questions) == 2 * data.num_questions
    rare = [float(features.scalars.values[:, 0].astype(np.float64).sum()) for features in (own, other)]
    assert rare[0] > rare[1], "without its own article a word is rarer"


def test_a_damaged_cache_is_made_again(data, tokenizer, tmp_path):
    whole, frequencies = build_features(data, tokenizer, FeatureOptions(64, 8), None)
    settings = (tokenizer, FeatureOptions(64, 8), frequencies, count_articles(data, whole), tmp_path)
    prepare_features(data, *settings)
    (file,) = tmp_path.glob("*/scalars.arrow")
    file.write_bytes(file.read_bytes()[:-100])
    assert_same(prepare_features(data, *settings), whole)


def test_joined_parts_are_the_whole(data, tokenizer):
    whole, frequencies = build_features(data, tokenizer, FeatureOptions(64, 8), None)
    starts = range(0, len(data.paragraphs), 5)
    pieces = [type(data).from_paragraphs(data.paragraphs[at : at + 5], "") for at in starts]
    parts = [build_features(piece, tokenizer, FeatureOptions(64, 8), frequencies)[0] for piece in pieces]
    assert_same(joined(parts), build_features(data, tokenizer, FeatureOptions(64, 8), frequencies)[0])
    assert len(joined(parts).lengths) == len(whole.lengths)
