"""Augmented copies of questions: the answers stay where they are, and other things fall out."""

import pytest

from him.tasks.squad.augmentation import SENTENCES_OUT, WORDS_OUT, augment
from him.tasks.squad.lexical import sentence_bounds, sentences_of
from him.tasks.squad.reader import Answer, Paragraph, Question, SquadData

SENTENCES = [f"Number {place} of them was built by J. Smith in 19{place:02} for 3.5 days." for place in range(20)]
CONTEXT = "  " + " ".join(SENTENCES) + " "


def data_of(*questions, context=CONTEXT):
    return SquadData.from_paragraphs([Paragraph("Mills", context, tuple(questions))], "made up")


def question(place, text="Who built number seven of all these mills?", context=CONTEXT):
    start = context.index(f"19{place:02}")
    return Question(f"q{place}", text, (Answer(f"19{place:02}", start),) * 2, is_impossible=False)


def test_sentences_end_where_they_seem_to():
    assert [[word.text for word in words][:2] for words in sentences_of(CONTEXT)] == [
        ["Number", str(place)] for place in range(20)
    ]
    bounds = sentence_bounds(CONTEXT)
    assert bounds[0][0] == 0 and bounds[-1][1] == len(CONTEXT)
    assert "".join(CONTEXT[start:end] for start, end in bounds) == CONTEXT


@pytest.mark.parametrize("text", ["", " ", "one", "...", "É. Ñ! ü", "a. b. c", "\u200b"])
def test_bounds_cover_any_text(text):
    assert "".join(text[start:end] for start, end in sentence_bounds(text)) == text
    augmented = augment(data_of(Question("q", "What?", (), is_impossible=True), context=text), 2, 0)
    assert len(augmented.questions) == 3


def test_answers_are_found_in_every_augmented_copy():
    data = data_of(*(question(place) for place in range(20)))
    augmented = augment(data, 5, seed=1)
    assert augmented.paragraphs[0] is data.paragraphs[0]
    for paragraph in augmented.paragraphs:
        for each in paragraph.questions:
            for answer in each.answers:
                assert paragraph.context[answer.start : answer.start + len(answer.text)] == answer.text
    # The n-th question of each copy is the n-th of the data: by this the trainer knows where one is from.
    assert [each.id.split("-")[0] for each in augmented.questions] == 6 * [each.id for each in data.questions]
    assert len({each.id for each in augmented.questions}) == 120


def test_about_as_much_falls_out_as_is_said():
    data = data_of(*(question(place) for place in range(20)))
    augmented = augment(data, 50, seed=2)
    words = len(data.questions[0].text.split())
    kept = [len(each.text.split()) for each in augmented.questions[20:]]
    assert sum(kept) / len(kept) == pytest.approx(words - WORDS_OUT * (words - 2), abs=0.1)
    assert all(each.text.startswith("Who") and each.text.endswith("mills?") for each in augmented.questions)
    sentences = [len(sentences_of(paragraph.context)) for paragraph in augmented.paragraphs[1:]]
    assert sum(sentences) / len(sentences) == pytest.approx(20 - SENTENCES_OUT * 19, abs=0.2)


def test_a_seed_decides():
    data = data_of(question(3), question(4))
    assert augment(data, 3, seed=5) == augment(data, 3, seed=5)
    assert augment(data, 3, seed=5) != augment(data, 3, seed=6)
    assert augment(data, 0, seed=5).paragraphs == data.paragraphs


def test_the_sentence_of_an_answer_never_falls_out():
    """Nor those of an answer that runs over several, or of another annotator."""
    both = (
        Answer("1903", CONTEXT.index("1903")),
        Answer(SENTENCES[8] + " " + SENTENCES[9], CONTEXT.index(SENTENCES[8])),
    )
    data = data_of(Question("q", "When?", both, is_impossible=False))
    for paragraph in augment(data, 30, seed=7).paragraphs:
        assert all(SENTENCES[place] in paragraph.context for place in (3, 8, 9))
