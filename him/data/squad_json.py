"""A strict reader of question-answering files in the layout of SQuAD 1.1 and 2.0.

Rajpurkar et al. 2016 (arXiv:1606.05250) and 2018 (arXiv:1806.03822). The layout:
`{"data": [{"title", "paragraphs": [{"context", "qas": [{"id", "question", "answers": [{"text", "answer_start"}]}]}]}]}`
with `is_impossible` in 2.0 beside each question. Keys that are not named here (`version`, `plausible_answers`, ...) are
ignored. Everything else that departs from it is a `DataError` of one line: what is wrong, where, and how to mend it.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import NoReturn

from him.errors import DataError

LAYOUT = '{"data": [{"title", "paragraphs": [{"context", "qas": [{"id", "question", "answers"}]}]}]}'
AS_ROWS = "name it train.jsonl or validation.jsonl, put both into a folder of their own and give --dataset FOLDER"
ROW_KEYS = {"context", "question", "answers"}  # one question a row: how the hub and `datasets` hold SQuAD
SHOWN_CHARACTERS = 60


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
    return squad_from_document(_parse(_read_text(path, source), source), source, answers_required=answers_required)


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


def shown(value: object) -> str:
    """`value` for a message: on one line whatever it holds, and short; a list or an object by its kind only."""
    if isinstance(value, str):
        return f'"{one_line(value, SHOWN_CHARACTERS)}"'
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int) and value.bit_length() > 128:  # str() of thousands of digits is refused by Python
        return f"a number of {value.bit_length()} bits"
    return str(value) if isinstance(value, int | float) else _kind(value)


def shown_source(path: str | PathLike) -> str:
    """A path for a message, on one line; not shortened, because the user has to find the file."""
    return one_line(str(path))


def one_line(text: str, limit: int | None = None) -> str:
    """Escapes whatever would break the line, hide in it or fail to print: newlines, controls, lone surrogates."""
    if limit and len(text) > limit:
        text = text[: limit - 3] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _kind(value: object) -> str:
    """What JSON calls a value of this type."""
    kinds = ((bool, "true or false"), (str, "a string"), (int | float, "a number"), (Mapping, "an object"))
    if value is None:
        return "null"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    return next((name for kind, name in kinds if isinstance(value, kind)), f"a {type(value).__name__}")


def _fail(where: str, fault: str, mend: str) -> NoReturn:
    raise DataError(f"{where}: {fault}; {mend}")


# --- from the file to parsed JSON -----------------------------------------------------------------------------------


def _read_text(path: str | PathLike, source: str) -> str:
    """The file as text, without its byte order mark."""
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        _fail(source, "no such file", "check the path")
    except IsADirectoryError:
        _fail(source, "is a folder, not a file", "name the SQuAD JSON file in it")
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        reason = getattr(error, "strerror", None) or str(error)
        _fail(source, f"cannot be read ({reason})", "check the path and its permissions")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        _fail_not_utf8(content, source)
    if not text.strip():
        _fail(source, "the file is empty", f"give a file of the SQuAD layout {LAYOUT}")
    return text


def _fail_not_utf8(content: bytes, source: str) -> NoReturn:
    try:
        content.decode("utf-8")  # once more without "-sig", whose offsets leave out the byte order mark
    except UnicodeDecodeError as error:
        offset = error.start
    line = content.count(b"\n", 0, offset) + 1
    fault = f"not UTF-8 at byte {offset} (line {line}, byte value 0x{content[offset]:02x})"
    _fail(source, fault, _mend_of_binary(content))


def _mend_of_binary(content: bytes) -> str:
    known = {
        b"\xff\xfe": "it looks like UTF-16; save it as UTF-8",
        b"\xfe\xff": "it looks like UTF-16; save it as UTF-8",
        b"\x1f\x8b": "it is compressed by gzip; unpack it first",
        b"PK\x03\x04": "it is a zip archive; unpack it first",
        b"PAR1": "it is a Parquet file; write it as SQuAD JSON",
    }
    hints = (hint for start, hint in known.items() if content.startswith(start))
    return next(hints, "save the file as UTF-8")


def _parse(text: str, source: str) -> object:
    """Strict JSON: no NaN, no key twice in an object."""

    def refuse_constant(name: str) -> NoReturn:
        _fail(f"{source}: {_place_of_constant(text)}", f"{name} is not JSON", "write a number or leave the field out")

    def without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):  # `dict` keeps the last one, which would lose data in silence
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            _fail(source, f"an object has the key {shown(twice)} twice", "keep one of the two")
        return found

    try:
        return json.loads(text, parse_constant=refuse_constant, object_pairs_hook=without_repeats)
    except json.JSONDecodeError as error:
        _fail_not_json(text, error, source)
    except RecursionError:
        _fail(source, "the JSON is nested too deeply to be read", f"write the SQuAD layout {LAYOUT}")
    except ValueError:  # a whole number of more digits than Python converts
        _fail(source, "a number has more than 4,300 digits", "correct it; an answer_start is a place in the context")


def _place_of_constant(text: str) -> str:
    """Line and column of the first NaN or Infinity outside of strings."""
    for match in re.finditer(r'"(?:[^"\\]|\\.)*"|(NaN|-?Infinity)', text, re.DOTALL):
        if match[1]:
            line_start = text.rfind("\n", 0, match.start()) + 1
            return f"line {text.count(chr(10), 0, line_start) + 1}, column {match.start() - line_start + 1}"
    raise AssertionError("json found a constant that is not in the text")


def _fail_not_json(text: str, error: json.JSONDecodeError, source: str) -> NoReturn:
    where = f"{source}: line {error.lineno}, column {error.colno}"
    if error.msg == "Extra data" and _is_json_object(text.lstrip().split("\n", 1)[0]):
        _fail(where, "a second JSON value begins, as in JSON Lines", f"if its rows are questions, {AS_ROWS}")
    if text.lstrip().startswith("<"):
        _fail(where, "HTML or XML, not JSON", "download the raw file, not the page that shows it")
    if text.startswith("version https://git-lfs"):
        _fail(where, "a Git LFS pointer, not the data itself", "fetch the data with `git lfs pull`")
    if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
        _fail(where, f"the JSON breaks off ({error.msg})", "the file is cut short: save or download it again")
    _fail(where, f"not valid JSON ({error.msg})", "correct the file there")


def _is_json_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


# --- from parsed JSON to SquadData ----------------------------------------------------------------------------------


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
            title = _string(row, "title", self._at(where)) if "title" in row else ""
            context = _text(row, "context", self._at(where))
            question = self._question(_row_as_question(row, self._at(where)), context, where)
            questions.setdefault((title, context), []).append(question)
        if not questions:
            _fail(self.source, "has no rows", "give at least one question")
        paragraphs = (Paragraph(title, context, tuple(asked)) for (title, context), asked in questions.items())
        return SquadData.from_paragraphs(paragraphs, self.source)

    def _article(self, value: object, number: int) -> list[Paragraph]:
        where = f"article {number}"
        article = _object(value, self._at(where))
        if "paragraphs" not in article and article.keys() & ROW_KEYS:
            fault = 'has no "paragraphs" and looks like a row with one question'
            _fail(self._at(where), fault, f"write one row a line, {AS_ROWS}")
        # Files of some annotation tools have no titles; a made-up one keeps their articles apart.
        title = _string(article, "title", self._at(where)) if "title" in article else where
        items = _items(article, "paragraphs", self._at(where))
        return [self._paragraph(item, title, f"{where}, paragraph {i}") for i, item in enumerate(items, start=1)]

    def _paragraph(self, value: object, title: str, where: str) -> Paragraph:
        paragraph = _object(value, self._at(where))
        context = _text(paragraph, "context", self._at(where))
        items = _items(paragraph, "qas", self._at(where))
        questions = (self._question(item, context, f"{where}, question {i}") for i, item in enumerate(items, start=1))
        return Paragraph(title, context, tuple(questions))

    def _question(self, value: object, context: str, where: str) -> Question:
        question = _object(value, self._at(where))
        identifier = self._id(question, where)
        at = self._at(f"{where} (id {one_line(identifier, SHOWN_CHARACTERS)})")
        text = _text(question, "question", at)
        is_impossible = question.get("is_impossible", False)
        if not isinstance(is_impossible, bool):
            _fail(at, f'"is_impossible" is {shown(is_impossible)}', "write true or false")
        answers = self._answers(question, context, is_impossible, at)
        return Question(identifier, text, answers, is_impossible)

    def _id(self, question: dict, where: str) -> str:
        identifier = _text(question, "id", self._at(where))
        first = self.place_of_id.setdefault(identifier, where)
        if first != where:
            fault = f"the id {shown(identifier)} is that of {first} already"
            _fail(self._at(where), fault, "give each question an id of its own")
        return identifier

    def _answers(self, question: dict, context: str, is_impossible: bool, at: str) -> tuple[Answer, ...]:
        if "answers" not in question and (is_impossible or not self.answers_required):
            return ()
        if isinstance(question.get("answers"), dict):
            mend = 'write a list of objects, [{"text": ..., "answer_start": ...}]'
            _fail(at, '"answers" is an object, as in the hub\'s copies of SQuAD', mend)
        items = _list(question, "answers", at)
        if is_impossible and items:
            fault = f'"is_impossible" is true but "answers" is not empty ({len(items)})'
            _fail(at, fault, 'empty it (guesses belong into "plausible_answers") or write false')
        if not items and not is_impossible and self.answers_required:
            _fail(at, "has no answers", 'add one, or mark the question with "is_impossible": true')
        return tuple(_answer(item, context, at, i) for i, item in enumerate(items, start=1))

    def _at(self, where: str) -> str:
        return f"{self.source}: {where}"


def _top(document: object, source: str) -> dict:
    """The outermost object, or a hint what the document is instead."""
    mend = f"write the SQuAD layout {LAYOUT}"
    if isinstance(document, list) and document and isinstance(document[0], dict) and document[0].keys() & ROW_KEYS:
        _fail(source, "a list of rows with one question each", f"write one row a line, {AS_ROWS}")
    if not isinstance(document, dict):
        _fail(source, f"holds {_kind(document)}, not an object", mend)
    if "data" not in document and document.keys() & (ROW_KEYS | {"rows"}):
        _fail(source, 'has no "data" and looks like rows with one question each', f"write one row a line, {AS_ROWS}")
    if "data" not in document and document.keys() & {"train", "validation"}:
        _fail(source, 'has no "data" but several splits', f"save each split in a file of its own; {mend}")
    return document


def _row_as_question(row: dict, at: str) -> dict:
    """The row with its answers as a list of objects and `is_impossible` filled in."""
    answers = _required(row, "answers", at)
    if isinstance(answers, dict):
        texts, starts = _list(answers, "text", at), _list(answers, "answer_start", at)
        if len(texts) != len(starts):
            _fail(at, f'"answers" has {len(texts)} texts but {len(starts)} answer_starts', "give each text its own")
        answers = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
    return {"is_impossible": not answers, **row, "answers": answers}


def _answer(value: object, context: str, at: str, number: int) -> Answer:
    at = f"{at}, answer {number}"
    answer = _object(value, at)
    text = _text(answer, "text", at)
    start = _required(answer, "answer_start", at)
    if not isinstance(start, int) or isinstance(start, bool) or start < 0:
        mend = "give the number of characters before the answer in the context, 0 or more"
        _fail(at, f'"answer_start" is {shown(start)}', mend)
    if not context.startswith(text, start):
        _fail_not_there(text, start, context, at)
    return Answer(text, start)


def _fail_not_there(text: str, start: int, context: str, at: str) -> NoReturn:
    there = f"where the context has {shown(context[start : start + len(text)])}"
    if start >= len(context):
        there = f"the context has only {len(context)}"
    fault = f"the answer {shown(text)} is not at character {shown(start)}, {there}"
    places = [match.start() for match in re.finditer(re.escape(text), context)]
    if not places:
        _fail(at, f"{fault}, nor anywhere else in it", "copy the answer from the context letter for letter")
    if hint := _counted_otherwise(text, start, context):
        _fail(at, fault, f"answer_start counts characters, and this one counts {hint}")
    more = f" ({len(places)} places in all)" if len(places) > 1 else ""
    nearest = min(places, key=lambda place: abs(place - start))
    _fail(at, fault, f"the text stands at {nearest}{more}: set answer_start to that")


def _counted_otherwise(text: str, start: int, context: str) -> str | None:
    """The unit `start` seems to be counted in, if not in characters."""
    units = (("bytes of UTF-8", "utf-8", 1), ("UTF-16 units, as JavaScript and Java do", "utf-16-le", 2))
    for unit, encoding, width in units:
        if context.encode(encoding).startswith(text.encode(encoding), min(start, 4 * len(context)) * width):
            return unit
    return None


def _object(value: object, at: str) -> dict:
    if not isinstance(value, dict):
        _fail(at, f"is {_kind(value)}, not an object", f"write the SQuAD layout {LAYOUT}")
    return value


def _required(found: dict, key: str, at: str) -> object:
    if key not in found:
        names = ", ".join(shown(name) for name in list(found)[:6]) or "nothing"
        _fail(at, f'"{key}" is missing (there is {names})', "add it")
    return found[key]


def _list(found: dict, key: str, at: str) -> list:
    value = _required(found, key, at)
    if not isinstance(value, list):
        _fail(at, f'"{key}" is {_kind(value)}, not a list', "put it in [ ]")
    return value


def _items(found: dict, key: str, at: str) -> list:
    """A list that may not be empty."""
    value = _list(found, key, at)
    if not value:
        mends = {"qas": "add questions or remove the paragraph", "paragraphs": "add paragraphs or remove the article"}
        _fail(at, f'"{key}" is empty', mends.get(key, "give at least one article with paragraphs and questions"))
    return value


def _string(found: dict, key: str, at: str) -> str:
    value = _required(found, key, at)
    if not isinstance(value, str):
        _fail(at, f'"{key}" is {shown(value)}, not a string', "write text in quotes")
    if not value.isascii() and (surrogate := re.search("[\ud800-\udfff]", value)):
        fault = f'"{key}" has half a character (the lone surrogate U+{ord(surrogate[0]):04X}) at {surrogate.start()}'
        _fail(at, fault, "write the whole character, or its \\u escapes as a pair")
    return value


def _text(found: dict, key: str, at: str) -> str:
    """A string with something in it."""
    value = _string(found, key, at)
    if not value.strip():
        _fail(at, f'"{key}" is blank', "fill it in, or remove the entry it belongs to")
    return value
