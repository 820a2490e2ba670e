"""Prompts: texts that a language model is to continue."""

from os import PathLike
from pathlib import Path

from him.core.messages import fail, shown_source
from him.data.documents import file_documents, read_text_file, whole
from him.data.records import read_pairs


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
