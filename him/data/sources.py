"""Where raw data comes from: local files, the Hugging Face hub, or the sample that HIM generates.

Exactly one of the three serves a run, and never another one in its place: a source that fails is an error. What the
user should know about a choice made here (articles held out, repeated questions dropped, a copy from the cache) is a
note of one line, which the caller prints.
"""

import logging
import random
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from him.data.squad_json import (
    Paragraph,
    Question,
    SquadData,
    one_line,
    read_squad,
    shown,
    squad_from_document,
    squad_from_rows,
)
from him.errors import ConfigError, DataError

if TYPE_CHECKING:
    from datasets import DatasetDict

SAMPLE = "sample"
DEFAULT_SQUAD = "rajpurkar/squad"
# Seen once, this many lead to F1 90 and more; 4,000 seen three times end at 76: their names are learned by heart.
SAMPLE_QUESTIONS = 16_000
HUB_NAME = r"\w[\w.-]*/\w[\w.-]*"
SQUAD_COLUMNS = ("id", "context", "question", "answers")
LOCAL_SQUAD = "--train_file FILE --validation_file FILE, or the built-in sample with --dataset sample"
CAUSE_CHARACTERS = 200
HUB_SECONDS = 8.0  # the longest wait for a sign of life; a slow line answers a HEAD request within two


@dataclass(frozen=True)
class SquadSplits:
    """Data to train on and to validate on, and lines that tell the user what was decided on the way."""

    train: SquadData
    validation: SquadData
    notes: tuple[str, ...] = ()


def load_squad(
    *,
    train_files: Sequence[str] = (),
    validation_file: str | None = None,
    dataset: str | None = None,
    seed: int = 0,
    sample_size: int | None = None,
    validation_share: float = 0.1,
) -> SquadSplits:
    """Question-answering data from the one source that the flags name; without any flag `rajpurkar/squad` of the hub.

    Args:
        train_files: SQuAD JSON files that are joined in this order. A question that stands in several of them word for
            word, as those that squad and squad_v2 share, is taken once; one id for different questions is refused.
        validation_file: a SQuAD JSON file; without it `validation_share` of the articles is held out of `train_files`.
        dataset: `sample`, the name of a hub set with the columns of SQuAD, or a local folder that `datasets` can read.
        seed: chooses the articles held out. The sample does not depend on it, so that seeds can be compared.
        sample_size: train on the first so many questions only; validation stays whole.
        validation_share: share of the articles, or of the contexts where all have one title, more than 0, less than 1.

    Raises:
        ConfigError: the flags contradict each other or are out of range.
        DataError: the data cannot be had or is not sound.
    """
    assert not isinstance(train_files, str) and 0 < validation_share < 1
    check_source_flags(train_files, validation_file, dataset, sample_size)
    notes: list[str] = []
    if train_files:
        train, validation = _from_files(train_files, validation_file, validation_share, seed, notes)
    elif dataset == SAMPLE:
        train, validation = _from_sample()
    else:
        train, validation = _from_hub(dataset or DEFAULT_SQUAD, notes)
    if sample_size is not None:
        train = first_questions(train, sample_size, notes)
    _note_leakage(train, validation, notes)
    return SquadSplits(train, validation, tuple(notes))


def check_source_flags(
    train_files: Sequence[str], validation_file: str | None, dataset: str | None, sample_size: int | None
) -> None:
    """Raises ConfigError where the flags that choose the data contradict each other or are out of range."""
    if dataset and (train_files or validation_file):
        flag = "--train_file" if train_files else "--validation_file"
        raise ConfigError(f"--dataset {shown(dataset)} and {flag} name two sources of data; leave one of them out")
    if validation_file and not train_files:
        raise ConfigError("--validation_file is given without --train_file; add --train_file FILE, or drop both")
    if sample_size is not None and sample_size < 1:
        raise ConfigError(f"--sample_size {sample_size} leaves nothing to train on; use 1 or more")
    if dataset and Path(dataset).is_file():
        raise ConfigError(f"--dataset {shown(dataset)} is a file; give it as --train_file")
    # `datasets` takes "json", "text" and the like for readers, and then reads every file below the working folder.
    if dataset and dataset != SAMPLE and not Path(dataset).is_dir() and not re.fullmatch(HUB_NAME, dataset):
        raise ConfigError(
            f"--dataset {shown(dataset)} is not {SAMPLE}, a folder, or owner/name on the Hugging Face hub; "
            f"write such a name in full, as {DEFAULT_SQUAD}"
        )


def first_questions(data: SquadData, num_questions: int, notes: list[str]) -> SquadData:
    """The first `num_questions` questions with their contexts, in the same order; all of them if there are fewer."""
    if num_questions > data.num_questions:
        notes.append(f"--sample_size {num_questions:,}: there are only {data.num_questions:,} training questions")
    kept, left = [], num_questions
    for paragraph in data.paragraphs:
        questions = paragraph.questions[:left]
        left -= len(questions)
        if questions:
            kept.append(Paragraph(paragraph.title, paragraph.context, questions))
    return SquadData.from_paragraphs(kept, data.source)


# --- local files ----------------------------------------------------------------------------------------------------


def _from_files(
    train_files: Sequence[str], validation_file: str | None, share: float, seed: int, notes: list[str]
) -> tuple[SquadData, SquadData]:
    train = _join([read_squad(path) for path in train_files], notes)
    if validation_file is None:
        return hold_out(train, share, seed, notes)
    return train, read_squad(validation_file)


def _join(parts: Sequence[SquadData], notes: list[str]) -> SquadData:
    """One data set of several: paragraphs with one context become one, and a repeated question is taken once."""
    if len(parts) == 1:
        return parts[0]
    place_of_id: dict[str, tuple[str, Question, SquadData]] = {}
    paragraphs: dict[str, tuple[str, list[Question]]] = {}
    num_repeats = 0
    for part in parts:
        for paragraph, question in _pairs(part):
            first = place_of_id.setdefault(question.id, (paragraph.context, question, part))
            if first[2] is not part or first[1] is not question:
                _check_same(first, (paragraph.context, question, part))
                num_repeats += 1
                continue
            paragraphs.setdefault(paragraph.context, (paragraph.title, []))[1].append(question)
    if num_repeats:
        notes.append(f"questions that stand in several training files are taken once ({num_repeats:,} dropped)")
    joined = (Paragraph(title, context, tuple(asked)) for context, (title, asked) in paragraphs.items())
    return SquadData.from_paragraphs(joined, ", ".join(part.source for part in parts))


def _check_same(first: tuple[str, Question, SquadData], other: tuple[str, Question, SquadData]) -> None:
    if first[:2] != other[:2]:
        names = ("context", "question or answers")
        differs = next(name for name, a, b in zip(names, first[:2], other[:2], strict=True) if a != b)
        raise DataError(
            f"{other[2].source}: the id {shown(other[1].id)} is in {first[2].source} too, with another {differs}; "
            "give each question an id of its own, or leave one of the files out"
        )


def _pairs(data: SquadData) -> Iterator[tuple[Paragraph, Question]]:
    return ((paragraph, question) for paragraph in data.paragraphs for question in paragraph.questions)


def hold_out(data: SquadData, share: float, seed: int, notes: list[str]) -> tuple[SquadData, SquadData]:
    """Splits whole articles off for validation, at least one; whole contexts where there is one title only.

    By article, because paragraphs of one article share names and facts, so that a split among them measures memory.

    Raises:
        DataError: there is one context only.
    """
    by_title = len({paragraph.title for paragraph in data.paragraphs}) > 1
    unit_of = [paragraph.title if by_title else paragraph.context for paragraph in data.paragraphs]
    units = list(dict.fromkeys(unit_of))
    if len(units) < 2:
        fault = "there is only one context, so that none can be held out for validation"
        raise DataError(f"{data.source}: {fault}; give --validation_file FILE")
    num_held = min(len(units) - 1, max(1, round(share * len(units))))
    held = set(random.Random(seed).sample(units, num_held))
    parts: tuple[list[Paragraph], list[Paragraph]] = ([], [])
    for paragraph, unit in zip(data.paragraphs, unit_of, strict=True):
        parts[unit in held].append(paragraph)
    train, validation = (SquadData.from_paragraphs(part, data.source) for part in parts)
    notes.append(
        f"no --validation_file: {num_held:,} of {len(units):,} {'articles' if by_title else 'contexts'} "
        f"({validation.num_questions:,} of {data.num_questions:,} questions), chosen by --seed {seed}, "
        "are held out for validation"
    )
    return train, validation


def _note_leakage(train: SquadData, validation: SquadData, notes: list[str]) -> None:
    """Says so when validation is partly a test of memory; refused it is not, because it may be what the user wants."""
    seen = {paragraph.context for paragraph in train.paragraphs}
    contexts = {paragraph.context for paragraph in validation.paragraphs}
    if both := len(seen & contexts):
        notes.append(
            f"warning: {both:,} of the {len(contexts):,} validation contexts are in the training data too; "
            "validation scores will be too good"
        )


# --- the built-in sample --------------------------------------------------------------------------------------------


def _from_sample() -> tuple[SquadData, SquadData]:
    from him.data.sample import squad_sample

    train, validation = squad_sample(num_train=SAMPLE_QUESTIONS)
    return (
        squad_from_document(train, "the built-in sample, train"),
        squad_from_document(validation, "the built-in sample, validation"),
    )


# --- the hub --------------------------------------------------------------------------------------------------------


def _from_hub(name: str, notes: list[str]) -> tuple[SquadData, SquadData]:
    splits = load_hub_dataset(name, LOCAL_SQUAD, notes)
    train, validation = (_squad_split(splits, name, split) for split in ("train", "validation"))
    return train, validation


def _squad_split(splits: "DatasetDict", name: str, split: str) -> SquadData:
    if split not in splits:
        fault = f"has no split {split} (there is {', '.join(splits)})"
        raise DataError(f"--dataset {shown(name)} {fault}; name another one, or use {LOCAL_SQUAD}")
    missing = [column for column in SQUAD_COLUMNS if column not in splits[split].column_names]
    if missing:
        fault = f"has no column {', '.join(missing)} (there is {', '.join(splits[split].column_names)})"
        raise DataError(f"--dataset {shown(name)} {fault}; name a set with the columns of {DEFAULT_SQUAD}")
    return squad_from_rows(splits[split], f"{name}, split {split}")


def load_hub_dataset(name: str, local_ways: str, notes: list[str]) -> "DatasetDict":
    """A data set of the hub, from its cache when the hub is out of reach, or a local folder of data files.

    The hub is asked for a sign of life first: its client would try six times, over 24 s and with 13 lines on stderr.

    Args:
        name: `owner/name`, or a folder.
        local_ways: the flags that do without the hub, for messages.
        notes: gets a line when the copy in the cache is used.

    Raises:
        DataError: there is no such set, it cannot be read, or the hub is out of reach and the cache empty.
    """
    import datasets

    unreachable = None if Path(name).is_dir() else _why_unreachable(name)
    try:
        with ExitStack() as settings:
            settings.enter_context(_quiet())
            if unreachable:
                settings.enter_context(_offline())
            loaded = datasets.load_dataset(name)
    except Exception as error:  # whatever the readers, the file system or the HTTP client raise
        raise DataError(_hub_message(name, local_ways, unreachable, error)) from error
    if unreachable:
        notes.append(f"the Hugging Face hub is out of reach ({unreachable}): {name} is read from the cache")
    return loaded


def _hub_message(name: str, local_ways: str, unreachable: str | None, error: Exception) -> str:
    from datasets.exceptions import DatasetNotFoundError

    cause = one_line(str(_root(error)), CAUSE_CHARACTERS)
    if isinstance(error, ConnectionError | TimeoutError):
        fault = f"the Hugging Face hub is out of reach ({unreachable or cause}) and {shown(name)} is not in its cache"
        return f"{fault}; use files of your own with {local_ways}"
    if isinstance(error, DatasetNotFoundError):
        fault = f"the Hugging Face hub has no data set {shown(name)}, or it is private or gated"
        return f"{fault}; check the name after --dataset, or use {local_ways}"
    return f"--dataset {shown(name)} cannot be read ({type(_root(error)).__name__}: {cause}); use {local_ways}"


def _root(error: BaseException) -> BaseException:
    """The first error of a chain; `datasets` hides it behind "An error occurred while generating the dataset"."""
    while error.__cause__:
        error = error.__cause__
    return error


def _why_unreachable(name: str) -> str | None:
    """None when the hub answers, whatever it says about `name`; otherwise the reason."""
    import huggingface_hub
    from datasets import config

    if huggingface_hub.is_offline_mode() or config.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    reason: list[str | None] = [f"no answer within {HUB_SECONDS:.0f} s"]

    def ask() -> None:
        try:
            url = f"{config.HF_ENDPOINT}/api/datasets/{name}"
            status = huggingface_hub.get_session().head(url, timeout=HUB_SECONDS).status_code
            reason[0] = f"it answers {status}" if status >= 500 else None
        except Exception as error:  # any fault of name look-up, proxy, certificate or connection means the same here
            reason[0] = one_line(str(error) or type(error).__name__, CAUSE_CHARACTERS)

    # A thread, because a time-out of the client holds for each of several addresses and not for the name look-up.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_SECONDS)
    return reason[0]


@contextmanager
def _offline() -> Iterator[None]:
    """Makes the hub's client refuse every request at once, so that only the cache is looked at."""
    import huggingface_hub
    from datasets import config

    before = huggingface_hub.constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE = before


@contextmanager
def _quiet() -> Iterator[None]:
    """No logs of the two libraries, whose errors are raised as well, and their progress bars only in a terminal."""
    import datasets
    import huggingface_hub

    logs = [(library.logging, library.logging.get_verbosity()) for library in (datasets, huggingface_hub)]
    bars_off = not sys.stderr.isatty() and not datasets.utils.are_progress_bars_disabled()
    for log, _ in logs:
        log.set_verbosity(logging.CRITICAL)
    if bars_off:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        for log, verbosity in logs:
            log.set_verbosity(verbosity)
        if bars_off:
            datasets.enable_progress_bars()
