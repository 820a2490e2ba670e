"""Text files that a flag names, as documents: a file, a folder of them, or the texts of `--pretrain_files`."""

import os
from collections.abc import Sequence
from pathlib import Path

from him.core.messages import fail, shown, shown_source
from him.data.documents import Documents, TextFile, file_documents, find_text_files, read_text_file, whole

PRETRAIN_FILES = "--pretrain_files"


def check_names(names: Sequence[str]) -> None:
    """Raises DataError if one of `--pretrain_files` is not there; what is in them is checked when they are read."""
    for name in names:
        if not Path(name).exists():
            fix = "name a .txt file, a folder, or a file of the task"
            fail(f"{PRETRAIN_FILES} {name}", "no such file or folder", fix)


def is_text(name: str) -> bool:
    """Whether a name is that of a text file or of a folder."""
    return name.endswith(".txt") or Path(name).is_dir()


def read_texts(name: str) -> list[str]:
    """The text files of one of `--pretrain_files`, whole.

    Raises:
        DataError: there is none, or one cannot be read.
    """
    return list(read_documents(name, PRETRAIN_FILES))


def read_documents(name: str, flag: str) -> Documents:
    """All of a text file, or of the text files in a folder; blank files are left out.

    Args:
        name: of the file or folder.
        flag: that names it, for messages.

    Raises:
        DataError: it is not there, not text, or blank.
    """
    return documents_of_paths(text_paths(name, flag), shown_source(name), [])


def documents_of_paths(paths: Sequence[Path], source: str, notes: list[str]) -> Documents:
    """Whole files as documents, without blank ones.

    Raises:
        DataError: one cannot be read or is not text, or all are blank.
    """
    return file_documents([whole(file) for file in read_text_files(paths, source, notes)], source)


def text_paths(name: str, flag: str) -> list[Path]:
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


def read_text_files(paths: Sequence[Path], source: str, notes: list[str]) -> list[TextFile]:
    """Reads files once, and leaves blank ones out, which a note says."""
    files = [read_text_file(path) for path in paths]
    kept = [file for file in files if not file.is_blank]
    if not kept:
        number = "the file is" if len(files) == 1 else f"all {len(files):,} text files are"
        fail(source, f"{number} blank", "give files with text in them")
    if len(kept) < len(files):
        notes.append(f"left out as blank: {len(files) - len(kept):,} of {len(files):,} files in {source}")
    return kept
