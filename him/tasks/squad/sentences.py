"""Words and sentences of a text with their characters, without a tokenizer."""

import re
from dataclasses import dataclass

from him.tasks.squad.lexical import STOP_WORDS

WORD = re.compile(r"\w+(?:[.,'’-]\w+)*|[^\w\s]")
MARKS = (".", "!", "?")


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
            if last.text in MARKS and last.end < word.start and not initial:
                sentences.append([])
        sentences[-1].append(word)
    return [words for words in sentences if words]


def sentence_bounds(text: str) -> list[tuple[int, int]]:
    """First character of each sentence, and the first of the next one; together they are the whole text."""
    starts = [0, *(words[0].start for words in sentences_of(text)[1:])]
    return list(zip(starts, [*starts[1:], len(text)], strict=True))
