"""SQuAD examples as arrays: each context tokenized once, windows cut and spans found in NumPy, batches gathered.

A sequence is `[CLS] question [SEP] window of the context [SEP]`; a long context gives several overlapping windows, the
same ones as the `tokenizers` package cuts with truncation "only_second" and a stride.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from tokenizers import Tokenizer

from him.config import Config
from him.core.errors import ConfigError
from him.core.ragged import Ragged, offsets_of
from him.data.cache import Columns, content_digest
from him.tasks.squad.lexical import (
    SHAPES,
    DocumentFrequencies,
    Words,
    focus_position,
    pair_features,
    question_class,
    sentence_starts,
)
from him.tasks.squad.reader import SquadData
from him.text.tokenizer import EncodedTexts, encode_texts

NUM_SPECIAL = 3
MAX_QUESTION_TOKENS = 64
NO_ARTICLE = DocumentFrequencies(0, {})


@dataclass(frozen=True)
class FeatureOptions:
    """Settings that features depend on, beside the tokenizer (see `cut_windows`): prepared data is kept under them."""

    max_seq_len: int
    doc_stride: int

    @classmethod
    def of(cls, config: Config) -> "FeatureOptions":
        """Those of a run."""
        return cls(**{each.name: getattr(config, each.name) for each in fields(cls)})


@dataclass(frozen=True)
class SquadFeatures:
    """A data set ready for batching. Q questions, C contexts, W windows, A answers (equal spans of a question once).

    Attributes:
        questions: the questions' pieces, at most `MAX_QUESTION_TOKENS` each.
        contexts: the contexts' pieces.
        context_of: (Q,) int32 context of each question.
        window_question: (W,) int32 question of each window; windows of a question follow each other.
        window_start, window_end: (W,) int32 first piece of the context in the window, and the one after its last.
        answers: rows are questions, elements (first piece, last piece, number of annotators); empty if unanswerable.
        focus_ids: (Q,) int32 token id of the first piece of the question's focus word.
        question_classes: (Q,) uint8 index into `QUESTION_CLASSES`.
        match, scalars: rows are questions; the lexical inputs per word, question first (`pair_features`).
        question_shapes, context_shapes: uint8 shape of each word.
    """

    questions: EncodedTexts
    contexts: EncodedTexts
    context_of: np.ndarray
    window_question: np.ndarray
    window_start: np.ndarray
    window_end: np.ndarray
    answers: Ragged
    focus_ids: np.ndarray
    question_classes: np.ndarray
    match: Ragged
    scalars: Ragged
    question_shapes: Ragged
    context_shapes: Ragged

    @property
    def lengths(self) -> np.ndarray:
        """(W,) int64 tokens of each window's sequence, special tokens included."""
        question_lengths = self.questions.ids.lengths[self.window_question]
        return question_lengths + (self.window_end - self.window_start) + NUM_SPECIAL

    @property
    def digest(self) -> str:
        """Tells these data from other ones: by the pieces of all questions and contexts, and by the answers."""
        parts = (self.questions.ids, self.contexts.ids, self.answers, self.context_of)
        return content_digest(*parts, self.window_question, self.window_start, self.window_end)

    def to_columns(self) -> Columns:
        """The same as flat columns, for the cache."""
        columns = {}
        for name, value in vars(self).items():
            if isinstance(value, EncodedTexts):
                columns |= {f"{name}.{part}": column for part, column in vars(value).items()}
            else:
                columns[name] = value
        return columns

    @classmethod
    def from_columns(cls, columns: Columns) -> "SquadFeatures":
        """Reads what `to_columns` gave."""
        texts = {
            name: EncodedTexts(**{part.name: columns[f"{name}.{part.name}"] for part in fields(EncodedTexts)})
            for name in ("questions", "contexts")
        }
        return cls(**texts, **{name: column for name, column in columns.items() if "." not in name})


def context_words(texts: Sequence[str], encoded: EncodedTexts) -> list[list[str]]:
    """The words of each text, as they are written, cut where the tokenizer cuts words."""
    rows = []
    for index, text in enumerate(texts):
        starts, ends = word_spans(encoded, index)
        rows.append([text[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)])
    return rows


def word_spans(encoded: EncodedTexts, index: int) -> tuple[np.ndarray, np.ndarray]:
    """First character of each word of a text, and the character after its last."""
    words = encoded.words[index]
    if not len(words):
        return np.zeros(0, np.int32), np.zeros(0, np.int32)
    return encoded.starts[index][first_pieces(words)], encoded.ends[index][last_pieces(words)]


def first_pieces(words: np.ndarray) -> np.ndarray:
    """(P,) bool: whether a piece is the first of its word."""
    return np.concatenate((np.ones(1, bool), words[1:] != words[:-1]))


def last_pieces(words: np.ndarray) -> np.ndarray:
    """(P,) bool: whether a piece is the last of its word."""
    return np.concatenate((words[1:] != words[:-1], np.ones(1, bool)))


def cut_windows(
    question_lengths: np.ndarray, context_lengths: np.ndarray, max_seq_len: int, doc_stride: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cuts contexts into windows that fit beside their question.

    Args:
        question_lengths, context_lengths: (Q,) pieces of each question, and of its context.
        max_seq_len: longest sequence, special tokens included.
        doc_stride: pieces that neighbouring windows share.

    Returns:
        For each window its question, its first piece and the piece after its last, as int32 arrays.

    Raises:
        ConfigError: a window has no room for new pieces.
    """
    capacity = max_seq_len - NUM_SPECIAL - question_lengths
    step = capacity - doc_stride
    if len(step) and step.min() < 1:
        needed = int(doc_stride + question_lengths.max() + NUM_SPECIAL + 1)
        raise ConfigError(
            f"--max_seq_len {max_seq_len} leaves no room beside --doc_stride {doc_stride} and a question of "
            f"{int(question_lengths.max())} tokens; use at least {needed}, or a smaller stride"
        )
    counts = 1 + np.maximum(0, -(-(context_lengths - capacity) // step))
    question = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    number = np.arange(len(question)) - np.repeat(np.cumsum(counts) - counts, counts)
    start = number * step[question]
    end = np.minimum(start + capacity[question], context_lengths[question])
    return question, start.astype(np.int32), end.astype(np.int32)


def find_spans(
    contexts: EncodedTexts, context_of: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """First and last piece of character spans, all at once.

    Args:
        contexts: the contexts' pieces.
        context_of: (A,) context that each span lies in.
        starts, ends: (A,) its first character, and the character after its last.

    Returns:
        The first and the last piece that each span touches, (A,) int64 each; last < first where it touches none, as
        with an answer of spaces.
    """
    # One search over all contexts: each is shifted to a character range of its own.
    width = int(max(contexts.ends.values.max(initial=0), ends.max(initial=0))) + 2
    shift = np.repeat(np.arange(len(contexts), dtype=np.int64) * width, contexts.ids.lengths)
    first = np.searchsorted(contexts.ends.values + shift, starts + context_of * width, side="right")
    last = np.searchsorted(contexts.starts.values + shift, ends + context_of * width, side="left") - 1
    row_start = contexts.ids.offsets[context_of]
    return first - row_start, last - row_start


def build_features(
    data: SquadData,
    tokenizer: Tokenizer,
    options: FeatureOptions,
    frequencies: DocumentFrequencies | None,
    articles: Mapping[str, DocumentFrequencies] | None = None,
) -> tuple[SquadFeatures, DocumentFrequencies]:
    """Turns SQuAD data into features.

    Args:
        data: paragraphs with their questions.
        tokenizer: cuts the texts.
        options: of the windows.
        frequencies: counted on the training contexts, or None for the training data themselves: then they are counted
            on these contexts, and each one is given the IDF that it would have if its own article were not there. A
            word of its subject is as rare then as such words are in the new articles that the model will read.
        articles: with `frequencies`, for texts that are made of the training data: counts of the articles by title
            (`count_articles`), each of which is left out in the same way.

    Returns:
        The features, and the document frequencies that were used.

    Raises:
        ConfigError: the windows are too short.
    """
    questions = data.questions
    question_texts = [question.text.strip() for question in questions]
    context_of = np.repeat(
        np.arange(len(data.paragraphs), dtype=np.int32), [len(paragraph.questions) for paragraph in data.paragraphs]
    )
    context_texts = [paragraph.context for paragraph in data.paragraphs]
    encoded_contexts = encode_texts(tokenizer, context_texts)
    encoded_questions = _first_pieces(encode_texts(tokenizer, question_texts), MAX_QUESTION_TOKENS)
    window_question, window_start, window_end = cut_windows(
        encoded_questions.ids.lengths, encoded_contexts.ids.lengths[context_of], options.max_seq_len, options.doc_stride
    )
    question_words = context_words(question_texts, encoded_questions)
    words_of_contexts = context_words(context_texts, encoded_contexts)
    own_articles = None
    if frequencies is None:
        frequencies = DocumentFrequencies.count(words_of_contexts)
        own_articles = _own_articles([paragraph.title for paragraph in data.paragraphs], words_of_contexts)
    elif articles is not None:
        own_articles = [articles.get(paragraph.title, NO_ARTICLE) for paragraph in data.paragraphs]
    lexical = _lexical_inputs(
        question_words, words_of_contexts, context_of, encoded_questions, encoded_contexts, frequencies, own_articles
    )
    features = SquadFeatures(
        questions=encoded_questions,
        contexts=encoded_contexts,
        context_of=context_of,
        window_question=window_question,
        window_start=window_start,
        window_end=window_end,
        answers=_answer_spans(questions, encoded_contexts, context_of),
        **lexical,
    )
    return features, frequencies


def count_articles(data: SquadData, features: SquadFeatures) -> dict[str, DocumentFrequencies]:
    """Counts of the articles of training data by title, but for one that is more than half of all contexts."""
    words_of_contexts = context_words([paragraph.context for paragraph in data.paragraphs], features.contexts)
    return _articles([paragraph.title for paragraph in data.paragraphs], words_of_contexts)


def joined(parts: Sequence[SquadFeatures]) -> SquadFeatures:
    """The features of several data sets as those of one."""
    columns = [part.to_columns() for part in parts]
    num_questions = np.cumsum([0, *(len(part.questions) for part in parts)])
    num_contexts = np.cumsum([0, *(len(part.contexts) for part in parts)])
    for number, column in enumerate(columns):
        column["window_question"] = (column["window_question"] + num_questions[number]).astype(np.int32)
        column["context_of"] = (column["context_of"] + num_contexts[number]).astype(np.int32)
    return SquadFeatures.from_columns(
        {name: _joined_columns([column[name] for column in columns]) for name in columns[0]}
    )


def _joined_columns(columns: Sequence[np.ndarray | Ragged]) -> np.ndarray | Ragged:
    if isinstance(columns[0], Ragged):
        lengths = np.concatenate([column.lengths for column in columns])
        return Ragged(np.concatenate([column.values for column in columns]), offsets_of(lengths))
    return np.concatenate(columns)


def _first_pieces(encoded: EncodedTexts, most: int) -> EncodedTexts:
    """The same texts, each cut after `most` pieces."""
    if encoded.ids.lengths.max(initial=0) <= most:
        return encoded
    columns = vars(encoded).items()
    return EncodedTexts(
        **{name: Ragged.from_arrays([each[index][:most] for index in range(len(each))]) for name, each in columns}
    )


def _answer_spans(questions: Sequence, contexts: EncodedTexts, context_of: np.ndarray) -> Ragged:
    """Answers as (first piece, last piece, annotators), int32; a question's equal spans are counted together.

    An answer without any piece (of spaces or control characters) is left out.
    """
    question_of = np.repeat(np.arange(len(questions)), [len(question.answers) for question in questions])
    answers = [answer for question in questions for answer in question.answers]
    starts = np.array([answer.start for answer in answers], np.int64)
    ends = np.array([answer.start + len(answer.text) for answer in answers], np.int64)
    first, last = find_spans(contexts, context_of[question_of].astype(np.int64), starts, ends)
    rows: list[dict[tuple[int, int], int]] = [{} for _ in questions]
    for question, span in zip(question_of.tolist(), zip(first.tolist(), last.tolist(), strict=True), strict=True):
        if span[0] <= span[1]:
            rows[question][span] = rows[question].get(span, 0) + 1
    flat = [(*span, count) for row in rows for span, count in row.items()]
    return Ragged(np.array(flat, np.int32).reshape(-1, 3), offsets_of(np.array([len(row) for row in rows])))


def _lexical_inputs(
    question_words: list[list[str]],
    words_of_contexts: list[list[str]],
    context_of: np.ndarray,
    encoded_questions: EncodedTexts,
    encoded_contexts: EncodedTexts,
    frequencies: DocumentFrequencies,
    own_articles: list[DocumentFrequencies] | None,
) -> dict[str, np.ndarray | Ragged]:
    """The lexical columns of `SquadFeatures`."""
    numbers: dict[str, int] = {}
    question_numbers, context_numbers = (
        [np.array([numbers.setdefault(word, len(numbers)) for word in row], np.int64) for row in rows]
        for rows in (question_words, words_of_contexts)
    )
    words = Words(list(numbers))
    idf_of_contexts = _idf_of_contexts(words, frequencies, own_articles, len(words_of_contexts))
    sentences = [
        sentence_starts(words, row, *word_spans(encoded_contexts, index)) for index, row in enumerate(context_numbers)
    ]
    pairs = [
        pair_features(words, idf_of_contexts[context], question, context_numbers[context], sentences[context])
        for question, context in zip(question_numbers, context_of.tolist(), strict=True)
    ]
    classes, focus_ids = [], []
    for index, row in enumerate(question_words):
        lowered = [word.lower() for word in row]
        kind, position = question_class(lowered)
        focus = focus_position(row, lowered, position)
        pieces = np.flatnonzero(encoded_questions.words[index] == focus)
        classes.append(kind)
        focus_ids.append(int(encoded_questions.ids[index][pieces[0]]) if len(pieces) else 0)
    return {
        "focus_ids": np.array(focus_ids, np.int32),
        "question_classes": np.array(classes, np.uint8),
        "match": Ragged.from_arrays([match for match, _ in pairs]),
        "scalars": Ragged.from_arrays([scalars for _, scalars in pairs]),
        "question_shapes": Ragged.from_arrays([words.shapes[row] for row in question_numbers]),
        "context_shapes": Ragged.from_arrays([words.shapes[row] for row in context_numbers]),
    }


def _articles(titles: Sequence[str], words_of_contexts: list[list[str]]) -> dict[str, DocumentFrequencies]:
    contexts_of: dict[str, list[list[str]]] = {}
    for title, row in zip(titles, words_of_contexts, strict=True):
        contexts_of.setdefault(title, []).append(row)
    return {
        title: DocumentFrequencies.count(rows, least=1)
        for title, rows in contexts_of.items()
        if len(rows) <= len(titles) / 2
    }


def _own_articles(titles: Sequence[str], words_of_contexts: list[list[str]]) -> list[DocumentFrequencies]:
    """For each context a count of its article; of itself alone where the article is more than half of all contexts."""
    counted = _articles(titles, words_of_contexts)
    return [
        counted[title] if title in counted else DocumentFrequencies.count([row], least=1)
        for title, row in zip(titles, words_of_contexts, strict=True)
    ]


def _idf_of_contexts(
    words: Words, frequencies: DocumentFrequencies, own_articles: list[DocumentFrequencies] | None, num_contexts: int
) -> list[np.ndarray]:
    """For each context the IDF of every word; contexts of one article share an array."""
    if own_articles is None:
        return [frequencies.of(words.lowered)] * num_contexts
    articles = {id(article): article for article in own_articles}
    types = list(dict.fromkeys(words.lowered))  # in the order of their numbers
    of_types = frequencies.without(list(articles.values()), types)
    of_article = {key: of_type[words.types] for key, of_type in zip(articles, of_types, strict=True)}
    return [of_article[id(article)] for article in own_articles]


def class_shape(question_classes: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """Number of each pair of question class and word shape; 0 is kept for positions that are no context word."""
    return 1 + question_classes.astype(np.int64) * len(SHAPES) + shapes
