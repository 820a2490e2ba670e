"""Questions made of contexts: their answers stand where they say, and are not given away."""

import random

import pytest

from him.tasks.squad import synthetic_questions as module
from him.tasks.squad.reader import SquadData, squad_from_document
from him.tasks.squad.synthetic_questions import synthetic_questions
from tests.small_runs import sample_documents

# "Ann Bell" and "mill" stand in two sentences; of other words only stop words stand there twice.
SENTENCES = (
    "Under the hills Ann Bell built the mill of Port Hale in 1902 with borrowed money.",
    "Every windy summer 36 visitors climbed its narrow wooden tower.",
    "Later Ann Bell sold the mill because heavy storms broke four sails.",
)
CONTEXT = " ".join(SENTENCES)


def made(*contexts: str, per_context: int = 40, seed: int = 0) -> SquadData:
    return synthetic_questions([("title", context) for context in contexts], per_context, seed, "made")


def asked(data: SquadData) -> list[tuple[str, str, tuple[str, ...]]]:
    """Context, question and the texts of its answers."""
    return [
        (paragraph.context, question.text, tuple(answer.text for answer in question.answers))
        for paragraph in data.paragraphs
        for question in paragraph.questions
    ]


@pytest.fixture(scope="module")
def contexts() -> list[tuple[str, str]]:
    data = squad_from_document(sample_documents()[0], "sample")
    return [(paragraph.title, paragraph.context) for paragraph in data.paragraphs[:50]]


def assert_sound(data: SquadData) -> None:
    for paragraph in data.paragraphs:
        assert paragraph.questions
        for question in paragraph.questions:
            assert question.text.strip() and question.answers and not question.is_impossible
            for answer in question.answers:
                assert answer.text.strip()
                assert paragraph.context.startswith(answer.text, answer.start)
    ids = [question.id for question in data.questions]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("seed", [0, 1])
def test_answers_stand_at_their_positions(contexts, seed):
    data = synthetic_questions(contexts, 8, seed, "made")
    assert_sound(data)
    assert 6 * len(contexts) < data.num_questions <= 8 * len(contexts)
    assert {paragraph.title for paragraph in data.paragraphs} == {title for title, _ in contexts}


def test_the_seed_decides(contexts):
    first, again, other = (synthetic_questions(contexts, 4, seed, "made") for seed in (0, 0, 1))
    assert first.paragraphs == again.paragraphs
    assert first.paragraphs != other.paragraphs


def test_a_context_is_taken_once(contexts):
    once, twice = (synthetic_questions(contexts * times, 4, 0, "made") for times in (1, 2))
    assert once.paragraphs == twice.paragraphs
    assert {*asked(made(CONTEXT, per_context=3))} == {*asked(made(CONTEXT, CONTEXT, per_context=3))}


def test_at_most_so_many_questions():
    assert made(CONTEXT, per_context=0).questions == []
    numbers = [made(CONTEXT, per_context=5, seed=seed).num_questions for seed in range(20)]
    assert max(numbers) == 5  # and fewer where too little is left of a sentence
    assert min(numbers) >= 2


# --- cloze questions --------------------------------------------------------------------------------------------------


@pytest.fixture
def only_cloze(monkeypatch) -> None:
    """No question by a sentence that is taken out, and no words of other sentences."""
    monkeypatch.setattr(module, "SHARE_OF_RECURRING", 0.0)
    monkeypatch.setattr(module, "SHARE_OF_STRANGE", 0.0)


def test_no_question_says_its_answer(only_cloze):
    found = asked(made(CONTEXT, per_context=400))
    assert {context for context, _, _ in found} == {CONTEXT}
    answers = {answers for _, _, answers in found}
    assert {("Ann Bell",), ("Port Hale",), ("1902",), ("36",), ("mill",)} <= answers
    for _, question, (answer,) in found:
        words = question.rstrip("?").split()
        length = len(answer.split())
        runs = [" ".join(words[start : start + length]) for start in range(len(words))]
        assert answer not in runs, question


def test_a_question_is_of_the_sentence_of_its_answer(only_cloze):
    asking = set("Who What Which Where When How Why In many much year what visitors".split())
    for _, question, (answer,) in asked(made(CONTEXT, per_context=200)):
        words = set(question.rstrip("?").split()) - asking
        homes = [sentence for sentence in SENTENCES if answer in sentence]
        assert any(words <= set(sentence.rstrip(".").split()) for sentence in homes), question


def test_words_of_other_sentences_are_mixed_in(monkeypatch):
    monkeypatch.setattr(module, "SHARE_OF_RECURRING", 0.0)
    monkeypatch.setattr(module, "SHARE_OF_STRANGE", 1.0)
    of_first = [question for _, question, answers in asked(made(CONTEXT, per_context=100)) if answers == ("1902",)]
    assert len(of_first) >= 5
    strange = set((SENTENCES[1] + SENTENCES[2]).replace(".", "").split())
    assert any(strange & set(question.rstrip("?").split()) for question in of_first)


@pytest.mark.parametrize(
    ("sentence", "answer", "beginnings"),
    [
        ("The old mill was opened before many guests in 1902.", "1902", ("When ", "What year ", "In what year ")),
        ("The old mill has 36 windows facing the river.", "36", ("How many windows ",)),
        ("The old mill was sold for $4500 by its miller.", "4500", ("How much ",)),
        ("The old miller counted to 40 and then slept at home.", "40", ("How many ", "How much ")),
        ("A storm took 12 percent of the grain that summer.", "12 percent", ("What percentage of ",)),
        ("A storm took 12% of the grain that summer.", "12%", ("What percentage of ",)),
        ("The old mill stands in Port Hale beside a river.", "Port Hale", ("Where ", "What ", "Which ")),
        ("The old mill was built by Ann Bell beside a river.", "Ann Bell", ("Who ", "What ", "Which ")),
    ],
)
def test_the_asking_words_fit_the_answer(only_cloze, sentence, answer, beginnings):
    questions = [question for _, question, answers in asked(made(sentence, per_context=60)) if answers == (answer,)]
    assert len(questions) >= 5
    assert all(question.startswith(beginnings) for question in questions), questions
    assert all(any(question.startswith(each) for question in questions) for each in beginnings)


# --- recurring spans --------------------------------------------------------------------------------------------------


def test_the_sentence_of_a_recurring_question_is_taken_out(monkeypatch):
    """And the answer stands in what is left."""
    monkeypatch.setattr(module, "SHARE_OF_RECURRING", 1.0)
    monkeypatch.setattr(module, "SHARE_OF_STRANGE", 0.0)
    data = made(CONTEXT, per_context=60)
    assert_sound(data)
    without_first, without_last = " ".join(SENTENCES[1:]), " ".join(SENTENCES[:2])
    recurring = [(context.strip(), *rest) for context, *rest in asked(data) if context != CONTEXT]
    assert {context for context, _, _ in recurring} == {without_first, without_last}
    assert {answers for _, _, answers in recurring} == {("Ann Bell",), ("mill",)}
    for context, question, _ in recurring:
        taken_out = SENTENCES[0] if context == without_first else SENTENCES[2]
        assert set(question.rstrip("?").split()[1:]) <= set(taken_out.rstrip(".").split())


def test_all_other_occurrences_of_a_recurring_span_are_answers(monkeypatch):
    monkeypatch.setattr(module, "SHARE_OF_RECURRING", 1.0)
    context = (
        "The Yalhaven Moth hides daily. Old farmers fear the Yalhaven Moth. By night the Yalhaven Moth eats roots."
    )
    data = made(context, per_context=30)
    assert_sound(data)
    recurring = [paragraph for paragraph in data.paragraphs if paragraph.context != context]
    assert len(recurring) == 3
    for paragraph in recurring:
        places = {place for place in range(len(paragraph.context)) if paragraph.context.startswith("Yalhaven", place)}
        for question in paragraph.questions:
            assert {answer.start for answer in question.answers} == places
            assert len(places) == 2


# --- any text ---------------------------------------------------------------------------------------------------------

ODD = {
    "empty": "",
    "spaces": " \n\t ",
    "a mark": ".",
    "marks": "...!!! ?? $ % ( )",
    "a word": "mill",
    "a name": "Hale",
    "a number": "36",
    "initials": "J. R. R. T. U.S.",
    "stop words": "The of and to in is it.",
    "no sentence": "mill river 36 tower Hale sails money",
    "no spaces": "東京は日本の首都です。",
    "emoji": "😀 😀😀 a\u0301b 👩\u200d🚀 flew",
    "odd digits": "²³ ½ people ⅷ rivers",
    "control characters": "\x00 \x01mill\u2028 Hale\u00a0river",
    "underscores": "_ __ _a a_b Hale_river",
    "one long word": "Mill" * 3000,
}


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_odd_contexts_do_no_harm(text):
    for seed in range(10):
        data = made(text, CONTEXT, seed=seed, per_context=10)
        assert_sound(data)
        assert CONTEXT in {paragraph.context for paragraph in data.paragraphs}
        if len(text.split()) <= 1:
            assert text not in {paragraph.context for paragraph in data.paragraphs}


def test_random_contexts_do_no_harm():
    choose = random.Random(0)
    words = "the of Bell bell 1902 percent % $ . ! ? , Ann built and Mill in 12 é É ² _ 京 J. (a) it's".split()
    num_questions = 0
    for seed in range(400):
        joined = choose.choice([" ", " ", "", "\n"])
        data = made(joined.join(choose.choices(words, k=choose.randrange(40))), per_context=5, seed=seed)
        assert_sound(data)
        num_questions += data.num_questions
    assert num_questions > 500
