"""Synthetic questions, made from contexts alone: what a reader can practise on before it sees a real one.

Two kinds, both with one word of the kind "who" or "how many" in place of the answer:

- cloze questions, from words around the answer in its own sentence (Lewis et al. 2019, arXiv:1906.04980, with its
  noise: words fall out, and the two sides of the answer may change places);
- recurring spans, from another sentence that the answer stands in too, which is taken out of the context (after Ram et
  al. 2021, arXiv:2101.00438): here no words match, and what is asked for has to be understood.
"""

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from him.tasks.squad.lexical import STOP_WORDS, Word, sentences_of
from him.tasks.squad.reader import Answer, Paragraph, Question, SquadData

YEAR = re.compile(r"1\d{3}|20[0-4]\d")
JOINS = frozenset("of the and de von van la".split())  # within a name, between two capitals
PLACES = frozenset("in at from near to".split())  # before a name: perhaps a place
LONGEST = {"name": 5, "number": 3, "phrase": 4}  # words of an answer
REACH = 14  # words to each side of the answer that a question is made of
KEEP_STOP_WORD = 0.6
SHARE_OF_RECURRING = 0.3
SHARE_OF_STRANGE = 0.3  # questions that get words from elsewhere in the context, as if of another sentence
HOW_MANY = "How many"
LEAST_CONTENT = 2  # content words of a question, without the word that asks


@dataclass(frozen=True)
class _Span:
    """A possible answer: words first to last (inclusive) of a sentence."""

    sentence: int
    first: int
    last: int
    kind: str


def synthetic_questions(contexts: Iterable[tuple[str, str]], per_context: int, seed: int, source: str) -> SquadData:
    """Makes questions of contexts.

    Args:
        contexts: (title, context) pairs; a context that stands there several times is taken once.
        per_context: questions made of each one, as far as it has answers for them.
        seed: decides which.
        source: names the data in messages.

    Returns:
        Data in which a question has one answer, or as many as its text occurs; a context without the sentence that was
        taken out of it is a context of its own.
    """
    chosen = random.Random(seed)
    paragraphs = []
    for number, (context, title) in enumerate({context: title for title, context in contexts}.items()):
        made = _Context(context, chosen)
        asked: dict[str, list[Question]] = {}
        for position, (text, question, answers) in enumerate(made.questions(per_context)):
            id = f"made-{number}-{position}"
            asked.setdefault(text, []).append(Question(id, question, answers, is_impossible=False))
        paragraphs += [Paragraph(title, text, tuple(questions)) for text, questions in asked.items()]
    return SquadData.from_paragraphs(paragraphs, source)


class _Context:
    """A context with its sentences and the spans that may be asked for."""

    def __init__(self, text: str, chosen: random.Random) -> None:
        self.text = text
        self.chosen = chosen
        self.sentences = sentences_of(text)
        self.names = {word.text for words in self.sentences for word in words[1:] if word.is_capital}
        self.spans = [span for number in range(len(self.sentences)) for span in self._spans(number)]
        self.content = [word.text for words in self.sentences for word in words if word.is_content]
        self.occurrences: dict[str, list[_Span]] = {}
        for span in self.spans:
            self.occurrences.setdefault(self._said(span).lower(), []).append(span)
        self.recurring = [
            span for spans in self.occurrences.values() if len({span.sentence for span in spans}) > 1 for span in spans
        ]

    def questions(self, number: int) -> Iterable[tuple[str, str, tuple[Answer, ...]]]:
        """Up to `number` questions: context, question, answers."""
        by_kind = [[span for span in self.spans if span.kind == kind] for kind in LONGEST]
        by_kind = [spans for spans in by_kind if spans]
        for _ in range(number if by_kind else 0):
            made = None
            if self.recurring and self.chosen.random() < SHARE_OF_RECURRING:
                made = self._recurring_question(self.chosen.choice(self.recurring))
            if made is None:
                made = self._cloze_question(self.chosen.choice(self.chosen.choice(by_kind)))
            if made is not None:
                yield made

    def _cloze_question(self, span: _Span) -> tuple[str, str, tuple[Answer, ...]] | None:
        question = self._question(span)
        start, end = self._characters(span)
        return (self.text, question, (Answer(self.text[start:end], start),)) if question else None

    def _recurring_question(self, span: _Span) -> tuple[str, str, tuple[Answer, ...]] | None:
        """Asks for a span by a sentence, which is taken out; all its other occurrences are answers."""
        question = self._question(span)
        if question is None:
            return None
        words = self.sentences[span.sentence]
        cut_from = words[0].start
        following = self.sentences[span.sentence + 1 :]
        cut_to = following[0][0].start if following else len(self.text)
        text = self.text[:cut_from] + self.text[cut_to:]
        answers = []
        for other in self.occurrences[self._said(span).lower()]:
            if other.sentence == span.sentence:
                continue
            start, end = self._characters(other)
            moved = start - (cut_to - cut_from) if start >= cut_to else start
            answers.append(Answer(self.text[start:end], moved))
        return text, question, tuple(answers)

    def _question(self, span: _Span) -> str | None:
        """The sentence around a span, noised; None if too little is left."""
        words = self.sentences[span.sentence]
        keep_content = self.chosen.uniform(0.35, 0.8)

        def kept(part: Sequence[Word]) -> list[str]:
            return [
                word.text
                for word in part
                if word.text[0].isalnum()
                and self.chosen.random() < (keep_content if word.is_content else KEEP_STOP_WORD)
            ]

        left = kept(words[max(0, span.first - REACH) : span.first])
        right = kept(words[span.last + 1 : span.last + 1 + REACH])
        asking = self._asking(span)
        if counted := self._counted(span) if asking == HOW_MANY else None:
            right = [counted, *right[right[:1] == [counted] :]]
        if sum(word.lower() not in STOP_WORDS for word in left + right) < LEAST_CONTENT:
            return None
        if self.chosen.random() < SHARE_OF_STRANGE:
            for _ in range(self.chosen.randint(1, 2)):
                right.insert(self.chosen.randint(0, len(right)), self.chosen.choice(self.content))
        parts = [left, right] if self.chosen.random() < 0.5 and not counted else [right, left]
        question = [asking, *parts[0], *parts[1]]
        answer = [word.text.lower() for word in words[span.first : span.last + 1]]
        lowered = [word.lower() for word in question]
        said = any(lowered[at : at + len(answer)] == answer for at in range(len(lowered)))
        return None if said else " ".join(question) + "?"

    def _counted(self, span: _Span) -> str | None:
        """What a number of one word counts."""
        words = self.sentences[span.sentence]
        after = words[span.last + 1].text if span.last + 1 < len(words) else ""
        is_counted = after.isalpha() and after.lower() not in STOP_WORDS and span.first == span.last
        return after if is_counted else None

    def _asking(self, span: _Span) -> str:
        """The words that ask for an answer of this kind, by its looks and by what stands beside it."""
        words = self.sentences[span.sentence]
        before = words[span.first - 1].text.lower() if span.first else ""
        if span.kind == "number":
            said = [word.text for word in words[span.first : span.last + 1]]
            if any(YEAR.fullmatch(word) for word in said):
                return self.chosen.choice(("When", "What year", "In what year"))
            if "%" in said or "percent" in said:
                return "What percentage of"
            if before in "$£€" and before:
                return "How much"
            return HOW_MANY if self._counted(span) else self.chosen.choice((HOW_MANY, "How much"))
        if span.kind == "name":
            asking = ("Where", "What", "Which") if before in PLACES else ("Who", "What", "Which")
            return self.chosen.choice(asking)
        return self.chosen.choice(("What", "What", "What", "How", "Why", "Which"))

    def _spans(self, number: int) -> Iterable[_Span]:
        """Names, numbers and short runs of content words of a sentence, all maximal."""
        words = self.sentences[number]
        position = 0
        while position < len(words):
            kind = self._kind(words[position], position)
            if kind is None:
                position += 1
                continue
            last = position
            while last + 1 < len(words) and last + 1 - position < LONGEST[kind]:
                following = words[last + 1]
                if self._kind(words[last + 1], last + 1) == kind or (
                    kind == "number" and following.text in ("%", "percent")
                ):
                    last += 1
                elif (
                    kind == "name"
                    and following.text in JOINS
                    and last + 2 < len(words)
                    and words[last + 2].is_capital
                    and last + 2 - position < LONGEST[kind]
                ):
                    last += 2
                else:
                    break
            yield _Span(number, position, last, kind)
            position = last + 1

    def _kind(self, word: Word, position: int) -> str | None:
        """What kind of span a word is part of; the first of a sentence is a name where it is one elsewhere."""
        if not word.is_content:
            return None
        if word.text[0].isdigit():
            return "number"
        if word.is_capital and (position > 0 or not word.text[1:].islower() or word.text in self.names):
            return "name"
        return "phrase"

    def _characters(self, span: _Span) -> tuple[int, int]:
        words = self.sentences[span.sentence]
        return words[span.first].start, words[span.last].end

    def _said(self, span: _Span) -> str:
        start, end = self._characters(span)
        return self.text[start:end]
