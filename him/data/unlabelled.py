"""Texts without labels, which `--pretrain_files` names: text files, folders of them, or files of the task's format."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from him.core.errors import DataError
from him.data.records import read_pairs
from him.tasks.lm.sources import read_documents
from him.tasks.squad.reader import read_squad

FLAG = "--pretrain_files"
CONTEXT_WORDS = 120  # of a context that is made of a text file: that of a paragraph of SQuAD


def check_names(names: Sequence[str]) -> None:
    """Raises DataError if one of them is not there; what is in them is checked when they are read."""
    for name in names:
        if not Path(name).exists():
            raise DataError(f"{FLAG} {name}: no such file or folder; name a .txt file, a folder, or a file of the task")


def texts_of(name: str) -> list[str]:
    """The text files of a name, whole.

    Raises:
        DataError: there is none, or one cannot be read.
    """
    return list(read_documents(name, FLAG))


def documents_of(name: str, document_field: str | None, summary_field: str | None) -> list[str]:
    """Texts of a name, or the documents of a file of pairs, whose summaries are not read.

    Raises:
        DataError: it cannot be read.
    """
    if is_text(name):
        return texts_of(name)
    data = read_pairs(name, document_field, summary_field, summaries_required=False)
    return [pair.document for pair in data.pairs]


def contexts_of(name: str) -> list[tuple[str, str]]:
    """(title, context) of a SQuAD file, whose questions are not read, or of the paragraphs of texts.

    Raises:
        DataError: it cannot be read.
    """
    if not is_text(name):
        data = read_squad(name, answers_required=False)
        return [(paragraph.title, paragraph.context) for paragraph in data.paragraphs]
    return [(f"{name}-{number}", each) for number, text in enumerate(texts_of(name)) for each in _contexts(text)]


def is_text(name: str) -> bool:
    """Whether a name is that of a text file or of a folder."""
    return name.endswith(".txt") or Path(name).is_dir()


def _contexts(text: str) -> Iterator[str]:
    """Neighbouring paragraphs together, until they have `CONTEXT_WORDS` words; parts of one that is too long."""
    gathered: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        gathered += paragraph.split()
        while len(gathered) >= 2 * CONTEXT_WORDS:  # there may be no blank line in the whole text
            yield " ".join(gathered[:CONTEXT_WORDS])
            del gathered[:CONTEXT_WORDS]
        if len(gathered) >= CONTEXT_WORDS:
            yield " ".join(gathered)
            gathered = []
    if gathered:
        yield " ".join(gathered)
