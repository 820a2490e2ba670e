"""Which documents a language model gets: text files, a set of the Hugging Face hub, or the sample that HIM generates.

Exactly one of the three serves a run, and never another one in its place: a source that fails is an error. What the
user should know about a choice made here (files held out, blank ones left out, a copy from the cache) is a note of one
line, which the caller prints.
"""

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from him.core.errors import ConfigError
from him.core.hub import hub_split, load_hub_dataset
from him.core.messages import fail, shown, shown_source
from him.data.documents import (
    Documents,
    FilePart,
    TextFile,
    file_documents,
    find_text_files,
    read_text_file,
    row_documents,
    text_documents,
    whole,
)
from him.data.sources import SAMPLE, check_source_flags, note_held_out, note_leakage, note_shortage, split_off

if TYPE_CHECKING:
    from datasets import DatasetDict

DEFAULT_DATASET, DEFAULT_CONFIG, DEFAULT_COLUMN = "Salesforce/wikitext", "wikitext-2-raw-v1", "text"
LOCAL_WAYS = "--corpus_dir FOLDER, --train_file FILE, or the built-in sample with --dataset sample"
TRAIN_SHARE = 0.9
MIN_FILES_TO_SPLIT = 10  # with fewer, one file more or less would make validation another text altogether


@dataclass(frozen=True)
class CorpusSplits:
    """Documents to train on and to validate on, and lines that tell the user what was decided on the way."""

    train: Documents
    validation: Documents
    notes: tuple[str, ...] = ()


def load_corpus(
    *,
    corpus_dir: str | None = None,
    train_files: Sequence[str] = (),
    validation_file: str | None = None,
    dataset: str | None = None,
    dataset_config: str | None = None,
    text_field: str | None = None,
    seed: int = 0,
    sample_size: int | None = None,
    validation_size: int | None = None,
) -> CorpusSplits:
    """Documents from the one source that the flags name; without any flag WikiText-2 of the hub.

    Every file is read here, in blocks, and checked; its text is read again when it is asked for.

    Args:
        corpus_dir: a folder; each `.txt` file in it or below is a document, in the order of their paths.
        train_files: text files, each a document.
        validation_file: a text file, or a folder of them. Without it a tenth is held out: of the files, drawn by
            `seed`, where there are 10 or more; of the characters, at the end of each file, where there are fewer.
        dataset: `sample`, the name of a hub set, or a local folder that `datasets` can read; each row is a document,
            or in WikiText each article.
        dataset_config: which configuration of the hub set.
        text_field: the column of the hub set that holds the text; `text` by default.
        seed: draws the documents that `sample_size` keeps and the files held out. The built-in sample does not depend
            on it, so that seeds can be compared.
        sample_size: keep this many documents, in their order; those held out are among them, others are not.
        validation_size: validate on the first so many documents.

    Raises:
        ConfigError: the flags contradict each other or are out of range.
        DataError: the data cannot be had or is not text.
    """
    assert not isinstance(train_files, str)
    _check_flags(
        corpus_dir, train_files, validation_file, dataset, dataset_config, text_field, sample_size, validation_size
    )
    notes: list[str] = []
    if corpus_dir or train_files:
        train, validation = _from_files(corpus_dir, train_files, validation_file, seed, sample_size, notes)
    else:
        if dataset == SAMPLE:
            train, validation = _from_sample()
        else:
            train, validation = _from_hub(dataset or DEFAULT_DATASET, dataset_config, text_field, notes)
        if sample_size is not None:
            train = train.take(_sampled(len(train), sample_size, seed, notes))
    if validation_size is not None:
        note_shortage("--validation_size", validation_size, len(validation), "documents", notes)
        validation = validation.take(range(min(validation_size, len(validation))))
    held = list(map(bytes, validation.digests))
    fault = "the training data holds {shared} of the {total} validation documents too"
    note_leakage(map(bytes, train.digests), held, fault, notes)
    return CorpusSplits(train, validation, tuple(notes))


def _check_flags(
    corpus_dir: str | None,
    train_files: Sequence[str],
    validation_file: str | None,
    dataset: str | None,
    dataset_config: str | None,
    text_field: str | None,
    sample_size: int | None,
    validation_size: int | None,
) -> None:
    if corpus_dir is not None:
        where = f"--corpus_dir {shown_source(corpus_dir)}"
        if train_files or dataset:
            flag = "--train_file" if train_files else f"--dataset {shown(dataset)}"
            raise ConfigError(f"{where} and {flag} name two sources of text; leave one of them out")
        if not os.path.isdir(corpus_dir):
            if os.path.exists(corpus_dir):
                raise ConfigError(f"{where} is a file, not a folder; give it as --train_file")
            raise ConfigError(f"{where}: no such folder; check the path")
    else:
        check_source_flags(train_files, validation_file, dataset, dataset_config, sample_size, example=DEFAULT_DATASET)
    local = "--corpus_dir" if corpus_dir is not None else "--train_file" if train_files else None
    source = local or (f"--dataset {SAMPLE}" if dataset == SAMPLE else None)
    for flag, value in (("--dataset_config", dataset_config), ("--text_field", text_field)):
        if value and source:
            raise ConfigError(f"{flag} {shown(value)} is about a set of the hub, and {source} is none; leave it out")
    for flag, value in (("--sample_size", sample_size), ("--validation_size", validation_size)):
        if value is not None and value < 1:
            raise ConfigError(f"{flag} {value} leaves no document; use 1 or more")


def _sampled(num_documents: int, sample_size: int, seed: int, notes: list[str]) -> list[int]:
    """Places of `sample_size` documents, drawn and in order; of all if there are fewer."""
    note_shortage("--sample_size", sample_size, num_documents, "documents", notes)
    return sorted(random.Random(f"{seed} sample").sample(range(num_documents), min(sample_size, num_documents)))


# --- local files ----------------------------------------------------------------------------------------------------


def _from_files(
    corpus_dir: str | None,
    train_files: Sequence[str],
    validation_file: str | None,
    seed: int,
    sample_size: int | None,
    notes: list[str],
) -> tuple[Documents, Documents]:
    source = shown_source(corpus_dir or train_files[0])
    if len(train_files) > 1:
        source += f" and {len(train_files) - 1:,} more"
    held = _paths_in(validation_file, "--validation_file") if validation_file else []
    paths = _paths_in(corpus_dir, "--corpus_dir") if corpus_dir else list(map(Path, train_files))
    if corpus_dir and held:
        paths = _without(paths, held, source, notes)
    if sample_size is not None:
        paths = [paths[place] for place in _sampled(len(paths), sample_size, seed, notes)]
    files = _read_all(paths, source, notes)
    if held:
        return file_documents([whole(file) for file in files], source), _documents(held, validation_file, notes)
    train_parts, validation_parts = _hold_out(files, source, seed, notes)
    return file_documents(train_parts, source), file_documents(validation_parts, source)


def read_documents(name: str, flag: str) -> Documents:
    """All of a text file, or of the text files in a folder; blank files are left out.

    Args:
        name: of the file or folder.
        flag: that names it, for messages.

    Raises:
        DataError: it is not there, not text, or blank.
    """
    return _documents(_paths_in(name, flag), name, [])


def _documents(paths: Sequence[Path], name: str, notes: list[str]) -> Documents:
    source = shown_source(name)
    return file_documents([whole(file) for file in _read_all(paths, source, notes)], source)


def _paths_in(name: str, flag: str) -> list[Path]:
    """The text files in a folder, or the one file that is named."""
    folder = Path(name)
    if not os.path.isdir(folder):
        return [folder]
    paths, others = find_text_files(folder)
    if not paths:
        other = f"{len(others):,} other files, such as {shown(others[0].name)}" if others else "and no other file"
        where = f"{flag} {shown_source(name)}"
        fail(where, f"no .txt file in it or below ({other})", "put UTF-8 text into files whose names end in .txt")
    return paths


def _without(paths: Sequence[Path], held: Sequence[Path], source: str, notes: list[str]) -> list[Path]:
    """Those that are not for validation: the file or folder may lie in the corpus."""
    held_places = {os.path.realpath(path) for path in held}
    kept = [path for path in paths if os.path.realpath(path) not in held_places]
    if not kept:
        fail(source, "all its files are those of --validation_file", "name another file or folder there")
    if len(kept) < len(paths):
        number = f"{len(paths) - len(kept):,} of {len(paths):,} files in {source}"
        notes.append(f"not trained on, because --validation_file names them: {number}")
    return kept


def _read_all(paths: Sequence[Path], source: str, notes: list[str]) -> list[TextFile]:
    files = [read_text_file(path) for path in paths]
    kept = [file for file in files if not file.is_blank]
    if not kept:
        number = "the file is" if len(files) == 1 else f"all {len(files):,} text files are"
        fail(source, f"{number} blank", "give files with text in them")
    if len(kept) < len(files):
        notes.append(f"left out as blank: {len(files) - len(kept):,} of {len(files):,} files in {source}")
    return kept


def _hold_out(
    files: Sequence[TextFile], source: str, seed: int, notes: list[str]
) -> tuple[list[FilePart], list[FilePart]]:
    """Whole files where there are enough of them, because the end of a text is much like its beginning."""
    if len(files) >= MIN_FILES_TO_SPLIT:
        parts = [whole(file) for file in files]
        drawn = split_off(parts, range(len(files)), len(files) // 10, f"{seed} hold out", "files")
        note_held_out(f"{drawn.share}, chosen by --seed {seed},", notes)
        return drawn.train, drawn.validation
    parts: tuple[list[FilePart], list[FilePart]] = ([], [])
    for file in files:
        cut = file.byte_of(int(TRAIN_SHARE * file.num_characters))
        for part, (start, stop) in zip(parts, ((file.start, cut), (cut, file.stop)), strict=True):
            if start < stop:
                part.append(FilePart(file, start, stop))
    if not all(parts):
        fail(source, "one character is too little to hold some out", "give more text, or --validation_file FILE")
    held, total = (sum(part.stop - part.start for part in found) for found in (parts[1], parts[0] + parts[1]))
    ends = "the file" if len(files) == 1 else f"each of the {len(files)} files"
    share = f"the last {1 - TRAIN_SHARE:.0%} of the characters"
    note_held_out(f"{share} of {ends} ({held:,} of {total:,} bytes)", notes)
    return parts


# --- the built-in sample and the hub ----------------------------------------------------------------------------------


def _from_sample() -> tuple[Documents, Documents]:
    from him.data.sample.texts import text_sample

    train, validation = text_sample()
    return (
        text_documents(train, "the built-in sample, train"),
        text_documents(validation, "the built-in sample, validation"),
    )


def _from_hub(
    name: str, config_name: str | None, text_field: str | None, notes: list[str]
) -> tuple[Documents, Documents]:
    if name == DEFAULT_DATASET and config_name is None:
        config_name = DEFAULT_CONFIG
    splits = load_hub_dataset(name, LOCAL_WAYS, notes, config_name=config_name)
    train, validation = (
        _hub_split(splits, name, split, text_field or DEFAULT_COLUMN) for split in ("train", "validation")
    )
    return train, validation


def _hub_split(splits: "DatasetDict", name: str, split: str, column: str) -> Documents:
    rows = hub_split(splits, name, split, LOCAL_WAYS, [column], "name the column of the text with --text_field COLUMN")
    source = f"{name}, split {split}"
    documents = row_documents(rows, column, source, wikitext="wikitext" in Path(name).name.lower())
    if not len(documents):
        fail(
            source,
            f"all {len(rows):,} rows are blank in column {shown(column)}",
            "name another with --text_field COLUMN",
        )
    return documents
