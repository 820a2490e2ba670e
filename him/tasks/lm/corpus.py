"""Corpus of a language model as tokens: made once, kept on disk, and mapped into memory afterwards."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from him.config.options.lm import SPEC
from him.core.files import add_folder, verify_folder
from him.core.messages import fail
from him.data.cache import cached_folder, fingerprint, load_cached
from him.data.documents import Documents
from him.data.sources import Splits
from him.text.tokenizer import SEP, parse_tokenizer, plain_text_tokenizer, special_id
from him.text.training import train_tokenizer

CORPUS_VERSION = 1  # counted up when the tokens of the same data come out differently
MAX_TRAINING_BYTES = 50 * 10**6  # text that a tokenizer is trained on; more changes few of its tokens
PIECE_CHARACTERS = 2**15
BATCH_CHARACTERS = 2**19  # encoded at once; a character takes 100 bytes there where it is a token of its own


@dataclass(frozen=True)
class TokenText:
    """The tokens of documents in a row: for each the end-of-text id, then its tokens.

    The first id is context only; every other one is a target once, the end-of-text before a document among them.

    Attributes:
        ids: (tokens,) uint16, or uint32 for vocabularies of more than 65,536; mapped into memory, read-only.
        num_bytes: of all documents, in UTF-8, as they were before the tokenizer changed anything.
        num_documents: how many there are.
    """

    ids: np.ndarray
    num_bytes: int
    num_documents: int


@dataclass(frozen=True)
class PreparedCorpus:
    """Everything that is made from the corpus before training.

    Attributes:
        tokenizer: the given one, or one trained on the training documents; it takes special tokens within texts for
            ordinary text (see `plain_text_tokenizer`).
        train, validation: the tokens of both parts.
        digest: hash of all that made them, as 32 hexadecimal digits.
        content: hash of the text and of the tokenizer itself, the same whether that was trained or given.
    """

    tokenizer: Tokenizer
    train: TokenText
    validation: TokenText
    digest: str
    content: str


def prepare_corpus(
    splits: Splits[Documents], given: Tokenizer | None, tokenizer_type: str, vocab_size: int, cache_dir: Path
) -> PreparedCorpus:
    """Encodes documents, or takes them from the cache; a damaged cache is built anew.

    Neither the text nor its tokens are ever held in memory as a whole.

    Args:
        splits: the documents.
        given: the tokenizer to use; None trains one, on 50 MB spread evenly over the training documents at most.
        tokenizer_type, vocab_size: of a trained tokenizer, see `train_tokenizer`; only "wordpiece" lower-cases.
        cache_dir: where prepared data is kept, under a hash of all that made it.

    Raises:
        ConfigError: the tokenizer cannot be trained so, or has no [SEP].
        DataError: a part has nothing to predict.
    """
    # A given tokenizer by its content: another one may have come to stand under the same name.
    settings = (tokenizer_type, vocab_size) if given is None else (given.to_str(),)
    digest = fingerprint(CORPUS_VERSION, settings, splits.train.fingerprint, splits.validation.fingerprint)
    text = (splits.train.fingerprint, splits.validation.fingerprint)
    folder = cached_folder(cache_dir, f"{SPEC.cache_prefix}-{digest}")
    if (prepared := load_cached(folder, lambda folder: _load(folder, digest, text))) is not None:
        return prepared
    if given is None:
        lowercase = tokenizer_type == "wordpiece"
        given = train_tokenizer(_TrainingText(splits.train), vocab_size, tokenizer_type, lowercase)
    _build(folder, {"train": splits.train, "validation": splits.validation}, plain_text_tokenizer(given))
    return _load(folder, digest, text)


def encode_documents(documents: Documents, tokenizer: Tokenizer, folder: Path) -> TokenText:
    """Encodes documents that are needed once, by a `plain_text_tokenizer`.

    The folder is made, and holds the tokens as long as they are used.
    """
    _build(folder, {"text": documents}, tokenizer)
    return _load_parts(folder)["text"]


def _load(folder: Path, digest: str, text: tuple[str, str]) -> PreparedCorpus:
    """Raises one of several errors where the folder is not there or not whole."""
    verify_folder(folder)  # a second for some gigabytes; a flipped bit would be trained on, and nobody would know
    tokenizer = plain_text_tokenizer(parse_tokenizer(folder / "tokenizer.json"))
    content = fingerprint(CORPUS_VERSION, (tokenizer.to_str(),), *text)
    return PreparedCorpus(tokenizer, **_load_parts(folder), digest=digest, content=content)


def _load_parts(folder: Path) -> dict[str, TokenText]:
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    found = {name: (folder / name).stat().st_size for name in meta["file_bytes"]}
    if found != meta["file_bytes"]:
        raise ValueError(f"{folder}: {found} instead of {meta['file_bytes']}")
    return {
        part: TokenText(np.memmap(folder / f"{part}.bin", meta["dtype"], "r"), **sizes)
        for part, sizes in meta["parts"].items()
    }


def _build(folder: Path, parts: dict[str, Documents], tokenizer: Tokenizer) -> None:
    """Writes a folder that appears whole or not at all; one that another process has written meanwhile is kept."""
    dtype = np.dtype(np.uint16 if max(tokenizer.get_vocab().values()) < 2**16 else np.uint32)

    def fill(aside: Path) -> None:
        for part, documents in parts.items():
            _write_ids(aside / f"{part}.bin", documents, tokenizer, dtype)
        (aside / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
        meta = {
            "dtype": dtype.name,
            "parts": {
                part: {"num_bytes": documents.num_bytes, "num_documents": len(documents)}
                for part, documents in parts.items()
            },
            "file_bytes": {path.name: path.stat().st_size for path in sorted(aside.iterdir())},
        }
        (aside / "meta.json").write_text(json.dumps(meta), encoding="utf-8")

    add_folder(folder, fill)


def _write_ids(path: Path, documents: Documents, tokenizer: Tokenizer, dtype: np.dtype) -> None:
    end_of_text = np.array([special_id(tokenizer, SEP)], dtype).tobytes()
    with open(path, "wb") as file:
        for batch in _batches(documents):
            encodings = tokenizer.encode_batch_fast([piece for _, piece in batch], add_special_tokens=False)
            for (is_start, _), encoding in zip(batch, encodings, strict=True):
                if is_start:
                    file.write(end_of_text)
                file.write(np.array(encoding.ids, dtype).tobytes())
        if file.tell() < 2 * dtype.itemsize:
            fail(documents.source, "the tokenizer finds no token in it", "use another tokenizer, or other text")


def _batches(documents: Documents) -> Iterator[list[tuple[bool, str]]]:
    """Pieces that are encoded together, in parallel, each with whether a document starts with it."""
    batch, num_characters = [], 0
    for blocks in documents.blocks():
        for number, piece in enumerate(cut_pieces(blocks)):
            batch.append((number == 0, piece))
            num_characters += len(piece)
            if num_characters >= BATCH_CHARACTERS:
                yield batch
                batch, num_characters = [], 0
    if batch:
        yield batch


class _TrainingText:
    """Pieces of documents, spread evenly so that they come to `MAX_TRAINING_BYTES` at most; may be read repeatedly."""

    def __init__(self, documents: Documents) -> None:
        self.documents = documents

    def __iter__(self) -> Iterator[str]:
        share = min(1.0, MAX_TRAINING_BYTES / self.documents.num_bytes)
        pieces = (piece for blocks in self.documents.blocks() for piece in cut_pieces(blocks))
        return (piece for number, piece in enumerate(pieces) if int((number + 1) * share) > int(number * share))


def cut_pieces(blocks: Iterator[str], size: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Cuts a text, which comes in blocks, into pieces of `size` characters at most; joined they are the text.

    A piece ends before white space, at the end of a line if there is one: nothing that GPT-2's pattern or BERT's makes
    a word is cut, so that the tokens are those of the whole text. Without any white space it ends anywhere.
    """
    rest = ""
    for block in blocks:
        rest += block
        start = 0
        while len(rest) - start > size:
            end = _end_of_piece(rest, start + size // 2, start + size)
            yield rest[start:end]
            start = end
        rest = rest[start:]
    if rest:
        yield rest


def _end_of_piece(text: str, lowest: int, highest: int) -> int:
    for mark in ("\n", " "):
        end = text.rfind(mark, lowest, highest + 1)
        while end > lowest and text[end - 1].isspace():
            end -= 1
        if end > lowest:
            return end
    return highest
