"""Data augmentation: sentences of the context and words of the question fall out, the answers stay.

A small model knows a few thousand questions by heart after two epochs, the sentences around their answers above all; a
question that looks different each time it is met lasts longer. After Wei and Zou 2019 (arXiv:1901.11196), random
deletion, for pairs of texts.
"""

import random
from collections.abc import Iterator

from him.tasks.squad.lexical import sentence_bounds
from him.tasks.squad.reader import Answer, Paragraph, Question, SquadData

SENTENCES_OUT = 0.3  # share of the sentences without an answer
WORDS_OUT = 0.12  # share of the words of a question, but for the first and the last


def augment(data: SquadData, number: int, seed: int) -> SquadData:
    """The data, and behind them each question again in `number` augmented copies, each with a context of its own.

    Args:
        data: questions with answers, or without: then any sentence may fall out.
        number: of copies of each question.
        seed: decides them.
    """
    chosen = random.Random(seed)
    copies = [each for copy in range(number) for each in _augmented(data, copy, chosen)]
    return SquadData.from_paragraphs([*data.paragraphs, *copies], data.source)


def _augmented(data: SquadData, copy: int, chosen: random.Random) -> Iterator[Paragraph]:
    for paragraph in data.paragraphs:
        bounds = sentence_bounds(paragraph.context)
        for question in paragraph.questions:
            context, answers = _shortened(paragraph.context, bounds, question.answers, chosen)
            words = question.text.split()
            kept = [
                word
                for number, word in enumerate(words)
                if number in (0, len(words) - 1) or chosen.random() >= WORDS_OUT
            ]
            varied = Question(f"{question.id}-{copy}", " ".join(kept), answers, question.is_impossible)
            yield Paragraph(paragraph.title, context, (varied,))


def _shortened(
    context: str, bounds: list[tuple[int, int]], answers: tuple[Answer, ...], chosen: random.Random
) -> tuple[str, tuple[Answer, ...]]:
    """The context without some of the sentences in which no answer stands, and the answers in their new positions."""
    parts, moved_by, length = [], [], 0
    for start, end in bounds:
        has_answer = any(answer.start < end and answer.start + len(answer.text) > start for answer in answers)
        if has_answer or chosen.random() >= SENTENCES_OUT:
            parts.append(context[start:end])
            moved_by.append((start, length - start))
            length += end - start
    if not parts:
        return context, answers
    moved = tuple(
        Answer(answer.text, answer.start + max((start, by) for start, by in moved_by if start <= answer.start)[1])
        for answer in answers
    )
    return "".join(parts), moved
