"""Sources of question-answering data: local files, the Hugging Face hub, or the sample that HIM generates."""

from collections.abc import Sequence

from him.config import Config
from him.core.errors import DataError
from him.core.hub import hub_split, load_hub_dataset
from him.core.messages import shown
from him.data import sample
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
from him.tasks.squad.reader import Paragraph, Question, SquadData, read_squad, squad_from_document, squad_from_rows

DEFAULT_SQUAD = "rajpurkar/squad"
# Seen once, this many lead to F1 90 and more; 4,000 seen three times end at 76: their names are learned by heart.
SAMPLE_QUESTIONS = 16_000
SQUAD_COLUMNS = ("id", "context", "question", "answers")


def load_squad(config: Config, validation_share: float = 0.1) -> Splits[SquadData]:
    """Question-answering data from the one source that the settings name; without any `rajpurkar/squad` of the hub.

    `--train_file` names SQuAD JSON files that are joined in this order. A question that stands in several of them word
    for word, as those that squad and squad_v2 share, is taken once; one id for different questions is refused. The
    sample does not depend on `--seed`, so that seeds can be compared; `--sample_size` leaves validation whole.

    Args:
        config: `train_file`, `validation_file`, `dataset`, `dataset_config`, `seed` and `sample_size` are read.
        validation_share: share of the articles, or of the contexts where all have one title, that is held out of the
            training files where no validation file is named; more than 0, less than 1.

    Raises:
        ConfigError: the settings contradict each other.
        DataError: the data cannot be had or is not sound.
    """
    assert 0 < validation_share < 1
    check_source_flags(config, example=DEFAULT_SQUAD)
    notes: list[str] = []
    file_of: dict[str, int] = {}
    if config.train_file:
        train, validation = _from_files(config, validation_share, notes, file_of)
    elif config.dataset == SAMPLE:
        documents = sample.squad_sample(num_train=SAMPLE_QUESTIONS)
        train, validation = map(squad_from_document, documents, SAMPLE_SPLITS)
    else:
        train, validation = _from_hub(config.dataset or DEFAULT_SQUAD, config.dataset_config, notes)
    if config.sample_size is not None:
        train = first_questions(train, config.sample_size, notes)
    contexts, held = ({paragraph.context for paragraph in data.paragraphs} for data in (train, validation))
    note_leakage(contexts, held, "{shared} of the {total} validation contexts are in the training data too", notes)
    source_ids = tuple(file_of[question.id] for question in train.questions) if config.train_file else ()
    return Splits(train, validation, tuple(notes), source_ids)


def first_questions(data: SquadData, num_questions: int, notes: list[str]) -> SquadData:
    """The first `num_questions` questions with their contexts, in the same order; all of them if there are fewer."""
    note_shortage("--sample_size", num_questions, data.num_questions, "training questions", notes)
    kept, left = [], num_questions
    for paragraph in data.paragraphs:
        questions = paragraph.questions[:left]
        left -= len(questions)
        if questions:
            kept.append(Paragraph(paragraph.title, paragraph.context, questions))
    return SquadData.from_paragraphs(kept, data.source)


def _from_files(config: Config, share: float, notes: list[str], file_of: dict[str, int]) -> tuple[SquadData, SquadData]:
    parts = [read_squad(path) for path in config.train_file]
    for number, part in reversed(list(enumerate(parts))):  # a question that stands in several is of the first
        file_of.update(dict.fromkeys((question.id for question in part.questions), number))
    train = _join(parts, notes)
    if config.validation_file is None:
        return hold_out(train, share, config.seed, notes)
    return train, read_squad(config.validation_file)


def _join(parts: Sequence[SquadData], notes: list[str]) -> SquadData:
    """One data set of several: paragraphs with one context become one, and a repeated question is taken once."""
    if len(parts) == 1:
        return parts[0]
    place_of_id: dict[str, tuple[str, Question, SquadData]] = {}
    paragraphs: dict[str, tuple[str, list[Question]]] = {}
    num_repeats = 0
    for part in parts:
        for paragraph, question in ((each, question) for each in part.paragraphs for question in each.questions):
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


def hold_out(data: SquadData, share: float, seed: int, notes: list[str]) -> tuple[SquadData, SquadData]:
    """Splits whole articles off for validation, at least one; whole contexts where there is one title only.

    By article, because paragraphs of one article share names and facts, so that a split among them measures memory.

    Raises:
        DataError: there is one context only.
    """
    by_title = len({paragraph.title for paragraph in data.paragraphs}) > 1
    unit_of = [paragraph.title if by_title else paragraph.context for paragraph in data.paragraphs]
    num_held = num_held_out(len(set(unit_of)), share, data.source, "context")
    parts = split_off(data.paragraphs, unit_of, num_held, seed, "articles" if by_title else "contexts")
    train, validation = (SquadData.from_paragraphs(part, data.source) for part in (parts.train, parts.validation))
    questions = f"{validation.num_questions:,} of {data.num_questions:,} questions"
    note_held_out(f"{parts.share} ({questions}), chosen by --seed {seed},", notes)
    return train, validation


def _from_hub(name: str, config: str | None, notes: list[str]) -> tuple[SquadData, SquadData]:
    splits = load_hub_dataset(name, LOCAL_WAYS, notes, config)
    fix = f"name a set with the columns of {DEFAULT_SQUAD}"
    train, validation = (
        squad_from_rows(hub_split(splits, name, split, LOCAL_WAYS, SQUAD_COLUMNS, fix), f"{name}, split {split}")
        for split in ("train", "validation")
    )
    return train, validation
