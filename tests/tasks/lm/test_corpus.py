"""The corpus as tokens: nothing lost or added between documents, made once, whole or not at all, in little memory."""

import errno
import json
import multiprocessing
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from him.config import Config
from him.core.errors import ConfigError, DataError
from him.data.documents import text_documents
from him.data.sources import Splits
from him.tasks.lm import corpus
from him.tasks.lm.corpus import cut_pieces, prepare_corpus
from him.tasks.lm.sources import load_corpus
from him.text.tokenizer import SPECIAL_TOKENS, decode
from him.text.training import train_tokenizer

REPOSITORY = Path(__file__).parents[3]
SHARED = REPOSITORY.parent / "shared" / "data"
TRAIN = ["The cat sat.\n\nThe dog [SEP] ran é 東京 😀\r\n", " \n", "one word\n" * 40, "x"]
VALIDATION = ["The cat ran.", "\u2028 end \n"]
SEP_ID = 3


def of_texts(train: list[str] = TRAIN, validation: list[str] = VALIDATION) -> Splits:
    return Splits(text_documents(train, "train"), text_documents(validation, "validation"))


def documents_in(tokenizer: Tokenizer, ids: np.ndarray) -> list[str]:
    """The texts between the end-of-text ids."""
    starts = np.flatnonzero(ids == SEP_ID)
    return [decode(tokenizer, part[1:]) for part in np.split(ids, starts)[1:]]


@pytest.fixture
def no_building(monkeypatch):
    """Whoever builds fails."""

    def refuse() -> None:
        monkeypatch.setattr(corpus, "_build", lambda *args: pytest.fail("built"))
        monkeypatch.setattr(corpus, "train_tokenizer", lambda *args: pytest.fail("trained"))

    return refuse


# --- the tokens -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bpe", "char"])
@pytest.mark.parametrize(("piece", "batch"), [(2**15, 2**19), (8, 64), (8, 1)])
def test_documents_come_back(tmp_path, monkeypatch, kind, piece, batch):
    """Also in small pieces and batches; the first id is end-of-text, and one stands before each document."""
    monkeypatch.setattr(corpus, "BATCH_CHARACTERS", batch)
    monkeypatch.setattr(cut_pieces, "__defaults__", (piece,))
    made = prepare_corpus(of_texts(), None, kind, 300, tmp_path)
    for text, documents in ((made.train, TRAIN), (made.validation, VALIDATION)):
        assert text.ids[0] == SEP_ID and text.ids.dtype == np.uint16 and text.ids.ndim == 1
        assert documents_in(made.tokenizer, text.ids) == documents
        assert text.num_bytes == sum(len(document.encode()) for document in documents)
        assert text.num_documents == len(documents)
        assert (text.ids < made.tokenizer.get_vocab_size()).all()


@pytest.mark.parametrize("kind", ["bpe", "char", "wordpiece"])
def test_ids_are_those_of_whole_documents(tmp_path, monkeypatch, kind):
    """Pieces are cut where the tokenizer cuts anyway."""
    train = [" ".join(["The cat sat.", "It's", "don't!\n\n", "3,500\n", "  indented\r\n"] * 50), *TRAIN]
    monkeypatch.setattr(cut_pieces, "__defaults__", (40,))
    made = prepare_corpus(of_texts(train), None, kind, 300, tmp_path)
    expected = []
    for document in train:
        expected += [SEP_ID, *made.tokenizer.encode(document, add_special_tokens=False).ids]
    np.testing.assert_array_equal(made.train.ids, expected)


def test_ids_are_mapped_and_cannot_be_written(tmp_path):
    made = prepare_corpus(of_texts(), None, "char", 300, tmp_path)
    assert isinstance(made.train.ids, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        made.train.ids[0] = 0


def test_tokenizer_is_trained_on_the_training_part_only(tmp_path):
    made = prepare_corpus(of_texts(["abcab"], ["zzzz"]), None, "char", 300, tmp_path)
    assert {token for token in made.tokenizer.get_vocab() if len(token) == 1} == {"a", "b", "c"}
    assert documents_in(made.tokenizer, made.validation.ids) == ["zzzz"]


def test_only_wordpiece_changes_the_case(tmp_path):
    found = {
        kind: documents_in(made.tokenizer, made.train.ids)[0]
        for kind in ("wordpiece", "bpe", "char")
        for made in [prepare_corpus(of_texts(["The Cat The Cat"]), None, kind, 300, tmp_path)]
    }
    assert found == {"wordpiece": "the cat the cat", "bpe": "The Cat The Cat", "char": "The Cat The Cat"}


def test_a_large_corpus_is_trained_on_in_part(tmp_path, monkeypatch):
    """Spread evenly: a quarter of the bytes, from all four kinds of documents."""
    monkeypatch.setattr(corpus, "MAX_TRAINING_BYTES", 1000)
    documents = text_documents([character * 10 for character in "abcd" for _ in range(100)], "train")
    pieces = list(corpus._TrainingText(documents))
    assert 990 <= sum(map(len, pieces)) <= 1010
    assert {character: pieces.count(character * 10) for character in "abcd"} == dict.fromkeys("abcd", 25)
    assert pieces == list(corpus._TrainingText(documents))
    monkeypatch.setattr(corpus, "MAX_TRAINING_BYTES", 4000)
    assert list(corpus._TrainingText(documents)) == list(documents)


# --- pieces -----------------------------------------------------------------------------------------------------------


@given(text=st.text(st.sampled_from("ab \n\té😀")), sizes=st.lists(st.integers(0, 7)), size=st.integers(2, 12))
@settings(max_examples=500, deadline=None)
def test_pieces_are_the_text_whatever_the_blocks(text, sizes, size):
    blocks, start = [], 0
    for width in sizes:
        blocks.append(text[start : start + width])
        start += width
    blocks.append(text[start:])
    pieces = list(cut_pieces(iter(blocks), size))
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= size for piece in pieces)
    assert pieces == list(cut_pieces(iter([text]), size))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("aaaaa\nb ccc", ["aaaaa", "\nb ccc"]),  # a line end rather than the later space
        ("aaa bbb ccc", ["aaa bbb", " ccc"]),
        ("aaaaa \n\n bb", ["aaaaa", " \n\n bb"]),  # the white space stays together
        ("aaaaaaaaaaa", ["aaaaaaaa", "aaa"]),
        ("\n\n\n\n\n\n\n\n\n\n", ["\n" * 8, "\n" * 2]),
        ("aaaaaaaa\nb", ["aaaaaaaa", "\nb"]),
        ("aaaaaaaa", ["aaaaaaaa"]),
        ("", []),
    ],
)
def test_pieces_end_before_white_space(text, expected):
    assert list(cut_pieces(iter([text]), 8)) == expected


# --- a given tokenizer ------------------------------------------------------------------------------------------------


def test_given_tokenizer(tmp_path):
    given = train_tokenizer(["the cat sat"], 300, "wordpiece")
    made = prepare_corpus(of_texts(["the [SEP] cat"]), given, "bpe", 8000, tmp_path)
    assert made.tokenizer.get_vocab() == given.get_vocab()
    # Text is text: there is one end-of-text, and the cached tokenizer agrees.
    for tokenizer in (made.tokenizer, prepare_corpus(of_texts(["the [SEP] cat"]), given, "", 1, tmp_path).tokenizer):
        assert made.train.ids.tolist() == [SEP_ID, *tokenizer.encode("the [SEP] cat", add_special_tokens=False).ids]
    assert made.train.ids.tolist().count(SEP_ID) == 1
    assert SEP_ID in given.encode("[SEP]", add_special_tokens=False).ids  # the given one is as it was


def of_size(vocab_size: int) -> Tokenizer:
    """Words by number, the last of which is "last"."""
    words = [*SPECIAL_TOKENS, *(f"w{number}" for number in range(vocab_size - 6)), "last"]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, "uint16"), (65_537, "uint32")])
def test_width_of_the_ids(tmp_path, vocab_size, dtype):
    for _ in range(2):  # built, and read
        made = prepare_corpus(of_texts(["last w0"], ["last"]), of_size(vocab_size), "", 0, tmp_path)
        assert made.train.ids.dtype == dtype
        assert made.train.ids.tolist() == [SEP_ID, vocab_size - 1, 5]


def test_width_of_the_ids_of_a_large_vocabulary(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{number}" for number in range(4, 70_000)), "last"]
    given = Tokenizer(models.WordLevel({word: id for id, word in enumerate(words)}, unk_token="[UNK]"))
    made = prepare_corpus(of_texts(["last"], ["last"]), given, "", 0, tmp_path)
    assert made.train.ids.tolist() == [3, 70_000]


def test_tokenizer_without_end_of_text(tmp_path):
    given = Tokenizer(models.WordLevel({"[UNK]": 1, "cat": 0}, unk_token="[UNK]"))
    with pytest.raises(ConfigError, match=r"^--tokenizer: it has no \[SEP\] token; use one of"):
        prepare_corpus(of_texts(), given, "", 0, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_text_without_a_token(tmp_path):
    given = train_tokenizer(["the cat sat"], 300, "wordpiece")
    fault = "validation: the tokenizer finds no token in it; use another tokenizer, or other text"
    with pytest.raises(DataError, match=f"^{re.escape(fault)}$"):
        prepare_corpus(of_texts(validation=["\n\n"]), given, "", 0, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("kind", "vocab_size"), [("bpe", 100), ("unigram", 300)])
def test_tokenizer_that_cannot_be_trained(tmp_path, kind, vocab_size):
    with pytest.raises(ConfigError, match="^--(vocab_size 100 is too small|tokenizer_type unigram is unknown)"):
        prepare_corpus(of_texts(), None, kind, vocab_size, tmp_path)


# --- the cache --------------------------------------------------------------------------------------------------------


def same(one, other) -> bool:
    return (
        all(
            np.array_equal(a.ids, b.ids) and (a.num_bytes, a.num_documents) == (b.num_bytes, b.num_documents)
            for a, b in ((one.train, other.train), (one.validation, other.validation))
        )
        and one.tokenizer.to_str() == other.tokenizer.to_str()
        and one.digest == other.digest
    )


def test_a_second_call_reads(tmp_path, no_building):
    made = prepare_corpus(of_texts(), None, "bpe", 300, tmp_path / "deep" / "cache")
    assert [path.name for path in (tmp_path / "deep" / "cache").iterdir()] == [f"corpus-{made.digest}"]
    no_building()
    assert same(prepare_corpus(of_texts(), None, "bpe", 300, tmp_path / "deep" / "cache"), made)


def test_what_the_cache_depends_on(tmp_path):
    """And on nothing else: not on names, nor on how a tokenizer would be trained where one is given."""
    given = train_tokenizer(TRAIN, 300, "wordpiece")
    others = [train_tokenizer(["other"], 300, "wordpiece"), train_tokenizer(TRAIN, 300, "wordpiece", lowercase=False)]
    calls = [
        (of_texts(), None, "bpe", 300),
        (of_texts(), None, "char", 300),
        (of_texts(), None, "bpe", 301),
        (of_texts(), given, "bpe", 300),
        *((of_texts(), other, "bpe", 300) for other in others),
        (of_texts([*TRAIN, "y"]), None, "bpe", 300),
        (of_texts(TRAIN[::-1]), None, "bpe", 300),
        (of_texts(validation=["y"]), None, "bpe", 300),
        (of_texts(VALIDATION, TRAIN), None, "bpe", 300),
    ]
    digests = [prepare_corpus(*call, tmp_path).digest for call in calls]
    assert len(set(digests)) == len(calls) == len(list(tmp_path.iterdir()))
    renamed = Splits(text_documents(TRAIN, "x"), text_documents(VALIDATION, "y"), ("note",))
    assert prepare_corpus(renamed, None, "bpe", 300, tmp_path).digest == digests[0]
    assert prepare_corpus(of_texts(), given, "char", 999, tmp_path).digest == digests[3]


def test_a_new_version_is_built_anew(tmp_path, monkeypatch):
    first = prepare_corpus(of_texts(), None, "bpe", 300, tmp_path)
    monkeypatch.setattr(corpus, "CORPUS_VERSION", corpus.CORPUS_VERSION + 1)
    assert prepare_corpus(of_texts(), None, "bpe", 300, tmp_path).digest != first.digest


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [cut, Path.unlink, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("name", ["train.bin", "validation.bin", "tokenizer.json", "meta.json"])
def test_a_damaged_cache_is_built_anew(tmp_path, no_building, name, damage):
    first = prepare_corpus(of_texts(), None, "char", 300, tmp_path)
    whole = prepare_corpus(of_texts(), None, "char", 300, tmp_path / "other")
    damage(tmp_path / f"corpus-{first.digest}" / name)
    assert same(prepare_corpus(of_texts(), None, "char", 300, tmp_path), whole)
    no_building()
    assert same(prepare_corpus(of_texts(), None, "char", 300, tmp_path), whole)


@pytest.mark.parametrize(
    "meta",
    ["", "[]", "3", '"x"', "null", "{}", '{"file_bytes": 3}', '{"file_bytes": []}', '{"file_bytes": {}}']
    + [
        '{"file_bytes": {}, "dtype": "no", "parts": {}}',
        '{"file_bytes": {}, "dtype": "uint16", "parts": {"train": 3}}',
    ],
)
def test_a_senseless_meta_file(tmp_path, meta):
    first = prepare_corpus(of_texts(), None, "char", 300, tmp_path)
    (tmp_path / f"corpus-{first.digest}" / "meta.json").write_text(meta)
    assert documents_in(first.tokenizer, prepare_corpus(of_texts(), None, "char", 300, tmp_path).train.ids) == TRAIN


def test_a_damaged_tokenizer_of_the_right_size(tmp_path):
    first = prepare_corpus(of_texts(), None, "char", 300, tmp_path)
    path = tmp_path / f"corpus-{first.digest}" / "tokenizer.json"
    path.write_bytes(b"x" * path.stat().st_size)
    again = prepare_corpus(of_texts(), None, "char", 300, tmp_path)
    assert again.tokenizer.to_str() == first.tokenizer.to_str()


@pytest.mark.parametrize(
    "fault", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), MemoryError()]
)
def test_a_crash_in_the_middle_leaves_nothing(tmp_path, monkeypatch, fault):
    real = corpus._write_ids

    def write(path, *rest):
        if path.name == "validation.bin":
            raise fault
        real(path, *rest)

    monkeypatch.setattr(corpus, "_write_ids", write)
    with pytest.raises(type(fault)):
        prepare_corpus(of_texts(), None, "char", 300, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_first_of_two_writers_wins(tmp_path, monkeypatch):
    real = corpus._write_ids

    def write(path, *rest):
        monkeypatch.setattr(corpus, "_write_ids", real)
        prepare_corpus(of_texts(), None, "char", 300, tmp_path)  # another process, meanwhile
        real(path, *rest)

    monkeypatch.setattr(corpus, "_write_ids", write)
    made = prepare_corpus(of_texts(), None, "char", 300, tmp_path)
    assert documents_in(made.tokenizer, made.train.ids) == TRAIN
    assert [path.name for path in tmp_path.iterdir()] == [f"corpus-{made.digest}"]


def _prepare(cache: Path) -> list[int]:
    return prepare_corpus(of_texts(), None, "bpe", 300, cache).train.ids.tolist()


def test_processes_at_the_same_time(tmp_path):
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        found = pool.map(_prepare, [tmp_path] * 3)
    assert found[0] == found[1] == found[2] == _prepare(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


# --- size -------------------------------------------------------------------------------------------------------------

MEASURE = r"""
import json, re, sys, time
from pathlib import Path
from him.core.compute import keep_freed_memory
from him.config import Config
from him.tasks.lm.corpus import prepare_corpus
from him.tasks.lm.sources import load_corpus
keep_freed_memory()
started_at = time.perf_counter()
made = prepare_corpus(load_corpus(Config(task_type="lm", corpus_dir=sys.argv[1])), None, "bpe", 8192, Path(sys.argv[2]))
seconds = time.perf_counter() - started_at
peak_kb = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]
print(json.dumps([int(peak_kb) / 1024, seconds, len(made.train.ids)]))
"""


def measured(folder: Path, cache: Path) -> tuple[float, float, int]:
    """Peak memory in MiB, seconds without imports, and training tokens of a process of its own.

    Not by `ru_maxrss`, which in a child is no less than what the parent had.
    """
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder), str(cache)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    return tuple(json.loads(run.stdout))


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="the shared data is not here")
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_memory_and_second_start(tmp_path):
    """25 MB of text need less than 100 MB more than 1 MB does, and are there at once when built before."""
    (tmp_path / "small").mkdir()
    for path in sorted((SHARED / "corpus").iterdir())[:30]:
        (tmp_path / "small" / path.name).write_bytes(path.read_bytes())
    small, _, _ = measured(tmp_path / "small", tmp_path / "cache")
    large, _, num_tokens = measured(SHARED / "corpus", tmp_path / "cache")
    assert large - small < 100
    again, seconds, same_tokens = measured(SHARED / "corpus", tmp_path / "cache")
    assert seconds < 1 and num_tokens == same_tokens
    assert again < small


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="the shared data is not here")
@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_a_real_text_comes_back(tmp_path, kind):
    path = SHARED / "tinyshakespeare" / "input.txt"
    started_at = time.perf_counter()
    splits = load_corpus(Config(task_type="lm", train_file=[str(path)]))
    made = prepare_corpus(splits, None, kind, 8192, tmp_path)
    assert time.perf_counter() - started_at < 30
    texts = [documents_in(made.tokenizer, text.ids) for text in (made.train, made.validation)]
    assert b"".join("".join(text).encode("utf-8") for text in texts) == path.read_bytes()
    assert made.train.num_bytes + made.validation.num_bytes == path.stat().st_size
    assert [len(text) for text in texts] == [1, 1]
