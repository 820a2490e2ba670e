"""No word is written twice: by hand, on random walks, and by models with the two kinds of tokenizers."""

import random
from dataclasses import replace

import pytest
from tokenizers import Tokenizer

from him.data.sample import summarization_sample
from him.model.generation import Decoder, generate
from him.model.repeated_words import MARKS, RepeatedWords
from him.tasks.summarization.model import SummarizationModel
from him.text.tokenizer import CLS, MASK, PAD, SEP, UNK, decode, piece_texts, special_id
from him.text.training import train_tokenizer


def words_of(text: str) -> list[str]:
    """What stands between spaces, in lower case, without the marks around it."""
    return [word for each in text.lower().split() if (word := each.strip(MARKS))]


def blocked(pieces: list[str], *text: str) -> set[str]:
    """The pieces that must not follow a text, which is given by pieces."""
    found = RepeatedWords(pieces).tokens_that_repeat([pieces.index(piece) for piece in text])
    return {pieces[id] for id in found}


# --- by hand ----------------------------------------------------------------------------------------------------------

WORDPIECE = ["", " dna", " rna", " d", "na", "s", " :", " (", " .", " sum", "mary", " a"]
BYTES = [
    "",
    "dna",
    " dna",
    " rna",
    " DNA",
    " d",
    "na",
    "s",
    ":",
    " (",
    "(",
    ".",
    "'s",
    " s",
    " a",
    "a",
    " ",
    " sum",
    "ma",
]


@pytest.mark.parametrize(
    ("pieces", "text", "expected"),
    [
        (WORDPIECE, (), set()),
        (WORDPIECE, (" dna",), {" dna"}),
        (WORDPIECE, (" dna", " rna"), {" dna", " rna"}),
        (WORDPIECE, (" dna", " d"), {" dna", " d", "na"}),
        (WORDPIECE, (" dna", " d", "s"), {" dna"}),
        (WORDPIECE, (" dna", " :"), {" dna"}),
        (WORDPIECE, (" dna", " :", " ("), {" dna"}),
        (WORDPIECE, (" d", "na", " :"), {" dna"}),
        (WORDPIECE, (" sum", "mary", " sum"), {" sum", "mary"}),
        (WORDPIECE, (" (",), set()),
        (WORDPIECE, (" .", " ."), set()),
        (BYTES, ("dna",), {" dna", " DNA"}),
        (BYTES, (" DNA",), {" dna", " DNA"}),
        (BYTES, ("dna", " rna"), {" dna", " DNA", " rna"}),
        (BYTES, (" dna", ":"), {" dna", " DNA"}),
        (BYTES, (" dna", ":", " rna", "."), {" dna", " DNA", " rna"}),
        (BYTES, (" dna", " ("), {" dna", " DNA", "dna"}),
        (BYTES, (" (", "dna", ".", " d"), {" dna", " DNA", " d", "na"}),
        (BYTES, (" dna", " "), {" dna", " DNA", "dna"}),
        (BYTES, (" dna", "s"), set()),
        (BYTES, (" dna", "s", " dna"), {" dna", " DNA", "s"}),
        (BYTES, (" s", " ("), {" s", "s", "'s"}),
        (BYTES, (" s", " a", "'s"), {" s"}),
        (BYTES, (" a", "'s", " dna"), {" dna", " DNA"}),
        (BYTES, (" d", "na", " sum", "ma"), {" dna", " DNA"}),
    ],
    ids=lambda value: None if isinstance(value, set) or len(value) > 5 else "".join(value) or "nothing",
)
def test_by_hand(pieces, text, expected):
    """The second " d" of "dna d" is blocked too: it is a word itself. Marks are no words."""
    assert blocked(pieces, *text) == expected


@pytest.mark.parametrize("text", [(), (" dna",), (" dna", " d"), (" (", "(", ":")])
def test_special_tokens_are_never_blocked(text):
    """The end of the text is one of them."""
    assert "" not in blocked(BYTES, *text)


@pytest.mark.parametrize(
    "pieces",
    [
        ["a", "b", "ab", " a", " b", " ab"],
        ["a", "b", " a", " b", ".", " (", ":", "(", "'", "-", " -", " "],
        # A mark and a word in one piece; "'s" after a mark alone used to be let through.
        ["a", "s", " a", " s", "'s", "'", " '", "(", ".", "a.", " a.", "s)", " (a"],
        ["A", "b", " Ab", "B", " a", "  ", " "],
    ],
    ids=["letters", "marks", "mixed", "case and spaces"],
)
def test_random_walks(pieces):
    """Any text of allowed pieces has each word once; without blocking nearly all have one twice."""
    choose, words = random.Random(0), RepeatedWords(pieces)
    lengths, num_repeating = [], 0
    for _ in range(300):
        ids: list[int] = []
        while len(ids) < 10 and (free := sorted(set(range(len(pieces))) - set(words.tokens_that_repeat(ids)))):
            ids.append(choose.choice(free))
        found = words_of("".join(pieces[id] for id in ids))
        assert len(found) == len(set(found)), [pieces[id] for id in ids]
        lengths.append(len(ids))
        found = words_of("".join(choose.choices(pieces, k=10)))
        num_repeating += len(found) != len(set(found))
    assert sum(lengths) > 8 * len(lengths)
    assert num_repeating > 60


# --- with tokenizers and models ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["wordpiece", "bpe"])
def trained(request) -> Tokenizer:
    """Few tokens, among them white space and "'s"."""
    texts = [record["document"] for record in summarization_sample(0, 30, 1)[0]]
    return train_tokenizer([*texts, *["the dog's tail\n\nand the cat's\ttail "] * 40], 360, request.param)


def decoder_of(tokenizer: Tokenizer, **settings) -> Decoder:
    """Writes what is ASCII only: other bytes in a row may be one and the same unknown character."""
    special = tuple(special_id(tokenizer, token) for token in (PAD, UNK, CLS, MASK))
    pieces = piece_texts(tokenizer)
    foreign = [id for id, piece in enumerate(pieces) if not all(" " <= character <= "~" for character in piece)]
    return Decoder(end_id=special_id(tokenizer, SEP), max_new_tokens=40, forbidden_ids=(*special, *foreign), **settings)


@pytest.fixture
def model(make_writer, trained, request) -> SummarizationModel:
    """One that begins words rather than to go on with them, or to end."""
    made = make_writer(request.param, vocab_size=trained.get_vocab_size())
    begins = [id for id, piece in enumerate(piece_texts(trained)) if piece.startswith(" ")]
    made.output_bias.data[begins] += 4.0
    made.output_bias.data[special_id(trained, SEP)] -= 4.0
    return made


TEXTS = ("a mill", "the dog's tail (old)", "in 1902: a firm", "the cat, the dog and the tail of the cat")


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"temperature": 1.0}], ids=["greedy", "beams", "sampling"])
@pytest.mark.parametrize("model", ["summaries", "copying"], indirect=True)
def test_a_model_writes_no_word_twice(model, trained, settings):
    prompts = [[2, *trained.encode(text).ids, 3] for text in TEXTS]
    free = decoder_of(trained, **settings)
    limited = replace(free, repeated_words=RepeatedWords(piece_texts(trained)))
    repeats = []
    for decoder in (free, limited):
        found = [words_of(decode(trained, ids)) for ids in generate(model, prompts, decoder)]
        assert max(map(len, found)) >= 6
        repeats.append(any(len(words) != len(set(words)) for words in found))
    assert repeats == [True, False]


@pytest.mark.parametrize("model", ["copying"], indirect=True)
def test_nothing_is_blocked_without_it(model, trained, monkeypatch):
    """Whether a decoder has never heard of it, or has None; with it the text is another one."""
    prompts = [[2, *trained.encode(text).ids, 3] for text in TEXTS]
    limited = generate(model, prompts, decoder_of(trained, repeated_words=RepeatedWords(piece_texts(trained))))
    monkeypatch.setattr(RepeatedWords, "tokens_that_repeat", lambda *args: pytest.fail("asked for words"))
    free = generate(model, prompts, decoder_of(trained))
    assert free == generate(model, prompts, decoder_of(trained, repeated_words=None)) != limited


@pytest.mark.parametrize("model", ["copying"], indirect=True)
def test_words_and_runs_of_tokens_are_blocked_together(model, trained):
    prompts = [[2, *trained.encode(text).ids, 3] for text in TEXTS]
    words = RepeatedWords(piece_texts(trained))
    texts = generate(model, prompts, decoder_of(trained, no_repeat_ngram_size=1, repeated_words=words))
    assert max(map(len, texts)) > 5
    for ids in texts:
        assert len(ids) == len(set(ids))
        found = words_of(decode(trained, ids))
        assert len(found) == len(set(found))
