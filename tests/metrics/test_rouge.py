"""ROUGE against fractions counted by hand, and against the package `rouge-score` with its own tokenizer."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from him.metrics import rouge_scores
from him.metrics.rouge import _in_lines, _plain_tokens, _unicode_tokens

REPOSITORY = Path(__file__).parents[2]
SHARED = REPOSITORY.parent / "shared" / "data"
SCITLDR = SHARED / "scitldr" / "validation.jsonl"
TITLES = SHARED / "acl_titles" / "validation.jsonl"
KEYS = {"ROUGE-1": "rouge1", "ROUGE-2": "rouge2", "ROUGE-L": "rougeL", "ROUGE-Lsum": "rougeLsum"}


def stock(prediction: str, references: list[str]) -> dict[str, float]:
    """The package with its own tokenizer, on the same sentences."""
    scorer = RougeScorer(list(KEYS.values()), use_stemmer=True)
    best = scorer.score_multi([_in_lines(text) for text in references], _in_lines(prediction))
    return {name: 100.0 * best[key].fmeasure for name, key in KEYS.items()}


def test_by_hand():
    """Five words against six: 5 are shared, 1 of 4 and 5 pairs; the longest order in common is cat, saw, dog."""
    scores = rouge_scores(["the cat saw a dog"], [["a cat saw the red dog"]])
    assert list(scores) == list(KEYS)
    assert scores["ROUGE-1"] == pytest.approx(100 * 2 * 5 / (5 + 6))
    assert scores["ROUGE-2"] == pytest.approx(100 * 2 * 1 / (4 + 5))
    assert scores["ROUGE-L"] == scores["ROUGE-Lsum"] == pytest.approx(100 * 2 * 3 / (5 + 6))


def test_mean_over_examples():
    scores = rouge_scores(["one two", "three"], [["one two"], ["four"]])
    assert scores == {"ROUGE-1": 50.0, "ROUGE-2": 50.0, "ROUGE-L": 50.0, "ROUGE-Lsum": 50.0}


def test_words_are_stemmed_and_case_is_ignored():
    assert rouge_scores(["Training MODELS"], [["trained model"]])["ROUGE-2"] == 100.0


def test_the_best_reference_counts_for_each_metric():
    """The first shares three words in another order, the second a pair."""
    scores = rouge_scores(["a b c d"], [["c b a x", "a b y z"]])
    assert scores["ROUGE-1"] == 75.0
    assert scores["ROUGE-2"] == pytest.approx(100 / 3)
    assert scores["ROUGE-L"] == 50.0


def test_only_lsum_looks_at_sentences():
    """The order of the sentences does not matter to it."""
    scores = rouge_scores(['A cat sat. "Was it red?" Yes.'], [["Was it red?\nYes. A cat sat."]])
    assert scores["ROUGE-Lsum"] == 100.0
    assert scores["ROUGE-L"] == pytest.approx(100 * 4 / 7)


def test_sentences():
    assert _in_lines('He said "stop!" Then (not.) left 3.5 m. End') == 'He said "stop!\nThen (not.\nleft 3.5 m.\nEnd'
    assert _in_lines("猫。犬！鳥") == "猫。\n犬！\n鳥"


@pytest.mark.parametrize("prediction", ["", " \n", "?!", "\ud800", "。"])
@pytest.mark.parametrize("reference", ["", "a cat", "猫が好き", "..."])
def test_nothing_to_compare_scores_0(prediction, reference):
    assert set(rouge_scores([prediction], [[reference]]).values()) == {0.0}


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([], [], "no text is not defined"),
        (["a"], [], "1 predictions, 0 references"),
        (["a"], ["a"], "list of lists"),
        (["a"], [[]], "each example needs a reference"),
    ],
)
def test_misuse(predictions, references, message):
    with pytest.raises(AssertionError, match=message):
        rouge_scores(predictions, references)


# --- other scripts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Модель обучена, дважды!", ["модель", "обучена", "дважды"]),
        ("Ο νόμος_της 1-ης", ["ο", "νόμος", "της", "1", "ης"]),
        ("训练2个模型 GPT-4", ["训", "练", "2", "个", "模", "型", "gpt", "4"]),
        ("カタカナとー", ["カ", "タ", "カ", "ナ", "と", "ー"]),
        ("ｶﾞ", ["ガ"]),  # half width, in NFKC one character of full width
        ("ภาษาที่", ["ภ", "า", "ษ", "า", "ที่"]),  # two marks stay with their letter
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("e\u0301te\u0301 \u00e9t\u00e9", ["été", "été"]),
        ("Trained naïve models", ["train", "naïve", "model"]),
        ("\u0301a", ["a"]),
        ("\U00020000b", ["\U00020000", "b"]),
    ],
)
def test_unicode_tokens(text, tokens):
    assert _unicode_tokens(text) == tokens


@pytest.mark.parametrize("text", ["Модель обучена", "我们训练模型。它很小。", "ภาษาไทย", "naïve façade"])
def test_a_perfect_summary_scores_100_in_any_script(text):
    assert set(rouge_scores([text], [[text]]).values()) == {100.0}


def test_all_texts_of_an_example_have_the_same_tokens():
    """With tokens of its own the prediction would be "na", "ve" against "naïve", or, of one reference, hide it."""
    assert rouge_scores(["naïve"], [["na ve"]])["ROUGE-1"] == 0.0
    assert rouge_scores(["na ve"], [["naïve", "x"]])["ROUGE-1"] == 0.0
    assert rouge_scores(["na ve"], [["na-ve", "x"]])["ROUGE-1"] == 100.0


# --- the package's own scores ----------------------------------------------------------------------------------------

ASCII = st.text(st.sampled_from("abcdeilnorstuyABS019 .,!?_-\n\"')“—"), max_size=60)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(ASCII, st.lists(ASCII, min_size=1, max_size=3))
def test_scores_of_ascii_words_are_those_of_the_package(prediction, references):
    assert rouge_scores([prediction], [references]) == stock(prediction, references)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(max_size=40), st.lists(st.text(max_size=40), min_size=1, max_size=2))
def test_any_text_gives_scores_between_0_and_100(prediction, references):
    assert all(0.0 <= score <= 100.0 for score in rouge_scores([prediction], [references]).values())


@given(st.text("abcdefghijklmnopqrstuvwxyz ", max_size=40))
def test_ascii_words_are_the_same_tokens_either_way(text):
    assert _unicode_tokens(text) == _plain_tokens(text)


@pytest.mark.skipif(not SCITLDR.is_file(), reason="no shared data here")
def test_scores_of_real_summaries_are_those_of_the_package():
    """Each abstract's first 20 words against all references of its summary."""
    num_equal = 0
    for line in SCITLDR.read_text(encoding="utf-8").splitlines()[:300]:
        record = json.loads(line)
        prediction, references = " ".join(record["document"].split()[:20]), record["summaries"]
        if not any(c.isalnum() and not c.isascii() for text in (prediction, *references) for c in text):
            assert rouge_scores([prediction], [references]) == stock(prediction, references)
            num_equal += 1
    assert num_equal > 250


@pytest.mark.skipif(not TITLES.is_file(), reason="no shared data here")
def test_2000_titles_take_a_moment():
    """0.3 s of one core where it was written; processor time, so that a busy machine does not fail it."""
    records = [json.loads(line) for line in TITLES.read_text(encoding="utf-8").splitlines()]
    predictions = [" ".join(record["document"].split()[:10]) for record in records]
    started_at = time.process_time()
    scores = rouge_scores(predictions, [[record["summary"]] for record in records])
    assert time.process_time() - started_at < 3
    assert 5 < scores["ROUGE-2"] < scores["ROUGE-L"] < scores["ROUGE-1"] < 40


def test_nltk_is_not_loaded_before_it_is_needed():
    program = "import sys, him.metrics; assert not {'nltk', 'rouge_score'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=REPOSITORY, timeout=60)
