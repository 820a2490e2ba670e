"""SQuAD scores against values worked out by hand from the definitions of the two official scripts."""

import math

import pytest

from him.core.errors import DataError
from him.tasks.squad.metrics import (
    best_no_answer_threshold,
    exact_match,
    f1,
    normalize_answer,
    squad_scores,
    squad_v2_scores,
)


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("The  Quick, brown\tfox.", "quick brown fox"),
        ("a-b", "ab"),  # punctuation first: no article a is left to remove
        ("U.S.A.", "usa"),
        ("an apple a day, the end", "apple day end"),
        ("theatre another", "theatre another"),
        ("the a an", ""),
        ("?!", ""),
        ("", ""),
        ("\u201cquoted\u201d \u2013 dash", "\u201cquoted\u201d \u2013 dash"),  # only ASCII punctuation goes
        ("caf\u00e9\u00a0\u00c9CLAIR", "caf\u00e9 \u00e9clair"),
        ("x_y", "xy"),
    ],
)
def test_normalize_answer(text, normalized):
    assert normalize_answer(text) == normalized


@pytest.mark.parametrize(
    ("prediction", "references", "expected"),
    [
        ("cat", ["cat"], 1.0),
        ("the Cat!", ["cat"], 1.0),
        # 1 shared of 2 predicted and 1 of 4 expected: 2 * 1/2 * 1/4 / (1/2 + 1/4) = 1/3
        ("red cat", ["cat with green eyes"], 1 / 3),
        # repeated words count as often as they occur on both sides: 2 of 3, 2 of 2 -> 2 * 2/3 / (5/3) = 4/5
        ("very very big", ["very very"], 4 / 5),
        ("very", ["very very"], 2 / 3),
        # the best reference counts: against "in Paris" 2/3, against "Paris" 1
        ("Paris", ["in Paris", "Paris"], 1.0),
        ("dog", ["cat"], 0.0),
        ("", ["cat"], 0.0),
        ("", [""], 0.0),  # the 1.1 script does not special-case empty answers
        ("the", ["a"], 0.0),
    ],
)
def test_f1_by_hand(prediction, references, expected):
    assert f1(prediction, references) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("prediction", "references", "expected"),
    [
        ("The cat.", ["dog", "cat"], 1.0),
        ("cats", ["cat"], 0.0),
        ("", [""], 1.0),
        ("the", ["a"], 1.0),
        ("", ["cat"], 0.0),
    ],
)
def test_exact_match_by_hand(prediction, references, expected):
    assert exact_match(prediction, references) == expected


@pytest.mark.parametrize("metric", [f1, exact_match])
def test_metrics_need_a_reference(metric):
    with pytest.raises(DataError, match="^no reference answer; SQuAD 1.1 scores need at least one"):
        metric("cat", [])


def test_squad_scores_by_hand():
    references = {"q1": ["cat"], "q2": ["the big dog", "dog"], "q3": ["one two three"], "q4": ["unanswered"]}
    predictions = {"q1": "A cat", "q2": "big", "q3": "two", "other": "cat"}
    # F1: 1, 2 * 1 * 1/2 / (3/2) = 2/3, 2 * 1 * 1/3 / (4/3) = 1/2, and 0 for q4, over four questions
    expected = {"F1": 100 * (1 + 2 / 3 + 1 / 2) / 4, "Exact_Match": 100 * 1 / 4}
    assert squad_scores(predictions, references) == pytest.approx(expected)


def test_squad_scores_of_empty_answers():
    """F1 0 and Exact_Match 1 where nothing is left on both sides: odd, and what evaluate-v1.1.py does."""
    assert squad_scores({"q": "the"}, {"q": ["..."]}) == {"F1": 0.0, "Exact_Match": 100.0}


def test_squad_scores_errors():
    with pytest.raises(DataError, match="^no question to score: the references are empty"):
        squad_scores({}, {})
    with pytest.raises(DataError, match="^question q7: no reference answer; .* squad_v2_scores$"):
        squad_scores({"q7": "cat"}, {"q7": []})


V2_REFERENCES = {"q1": ["cat"], "q2": ["big dog"], "q3": [], "q4": []}
V2_PREDICTIONS = {"q1": "cat", "q2": "dog", "q3": "", "q4": "bird"}


def test_squad_v2_scores_by_hand():
    expected = {
        "F1": 100 * (1 + 2 / 3 + 1 + 0) / 4,
        "Exact_Match": 100 * 2 / 4,
        "HasAns_F1": 100 * (1 + 2 / 3) / 2,
        "HasAns_Exact_Match": 100 * 1 / 2,
        "NoAns_F1": 100 * 1 / 2,
        "NoAns_Exact_Match": 100 * 1 / 2,
    }
    assert squad_v2_scores(V2_PREDICTIONS, V2_REFERENCES) == pytest.approx(expected)


def test_squad_v2_threshold_turns_answers_into_no_answer():
    """A probability must exceed the threshold: q1 at exactly 0.5 keeps its answer, q2 loses it, q4 gains."""
    probabilities = {"q1": 0.5, "q2": 0.6, "q3": 0.0, "q4": 0.9}
    scores = squad_v2_scores(V2_PREDICTIONS, V2_REFERENCES, probabilities, threshold=0.5)
    assert scores == {
        "F1": 75.0,
        "Exact_Match": 75.0,
        "HasAns_F1": 50.0,
        "HasAns_Exact_Match": 50.0,
        "NoAns_F1": 100.0,
        "NoAns_Exact_Match": 100.0,
    }


def test_squad_v2_default_threshold_never_takes_an_answer_away():
    probabilities = dict.fromkeys(V2_REFERENCES, 1.0)
    assert squad_v2_scores(V2_PREDICTIONS, V2_REFERENCES, probabilities) == squad_v2_scores(
        V2_PREDICTIONS, V2_REFERENCES
    )


def test_squad_v2_reports_only_groups_that_exist():
    assert set(squad_v2_scores({"q": "cat"}, {"q": ["cat"]})) == {
        "F1",
        "Exact_Match",
        "HasAns_F1",
        "HasAns_Exact_Match",
    }
    assert set(squad_v2_scores({"q": "cat"}, {"q": []})) == {"F1", "Exact_Match", "NoAns_F1", "NoAns_Exact_Match"}


@pytest.mark.parametrize(
    ("prediction", "references", "expected"),
    [
        ("the", [], 100.0),  # both empty after normalization agree, other than in 1.1
        ("cat", [], 0.0),
        ("", ["cat"], 0.0),
        ("", ["the", "cat"], 0.0),  # "the" normalizes to nothing and is no reference
        ("", ["the"], 100.0),  # nothing else is left: "" is expected, in the group HasAns all the same
        ("cat", ["...", "cat"], 100.0),
    ],
)
def test_squad_v2_empty_answers(prediction, references, expected):
    scores = squad_v2_scores({"q": prediction}, {"q": references})
    group = "HasAns" if references else "NoAns"
    assert scores == dict.fromkeys(["F1", "Exact_Match", f"{group}_F1", f"{group}_Exact_Match"], expected)


def test_best_no_answer_threshold_by_hand():
    references = {"q1": ["cat"], "q2": [], "q3": ["big dog"], "q4": [], "q5": ["owl"]}
    predictions = {"q1": "cat", "q2": "bird", "q3": "dog", "q4": "", "q5": "fish"}
    probabilities = {"q1": 0.1, "q2": 0.5, "q3": 0.3, "q4": 0.2, "q5": 0.9}
    # "No answer" everywhere is right for q2 and q4. Then, by rising probability, F1 changes by
    # q1 +1 (3), q4 0 (it is answered with ""), q3 +2/3 (3 2/3, the best), q2 -1, q5 0;
    # Exact_Match by q1 +1 (3, the best), q4 0, q3 0, q2 -1, q5 0.
    assert best_no_answer_threshold(predictions, references, probabilities) == {
        "F1": (pytest.approx(100 * (3 + 2 / 3) / 5), 0.3),
        "Exact_Match": (pytest.approx(100 * 3 / 5), 0.1),
    }


def test_best_threshold_is_reached_by_the_scores_at_that_threshold():
    references = {f"q{i}": ["cat"] if i % 3 else [] for i in range(30)}
    predictions = {f"q{i}": "cat" if i % 2 else "big cat" for i in range(30)}
    probabilities = {f"q{i}": (i * 7 % 30 + 1) / 32 for i in range(30)}
    best = best_no_answer_threshold(predictions, references, probabilities)
    by_f1 = squad_v2_scores(predictions, references, probabilities, best["F1"][1])
    by_exact_match = squad_v2_scores(predictions, references, probabilities, best["Exact_Match"][1])
    assert by_f1["F1"] == pytest.approx(best["F1"][0])
    assert by_exact_match["Exact_Match"] == pytest.approx(best["Exact_Match"][0])
    every_f1 = [
        squad_v2_scores(predictions, references, probabilities, value)["F1"] for value in probabilities.values()
    ]
    assert best["F1"][0] == pytest.approx(max(every_f1))


def test_best_threshold_where_no_answer_is_best():
    best = best_no_answer_threshold({"q1": "cat", "q2": "dog"}, {"q1": [], "q2": ["owl"]}, {"q1": 0.2, "q2": 0.1})
    assert best == {"F1": (50.0, 0.0), "Exact_Match": (50.0, 0.0)}


def test_best_threshold_stops_halfway_among_equal_probabilities():
    """As find_best_thresh does: after q1 it sees 2 of 2, though no threshold parts q1 from q2."""
    references, predictions = {"q1": ["cat"], "q2": []}, {"q1": "cat", "q2": "dog"}
    assert best_no_answer_threshold(predictions, references, {"q1": 0.5, "q2": 0.5})["F1"][0] == 100.0
    assert best_no_answer_threshold(predictions, references, {"q2": 0.5, "q1": 0.5})["F1"][0] == 50.0


def test_ids_without_a_question_are_ignored():
    predictions, probabilities = {"q": "cat", "other": "dog"}, {"other": 0.1, "q": 0.2}
    assert squad_v2_scores(predictions, {"q": ["cat"]}, probabilities)["F1"] == 100.0
    assert best_no_answer_threshold(predictions, {"q": ["cat"]}, probabilities)["F1"][1] == 0.2


def test_squad_v2_errors():
    with pytest.raises(DataError, match="^no question to score: the references are empty"):
        squad_v2_scores({}, {})
    with pytest.raises(DataError, match="^2 of 3 questions have no prediction, the first is q2; "):
        squad_v2_scores({"q1": ""}, {"q1": [], "q2": [], "q3": []})
    with pytest.raises(DataError, match="^1 of 2 questions have no no-answer probability, the first is q2; "):
        best_no_answer_threshold({"q1": "", "q2": ""}, {"q1": [], "q2": []}, {"q1": 0.5})


@pytest.mark.parametrize("probability", [-0.1, 1.5, math.nan])
def test_probabilities_outside_the_unit_interval(probability):
    with pytest.raises(DataError, match="^question q: no-answer probability .* is not between 0 and 1; .* sigmoid"):
        squad_v2_scores({"q": ""}, {"q": []}, {"q": probability})
    with pytest.raises(DataError, match="^question q: no-answer probability"):
        best_no_answer_threshold({"q": ""}, {"q": []}, {"q": probability})
