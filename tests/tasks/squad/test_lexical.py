"""Lexical inputs against values worked out by hand."""

import json
import math
import re

import numpy as np
import pytest

from him.tasks.squad.lexical import (
    MATCHES,
    QUESTION_CLASSES,
    SCALARS,
    SHAPES,
    SIZES,
    DocumentFrequencies,
    Words,
    focus_position,
    pair_features,
    question_class,
    sentence_starts,
    shape_of,
)

# --- single words -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "shape"),
    [
        ("cat", "lower"),
        ("é", "lower"),
        ("don't", "lower"),
        ("Anna", "capital"),
        ("I", "capital"),
        ("Ärger", "capital"),
        ("NASA", "capitals"),
        ("MP3", "capitals"),
        ("McDonald", "mixed"),
        ("iPhone", "mixed"),
        ("東", "mixed"),
        ("1066", "year"),
        ("1999", "year"),
        ("2049", "year"),
        ("2149", "digits"),
        ("999", "digits"),
        ("19990", "digits"),
        ("0", "digits"),
        (".", "punctuation"),
        ("—", "punctuation"),
        ("😀", "punctuation"),
        ("", "punctuation"),
    ],
)
def test_shape(word, shape):
    assert SHAPES[shape_of(word)] == shape


def test_sizes_leave_room_for_nothing():
    assert SIZES == {
        "match": len(MATCHES),
        "shape": len(SHAPES),
        "class_shape": 1 + len(QUESTION_CLASSES) * len(SHAPES),
    }
    assert MATCHES[0] == SHAPES[0] == "nothing"


# --- questions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "kind", "focus"),
    [
        ("Who wrote Hamlet ?", "who", "wrote"),
        ("To whom did Anna write ?", "who", "write"),
        ("Whose team won ?", "whose", "team"),
        ("When did the war end ?", "when", "war"),
        ("Where is the old bridge ?", "where", "old"),
        ("Why did the firm close ?", "why", "firm"),
        ("How many people live there ?", "how many", "people"),
        ("How much money was lost ?", "how much", "money"),
        ("How long is the Nile ?", "how long", "long"),
        ("How old was Anna ?", "how long", "old"),
        ("How far did he run ?", "how long", "far"),
        ("How often does it run ?", "how long", "run"),
        ("How did Anna die ?", "how", "die"),
        ("How", "how", None),
        ("Which NFL team won ?", "which", "team"),
        ("In what year did it open ?", "what", "year"),
        ("What are the three primary colours ?", "what", "primary"),
        ("What did Marie Curie discover ?", "what", "discover"),
        ("What is NASA ?", "what", "NASA"),
        ("Is the bridge old ?", "is", "bridge"),
        ("Did Anna win ?", "is", "win"),
        ("Name the capital of France .", "other", "capital"),
        ("The 1999 winner came from what country ?", "what", "country"),
        ("The person who won in what year ?", "who", "won"),
        ("? ? ?", "other", None),
        ("", "other", None),
    ],
)
def test_question_class_and_focus(question, kind, focus):
    surfaces = question.split()
    lowered = [word.lower() for word in surfaces]
    found, place = question_class(lowered)
    assert QUESTION_CLASSES[found] == kind
    position = focus_position(surfaces, lowered, place)
    assert (surfaces[position] if position >= 0 else None) == focus


def test_focus_of_words_without_characters():
    """Byte-level tokenizers make words of nothing but a space, whose offsets are empty."""
    assert focus_position(["what", "", "year"], ["what", "", "year"], 0) == 2


@pytest.mark.parametrize("kind", QUESTION_CLASSES)
def test_every_class_is_reached(kind):
    examples = {"is": "is", "other": "name", "how long": "how tall"}
    assert QUESTION_CLASSES[question_class(examples.get(kind, kind).split())[0]] == kind


# --- IDF --------------------------------------------------------------------------------------------------------------


def test_idf_by_hand():
    """log((N + 1) / (n + 1)) / log(N + 1) with N = 3: n = 3, 2, 0 give 0, 0.2075, 1."""
    frequencies = DocumentFrequencies.count([["The", "cat", "the"], ["the", "CAT", "sat"], ["THE", "dog"]])
    assert frequencies.num_documents == 3
    found = frequencies.of(["the", "cat", "unseen", "sat"])
    assert found.dtype == np.float32
    # `sat` and `dog` of one document only are as rare as a word of none: new words in validation look like them.
    np.testing.assert_allclose(found, [0.0, math.log(4 / 3) / math.log(4), 1.0, 1.0], atol=1e-7)
    assert frequencies.frequencies == {"the": 3, "cat": 2}


def test_idf_of_a_single_document():
    assert DocumentFrequencies.count([["the", "the", "cat"]]).of(["the", "cat", "dog"]).tolist() == [1.0, 1.0, 1.0]


def test_idf_counts_documents_once_from_an_iterator():
    frequencies = DocumentFrequencies.count(iter([iter(["a", "a"]), iter(["a"])]))
    assert (frequencies.num_documents, frequencies.frequencies) == (2, {"a": 2})


def test_idf_without_some_of_the_documents():
    documents = [["the", "cat"], ["the", "cat", "sat"], ["the", "dog"], ["the"]]
    left_out = DocumentFrequencies.count(documents[:1], least=1)
    (found,) = DocumentFrequencies.count(documents).without([left_out], ["the", "cat", "sat", "dog"])
    np.testing.assert_allclose(found, [0, math.log(4 / 2) / math.log(4), 1, 1], atol=1e-6)


def test_idf_without_all_documents():
    frequencies = DocumentFrequencies.count([["the", "cat"]], least=1)
    (found,) = frequencies.without([frequencies], ["the", "dog"])
    assert found.tolist() == [1, 1]


def test_idf_is_the_same_after_json():
    """Training reads the counted one, prediction the saved one."""
    frequencies = DocumentFrequencies.count([["the", "cat", "é"], ["the", "dog"], ["the", "cat", "é", "sat"]])
    again = DocumentFrequencies.from_json(json.loads(json.dumps(frequencies.to_json())))
    words = ["the", "cat", "é", "dog", "sat", "unseen"]
    np.testing.assert_array_equal(again.of(words), frequencies.of(words))
    assert again.to_json() == frequencies.to_json() == {"num_documents": 3, "frequencies": {"cat": 2, "the": 3, "é": 2}}


# --- a question and its context ---------------------------------------------------------------------------------------

QUESTION = "Where sits the red cat ?".split()
CONTEXT = "A dog ran . The red cats sat on RED .".split()
# DocumentFrequencies: the 0, red 1/2 (log 2 / log 4), everything else 1. Asked content: sits, red, cat; together 2.5.
RARITY = DocumentFrequencies(3, {"the": 3, "red": 1})


def numbered(*texts):
    numbers = {}
    rows = [np.array([numbers.setdefault(word, len(numbers)) for word in text], np.int64) for text in texts]
    return list(numbers), rows


def compare(words, question, context, frequencies=None):
    """Features of words that stand with a space between them."""
    frequencies = RARITY.of(words.lowered) if frequencies is None else frequencies
    starts = np.cumsum([0] + [len(words.surfaces[word]) + 1 for word in context])[: len(context)]
    ends = starts + np.array([len(words.surfaces[word]) for word in context], np.int64)
    return pair_features(words, frequencies, question, context, sentence_starts(words, context, starts, ends))


@pytest.fixture(scope="module")
def pair():
    surfaces, (question, context) = numbered(QUESTION, CONTEXT)
    return compare(Words(surfaces), question, context)


def column(pair, name):
    """The context's part of a scalar."""
    return pair[1][len(QUESTION) :, SCALARS.index(name)].astype(np.float64)


def test_words():
    words = Words(["The", "the", "cats", "cat", "Red", ".", "ran"])
    assert words.lowered == ["the", "the", "cats", "cat", "red", ".", "ran"]
    assert words.types.tolist() == [0, 0, 1, 2, 3, 4, 5]
    assert words.stems.tolist() == [0, 0, 1, 1, 2, 3, 4]
    assert words.is_content.tolist() == [False, False, True, True, True, False, True]
    assert words.ends_sentence.tolist() == [False] * 5 + [True, False]
    assert [SHAPES[shape] for shape in words.shapes[:2]] == ["capital", "lower"]
    np.testing.assert_allclose(RARITY.of(words.lowered), [0, 0, 1, 1, 0.5, 1, 1], atol=1e-7)


def test_match_classes(pair):
    assert [MATCHES[number] for number in pair[0]] == [
        "question none",  # Where: no such word in the context
        "question none",  # sits: the stem is sit, that of sat is sat
        "question stop",
        "question exact",
        "question stem",
        "question none",  # ? is not .
        "context none",
        "context none",
        "context none",
        "context none",
        "context stop",
        "context exact",
        "context stem",
        "context none",
        "context none",
        "context exact",  # RED in another case
        "context none",
    ]
    assert pair[0].dtype == np.uint8


def test_scalars_of_the_question(pair):
    assert pair[1].shape == (17, 11)
    assert pair[1].dtype == np.float16
    assert pair[1][:6, 0].tolist() == [1, 1, 0, 0.5, 1, 1]
    assert pair[1][:6, 1].tolist() == [0, 0, 0, 0.5, 1, 0]
    assert not pair[1][:6, 2:].any()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("IDF", [1, 1, 1, 1, 0, 0.5, 1, 1, 1, 0.5, 1]),
        ("IDF if matched", [0, 0, 0, 0, 0, 0.5, 1, 0, 0, 0.5, 0]),
        # the second sentence has red and cats (by stem): 1.5 of 2.5
        ("sentence overlap", [0] * 4 + [0.6] * 7),
        ("best sentence", [0] * 4 + [1] * 7),
        # frequencies of the matches at 5, 6 and 9 (0.5, 1, 0.5) that are within reach, of 2.5
        ("overlap within 4", [0, 0.2, 0.6, 0.6, 0.6, 0.8, 0.8, 0.8, 0.8, 0.8, 0.6]),
        ("overlap within 12", [0.8] * 11),
        ("distance to a match", [n / 32 for n in (5, 4, 3, 2, 1, 0, 0, 1, 1, 0, 1)]),
        ("bigram", [0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]),  # the red
        # 0.8 to the distance, times frequencies, of 2.5
        ("matches to the left", [0, 0, 0, 0, 0, 0, 0.16, 0.448, 0.3584, 0.28672, 0.389376]),
        (
            "matches to the right",
            [0.19724, 0.24655, 0.30818, 0.38523, 0.48154, 0.40192, 0.1024, 0.128, 0.16, 0, 0],
        ),
        ("position", [n / 11 for n in range(11)]),
    ],
)
def test_scalars_of_the_context(pair, name, expected):
    np.testing.assert_allclose(column(pair, name), expected, atol=5e-4)  # half of float16's step near 1


def test_all_scalars_are_covered():
    covered = {row[0] for row in test_scalars_of_the_context.pytestmark[0].args[1]}
    assert covered == set(SCALARS)


def test_equally_good_sentences_are_all_the_best():
    surfaces, (question, context) = numbered(["red"], "Red one . No . Red two".split())
    found = compare(Words(surfaces), question, context)[1][1:, SCALARS.index("best sentence")]
    assert found.tolist() == [1, 1, 1, 0, 0, 1, 1]


def test_no_overlap_is_no_best_sentence():
    surfaces, (question, context) = numbered(["what", "red"], "One . Two".split())
    found = compare(Words(surfaces), question, context)[1][2:]
    assert not found[:, 2:6].any() and not found[:, 7:10].any()
    assert found[:, SCALARS.index("distance to a match")].tolist() == [1, 1, 1]  # 32 words or more


def test_distance_ends_at_32():
    surfaces, (question, context) = numbered(["red"], ["red"] + [f"w{n}" for n in range(40)])
    found = compare(Words(surfaces), question, context)[1][1:, SCALARS.index("distance to a match")]
    assert (found * 32).tolist() == [*range(33), *[32] * 8]


@pytest.mark.parametrize("question", ["", "?", "the", "red", "what red cat the the"])
@pytest.mark.parametrize("context", ["", ".", "red", "red red", "the . . .", "cat " * 60])
def test_short_and_empty_texts(question, context):
    """No texts divide by zero or leave a number that is not finite."""
    surfaces, (asked, read) = numbered(question.split(), context.split())
    with np.errstate(all="raise", under="ignore"):
        found = compare(Words(surfaces), asked, read)
    assert found[0].shape == (len(asked) + len(read),)
    assert found[1].shape == (len(asked) + len(read), len(SCALARS))
    assert np.isfinite(found[1]).all()
    assert (found[0][: len(asked)] < 5).all() and (found[0][len(asked) :] >= 5).all()


def test_neighbourhood_scores_against_plain_loops():
    """The vectorised sums against their definition, on random words."""
    random = np.random.default_rng(5)
    vocabulary = ["red", "cat", "dog", "the", "ran", "sat", ".", "one", "two"]
    surfaces, (asked, read) = numbered(
        [vocabulary[n] for n in random.integers(0, 9, 7)], [vocabulary[n] for n in random.integers(0, 9, 80)]
    )
    words = Words(surfaces)
    frequencies = DocumentFrequencies(9, {"the": 9, "red": 2, ".": 8, "cat": 5}).of(words.lowered)
    found = compare(words, asked, read, frequencies)[1][len(asked) :].astype(np.float64)
    total = sum(float(frequencies[word]) for word in asked if words.is_content[word])
    weights = [
        float(frequencies[word]) if words.is_content[word] and words.stems[word] in words.stems[asked] else 0.0
        for word in read
    ]
    assert sum(weights) > 0 and total > 0
    for place in range(80):
        near = {reach: sum(weights[max(0, place - reach) : place + reach + 1]) / total for reach in (4, 12)}
        left = sum(weights[other] * 0.8 ** (place - other) for other in range(max(0, place - 24), place)) / total
        right = sum(weights[other] * 0.8 ** (other - place) for other in range(place + 1, min(80, place + 25))) / total
        expected = [weights[place], near[4], near[12], left, right]
        np.testing.assert_allclose(found[place, [1, 4, 5, 8, 9]], expected, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize(
    "text, first_words",
    [
        ("One red. Two.", ["One", "Two"]),
        ("It cost 3.5 pounds. Then 4.", ["It", "Then"]),
        ("In U.S. law J. Smith won! Who? He.", ["In", "Who", "He"]),
        ("It ended. and went on. 9 came.", ["It", "9"]),
        ("One.Two", ["One"]),
        ("", []),
        ("..", ["."]),
    ],
)
def test_sentences_start_after_marks_that_end_one(text, first_words):
    spans = [match.span() for match in re.finditer(r"\w+|[^\w\s]", text)]
    surfaces, (context,) = numbered([text[start:end] for start, end in spans])
    starts, ends = (np.array([span[side] for span in spans], np.int64) for side in (0, 1))
    found = sentence_starts(Words(surfaces), context, starts, ends)
    assert [surfaces[context[place]] for place in found] == first_words


def test_words_of_no_characters():
    """Byte-level tokenizers make them of spaces."""
    words = Words(["a", "", "."])
    assert words.is_initial.tolist() == [False, False, False]
    starts, ends = np.array([0, 1, 3]), np.array([1, 2, 3])
    assert sentence_starts(words, np.array([0, 2, 1]), starts, ends).tolist() == [0, 2]
