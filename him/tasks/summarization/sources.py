"""Sources of documents with summaries: local files, the Hugging Face hub, or the sample that HIM generates."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from him.config import Config
from him.core.errors import ConfigError
from him.core.hub import hub_split, load_hub_dataset
from him.data import sample
from him.data.records import ID, Fields, Pair, PairData, Records, pairs_from_records, read_pairs
from him.data.sources import (
    LOCAL_WAYS,
    SAMPLE,
    SAMPLE_SPLITS,
    Splits,
    check_source_flags,
    note_held_out,
    note_leakage,
    note_shortage,
    num_held_out,
    split_off,
)

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

DEFAULT_PAIRS = "abisee/cnn_dailymail"
DEFAULT_CONFIG = "3.0.0"
DEFAULT_FIELDS = ("article", "highlights")


def load_pairs(config: Config, validation_share: float = 0.05) -> Splits[PairData]:
    """Documents with summaries from the one source that the settings name; without any CNN/DailyMail of the hub.

    `--train_file` names JSON Lines, CSV or Parquet files that are joined in this order; an id that an earlier file has
    too gets the number of its file in front, as in "2/17". The sample does not depend on `--seed`, so that seeds can be
    compared. The fields are `article` and `highlights` for CNN/DailyMail, else `document` and `summary`, where
    `--document_field` and `--summary_field` name no others.

    Args:
        config: `train_file`, `validation_file`, `dataset`, `dataset_config`, `document_field`, `summary_field`,
            `seed`, `sample_size` and `validation_size` are read.
        validation_share: share of the documents that is held out of the training files where no validation file is
            named; more than 0, less than 1.

    Raises:
        ConfigError: the settings contradict each other.
        DataError: the data cannot be had or is not sound.
    """
    assert 0 < validation_share < 1
    _check_flags(config)
    given = (config.document_field, config.summary_field)
    notes: list[str] = []
    file_of: dict[str, int] = {}
    if config.train_file:
        train = _join([read_pairs(path, *given) for path in config.train_file], file_of)
        if config.validation_file is None:
            train, validation = hold_out(train, validation_share, config.seed, notes)
        else:
            validation = read_pairs(config.validation_file, *given)
    elif config.dataset == SAMPLE:
        train, validation = _from_sample(config.sample_size, config.validation_size)
    else:
        train, validation = _from_hub(config, notes)
    train = _first(train, "--sample_size", config.sample_size, "training pairs", notes)
    validation = _first(validation, "--validation_size", config.validation_size, "validation pairs", notes)
    documents, held = ({pair.document for pair in data.pairs} for data in (train, validation))
    note_leakage(documents, held, "{shared} of the {total} validation documents are in the training data too", notes)
    source_ids = tuple(file_of[pair.id] for pair in train.pairs) if config.train_file else ()
    return Splits(train, validation, tuple(notes), source_ids)


def _check_flags(config: Config) -> None:
    check_source_flags(config, example=DEFAULT_PAIRS)
    for flag, name in (("--document_field", config.document_field), ("--summary_field", config.summary_field)):
        if config.dataset == SAMPLE and name is not None:
            raise ConfigError(f"{flag} names a field of your own data, not of --dataset {SAMPLE}; leave it out")


def _first(data: PairData, flag: str, size: int | None, what: str, notes: list[str]) -> PairData:
    if size is None:
        return data
    note_shortage(flag, size, len(data), what, notes)
    return PairData(data.pairs[:size], data.source)


def _join(parts: Sequence[PairData], file_of: dict[str, int]) -> PairData:
    """One data set of several, with unique ids; notes down which file each is from."""
    pairs: dict[str, Pair] = {}
    for number, part in enumerate(parts, start=1):
        for pair in part.pairs:
            identifier = pair.id
            while identifier in pairs:
                identifier = f"{number}/{identifier}"
            pairs[identifier] = Pair(identifier, pair.document, pair.summaries)
            file_of[identifier] = number - 1
    return PairData(tuple(pairs.values()), ", ".join(part.source for part in parts))


def hold_out(data: PairData, share: float, seed: int, notes: list[str]) -> tuple[PairData, PairData]:
    """Splits documents off for validation, at least one; a document that occurs several times falls on one side.

    Raises:
        DataError: there is one document only.
    """
    documents = [pair.document for pair in data.pairs]
    num_held = num_held_out(len(set(documents)), share, data.source, "document")
    parts = split_off(data.pairs, documents, num_held, seed, "documents")
    note_held_out(f"{parts.share}, chosen by --seed {seed},", notes)
    return PairData(tuple(parts.train), data.source), PairData(tuple(parts.validation), data.source)


def _from_sample(num_train: int | None, num_validation: int | None) -> tuple[PairData, PairData]:
    """As many pairs as are asked for: a smaller sample is the beginning of a larger one, and is sooner made."""
    sizes = {"num_train": num_train, "num_validation": num_validation}
    parts = sample.summarization_sample(**{name: size for name, size in sizes.items() if size is not None})
    train, validation = (
        pairs_from_records(_numbered(rows), name, Fields()) for rows, name in zip(parts, SAMPLE_SPLITS, strict=True)
    )
    return train, validation


def _numbered(rows: Iterable[Mapping[str, object]]) -> Records:
    return ((f"row {number}", row) for number, row in enumerate(rows, start=1))


def _from_hub(config: Config, notes: list[str]) -> tuple[PairData, PairData]:
    name, dataset_config = config.dataset or DEFAULT_PAIRS, config.dataset_config
    usual = {}
    if name == DEFAULT_PAIRS:
        dataset_config = dataset_config or DEFAULT_CONFIG
        usual = {"usual": DEFAULT_FIELDS}
    fields = Fields.of_flags(config.document_field, config.summary_field, **usual)
    splits = load_hub_dataset(name, LOCAL_WAYS, notes, dataset_config)
    return (
        _hub_pairs(splits, name, "train", fields, config.sample_size, notes),
        _hub_pairs(splits, name, "validation", fields, config.validation_size, notes),
    )


def _hub_pairs(
    splits: "DatasetDict", name: str, split: str, fields: Fields, limit: int | None, notes: list[str]
) -> PairData:
    """The first `limit` pairs of a split, all if None, without rows of which nothing is left to learn.

    Nobody can fix a set of the hub: a few rows of CNN/DailyMail and XSum have no document.
    """
    source = f"{name}, split {split}"
    needed = [fields.document]
    if split not in splits or fields.references not in splits[split].column_names:
        needed.append(fields.summary)
    fix = "name the columns of its texts with --document_field and --summary_field"
    rows = hub_split(splits, name, split, LOCAL_WAYS, needed, fix)
    blank: list[str] = []
    data = pairs_from_records(islice(_usable_rows(rows, fields, blank), limit), source, fields)
    if blank:
        notes.append(f"{source}: {len(blank):,} rows without a document or a summary are left out")
    return data


def _usable_rows(rows: "Dataset", fields: Fields, blank: list[str]) -> Records:
    """Rows that have a document and a summary, as records; one without an id of its own gets its row, "row 3".

    Those that are left out are noted down in `blank` as they are met.
    """
    kept = (ID, fields.document, fields.summary, fields.references)
    seen: set[str] = set()
    for at, row in _numbered(rows.select_columns([name for name in rows.column_names if name in kept])):
        summaries = (row.get(name) for name in (fields.summary, fields.references) if name)
        if _is_blank(row[fields.document]) or all(map(_is_blank, summaries)):
            blank.append(at)
            continue
        identifier = "" if row.get(ID) is None else str(row[ID])
        row[ID] = at if _is_blank(identifier) or identifier in seen else identifier
        seen.add(identifier)
        yield at, row


def _is_blank(value: object) -> bool:
    if isinstance(value, list):
        return all(map(_is_blank, value))
    return value is None or (isinstance(value, str) and not value.strip())
