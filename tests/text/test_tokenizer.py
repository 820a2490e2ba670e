"""Tokenizers: pieces point to their characters and back to a text, loading fails in one line."""

import http.server
import re
import socket
import threading
import time
import unicodedata

import huggingface_hub.constants
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from him.core import hub
from him.core.errors import CheckpointError, ConfigError
from him.data.sample import squad_sample
from him.text import tokenizer as tokenization
from him.text.tokenizer import (
    SPECIAL_TOKENS,
    decode,
    encode_texts,
    load_tokenizer,
    parse_tokenizer,
    piece_texts,
    plain_text_tokenizer,
    special_id,
)
from him.text.training import train_tokenizer


@pytest.fixture(scope="module")
def texts():
    train, _ = squad_sample(num_train=300, num_validation=1)
    return [paragraph["context"] for article in train["data"] for paragraph in article["paragraphs"]]


@pytest.fixture(scope="module")
def trained(texts):
    return train_tokenizer([*texts, "Café Ärger naïve 東京 ﬁne 😀 don't 3,5 %"], 1000)


# --- encoding ---------------------------------------------------------------------------------------------------------


def words_of(text, encoded, row=0):
    """The text of each word, from its first piece's start to its last piece's end."""
    words, starts, ends = encoded.words[row], encoded.starts[row], encoded.ends[row]
    return [
        text[starts[words == word].min() : ends[words == word].max()] for word in range(int(words.max(initial=-1)) + 1)
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat sat.", ["The", "cat", "sat", "."]),
        ("  two   spaces\tand\nlines ", ["two", "spaces", "and", "lines"]),
        ("Café ÄRGER naïve", ["Café", "ÄRGER", "naïve"]),
        ("İstanbul Straße", ["İstanbul", "Straße"]),
        ("a 😀 b😀c", ["a", "😀", "b😀c"]),
        ("👩\u200d🚀 flew", ["👩\u200d🚀", "flew"]),
        ("東京 tower京", ["東", "京", "tower", "京"]),
        ("ﬁne ﬂag", ["ﬁne", "ﬂag"]),
        ("don't (1990s) 3,5%", ["don", "'", "t", "(", "1990s", ")", "3", ",", "5", "%"]),
        ("“quoted”—dash", ["“", "quoted", "”", "—", "dash"]),
        ("no\u00a0break", ["no", "break"]),
        ("x" * 150 + " end", ["x" * 150, "end"]),
        ("\ufeffmark \x00null", ["mark", "null"]),
        ("𝒳 math", ["𝒳", "math"]),
        ("[SEP] is text", ["[SEP]", "is", "text"]),
        ("", []),
        ("\x00\u200b", []),
    ],
)
def test_offsets_point_to_the_words(trained, text, expected):
    assert words_of(text, encode_texts(trained, [text])) == expected


@pytest.mark.parametrize("text", ["Café ÄRGER naïve don't", "東京 ﬁne 3,5 % Ärger", "The Cat, 'a' naïve one"])
def test_each_piece_is_its_characters(trained, text):
    """Lower-cased and without accents, the characters a piece points to are the piece; they lie in the text's order."""
    encoded = encode_texts(trained, [text])
    last = 0
    for id, start, end in zip(encoded.ids[0], encoded.starts[0], encoded.ends[0], strict=True):
        decomposed = unicodedata.normalize("NFD", text[start:end].lower())
        plain = "".join(character for character in decomposed if unicodedata.category(character) != "Mn")
        assert trained.id_to_token(int(id)).removeprefix("##") == plain
        assert start >= last
        last = end
    assert last == len(text)


def test_rows_are_texts(trained):
    texts = ["one cat", "", "two"]
    encoded = encode_texts(trained, texts)
    assert len(encoded) == 3
    assert encoded.ids[1].size == 0
    for row, text in enumerate(texts):
        assert words_of(text, encoded, row) == text.split()
    assert {column.values.dtype for column in (encoded.ids, encoded.starts, encoded.ends, encoded.words)} == {
        np.dtype("int32")
    }


def test_words_are_counted_without_gaps():
    """A tokenizer without [UNK] drops words; numbers with a gap would be read as positions of other words."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.train_from_iterator(["hello world"], trainers.BpeTrainer(vocab_size=40, show_progress=False))
    assert made.encode("ZZ hello ZZ world").word_ids[-1] == 3
    encoded = encode_texts(made, ["ZZ hello ZZ world ZZ", "ZZ", "world"])
    assert [sorted(set(encoded.words[row].tolist())) for row in range(3)] == [[0, 1], [], [0]]
    assert words_of("ZZ hello ZZ world ZZ", encoded) == ["hello", "world"]


# --- decoding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number_of", [int, np.int64, np.uint16])
def test_decode_leaves_special_tokens_out(trained, number_of):
    ids = [2, *trained.encode("the red cat", add_special_tokens=False).ids, 3, 0, 4, 1]
    assert decode(trained, map(number_of, ids)) == "the red cat"
    assert decode(trained, []) == ""


def test_decode_leaves_special_tokens_of_the_other_family_out():
    made = of_vocabulary("<pad>", "<unk>", "<s>", "</s>", "<mask>", "cat")
    assert decode(made, [2, 5, 3, 0]) == "cat"


def test_special_tokens_in_a_text_can_be_plain_text(trained):
    text = "[CLS] cat [SEP]"
    assert {2, 3} <= set(trained.encode(text, add_special_tokens=False).ids)
    plain = plain_text_tokenizer(trained)
    assert not {2, 3} & set(plain.encode(text, add_special_tokens=False).ids)
    assert plain.get_vocab() == trained.get_vocab()
    assert {2, 3} <= set(trained.encode(text, add_special_tokens=False).ids)  # the one that was given is as it was


# --- pieces -----------------------------------------------------------------------------------------------------------


def test_pieces_of_wordpiece_by_hand(tokenizer):
    """`PIECES` of the fixture: "##s" and "##ting" go on with a word, marks are words of their own."""
    expected = "who sat the cat s on red mat . ? dog ran a in ting".split()
    begins = [piece not in ("s", "ting") for piece in expected]
    assert piece_texts(tokenizer) == [""] * 5 + [f" {p}" if b else p for p, b in zip(expected, begins, strict=True)]


@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_pieces_of_a_lossless_tokenizer_are_its_text(kind):
    """White space of any kind is a space, so that a word on the next line begins one."""
    text = "The mill's 36 sails,\n\nthe dog\tand  the (old) mill.\r\n"
    made = train_tokenizer([text] * 30, 330, kind, lowercase=False)
    pieces = piece_texts(made)
    assert pieces[:5] == [""] * 5
    assert "".join(pieces[id] for id in made.encode(text).ids) == re.sub(r"\s", " ", text)
    if kind == "bpe":
        assert {" the", "The", " ", "  ", "'s"} <= set(pieces)


def test_pieces_of_another_family():
    """With the signs of SentencePiece, and other names of the special tokens."""
    tokens = {"<pad>": 0, "<unk>": 1, "<s>": 2, "</s>": 3, "<mask>": 4, "▁cat": 5, "cat": 6, "▁": 7}
    made = Tokenizer(models.BPE(tokens, []))
    assert piece_texts(made) == [""] * 5 + [" cat", "cat", " "]


def test_pieces_that_are_no_ascii_are_the_same_for_the_same_text():
    """In bytes: "é" has two of them, and stands in all of its pieces alike."""
    made = train_tokenizer(["café cafés"] * 20, 300, "bpe")
    pieces = piece_texts(made)
    first, second = ("".join(pieces[id] for id in made.encode(text).ids) for text in ("a café", "a cafés"))
    assert second == first + "s"


# --- special tokens ---------------------------------------------------------------------------------------------------


def of_vocabulary(*tokens: str) -> Tokenizer:
    return Tokenizer(models.WordPiece({token: number for number, token in enumerate(tokens)}, unk_token=tokens[1]))


@pytest.mark.parametrize("tokens", [SPECIAL_TOKENS, ("<pad>", "<unk>", "<s>", "</s>", "<mask>")])
def test_special_ids_of_both_families(tokens):
    made = of_vocabulary(*tokens)
    assert [special_id(made, token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("missing", SPECIAL_TOKENS)
def test_special_token_that_is_missing(missing):
    made = of_vocabulary(*("other" if token == missing else token for token in SPECIAL_TOKENS))
    message = f"--tokenizer: it has no {missing} token; use one of the BERT or RoBERTa families"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        special_id(made, missing)


# --- loading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["file", "folder", "folder/"])
def test_load_from_disk(tmp_path, tokenizer, form):
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.enable_truncation(4)
    copy.enable_padding(length=9)
    copy.save(str(tmp_path / "tokenizer.json"))
    name = {"file": f"{tmp_path}/tokenizer.json", "folder": str(tmp_path), "folder/": f"{tmp_path}/"}[form]
    loaded = load_tokenizer(name)
    # What the file says about lengths is not HIM's: it would cut texts in silence.
    assert loaded.encode("the cat sat on the mat").ids == [7, 8, 6, 10, 7, 12]


@pytest.mark.parametrize(
    ("content", "reason"),
    [("", "EOF"), ("{}", "Model missing"), ('{"model": 1}', ".+"), ("\udcff", "UTF-8|utf-8")],
    ids=["empty", "no model", "wrong model", "not UTF-8"],
)
def test_damaged_file(tmp_path, content, reason):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    for name in (path, tmp_path):
        with pytest.raises(
            ConfigError, match=rf"^--tokenizer {name}: cannot be loaded \(.*({reason}).*\); name a"
        ) as e:
            load_tokenizer(str(name))
        assert "\n" not in str(e.value)
    with pytest.raises(CheckpointError, match=rf"^{path}: cannot be read as a tokenizer \(.*({reason}).*\); train the"):
        parse_tokenizer(path)


def test_parse_tokenizer_reads_what_was_written(tmp_path, tokenizer):
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer.to_str(), encoding="utf-8")
    assert parse_tokenizer(path).to_str() == tokenizer.to_str()
    with pytest.raises(CheckpointError, match=r"no.json: cannot be read as a tokenizer \(.*No such file"):
        parse_tokenizer(tmp_path / "no.json")


@pytest.mark.parametrize("name", ["folder", "folder/", "./nothing", "folder/no.json"])
def test_nothing_on_disk_is_not_looked_for_on_the_hub(tmp_path, monkeypatch, name):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tokenization, "hub_file", lambda name, file: pytest.fail("asked the hub"))
    with pytest.raises(ConfigError, match=f"^--tokenizer {name}: no such file or folder with a tokenizer.json$"):
        load_tokenizer(name)


def test_tokenizer_of_another_family(tmp_path):
    of_vocabulary("a", "b").save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match=r"it has no \[PAD\] token"):
        load_tokenizer(str(tmp_path))


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.setattr(huggingface_hub.constants, name, str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    use_endpoint(monkeypatch, "http://127.0.0.1:9")
    return tmp_path / "hub"


def use_endpoint(monkeypatch, url: str) -> None:
    template = huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE
    path = template.removeprefix(huggingface_hub.constants.ENDPOINT)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + path)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)


def check_refusal(name: str, reason: str, capfd) -> None:
    """One line, within five seconds, and no noise of the hub's client, which tries six times over 23 s."""
    started_at = time.perf_counter()
    with pytest.raises(
        ConfigError, match=rf"^--tokenizer {name}: cannot be loaded \({reason}.*\); name a fold"
    ) as error:
        load_tokenizer(name)
    assert time.perf_counter() - started_at < 5
    assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""


def test_hub_that_refuses_the_connection(empty_cache, capfd):
    check_refusal("no-such/tokenizer", ".*Connection refused", capfd)


def test_hub_that_never_answers(monkeypatch, empty_cache, capfd):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        use_endpoint(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(hub, "HUB_SECONDS", 0.3)
        check_refusal("no-such/tokenizer", "the hub is out of reach, (no answer within 0 s|.*timed out)", capfd)


def test_hub_that_is_switched_off(monkeypatch, empty_cache, capfd):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    check_refusal("no-such/tokenizer", "the hub is out of reach, HF_HUB_OFFLINE is set, and it is not in the c", capfd)


class NotFound(http.server.BaseHTTPRequestHandler):
    """Answers as the hub does for a name that it does not know."""

    def do_HEAD(self):
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *args):
        pass


def test_name_that_the_hub_does_not_know(monkeypatch, empty_cache, capfd):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), NotFound)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        use_endpoint(monkeypatch, f"http://127.0.0.1:{server.server_port}")
        check_refusal("no-such/tokenizer", ".*404", capfd)
    finally:
        server.shutdown()
        server.server_close()


def test_copy_in_the_cache_does_without_the_hub(empty_cache, tokenizer):
    folder = empty_cache / "models--some--tokenizer"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    tokenizer.save(str(folder / "snapshots" / ("0" * 40) / "tokenizer.json"))
    assert load_tokenizer("some/tokenizer").get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("name", ["a b", "x\0y", "y" * 300, "a/b/c"])
def test_impossible_names(name, empty_cache):
    with pytest.raises(ConfigError, match=r"cannot be loaded \(.+\); name a folder"):
        load_tokenizer(name)
