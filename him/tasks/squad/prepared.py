"""Cache of SQuAD features: taken from there if they are there and whole, built and kept otherwise."""

import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path

from tokenizers import Tokenizer

from him.config.options.squad import SPEC
from him.data.cache import cached_folder, fingerprint, load_cached, load_columns, save_columns
from him.tasks.squad.features import FeatureOptions, SquadFeatures, build_features, joined
from him.tasks.squad.lexical import DocumentFrequencies
from him.tasks.squad.reader import SquadData
from him.text.tokenizer import parse_tokenizer
from him.text.training import train_tokenizer

PARAGRAPHS_AT_ONCE = 2000
FEATURES_VERSION = 4  # counted up when features of the same data come out differently


@dataclass(frozen=True)
class PreparedSquad:
    """Everything that is made from the data before training: the given tokenizer or one trained on the training texts,
    frequencies of words counted on the training contexts, and features of both parts."""

    tokenizer: Tokenizer
    frequencies: DocumentFrequencies
    train: SquadFeatures
    validation: SquadFeatures


def prepare_squad(
    train: SquadData,
    validation: SquadData,
    given: Tokenizer | None,
    vocab_size: int,
    options: FeatureOptions,
    cache_dir: Path,
) -> PreparedSquad:
    """Builds features, or takes them from the cache; a damaged cache is built anew.

    Args:
        given, vocab_size: the tokenizer to use; None trains one of this size.
        cache_dir: where prepared data is kept, under a hash of all that made it.

    Raises:
        ConfigError: the windows are too short.
    """
    # The tokenizer by its content: another one may have come to stand under the same name.
    settings = (given.to_str() if given is not None else None, vocab_size, *astuple(options))
    digest = fingerprint(FEATURES_VERSION, settings, train.paragraphs, validation.paragraphs)
    folder = cached_folder(cache_dir, f"{SPEC.cache_prefix}-{digest}")
    if (prepared := load_cached(folder, _load, last="train")) is not None:
        return prepared
    texts = [paragraph.context for paragraph in train.paragraphs] + [question.text for question in train.questions]
    tokenizer = given or train_tokenizer(texts, vocab_size)
    train_features, frequencies = build_features(train, tokenizer, options, None)
    validation_features, _ = build_features(validation, tokenizer, options, frequencies)
    save_columns(folder / "validation", validation_features.to_columns(), {})
    texts = {"tokenizer.json": tokenizer.to_str(), "rarity.json": json.dumps(frequencies.to_json())}
    save_columns(folder / "train", train_features.to_columns(), texts)
    return PreparedSquad(tokenizer, frequencies, train_features, validation_features)


def prepare_features(
    data: SquadData,
    tokenizer: Tokenizer,
    options: FeatureOptions,
    frequencies: DocumentFrequencies,
    articles: Mapping[str, DocumentFrequencies],
    cache_dir: Path,
) -> SquadFeatures:
    """Features of what is made of training data, from the cache or anew; some paragraphs at a time, to save memory.

    Args:
        data: at least one paragraph.
        tokenizer, options: see `build_features`.
        frequencies, articles: of the training data, see `build_features` and `count_articles`.
        cache_dir: see `prepare_squad`.
    """
    counted = fingerprint(*((name, part.to_json()) for name, part in {"": frequencies, **articles}.items()))
    settings = (tokenizer.to_str(), *astuple(options), counted)
    digest = fingerprint(FEATURES_VERSION, settings, data.paragraphs)
    folder = cached_folder(cache_dir, f"{SPEC.cache_prefix}-made-{digest}")
    features = load_cached(folder, lambda folder: SquadFeatures.from_columns(load_columns(folder)))
    if features is not None:
        return features
    parts = []
    for start in range(0, len(data.paragraphs), PARAGRAPHS_AT_ONCE):
        part = SquadData.from_paragraphs(data.paragraphs[start : start + PARAGRAPHS_AT_ONCE], data.source)
        parts.append(build_features(part, tokenizer, options, frequencies, articles)[0])
    save_columns(folder, joined(parts).to_columns(), {})
    return SquadFeatures.from_columns(load_columns(folder))


def _load(folder: Path) -> PreparedSquad:
    train, validation = (SquadFeatures.from_columns(load_columns(folder / split)) for split in ("train", "validation"))
    counted = json.loads((folder / "train" / "rarity.json").read_text(encoding="utf-8"))
    return PreparedSquad(
        tokenizer=parse_tokenizer(folder / "train" / "tokenizer.json"),
        frequencies=DocumentFrequencies.from_json(counted),
        train=train,
        validation=validation,
    )
