"""Trained tokenizers: the same in every process, lossless where they promise it, and deaf to "[SEP]" in a text."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from him.core.errors import ConfigError
from him.data.sample import squad_sample
from him.text import training as tokenizer_training
from him.text.tokenizer import SPECIAL_TOKENS, decode, encode_texts
from him.text.training import KINDS, MIN_LOSSLESS_SIZE, train_tokenizer

REPOSITORY = Path(__file__).parents[2]
SHAKESPEARE = REPOSITORY.parent / "shared" / "data" / "tinyshakespeare" / "input.txt"
LOSSLESS = ("bpe", "char")
TRAIN = """
import hashlib, sys
from him.data.sample import squad_sample
from him.text.training import train_tokenizer
train, _ = squad_sample(num_train=300, num_validation=1)
texts = [paragraph["context"] for article in train["data"] for paragraph in article["paragraphs"]]
texts += ["Zürich 東京 😀 ﬁne " + chr(945 + number) for number in range(20)]
for lowercase in (True, False):
    made = train_tokenizer(texts, 2000, sys.argv[1], lowercase)
    print(hashlib.sha256(made.to_str().encode()).hexdigest())
"""
HARD = [
    "",
    " ",
    "\n\n  \t\r\n x\u00a0 \u2028",
    "é e\u0301 東京 😀 👩\u200d🚀 \ufeff",
    "\x00\x1c\x7f\x85\uffff\U0010ffff",
    "ÿþĀĠĊ Ġ",  # the characters by which byte-level BPE writes bytes
    "[PAD][UNK] [CLS]x[SEP]\n[MASK]",
    "<0x41><0x00> ▁",
    "don't we'll I'M",
]


@pytest.fixture(scope="module")
def texts():
    train, _ = squad_sample(num_train=300, num_validation=1)
    return [paragraph["context"] for article in train["data"] for paragraph in article["paragraphs"]]


@pytest.fixture(scope="module")
def trained(texts):
    return {kind: train_tokenizer(texts, 600, kind, lowercase=False) for kind in KINDS}


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


# --- all kinds --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_in_every_process(kind):
    """The trainers of `tokenizers` go through hash maps, whose order differs from process to process."""
    found = {
        subprocess.run(
            [sys.executable, "-c", TRAIN, kind],
            cwd=REPOSITORY,
            env={
                **os.environ,
                "PYTHONHASHSEED": str(seed),
                "TOKENIZERS_PARALLELISM": parallel,
                "RAYON_NUM_THREADS": "2",
            },
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed, parallel in ((1, "true"), (2, "true"), (3, "false"))
    }
    assert len(found) == 1
    assert len(set(found.pop().split())) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_come_first(trained, kind):
    vocabulary = trained[kind].get_vocab()
    assert [vocabulary[token] for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    assert len(vocabulary) == 600 or kind == "char" and len(vocabulary) < 600


@pytest.mark.parametrize("kind", KINDS)
def test_an_iterator_will_do(texts, trained, kind):
    assert train_tokenizer(iter(texts), 600, kind, lowercase=False).to_str() == trained[kind].to_str()


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_tokenizer_is_the_same(trained, kind):
    saved = Tokenizer.from_str(trained[kind].to_str())
    for text in HARD:
        assert ids_of(saved, text) == ids_of(trained[kind], text)


def test_unknown_kind():
    message = "--tokenizer_type unigram is unknown; use one of wordpiece, bpe, char"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        train_tokenizer(["a"], 500, "unigram")


# --- WordPiece --------------------------------------------------------------------------------------------------------


def test_wordpiece_is_the_default(texts):
    assert train_tokenizer(texts, 600).to_str() == train_tokenizer(texts, 600, "wordpiece", lowercase=True).to_str()


def test_wordpiece_vocabulary(texts):
    texts = [*texts, "Café Ärger naïve 東京 ﬁne 😀 don't 3,5 %"]
    made = train_tokenizer(texts, 1000)
    vocabulary = made.get_vocab()
    assert len(vocabulary) == made.get_vocab_size() == 1000
    assert not [piece for piece in vocabulary if piece != piece.lower() and piece not in SPECIAL_TOKENS]
    # Every character of the text is there, alone and inside a word: nothing that was trained on is unknown.
    encoded = encode_texts(made, texts)
    assert (encoded.ids.values != made.token_to_id("[UNK]")).all()
    assert encoded.ids.values.size < 0.5 * sum(map(len, texts))


def test_wordpiece_keeps_case_and_accents_if_asked():
    made = train_tokenizer(["Café Café cafe"], 300, lowercase=False)
    assert made.encode("Café", add_special_tokens=False).tokens == ["Café"]
    assert made.encode("CAFE", add_special_tokens=False).tokens == ["[UNK]"]


def test_wordpiece_does_not_know_rare_characters(monkeypatch):
    monkeypatch.setattr(tokenizer_training, "MAX_ALPHABET", 4)  # with the space
    made = train_tokenizer(["aaaa bbb cc d"], 300)
    assert {piece for piece in made.get_vocab() if len(piece) == 1} == {"a", "b", "c"}
    assert made.encode("d", add_special_tokens=False).tokens == ["[UNK]"]
    assert made.encode("a", add_special_tokens=False).tokens == ["a"]


def test_wordpiece_of_text_without_a_character():
    """Not sound data, but no traceback either."""
    made = train_tokenizer(["\x00", " "], 300)
    assert set(made.get_vocab()) == set(SPECIAL_TOKENS)
    assert encode_texts(made, ["cat"]).ids.values.tolist() == [1]


# --- byte-level BPE and characters ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LOSSLESS)
@given(text=st.text())
@settings(max_examples=300, deadline=None)
def test_every_text_comes_back(trained, kind, text):
    ids = ids_of(trained[kind], text)
    assert decode(trained[kind], ids) == text
    assert all(id >= len(SPECIAL_TOKENS) for id in ids)


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("text", HARD)
def test_hard_texts_come_back(trained, kind, text):
    ids = ids_of(trained[kind], text)
    assert decode(trained[kind], ids) == text
    assert all(id >= len(SPECIAL_TOKENS) for id in ids)


@pytest.mark.parametrize("kind", LOSSLESS)
def test_special_tokens_in_the_training_text_are_text(kind):
    """However often it is seen, no merge of characters is a special token."""
    made = train_tokenizer(["[SEP] [MASK][PAD]\n" * 1000], 400, kind, lowercase=False)
    ids = ids_of(made, "[SEP] [MASK][PAD]\n")
    assert min(ids) >= len(SPECIAL_TOKENS)
    assert decode(made, [3, *ids, 0]) == "[SEP] [MASK][PAD]\n"


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize(("text", "lower"), [("The CAT", "the cat"), ("CAFE\u0301", "café"), ("ÄÖ", "äö")])
def test_lower_case(texts, kind, text, lower):
    made = train_tokenizer([*texts, "Café"], 600, kind, lowercase=True)
    assert decode(made, ids_of(made, text)) == lower
    assert not [token for token in made.get_vocab() if token in "ABCDEFG" and kind == "char"]


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("texts", [[], [""], ["\n"]])
def test_without_text_there_are_the_bytes(kind, texts):
    made = train_tokenizer(texts, 300, kind, lowercase=False)
    assert MIN_LOSSLESS_SIZE <= made.get_vocab_size() <= MIN_LOSSLESS_SIZE + 1
    assert decode(made, ids_of(made, "Zürich 😀")) == "Zürich 😀"


@pytest.mark.parametrize("kind", LOSSLESS)
def test_smallest_vocabulary(kind):
    made = train_tokenizer(["the cat sat on the mat"], MIN_LOSSLESS_SIZE, kind, lowercase=False)
    assert made.get_vocab_size() == MIN_LOSSLESS_SIZE == 261
    assert len(ids_of(made, "Zü")) == 3
    message = (
        f"--vocab_size 260 is too small for --tokenizer_type {kind}, which needs 256 bytes and 5 special tokens; "
        "use 261 or more"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        train_tokenizer(["the cat"], 260, kind)


def test_bpe_learns_words():
    made = train_tokenizer(["the cat sat on the mat\n" * 10], 300, "bpe", lowercase=False)
    assert made.encode("the cat", add_special_tokens=False).tokens == ["the", "Ġcat"]
    assert json.loads(made.to_str())["added_tokens"] == []


def test_char_gives_the_most_frequent_their_own_token():
    made = train_tokenizer(["ccc", "bb", "cé", "aa"], MIN_LOSSLESS_SIZE + 3, "char", lowercase=False)
    own = [token for token in made.get_vocab() if len(token) == 1]
    assert sorted(own) == ["a", "b", "c"]
    assert made.encode("abé", add_special_tokens=False).tokens == ["a", "b", "<0xC3>", "<0xA9>"]
    assert made.get_vocab_size() == MIN_LOSSLESS_SIZE + 3


@pytest.mark.run
@pytest.mark.skipif(not SHAKESPEARE.exists(), reason="the shared data is not here")
@pytest.mark.parametrize(("kind", "num_tokens", "vocab_size"), [("bpe", 463_390, 1000), ("char", 1_115_394, 326)])
def test_a_megabyte_of_text(kind, num_tokens, vocab_size):
    """In one call, which for characters is one word of a million symbols."""
    text = SHAKESPEARE.read_bytes().decode("utf-8")
    made = train_tokenizer([text], 1000, kind, lowercase=False)
    assert made.get_vocab_size() == vocab_size
    started_at = time.perf_counter()
    ids = ids_of(made, text)
    assert time.perf_counter() - started_at < 10
    assert len(ids) == num_tokens
    assert decode(made, ids) == text
