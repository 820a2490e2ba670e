"""Lexical features: what the words of question and context tell before anything is learned: match, shape, IDF, class.

After the token features of DrQA (Chen et al. 2017, arXiv:1704.00051, section 3.2), extended by overlap scores of the
sentence and the neighbourhood. All of it is read off whole words, before they are cut into subword pieces and before
they are lower-cased, and handed to `him.model.embeddings.LexicalEmbedding`.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from nltk.stem.porter import PorterStemmer

KINDS_OF_MATCH = ("none", "stop", "stem", "exact")
NONE, STOP, STEM, EXACT = range(4)
MATCHES = ("nothing",) + tuple(f"{text} {kind}" for text in ("question", "context") for kind in KINDS_OF_MATCH)
SHAPES = ("nothing", "lower", "capital", "capitals", "digits", "year", "mixed", "punctuation")
QUESTION_CLASSES = tuple("who|whose|when|where|why|how many|how much|how long|how|which|what|is|other".split("|"))
# Value 0 of each categorical input means: not a word of this kind (special tokens, padding).
SIZES = {"match": len(MATCHES), "shape": len(SHAPES), "class_shape": 1 + len(QUESTION_CLASSES) * len(SHAPES)}
SCALARS = (
    *("IDF", "IDF if matched", "sentence overlap", "best sentence", "overlap within 4", "overlap within 12"),
    *("distance to a match", "bigram", "matches to the left", "matches to the right", "position"),
)

STOP_WORDS = frozenset(
    """a about after all also although am among an and any are around as at be because been before being between both
    but by can could did do does doing done during each either else ever for from further had has have having he her
    here hers him his how i if in into is it its itself just may me might more most much many must my no nor not of off
    often on once one only or other our out over own per same shall she should since so some such than that the their
    them themselves then there these they this those through to too two under until up upon us very was we were what
    when where whether which while who whom whose why will with within without would you your s t d m re ve
    ll""".split()
)
AUXILIARIES = frozenset(
    "is are was were be been am do does did has have had can could will would shall should may might must 's".split()
)
LENGTH_WORDS = frozenset("long old tall far high deep big large wide fast often heavy hot cold late early".split())
# "What type of disorders ...": the word after "of" says more.
HOLLOW_WORDS = frozenset("type types kind kinds sort sorts form forms class part example name number".split())
NUMBER_WORDS = frozenset("one two three four five six seven eight nine ten other".split())
YEAR = re.compile(r"1\d{3}|20\d{2}")
SENTENCE_ENDS = frozenset(".!?")
WORD = re.compile(r"\w+(?:[.,'’-]\w+)*|[^\w\s]")
DECAY_KERNEL = 0.8 ** np.arange(1, 25, dtype=np.float32)


@dataclass(frozen=True)
class Word:
    """A word of a text: its characters are `start` to `end`."""

    text: str
    start: int
    end: int

    @property
    def is_content(self) -> bool:
        """Whether it is neither a stop word nor a mark."""
        return self.text[0].isalnum() and self.text.lower() not in STOP_WORDS

    @property
    def is_capital(self) -> bool:
        """Whether it begins with a capital, and is no stop word."""
        return self.text[0].isupper() and self.text.lower() not in STOP_WORDS


def sentences_of(text: str) -> list[list[Word]]:
    """The words of each sentence; one ends at a mark with space behind it and no lower case after that."""
    sentences: list[list[Word]] = [[]]
    for match in WORD.finditer(text):
        word = Word(match.group(), match.start(), match.end())
        if sentences[-1] and not word.text[0].islower():
            last = sentences[-1][-1]
            initial = len(sentences[-1]) > 1 and len(sentences[-1][-2].text) == 1 and sentences[-1][-2].text.isupper()
            if last.text in SENTENCE_ENDS and last.end < word.start and not initial:
                sentences.append([])
        sentences[-1].append(word)
    return [words for words in sentences if words]


def sentence_bounds(text: str) -> list[tuple[int, int]]:
    """First character of each sentence, and the first of the next one; together they are the whole text."""
    starts = [0, *(words[0].start for words in sentences_of(text)[1:])]
    return list(zip(starts, [*starts[1:], len(text)], strict=True))


def shape_of(word: str) -> int:
    """Index into `SHAPES` of a word as it is written."""
    if word.isdigit():
        return SHAPES.index("year" if YEAR.fullmatch(word) else "digits")
    if not any(character.isalnum() for character in word):
        return SHAPES.index("punctuation")
    if word.islower():
        return SHAPES.index("lower")
    if word.isupper():
        return SHAPES.index("capitals" if len(word) > 1 else "capital")
    return SHAPES.index("capital" if word[0].isupper() and (word[1:].islower() or len(word) == 1) else "mixed")


def question_class(words: Sequence[str]) -> tuple[int, int]:
    """Class of a question and the position of its question word.

    Args:
        words: the question's words, lower-cased.

    Returns:
        An index into `QUESTION_CLASSES`, and the position of the word that decided, -1 if none did.
    """
    for position, word in enumerate(words):
        following = words[position + 1] if position + 1 < len(words) else ""
        if word == "how":
            kind = "how long" if following in LENGTH_WORDS else f"how {following}"
            return QUESTION_CLASSES.index(kind if kind in QUESTION_CLASSES else "how"), position
        if word == "whom":
            word = "who"
        if word in ("who", "whose", "when", "where", "why", "which", "what"):
            return QUESTION_CLASSES.index(word), position
    if words and words[0] in AUXILIARIES:
        return QUESTION_CLASSES.index("is"), 0
    return QUESTION_CLASSES.index("other"), -1


def focus_position(surfaces: Sequence[str], words: Sequence[str], question_word: int) -> int:
    """Position of the word that says what is asked for: "year" of "In what year ...", "team" of "Which NFL team ...".

    It is the first content word after the question word that is neither a name nor a number nor hollow before "of", or
    the first content word at all; -1 if there is none.
    """
    candidates = [
        position
        for position in range(question_word + 1, len(words))
        if words[position] not in STOP_WORDS and words[position] not in NUMBER_WORDS and words[position][:1].isalnum()
    ]
    for position in candidates:
        is_hollow = words[position] in HOLLOW_WORDS and words[position + 1 : position + 2] == ["of"]
        if surfaces[position][0].islower() and not is_hollow:
            return position
    return candidates[0] if candidates else -1


class DocumentFrequencies:
    """Document frequencies of words over the training contexts, and the inverse ones (IDF), scaled to [0, 1].

    Args:
        num_documents: number of contexts counted.
        frequencies: in how many of them each lower-cased word occurs; of `count`, words of two and more.
    """

    def __init__(self, num_documents: int, frequencies: dict[str, int]) -> None:
        self.num_documents = num_documents
        self.frequencies = frequencies

    @classmethod
    def count(cls, documents: Iterable[Iterable[str]], least: int = 2) -> "DocumentFrequencies":
        """Counts in documents given as words.

        Words of fewer than `least` documents are left out, as if no document had them: those of one are three quarters
        of the table.
        """
        num_documents, counts = 0, Counter()
        for document in documents:
            num_documents += 1
            counts.update({word.lower() for word in document})
        return cls(num_documents, {word: count for word, count in counts.items() if count >= least})

    def of(self, words: Sequence[str]) -> np.ndarray:
        """IDF, float32 in [0, 1]: 1 for words that no document has, 0 for one that all have."""
        counts = np.array([self.frequencies.get(word, 0) for word in words], np.float32)
        return _scaled_idf(counts, self.num_documents)

    def without(self, parts: Sequence["DocumentFrequencies"], words: Sequence[str]) -> list[np.ndarray]:
        """For each part of the documents the IDF of all words as if that part were not there.

        Args:
            parts: counts of some of the documents each.
            words: lower-cased, no two equal.
        """
        position_of = {word: position for position, word in enumerate(words)}
        all_counts = np.array([self.frequencies.get(word, 0) for word in words], np.float32)
        rows = []
        for part in parts:
            counts = all_counts.copy()
            positions = [position_of[word] for word in part.frequencies if word in position_of]
            counts[positions] -= [count for word, count in part.frequencies.items() if word in position_of]
            # Below 0 for a word that only one document has: it was not counted here.
            rows.append(_scaled_idf(np.maximum(counts, 0), self.num_documents - part.num_documents))
        return rows

    def to_json(self) -> dict:
        """Plain data."""
        return {"num_documents": self.num_documents, "frequencies": dict(sorted(self.frequencies.items()))}

    @classmethod
    def from_json(cls, data: dict) -> "DocumentFrequencies":
        """Reads what `to_json` gave; anything else raises ValueError, TypeError, KeyError or AttributeError."""
        found = cls(data["num_documents"], dict(data["frequencies"].items()))
        for count in (found.num_documents, *found.frequencies.values()):
            if type(count) is not int or not 0 <= count < 2**31:
                raise ValueError("a count of words is not a whole number, 0 or more")
        return found


def _scaled_idf(counts: np.ndarray, num_documents: int) -> np.ndarray:
    if num_documents == 0:
        return np.ones(len(counts), np.float32)
    return np.log((num_documents + 1) / (counts + 1)) / math.log(num_documents + 1)


class Words:
    """The different words of a data set, numbered, with what is known of each one.

    Attributes:
        surfaces: the words as they are written; a word's number is its position here.
        types: int32 number that words share which differ only in case.
        stems: int32 number that words share which have the same stem (Porter 1980).
        shapes: uint8 indices into `SHAPES`.
        is_content: whether a word is neither a stop word nor punctuation.
        ends_sentence: whether a word is a full stop, an exclamation or a question mark.
        opens_sentence: whether a word may be the first of a sentence: it is not in lower case.
        is_initial: whether a word is one capital letter, as in a name.
    """

    def __init__(self, surfaces: Sequence[str]) -> None:
        self.surfaces = list(surfaces)
        lowered = [surface.lower() for surface in self.surfaces]
        stem = PorterStemmer(PorterStemmer.ORIGINAL_ALGORITHM).stem
        stem_of = {word: stem(word, to_lowercase=False) for word in set(lowered)}
        self.lowered = lowered
        self.types = _numbered(lowered)
        self.stems = _numbered([stem_of[word] for word in lowered])
        self.shapes = np.array([shape_of(surface) for surface in self.surfaces], np.uint8)
        is_stop = np.array([word in STOP_WORDS for word in lowered], bool)
        self.is_content = ~is_stop & (self.shapes != SHAPES.index("punctuation"))
        self.ends_sentence = np.array([surface in SENTENCE_ENDS for surface in self.surfaces], bool)
        self.opens_sentence = np.array([not surface[:1].islower() for surface in self.surfaces], bool)
        self.is_initial = np.array([len(surface) == 1 and surface.isupper() for surface in self.surfaces], bool)


def _numbered(values: Sequence[str]) -> np.ndarray:
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], np.int32)


def sentence_starts(words: Words, context: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Positions of the first word of each sentence.

    A sentence ends at a mark that has space behind it, a word that is not in lower case after the space, and no initial
    before it: so not within "3.5", "U.S. law" or "J. Smith".

    Args:
        words: the words that the numbers stand for.
        context: (C,) word numbers.
        starts, ends: (C,) first character of each word, and the character after its last.
    """
    if not len(context):
        return np.zeros(0, np.int64)
    is_last = words.ends_sentence[context[:-1]] & (starts[1:] > ends[:-1]) & words.opens_sentence[context[1:]]
    is_last[1:] &= ~words.is_initial[context[:-2]]
    return np.concatenate(([0], np.flatnonzero(is_last) + 1))


def pair_features(
    words: Words, idf: np.ndarray, question: np.ndarray, context: np.ndarray, first_of_sentence: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Compares a question with its context.

    Args:
        words: the words that the numbers stand for.
        idf: of each of them, float32 (`DocumentFrequencies.of`).
        question: (Q,) word numbers.
        context: (C,) word numbers.
        first_of_sentence: positions in the context at which its sentences start (`sentence_starts`).

    Returns:
        Lexical inputs of both, the question's words first: match, (Q + C,) uint8 indices into `MATCHES`, and scalars,
        (Q + C, 11) float16 in the order of `SCALARS`, each within [0, 1] or a little above.
    """
    same_type_CQ = words.types[context][:, None] == words.types[question]
    same_stem_CQ = words.stems[context][:, None] == words.stems[question]
    question_match = _match(same_type_CQ.any(0), same_stem_CQ.any(0), words.is_content[question])
    context_match = _match(same_type_CQ.any(1), same_stem_CQ.any(1), words.is_content[context])

    num_question, num_context = len(question), len(context)
    scalars = np.zeros((num_question + num_context, len(SCALARS)), np.float32)
    scalars[:, 0] = idf[np.concatenate((question, context))]
    scalars[:, 1] = scalars[:, 0] * (np.concatenate((question_match, context_match)) >= STEM)
    if num_context:
        _fill_context(
            scalars[num_question:], words, idf, question, context, first_of_sentence, same_type_CQ, same_stem_CQ
        )
    match = np.concatenate((question_match + 1, context_match + 5)).astype(np.uint8)
    return match, scalars.astype(np.float16)


def _match(same_type: np.ndarray, same_stem: np.ndarray, is_content: np.ndarray) -> np.ndarray:
    """NONE, STOP, STEM or EXACT for each word."""
    of_content = np.where(same_type, EXACT, np.where(same_stem, STEM, NONE))
    return np.where(is_content, of_content, np.where(same_type, STOP, NONE))


def _fill_context(
    scalars: np.ndarray,
    words: Words,
    idf: np.ndarray,
    question: np.ndarray,
    context: np.ndarray,
    first_of_sentence: np.ndarray,
    same_type_CQ: np.ndarray,
    same_stem_CQ: np.ndarray,
) -> None:
    """Fills the scalars from `sentence overlap` on for the context's words, in place."""
    matched_idf = scalars[:, 1]
    asked = words.is_content[question]
    asked_idf = idf[question][asked]
    total = float(asked_idf.sum()) or 1.0

    sentence = np.searchsorted(first_of_sentence, np.arange(len(context)), side="right") - 1
    covered_SQ = np.logical_or.reduceat(same_stem_CQ[:, asked], first_of_sentence, axis=0)
    overlap = covered_SQ.astype(np.float32) @ asked_idf / total
    scalars[:, 2] = overlap[sentence]
    scalars[:, 3] = (overlap[sentence] == overlap.max()) & (overlap.max() > 0)

    summed = np.concatenate((np.zeros(1, np.float32), np.cumsum(matched_idf)))
    positions = np.arange(len(context))
    for column, reach in ((4, 4), (5, 12)):
        high, low = np.minimum(positions + reach + 1, len(context)), np.maximum(positions - reach, 0)
        scalars[:, column] = (summed[high] - summed[low]) / total

    scalars[:, 6] = _distance(matched_idf > 0) / 32
    follows = same_type_CQ[:-1, :-1] & same_type_CQ[1:, 1:]
    in_bigram = np.flatnonzero(follows.any(1))
    scalars[in_bigram, 7] = 1.0
    scalars[in_bigram + 1, 7] = 1.0
    scalars[1:, 8] = np.convolve(matched_idf, DECAY_KERNEL)[: len(context) - 1] / total
    scalars[:-1, 9] = np.convolve(matched_idf[::-1], DECAY_KERNEL)[: len(context) - 1][::-1] / total
    scalars[:, 10] = positions / len(context)


def _distance(matched: np.ndarray) -> np.ndarray:
    """Words to the nearest match, 0 on a match, at most 32."""
    positions = np.arange(len(matched))
    before = np.maximum.accumulate(np.where(matched, positions, -32))
    after = np.minimum.accumulate(np.where(matched, positions, len(matched) + 32)[::-1])[::-1]
    return np.minimum(np.minimum(positions - before, after - positions), 32)
