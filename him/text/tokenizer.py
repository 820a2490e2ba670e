"""Tokenizers of the `tokenizers` package: loaded, and used to turn texts into ids with character offsets and back."""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from him.core.errors import CheckpointError, ConfigError
from him.core.hub import hub_file
from him.core.messages import cause_of
from him.core.ragged import Ragged

PAD, UNK, CLS, SEP, MASK = SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# Names by which other families call the same roles.
OTHER_NAMES = {PAD: ("<pad>",), UNK: ("<unk>",), CLS: ("<s>",), SEP: ("</s>",), MASK: ("<mask>",)}
ALL_SPECIAL = {name for token in SPECIAL_TOKENS for name in (token, *OTHER_NAMES[token])}

WHITE_SPACE = re.compile(r"[ĠĊčĉ▁\s]")  # space, line feed, carriage return, tab on bytes; a space of SentencePiece
TEXTS_AT_ONCE = 1024
TRIED = "A mill, built in 1902: 12 % of \U0010fffd."  # has a character that no vocabulary knows


def load_tokenizer(name_or_path: str) -> Tokenizer:
    """Loads a tokenizer from a file, from a folder that holds `tokenizer.json`, or by its name from the hub.

    Raises:
        ConfigError: it is not there, not a tokenizer, or lacks a special token that HIM needs.
    """
    path = Path(name_or_path)
    try:
        is_folder = path.is_dir()
        file = path / "tokenizer.json" if is_folder else path
        if file.exists():
            tokenizer = _sound(lambda: Tokenizer.from_file(str(file)))
        elif is_folder or os.path.sep in name_or_path and path.parent.exists():
            raise ConfigError(f"--tokenizer {name_or_path}: no such file or folder with a tokenizer.json")
        else:
            tokenizer = _sound(lambda: Tokenizer.from_file(str(hub_file(name_or_path, "tokenizer.json"))))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--tokenizer {name_or_path}: cannot be loaded ({error}); name a folder with a tokenizer.json, a "
            "tokenizer.json, or a hub name that can be reached"
        ) from None
    for token in SPECIAL_TOKENS:
        special_id(tokenizer, token)
    return tokenizer


def parse_tokenizer(path: Path) -> Tokenizer:
    """Reads the tokenizer that was saved with a run.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        return _sound(lambda: Tokenizer.from_str(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise CheckpointError(f"{path}: cannot be read as a tokenizer ({error}); train the run again") from None


def _sound(read: Callable[[], Tokenizer]) -> Tokenizer:
    """A tokenizer that does its work, without padding and truncation, whose lengths a file may set to any number.

    Raises:
        ValueError: it cannot be read, or fails on a text; one line.
    """
    try:
        tokenizer = read()
        ids = tokenizer.get_vocab().values()
        if sorted(ids) != list(range(len(ids))):  # a model has a row for each token; writing one of id 4e9 aborts
            raise ValueError(f"the ids of its {len(ids)} tokens are not 0 to {len(ids) - 1}")
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.decode(tokenizer.encode(TRIED, add_special_tokens=False).ids)
        return tokenizer
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the package raises bare Exceptions, and panics that are not even that
        raise ValueError(cause_of(error)) from None


def special_id(tokenizer: Tokenizer, token: str) -> int:
    """Id of one of `SPECIAL_TOKENS`, by its BERT name or by that of the RoBERTa family.

    Raises:
        ConfigError: the tokenizer has neither.
    """
    for name in (token, *OTHER_NAMES[token]):
        if (found := tokenizer.token_to_id(name)) is not None:
            return found
    raise ConfigError(f"--tokenizer: it has no {token} token; use one of the BERT or RoBERTa families")


def plain_text_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that takes "[SEP]" and the like within a text for ordinary text; the setting is not saved with it."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.encode_special_tokens = True
    return copy


def decode(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """The text of ids, without special tokens; bytes that are no UTF-8 become U+FFFD."""
    special = {tokenizer.token_to_id(name) for name in ALL_SPECIAL}
    return tokenizer.decode([id for id in map(int, ids) if id not in special])


def piece_texts(tokenizer: Tokenizer) -> list[str]:
    """The text of each token, with a space before it where it begins a word; "" for special tokens.

    All white space is a space; what else is no ASCII is as the tokenizer writes it, the same for the same text.
    """
    kind = type(tokenizer.model).__name__
    texts = []
    for id in range(tokenizer.get_vocab_size()):
        token = tokenizer.id_to_token(id)
        if token in ALL_SPECIAL:
            texts.append("")
        elif kind == "WordPiece":
            texts.append(token[2:] if token.startswith("##") else f" {token}")
        else:
            texts.append(WHITE_SPACE.sub(" ", token))
    return texts


@dataclass(frozen=True)
class EncodedTexts:
    """Texts as pieces, without special tokens; a row is a text, an element a piece.

    Attributes:
        ids: int32 token ids.
        starts: int32 character at which the piece starts.
        ends: int32 character after its last.
        words: int32 index of the word that it is part of, counted from 0 in each text.
    """

    ids: Ragged
    starts: Ragged
    ends: Ragged
    words: Ragged

    def __len__(self) -> int:
        return len(self.ids)


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str]) -> EncodedTexts:
    """Encodes texts in parallel, each once."""
    encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    spans = [encoding.offsets for encoding in encodings]
    return EncodedTexts(
        ids=Ragged.from_rows([encoding.ids for encoding in encodings], "int32"),
        starts=Ragged.from_rows([[start for start, _ in row] for row in spans], "int32"),
        ends=Ragged.from_rows([[end for _, end in row] for row in spans], "int32"),
        words=Ragged.from_rows([_without_gaps(encoding.word_ids) for encoding in encodings], "int32"),
    )


def encode_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> Ragged:
    """The int32 ids of texts without special tokens; some at a time, because the package keeps 100 bytes a token."""
    rows = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        found = tokenizer.encode_batch_fast(list(texts[start : start + TEXTS_AT_ONCE]), add_special_tokens=False)
        rows += [np.array(encoding.ids, np.int32) for encoding in found]
    return Ragged.from_arrays(rows)


def _without_gaps(word_ids: Sequence[int]) -> list[int]:
    """Word numbers counted anew: words of which no piece is left (unknown ones, without an [UNK]) have none."""
    if not word_ids or word_ids[-1] + 1 == len(set(word_ids)):
        return word_ids
    numbers = {word: number for number, word in enumerate(dict.fromkeys(word_ids))}
    return [numbers[word] for word in word_ids]
