"""Sources of a language model's documents: text files, a set of the Hugging Face hub, or the sample that HIM generates.

Prompts too: texts that a language model is to continue.
"""

import os
import random
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from him.config import Config
from him.core.errors import ConfigError
from him.core.hub import hub_split, load_hub_dataset
from him.core.messages import fail, shown, shown_source
from him.data import sample
from him.data.document_files import documents_of_paths, read_text_files, text_paths
from him.data.documents import (
    Documents,
    FilePart,
    TextFile,
    file_documents,
    read_text_file,
    row_documents,
    text_documents,
    whole,
)
from him.data.records import read_pairs
from him.data.sources import (
    SAMPLE,
    SAMPLE_SPLITS,
    Splits,
    check_source_flags,
    note_held_out,
    note_leakage,
    note_shortage,
    split_off,
)

DEFAULT_DATASET, DEFAULT_CONFIG, DEFAULT_COLUMN = "Salesforce/wikitext", "wikitext-2-raw-v1", "text"
LOCAL_WAYS = "--corpus_dir FOLDER, --train_file FILE, or the built-in sample with --dataset sample"
TRAIN_SHARE = 0.9
MIN_FILES_TO_SPLIT = 10  # with fewer, one file more or less would make validation another text altogether


def load_corpus(config: Config) -> Splits[Documents]:
    """Documents from the one source that the settings name; without any WikiText-2 of the hub.

    Every file is read here, in blocks, and checked; its text is read again when it is asked for. Each `.txt` file in
    `--corpus_dir` or below is a document, in the order of their paths, and so is each `--train_file`; of a hub set each
    row, or in WikiText each article. Without `--validation_file`, a file or a folder, a tenth is held out: of the
    files, drawn by `--seed`, where there are 10 or more; of the characters, at the end of each file, where there are
    fewer. `--sample_size` keeps so many documents, drawn by `--seed`, in their order; those held out are among them,
    others are not. The built-in sample does not depend on the seed, so that seeds can be compared.

    Args:
        config: `corpus_dir`, `train_file`, `validation_file`, `dataset`, `dataset_config`, `text_field`, `seed`,
            `sample_size` and `validation_size` are read.

    Raises:
        ConfigError: the settings contradict each other.
        DataError: the data cannot be had or is not text.
    """
    _check_flags(config)
    notes: list[str] = []
    if config.corpus_dir or config.train_file:
        train, validation = _from_files(config, notes)
    else:
        if config.dataset == SAMPLE:
            train, validation = map(text_documents, sample.text_sample(), SAMPLE_SPLITS)
        else:
            name = config.dataset or DEFAULT_DATASET
            train, validation = _from_hub(name, config.dataset_config, config.text_field, notes)
        if config.sample_size is not None:
            train = train.take(_sampled(len(train), config.sample_size, config.seed, notes))
    if config.validation_size is not None:
        note_shortage("--validation_size", config.validation_size, len(validation), "documents", notes)
        validation = validation.take(range(min(config.validation_size, len(validation))))
    held = list(map(bytes, validation.digests))
    fault = "the training data holds {shared} of the {total} validation documents too"
    note_leakage(map(bytes, train.digests), held, fault, notes)
    return Splits(train, validation, tuple(notes))


def _check_flags(config: Config) -> None:
    if config.corpus_dir is not None:
        where = f"--corpus_dir {shown_source(config.corpus_dir)}"
        if config.train_file or config.dataset:
            flag = "--train_file" if config.train_file else f"--dataset {shown(config.dataset)}"
            raise ConfigError(f"{where} and {flag} name two sources of text; leave one of them out")
        if not os.path.isdir(config.corpus_dir):
            if os.path.exists(config.corpus_dir):
                raise ConfigError(f"{where} is a file, not a folder; give it as --train_file")
            raise ConfigError(f"{where}: no such folder; check the path")
    else:
        check_source_flags(config, example=DEFAULT_DATASET)
    local = "--corpus_dir" if config.corpus_dir is not None else "--train_file" if config.train_file else None
    source = local or (f"--dataset {SAMPLE}" if config.dataset == SAMPLE else None)
    for flag, value in (("--dataset_config", config.dataset_config), ("--text_field", config.text_field)):
        if value and source:
            raise ConfigError(f"{flag} {shown(value)} is about a set of the hub, and {source} is none; leave it out")


def _sampled(num_documents: int, sample_size: int, seed: int, notes: list[str]) -> list[int]:
    """Indices of `sample_size` documents, drawn and in order; of all if there are fewer."""
    note_shortage("--sample_size", sample_size, num_documents, "documents", notes)
    return sorted(random.Random(f"{seed} sample").sample(range(num_documents), min(sample_size, num_documents)))


def _from_files(config: Config, notes: list[str]) -> tuple[Documents, Documents]:
    validation_file = config.validation_file
    source = shown_source(config.corpus_dir or config.train_file[0])
    if len(config.train_file) > 1:
        source += f" and {len(config.train_file) - 1:,} more"
    held = text_paths(validation_file, "--validation_file") if validation_file else []
    if config.corpus_dir:
        paths = text_paths(config.corpus_dir, "--corpus_dir")
    else:
        paths = list(map(Path, config.train_file))
    if config.corpus_dir and held:
        paths = _without(paths, held, source, notes)
    if config.sample_size is not None:
        paths = [paths[index] for index in _sampled(len(paths), config.sample_size, config.seed, notes)]
    files = read_text_files(paths, source, notes)
    if held:
        train = file_documents([whole(file) for file in files], source)
        return train, documents_of_paths(held, shown_source(validation_file), notes)
    train_parts, validation_parts = _hold_out(files, source, config.seed, notes)
    return file_documents(train_parts, source), file_documents(validation_parts, source)


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


def _from_hub(
    name: str, config_name: str | None, text_field: str | None, notes: list[str]
) -> tuple[Documents, Documents]:
    if name == DEFAULT_DATASET and config_name is None:
        config_name = DEFAULT_CONFIG
    splits = load_hub_dataset(name, LOCAL_WAYS, notes, config_name=config_name)
    column = text_field or DEFAULT_COLUMN

    def documents_of(split: str) -> Documents:
        fix = "name the column of the text with --text_field COLUMN"
        rows, source = hub_split(splits, name, split, LOCAL_WAYS, [column], fix), f"{name}, split {split}"
        documents = row_documents(rows, column, source, wikitext="wikitext" in Path(name).name.lower())
        if not len(documents):
            fault = f"all {len(rows):,} rows are blank in column {shown(column)}"
            fail(source, fault, "name another with --text_field COLUMN")
        return documents

    return documents_of("train"), documents_of("validation")


def read_prompts(path: str | PathLike) -> dict[str, str]:
    """Prompts by id: the whole of a .txt file, without the line end that editors add, or the field `text` of each
    record of a JSONL, CSV or Parquet file.

    Raises:
        DataError: it cannot be read, or a prompt is missing or blank.
    """
    if Path(path).suffix.lower() != ".txt":
        return {pair.id: pair.document for pair in read_pairs(path, "text", summaries_required=False).pairs}
    file = read_text_file(path)
    if file.is_blank:
        fail(shown_source(path), "the file is blank", "write the beginning of a text into it")
    (text,) = file_documents([whole(file)], str(path))
    return {"0": text.removesuffix("\n").removesuffix("\r")}
