"""The built-in sample: sound SQuAD files, nothing shared between the splits, and no way around reading.

The baselines at the end are what a model gets that does not read. They are written to be as good as they can be without
learning anything, so that a score far above them means that the paragraph was read.
"""

import random
import re
import string
import time
from collections import Counter

import pytest

from him.data.sample import squad_sample
from him.data.sample.wording import Wording, load_frames, load_phrases
from him.data.sample.world import TRAIN, VALIDATION, split_of

SEED = 0


@pytest.fixture(scope="module")
def sample() -> tuple[dict, dict]:
    return squad_sample(SEED)


def paragraphs(dataset: dict) -> list[dict]:
    return [paragraph for article in dataset["data"] for paragraph in article["paragraphs"]]


def rows(dataset: dict) -> list[tuple[str, str, str]]:
    """(context, question, answer) of every question."""
    return [(p["context"], qa["question"], qa["answers"][0]["text"]) for p in paragraphs(dataset) for qa in p["qas"]]


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def as_pattern(template: str) -> re.Pattern:
    """What the questions made from a template look like."""
    escaped = re.escape(template).replace(r"\{s\}", r"(?:the )?[A-Z]\w+(?: [A-Za-z]\w+)?")
    return re.compile(re.sub(r"\\\{\w+\\\}", r"(?!the )[\\w ]+", escaped))


def templates(split: str) -> list[tuple[str, str]]:
    """(kind, text) of every clause and question of a split, and of its asides."""
    found = [("aside", text) for text in load_frames("asides", split)]
    for kind, phrases in load_phrases().items():
        for wording in [*phrases.clauses, *(w for wordings in phrases.questions.values() for w in wordings)]:
            if wording.split == split:
                found += [(kind, variant) for variant in wording.variants]
    return found


# --- format ----------------------------------------------------------------------------------------------------------


def test_layout_and_offsets(sample):
    ids = []
    for dataset in sample:
        assert set(dataset) == {"version", "data"}
        for article in dataset["data"]:
            assert set(article) == {"title", "paragraphs"}
        for paragraph in paragraphs(dataset):
            context = paragraph["context"]
            assert context == context.strip() and "  " not in context and "{" not in context and "[" not in context
            assert paragraph["qas"]
            for qa in paragraph["qas"]:
                ids.append(qa["id"])
                assert qa["question"].endswith("?") and "{" not in qa["question"]
                for answer in qa["answers"]:
                    start = answer["answer_start"]
                    assert answer["text"] and context[start : start + len(answer["text"])] == answer["text"]
                    # Whole words only: a model that marks words can give every answer exactly.
                    assert not context[start - 1 : start].isalnum()
                    assert not context[start + len(answer["text"])].isalnum()
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(("num_train", "num_validation"), [(4000, 400), (7, 1), (1, 0)])
def test_number_of_questions_is_as_asked(num_train, num_validation):
    train, validation = squad_sample(3, num_train, num_validation)
    assert (len(rows(train)), len(rows(validation))) == (num_train, num_validation)


def test_same_seed_same_sample_other_seed_another():
    assert squad_sample(5, 50, 50) == squad_sample(5, 50, 50)
    assert squad_sample(5, 50, 50) != squad_sample(6, 50, 50)


def test_a_larger_sample_begins_like_a_smaller_one():
    small, large = (rows(squad_sample(5, n, 0)[0]) for n in (40, 80))
    assert large[:30] == small[:30]


def test_default_size_is_made_quickly():
    started_at = time.perf_counter()
    squad_sample(1)
    assert time.perf_counter() - started_at < 5  # 0.4 s on an idle core; the bound leaves room for a busy machine


# --- training and validation share nothing ---------------------------------------------------------------------------


def test_no_name_or_number_in_both_splits(sample):
    """Capitalised words inside a sentence are names (months aside), digits numbers; neither may cross."""
    kept = []
    for dataset in sample:
        text = " ".join(p["context"] for p in paragraphs(dataset))
        names = set(re.findall(r"(?<=[a-z,] )[A-Z][a-z]+", text))
        kept.append(names | set(re.findall(r"\d+", text)))
    assert len(kept[0]) > 2000 and len(kept[1]) > 300
    common_words = {
        *("January February March April May June July August September October November December".split()),
        *("Works Mills Brothers Company Foundry Expedition Tower Library Theatre Lighthouse Hall Museum".split()),
        *("Pump Lamp Loom Engine Clock Press Frog Beetle Owl Lizard Moth Otter".split()),
        *("Festival Fair Parade Carnival".split()),
    }
    assert kept[0] & kept[1] <= common_words


def test_no_answer_in_both_splits(sample):
    train, validation = ({answer.lower() for _, _, answer in rows(dataset)} for dataset in sample)
    assert not train & validation


def test_no_template_in_both_splits():
    train, validation = set(templates(TRAIN)), set(templates(VALIDATION))
    assert len(train) > 300 and len(validation) > 150
    assert not train & validation


def test_each_template_is_used_in_its_split_only(sample):
    """Every question of a split is a filled-in template of that split and of no template of the other."""
    patterns = {
        split: [
            as_pattern(variant)
            for phrases in load_phrases().values()
            for wordings in phrases.questions.values()
            for wording in wordings
            if wording.split == split
            for variant in wording.variants
        ]
        for split in (TRAIN, VALIDATION)
    }
    for dataset, own, foreign in zip(sample, (TRAIN, VALIDATION), (VALIDATION, TRAIN), strict=True):
        for _, question, _ in rows(dataset)[:400]:
            assert any(pattern.fullmatch(question) for pattern in patterns[own]), question
            assert not any(pattern.fullmatch(question) for pattern in patterns[foreign]), question


def test_words_of_validation_templates_occur_in_training_templates_of_the_same_kind():
    """Held-out wordings are new combinations, not new words: the task is reading, not guessing vocabulary."""
    for kind in [*load_phrases(), "aside"]:
        known, asked = (
            {word for its_kind, text in templates(split) if its_kind == kind for word in words(text)}
            for split in (TRAIN, VALIDATION)
        )
        assert not asked - known - {"and"}, (kind, asked - known)  # "and" joins clauses everywhere


def test_every_relation_is_covered_by_several_wordings():
    for kind, phrases in load_phrases().items():
        for relation in phrases.relations:
            count = Counter(clause.split for clause in phrases.clauses if relation in clause.relations)
            assert count[TRAIN] >= 4 and count[VALIDATION] >= 2, (kind, relation, count)
        for relation in [*phrases.relations, "name"]:
            count = Counter(wording.split for wording in phrases.questions[relation])
            assert count[TRAIN] >= 4 and count[VALIDATION] >= 2, (kind, relation, count)


def test_variants_of_a_wording():
    assert Wording("a [b|c] d[|, e]", TRAIN).variants == ["a b d", "a b d, e", "a c d", "a c d, e"]


def test_every_value_has_one_split():
    shares = Counter(split_of(str(number)) for number in range(10_000))
    assert 0.2 < shares[VALIDATION] / 10_000 < 0.3


# --- variety ---------------------------------------------------------------------------------------------------------


def test_variety(sample):
    train, _ = sample
    contexts = {p["context"] for p in paragraphs(train)}
    assert len(contexts) == len(paragraphs(train)) > 700
    assert len({question for _, question, _ in rows(train)}) > 3900
    first_words = Counter(words(question)[0] for _, question, _ in rows(train))
    assert {"who", "when", "where", "what", "which", "how", "why"} <= set(first_words)
    assert len({answer for _, _, answer in rows(train)}) > 2000
    lengths = [len(words(context)) for context in contexts]
    assert 30 <= min(lengths) and max(lengths) <= 110 and 50 <= sum(lengths) / len(lengths) <= 90


def test_answers_stand_anywhere_in_the_paragraph(sample):
    for dataset in sample:
        places = [qa["answers"][0]["answer_start"] / len(p["context"]) for p in paragraphs(dataset) for qa in p["qas"]]
        for low in (0.0, 0.25, 0.5, 0.75):
            share = sum(low <= place < low + 0.25 for place in places) / len(places)
            assert 0.1 < share < 0.4, (low, share)


# --- what a model gets that does not read ----------------------------------------------------------------------------

FUNCTION_WORDS = set(
    "the a an of in on at to is was were are be by for with and or did do does it its he she his her that this from "
    "what which who whom whose when where why how many much long old tall high".split()
)


def f1(prediction: str, truth: str) -> float:
    """F1 of SQuAD's official scorer: over words without articles and punctuation."""

    def normal(text: str) -> list[str]:
        text = "".join(c for c in text.lower() if c not in string.punctuation)
        return [word for word in text.split() if word not in ("a", "an", "the")]

    predicted, expected = normal(prediction), normal(truth)
    common = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * common / (len(predicted) + len(expected)) if common else 0.0


def mean_f1(dataset: dict, answer) -> float:
    scores = [f1(answer(context, question), truth) for context, question, truth in rows(dataset)]
    return 100 * sum(scores) / len(scores)


def sentences_of(context: str) -> list[str]:
    return re.split(r"(?<=\.) ", context)


def overlap(text: str, question: str) -> int:
    asked = {word for word in words(question) if word not in FUNCTION_WORDS}
    return len(asked & set(words(text)))


def candidates(text: str, question: str) -> list[str]:
    """The spans of `text` of the type that the question word asks for, none of which is in the question."""
    first = question.lower()
    if "why" in first or "cause" in first or "reason" in first:
        pattern = r"(?:the|a) (?:\w+ ){1,2}(?:of|over|about|in) \w+"
    elif re.match(r"who|whom|whose|by whom|under whom|from whom|which person", first):
        pattern = r"[A-Z][a-z]+ [A-Z][a-z]+"
    elif "date" in first or "day" in first:
        pattern = r"\d+ [A-Z][a-z]+(?: \d{4})?"
    elif "when" in first or "year" in first:
        pattern = r"\d+ [A-Z][a-z]+ \d{4}|\b1\d{3}\b"
    elif first.startswith("how") or "height" in first or "weight" in first or "price" in first:
        pattern = r"\d+ (?:months|days|metres|crowns|kilograms|centimetres)|\b\d+\b"
    elif re.match(r"where|(in |from )?(which|what) (place|town|port)", first):
        pattern = r"(?<=[a-z] )[A-Z][a-z]+\b(?! [A-Z])"
    else:
        pattern = r"[A-Z][a-z]+ [A-Z]?[a-z]+|(?<=\w )\w+ \w+(?=[.,])"
    return [span for span in re.findall(pattern, text) if span.lower() not in first] or [text.rstrip(".")]


def best_overlap_span(context: str, question: str) -> str:
    """The span of up to five words whose surroundings share most with the question (Richardson et al. 2013)."""
    tokens = re.findall(r"\w+", context)
    asked = {word for word in words(question) if word not in FUNCTION_WORDS}
    hits = [token.lower() in asked for token in tokens]
    best, best_score = "", -1.0
    for start in range(len(tokens)):
        for end in range(start + 1, min(start + 5, len(tokens)) + 1):
            if (
                any(hits[start:end])
                or tokens[start].lower() in FUNCTION_WORDS
                or tokens[end - 1].lower() in FUNCTION_WORDS
            ):
                continue
            near = [(start - i, i) for i in range(max(0, start - 8), start)]
            near += [(i - end + 1, i) for i in range(end, min(len(tokens), end + 8))]
            score = sum(1 / distance for distance, i in near if hits[i])
            if score > best_score:
                best, best_score = " ".join(tokens[start:end]), score
    return best


def test_best_overlap_span_is_a_poor_answer(sample):
    score = mean_f1(sample[1], best_overlap_span)
    assert score < 25


def test_random_span_of_the_right_type_is_a_poor_answer(sample):
    rng = random.Random(0)
    score = mean_f1(sample[1], lambda context, question: rng.choice(candidates(context, question)))
    assert score < 40


def test_right_type_in_the_best_sentence_is_a_poor_answer(sample):
    """The strongest of the short cuts: the sentence that shares most words, and in it the type that is asked for."""

    def answer(context: str, question: str) -> str:
        best = max(sentences_of(context), key=lambda sentence: overlap(sentence, question))
        return candidates(best, question)[0]

    score = mean_f1(sample[1], answer)
    assert score < 45


def test_first_span_of_the_right_type_is_a_poor_answer(sample):
    score = mean_f1(sample[1], lambda context, question: candidates(context, question)[0])
    assert score < 40
