"""Strict readers of documents with their summaries: JSON Lines, CSV and Parquet, told apart by the file's name.

A file is read record by record. What departs from the layout is a `DataError` of one line: what is wrong, in which line
or row, and how to fix it.
"""

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from os import PathLike
from pathlib import Path

from him.core.errors import ConfigError, HimError
from him.core.messages import cause_of, fail, kind, one_line, shown, shown_names, shown_source
from him.data.text_files import Format, fail_empty, faults_of_reading, parse_json, read_lines, text_of

DOCUMENT, SUMMARY, SUMMARIES, ID = "document", "summary", "summaries", "id"
JSON_LINES = Format("JSON Lines", 'one object a line, {"document": ..., "summary": ...}')
CSV = Format("CSV", "a header line document,summary and a row for each pair")
PARQUET = Format("Parquet", "the columns document and summary")
# The csv module stops at cells of 131,072 characters, which a long report exceeds; a C long of 32 bits ends here.
CELL_CHARACTERS = 2**31 - 1

Records = Iterator[tuple[str, Mapping[str, object]]]  # where it stands, such as "line 3", and its fields


@dataclass(frozen=True, slots=True)
class Pair:
    """A document and its summaries: the first is the one to train on, all of them count as references in evaluation.

    There is no summary only where none was required.
    """

    id: str
    document: str
    summaries: tuple[str, ...]


@dataclass(frozen=True)
class PairData:
    """Pairs in file order, whose ids are unique. `source` names the data in messages."""

    pairs: tuple[Pair, ...]
    source: str

    def __len__(self) -> int:
        return len(self.pairs)


@dataclass(frozen=True)
class Fields:
    """Which fields, or columns, of a record hold its texts.

    Raises:
        ConfigError: a name is blank, or both are the same.
    """

    document: str = DOCUMENT
    summary: str = SUMMARY

    def __post_init__(self) -> None:
        for flag, name in (("--document_field", self.document), ("--summary_field", self.summary)):
            if not name.strip():
                raise ConfigError(f"{flag} is blank; give the name of a field of your data, or leave the flag out")
        if self.document == self.summary:
            name = shown(self.document)
            raise ConfigError(f"--document_field and --summary_field are both {name}; name two different fields")

    @classmethod
    def of_flags(
        cls, document_field: str | None, summary_field: str | None, usual: tuple[str, str] = (DOCUMENT, SUMMARY)
    ) -> "Fields":
        """The fields that the two flags name; those of `usual` where a flag is None."""
        named = zip((document_field, summary_field), usual, strict=True)
        return cls(*(default if name is None else name for name, default in named))

    @property
    def references(self) -> str | None:
        """The field with a list of several summaries, "summaries" beside "summary"; other names have none."""
        return SUMMARIES if self.summary == SUMMARY and self.document != SUMMARIES else None

    def missing(self, names: Iterable[str], *, summaries_required: bool) -> list[str]:
        """Which of the fields that have to be there are not among `names`."""
        names = set(names)
        needed = [self.document]
        if summaries_required and self.references not in names:
            needed.append(self.summary)
        return [name for name in needed if name not in names]

    def flag_of(self, name: str) -> str:
        """The flag that names this field."""
        return "--document_field" if name == self.document else "--summary_field"


def read_pairs(
    path: str | PathLike,
    document_field: str | None = None,
    summary_field: str | None = None,
    *,
    summaries_required: bool = True,
) -> PairData:
    """Reads and checks a file of documents with summaries.

    A record has a document and a summary, both text. Several references of a summary are a list in `summaries` beside
    or instead of `summary`, or in place of the summary itself; of these repeated and blank ones are dropped. `id`, a
    string or a whole number, names a record; without it that is the number of the record, counted from 0.

    Args:
        path: a UTF-8 file that ends in .jsonl (one object a line; blank lines are skipped), .csv (commas between
            cells, a header line, line breaks in quoted cells) or .parquet.
        document_field: the field or column with the document; None: `document`.
        summary_field: the field or column with the summary; None: `summary`.
        summaries_required: False also takes records without a summary, to predict on.

    Raises:
        ConfigError: the two fields are one, or a name is blank.
        DataError: the file cannot be read, is not what its name says, or a record is not sound; the first fault found.
    """
    fields = Fields.of_flags(document_field, summary_field)
    source = shown_source(path)
    records = _reader(path, source)(path, source, fields, summaries_required)
    return pairs_from_records(records, source, fields, summaries_required=summaries_required)


def pairs_from_records(records: Records, source: str, fields: Fields, *, summaries_required: bool = True) -> PairData:
    """The same checks for records that are read already.

    Args:
        records: for each its place, such as "row 3", and its fields.
        source: names the data in messages.
        fields: which fields to take.
        summaries_required: False also takes records without a summary.

    Raises:
        DataError: a record is not sound, the first fault found, or there is none.
    """
    place_of_id: dict[str, str] = {}
    pairs: list[Pair] = []
    for number, (place, record) in enumerate(records):
        at = f"{source}: {place}"
        if missing := fields.missing(record, summaries_required=summaries_required):
            fault = f"{shown(missing[0])} is missing (there is {shown_names(record)})"
            fail(at, fault, f"add it, or name its field with {fields.flag_of(missing[0])}")
        identifier = _id(record, at) if ID in record else str(number)
        first = place_of_id.setdefault(identifier, place)
        if len(place_of_id) == len(pairs):
            fail(at, f"the id {shown(identifier)} is that of {first} already", "give each record an id of its own")
        document = _text(record, fields.document, fields, at)
        pairs.append(Pair(identifier, document, _summaries(record, fields, summaries_required, at)))
    if not pairs:
        fail(source, "there is no record in it", "give at least one document with its summary")
    return PairData(tuple(pairs), source)


def _id(record: Mapping[str, object], at: str) -> str:
    value = record[ID]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        fail(at, f'"{ID}" is {shown(value)}, neither text nor a whole number', "correct it, or leave the field out")
    return text_of(record, ID, at)


def _text(record: Mapping[str, object], name: str, fields: Fields, at: str) -> str:
    if not isinstance(record[name], str):
        fix = f"write a string there, or name another field with {fields.flag_of(name)}"
        fail(at, f"{shown(name)} is {shown(record[name])}, not text", fix)
    return text_of(record, name, at)


def _summaries(record: Mapping[str, object], fields: Fields, required: bool, at: str) -> tuple[str, ...]:
    """All references without repeats, the one in the summary's own field first."""
    name, several = fields.summary, fields.references
    own = record.get(name)
    texts: list[str] = []
    if isinstance(own, list):
        texts += _list(record, name, fields, at)
    elif own is not None and not (isinstance(own, str) and not own.strip()):  # a blank one is reported below
        texts.append(_text(record, name, fields, at))
    if several is not None and record.get(several) is not None:
        if not isinstance(record[several], list):
            fix = f"put its texts in [ ], or rename the field if it is no summary, or give {fields.flag_of(name)}"
            fail(at, f"{shown(several)} is {kind(record[several])}, not a list", fix)
        texts += _list(record, several, fields, at)
    if not texts and required:
        present = name if name in record else several
        if isinstance(record[present], list):
            fail(at, f"{shown(present)} has no text in it", "fill it in, or remove the record")
        _text(record, present, fields, at)
    return tuple(dict.fromkeys(texts))


def _list(record: Mapping[str, object], name: str, fields: Fields, at: str) -> list[str]:
    """The texts of a list that are not blank."""
    texts = []
    for number, value in enumerate(record[name], start=1):
        if not isinstance(value, str):
            fix = f"write a list of strings, or name another field with {fields.flag_of(fields.summary)}"
            fail(at, f"{shown(name)}, text {number}: is {shown(value)}, not text", fix)
        if value.strip():
            texts.append(text_of({name: value}, name, at))
    return texts


def _reader(path: str | PathLike, source: str) -> Callable[..., Records]:
    suffix = Path(path).suffix.lower()
    if suffix in READERS:
        return READERS[suffix]
    if Path(path).is_dir():
        fail(source, "is a folder, not a file", "name a .jsonl, .csv or .parquet file in it")
    fix = "give a file that ends in .jsonl, .csv or .parquet"
    if suffix == ".json":
        fix = "write one object a line, as `jq -c '.[]'` does, and let its name end in .jsonl"
    elif suffix in (".gz", ".bz2", ".xz", ".zst", ".zip"):
        fix = "unpack it first"
    fault = f"the ending {shown(suffix)} of its name tells no format" if suffix else "its name has no ending"
    fail(source, fault, fix)


def _json_lines(path: str | PathLike, source: str, fields: Fields, summaries_required: bool) -> Records:
    is_first = True
    for number, line in enumerate(read_lines(path, JSON_LINES), start=1):
        if not line.strip():
            continue
        where = f"line {number}"
        if is_first and line.lstrip().startswith("["):
            fix = "write one object a line, without [ ] and commas around them, as `jq -c '.[]'` does"
            fail(f"{source}: {where}", "a JSON array begins, not an object", fix)
        is_first = False
        record = parse_json(line.rstrip("\r\n"), source, JSON_LINES, first_line=number)
        if not isinstance(record, dict):
            fail(f"{source}: {where}", f"is {kind(record)}, not an object", f"write {JSON_LINES.layout}")
        yield where, record


def _csv_rows(path: str | PathLike, source: str, fields: Fields, summaries_required: bool) -> Records:
    header: list[str] | None = None
    num_rows = 0
    for place, row in _csv_cells(path, source):
        if header is None:
            header = row
            _check_columns(header, f"{source}: {place}", fields, summaries_required)
            continue
        if len(row) != len(header):
            fault = f"has {len(row)} cells, and the header line {len(header)}"
            fail(f"{source}: {place}", fault, 'put a text with commas, quotes or line breaks in "quotes"')
        num_rows += 1
        # A cell is one text: a column "summaries" holds no list, so it is left aside.
        yield place, {name: cell for name, cell in zip(header, row, strict=True) if name != fields.references}
    if header is not None and not num_rows:
        fail(source, "has a header line and no row below it", "give at least one pair")


def _csv_cells(path: str | PathLike, source: str) -> Iterator[tuple[str, list[str]]]:
    """Rows that are not blank, with the line in which each begins."""
    reader = csv.reader(read_lines(path, CSV), strict=True)
    while True:
        place = f"line {reader.line_num + 1}"
        before = csv.field_size_limit(CELL_CHARACTERS)
        try:
            row = next(reader, None)
        except csv.Error as error:
            if "new-line character" in str(error):
                fail(f"{source}: {place}", "has a line end of CR alone", "save the file with LF or CR LF")
            fault = f"not valid CSV ({one_line(str(error))})"
            fail(f"{source}: {place}", fault, 'write a quote inside a quoted cell twice, "", and close each cell')
        finally:
            csv.field_size_limit(before)
        if row is None:
            return
        if row:
            yield place, row


def _check_columns(header: Sequence[str], at: str, fields: Fields, summaries_required: bool) -> None:
    there = set(header) - {fields.references}
    if missing := fields.missing(there, summaries_required=summaries_required):
        fault = f"the header line has no column {shown(missing[0])} (there is {shown_names(header)})"
        flag = fields.flag_of(missing[0])
        if len(header) == 1 and any(mark in header[0] for mark in ";\t|"):
            fail(at, fault, "save the file with commas between the cells")
        fail(at, fault, f"add a header line if there is none, or name the column with {flag}")
    _check_once(header, at, fields)


def _check_once(names: Sequence[str], at: str, fields: Fields) -> None:
    for name in (fields.document, fields.summary, ID):
        if list(names).count(name) > 1:
            fail(at, f"there are several columns {shown(name)}", "rename all but one of them")


def _parquet_rows(path: str | PathLike, source: str, fields: Fields, summaries_required: bool) -> Records:
    with faults_of_reading(source, PARQUET), open(path, "rb") as file:
        head = file.read(4)
    if not head:
        fail_empty(source, PARQUET)
    if head != b"PAR1":
        fail(source, "not a Parquet file, which begins with PAR1", "give it the ending of what it is, .jsonl or .csv")
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(str(path)) as file:
            names = file.schema_arrow.names
            if missing := fields.missing(names, summaries_required=summaries_required):
                fault = f"has no column {shown(missing[0])} (there is {shown_names(names)})"
                fail(source, fault, f"name the column with {fields.flag_of(missing[0])}")
            _check_once(names, source, fields)
            wanted = [name for name in (ID, fields.document, fields.summary, fields.references) if name in names]
            batches = file.iter_batches(batch_size=1024, columns=wanted)
            rows = chain.from_iterable(batch.to_pylist() for batch in batches)
            for number, row in enumerate(rows, start=1):
                yield f"row {number}", row
    except HimError:
        raise
    except Exception as error:  # of a damaged file: errors of Arrow, of the operating system, of decoding
        reason = cause_of(error)
        fail(source, f"the Parquet file cannot be read ({reason})", "it is damaged or cut short: write it again")


READERS: dict[str, Callable[..., Records]] = {
    **dict.fromkeys((".jsonl", ".jsonlines", ".json-lines"), _json_lines),
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}
