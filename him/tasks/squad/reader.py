"""A strict reader of question-answering files in the layout of SQuAD 1.1 and 2.0.

Rajpurkar et al. 2016 (arXiv:1606.05250) and 2018 (arXiv:1806.03822). The layout:
`{"data": [{"title", "paragraphs": [{"context", "qas": [{"id", "question", "answers": [{"text", "answer_start"}]}]}]}]}`
with `is_impossible` in 2.0 beside each question. Keys that are not named here (`version`, `plausible_answers`, ...) are
ignored. Everything else that departs from it is a `DataError` of one line: what is wrong, where, and how to fix it.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from typing import NoReturn

from him.core.messages import SHOWN_CHARACTERS, fail, kind, one_line, shown, shown_source
from him.data.text_files import Format, parse_json, read_text, required, string, text_of

LAYOUT = '{"data": [{"title", "paragraphs": [{"context", "qas": [{"id", "question", "answers"}]}]}]}'
AS_ROWS = "name it train.jsonl or validation.jsonl, put both into a folder of their own and give --dataset FOLDER"
SQUAD_JSON = Format("SQuAD JSON", f"the SQuAD layout {LAYOUT}", f"if its rows are questions, {AS_ROWS}")
ROW_KEYS = {"context", "question", "answers"}  # one question a row: how the hub and `datasets` hold SQuAD


@dataclass(frozen=True, slots=True)
class Answer:
    """One annotator's answer: `context[start : start + len(text)] == text`, counted in characters (code points)."""

    text: str
    start: int


@dataclass(frozen=True, slots=True)
class Question:
    """A question with the answers of all its annotators; none when it is impossible or the file has no answers."""

    id: str
    text: str
    answers: tuple[Answer, ...]
    is_impossible: bool


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A context and the questions about it; `title` names the article it is from."""

    title: str
    context: str
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class SquadData:
    """Paragraphs in file order; question ids are unique over all of them. `source` names the data in messages."""

    paragraphs: tuple[Paragraph, ...]
    has_impossible: bool
    source: str

    @classmethod
    def from_paragraphs(cls, paragraphs: Iterable[Paragraph], source: str) -> "SquadData":
        """Data of paragraphs that are known to be sound, with `has_impossible` read off them."""
        paragraphs = tuple(paragraphs)
        has_impossible = any(question.is_impossible for paragraph in paragraphs for question in paragraph.questions)
        return cls(paragraphs, has_impossible, source)

    @cached_property
    def questions(self) -> list[Question]:
        """All questions in file order."""
        return [question for paragraph in self.paragraphs for question in paragraph.questions]

    @property
    def num_questions(self) -> int:
        return sum(len(paragraph.questions) for paragraph in self.paragraphs)


def read_squad(path: str | PathLike, *, answers_required: bool = True) -> SquadData:
    """Reads and checks a SQuAD 1.1 or 2.0 file.

    Args:
        path: a UTF-8 file, with or without a byte order mark.
        answers_required: False also takes questions without answers, to predict on; answers that are there are checked.

    Raises:
        DataError: the file cannot be read, is not JSON, or is not sound SQuAD data; the first fault found.
    """
    source = shown_source(path)
    document = parse_json(read_text(path, SQUAD_JSON), source, SQUAD_JSON)
    return squad_from_document(document, source, answers_required=answers_required)


def squad_from_document(document: object, source: str, *, answers_required: bool = True) -> SquadData:
    """The same checks for JSON that is parsed already; `source` names it in messages.

    Raises:
        DataError: the document is not sound SQuAD data; the first fault found.
    """
    return _Document(source, answers_required).read(document)


def squad_from_rows(rows: Iterable[dict], source: str) -> SquadData:
    """The same checks for rows of one question each, which are grouped by title and context.

    Args:
        rows: `id`, `context`, `question`, `answers` as a list of objects or, as on the Hugging Face hub, an object of
            the lists `text` and `answer_start`; `title` if there is one. A row without answers is impossible, as in
            `rajpurkar/squad_v2`, unless its own `is_impossible` says otherwise.
        source: names the rows in messages.

    Raises:
        DataError: a row is not sound; the first fault found.
    """
    return _Document(source, answers_required=True).read_rows(rows)


class _Document:
    """One pass over a parsed document; holds what all its checks need."""

    def __init__(self, source: str, answers_required: bool):
        self.source = source
        self.answers_required = answers_required
        self.place_of_id: dict[str, str] = {}

    def read(self, document: object) -> SquadData:
        articles = _items(_top(document, self.source), "data", self.source)
        paragraphs: list[Paragraph] = []
        for number, article in enumerate(articles, start=1):
            paragraphs += self._article(article, number)
        return SquadData.from_paragraphs(paragraphs, self.source)

    def read_rows(self, rows: Iterable[dict]) -> SquadData:
        questions: dict[tuple[str, str], list[Question]] = {}
        for number, row in enumerate(rows, start=1):
            where = f"row {number}"
            row = _object(row, self._at(where))
            title = string(row, "title", self._at(where)) if "title" in row else ""
            context = text_of(row, "context", self._at(where))
            question = self._question(_row_as_question(row, self._at(where)), context, where)
            questions.setdefault((title, context), []).append(question)
        if not questions:
            fail(self.source, "has no rows", "give at least one question")
        paragraphs = (Paragraph(title, context, tuple(asked)) for (title, context), asked in questions.items())
        return SquadData.from_paragraphs(paragraphs, self.source)

    def _article(self, value: object, number: int) -> list[Paragraph]:
        where = f"article {number}"
        article = _object(value, self._at(where))
        if "paragraphs" not in article and article.keys() & ROW_KEYS:
            fault = 'has no "paragraphs" and looks like a row with one question'
            fail(self._at(where), fault, f"write one row a line, {AS_ROWS}")
        # Files of some annotation tools have no titles; a made-up one keeps their articles apart.
        title = string(article, "title", self._at(where)) if "title" in article else where
        items = _items(article, "paragraphs", self._at(where))
        return [self._paragraph(item, title, f"{where}, paragraph {i}") for i, item in enumerate(items, start=1)]

    def _paragraph(self, value: object, title: str, where: str) -> Paragraph:
        paragraph = _object(value, self._at(where))
        context = text_of(paragraph, "context", self._at(where))
        items = _items(paragraph, "qas", self._at(where))
        questions = (self._question(item, context, f"{where}, question {i}") for i, item in enumerate(items, start=1))
        return Paragraph(title, context, tuple(questions))

    def _question(self, value: object, context: str, where: str) -> Question:
        question = _object(value, self._at(where))
        identifier = self._id(question, where)
        at = self._at(f"{where} (id {one_line(identifier, SHOWN_CHARACTERS)})")
        text = text_of(question, "question", at)
        is_impossible = question.get("is_impossible", False)
        if not isinstance(is_impossible, bool):
            fail(at, f'"is_impossible" is {shown(is_impossible)}', "write true or false")
        answers = self._answers(question, context, is_impossible, at)
        return Question(identifier, text, answers, is_impossible)

    def _id(self, question: dict, where: str) -> str:
        identifier = text_of(question, "id", self._at(where))
        first = self.place_of_id.setdefault(identifier, where)
        if first != where:
            fault = f"the id {shown(identifier)} is that of {first} already"
            fail(self._at(where), fault, "give each question an id of its own")
        return identifier

    def _answers(self, question: dict, context: str, is_impossible: bool, at: str) -> tuple[Answer, ...]:
        if "answers" not in question and (is_impossible or not self.answers_required):
            return ()
        if isinstance(question.get("answers"), dict):
            fix = 'write a list of objects, [{"text": ..., "answer_start": ...}]'
            fail(at, '"answers" is an object, as in the hub\'s copies of SQuAD', fix)
        items = _list(question, "answers", at)
        if is_impossible and items:
            fault = f'"is_impossible" is true but "answers" is not empty ({len(items)})'
            fail(at, fault, 'empty it (guesses belong into "plausible_answers") or write false')
        if not items and not is_impossible and self.answers_required:
            fail(at, "has no answers", 'add one, or mark the question with "is_impossible": true')
        return tuple(_answer(item, context, at, i) for i, item in enumerate(items, start=1))

    def _at(self, where: str) -> str:
        return f"{self.source}: {where}"


def _top(document: object, source: str) -> dict:
    """The outermost object, or a hint what the document is instead."""
    fix = f"write the SQuAD layout {LAYOUT}"
    if isinstance(document, list) and document and isinstance(document[0], dict) and document[0].keys() & ROW_KEYS:
        fail(source, "a list of rows with one question each", f"write one row a line, {AS_ROWS}")
    if not isinstance(document, dict):
        fail(source, f"holds {kind(document)}, not an object", fix)
    if "data" not in document and document.keys() & (ROW_KEYS | {"rows"}):
        fail(source, 'has no "data" and looks like rows with one question each', f"write one row a line, {AS_ROWS}")
    if "data" not in document and document.keys() & {"train", "validation"}:
        fail(source, 'has no "data" but several splits', f"save each split in a file of its own; {fix}")
    return document


def _row_as_question(row: dict, at: str) -> dict:
    """The row with its answers as a list of objects and `is_impossible` filled in."""
    answers = required(row, "answers", at)
    if isinstance(answers, dict):
        texts, starts = _list(answers, "text", at), _list(answers, "answer_start", at)
        if len(texts) != len(starts):
            fail(at, f'"answers" has {len(texts)} texts but {len(starts)} answer_starts', "give each text its own")
        answers = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
    return {"is_impossible": not answers, **row, "answers": answers}


def _answer(value: object, context: str, at: str, number: int) -> Answer:
    at = f"{at}, answer {number}"
    answer = _object(value, at)
    text = text_of(answer, "text", at)
    start = required(answer, "answer_start", at)
    if not isinstance(start, int) or isinstance(start, bool) or start < 0:
        fix = "give the number of characters before the answer in the context, 0 or more"
        fail(at, f'"answer_start" is {shown(start)}', fix)
    if not context.startswith(text, start):
        _fail_not_there(text, start, context, at)
    return Answer(text, start)


def _fail_not_there(text: str, start: int, context: str, at: str) -> NoReturn:
    there = f"where the context has {shown(context[start : start + len(text)])}"
    if start >= len(context):
        there = f"the context has only {len(context)}"
    fault = f"the answer {shown(text)} is not at character {shown(start)}, {there}"
    positions = [match.start() for match in re.finditer(re.escape(text), context)]
    if not positions:
        fail(at, f"{fault}, nor anywhere else in it", "copy the answer from the context letter for letter")
    if hint := _counted_otherwise(text, start, context):
        fail(at, fault, f"answer_start counts characters, and this one counts {hint}")
    more = f" ({len(positions)} places in all)" if len(positions) > 1 else ""
    nearest = min(positions, key=lambda position: abs(position - start))
    fail(at, fault, f"the text stands at {nearest}{more}: set answer_start to that")


def _counted_otherwise(text: str, start: int, context: str) -> str | None:
    """The unit `start` seems to be counted in, if not in characters."""
    units = (("bytes of UTF-8", "utf-8", 1), ("UTF-16 units, as JavaScript and Java do", "utf-16-le", 2))
    for unit, encoding, width in units:
        if context.encode(encoding).startswith(text.encode(encoding), min(start, 4 * len(context)) * width):
            return unit
    return None


def _object(value: object, at: str) -> dict:
    if not isinstance(value, dict):
        fail(at, f"is {kind(value)}, not an object", f"write the SQuAD layout {LAYOUT}")
    return value


def _list(found: dict, key: str, at: str) -> list:
    value = required(found, key, at)
    if not isinstance(value, list):
        fail(at, f'"{key}" is {kind(value)}, not a list', "put it in [ ]")
    return value


def _items(found: dict, key: str, at: str) -> list:
    """A list that may not be empty."""
    value = _list(found, key, at)
    if not value:
        fixes = {"qas": "add questions or remove the paragraph", "paragraphs": "add paragraphs or remove the article"}
        fail(at, f'"{key}" is empty', fixes.get(key, "give at least one article with paragraphs and questions"))
    return value
