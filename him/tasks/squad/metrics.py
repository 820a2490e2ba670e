"""SQuAD scores F1 and Exact_Match, to the last bit equal to the official scripts evaluate-v1.1.py and evaluate-v2.0.py.

Rajpurkar et al. 2016, "SQuAD: 100,000+ Questions for Machine Comprehension of Text" (arXiv:1606.05250), section 6.1;
Rajpurkar et al. 2018, "Know What You Don't Know" (arXiv:1806.03822). The two scripts differ where nothing is left of
an answer: 1.1 gives F1 0 to two empty answers (and Exact_Match 1), 2.0 gives 1 to both.
"""

import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from him.core.errors import DataError

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
# ASCII punctuation only, as in the official scripts: typographic quotes and dashes stay part of the answer.
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)

# The scripts take "no answer" above a probability of 1, that is never, unless they are told otherwise.
NEVER_NO_ANSWER = 1.0


def normalize_answer(text: str) -> str:
    """`text` in lower case, without ASCII punctuation and the words a, an, the, single-spaced; may become empty.

    Punctuation goes before articles, so "a-b" becomes "ab" and "U.S.A." becomes "usa".
    """
    words = _ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION))
    return " ".join(words.split())


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1.0 if the normalized `prediction` equals one of the normalized `references`, else 0.0; both scripts agree on it.

    Raises:
        DataError: `references` is empty.
    """
    _require_references(references)
    normalized = normalize_answer(prediction)
    return float(any(normalized == normalize_answer(reference) for reference in references))


def f1(prediction: str, references: Sequence[str]) -> float:
    """Harmonic mean of token precision and recall in [0, 1], the best over `references`, as SQuAD 1.1 defines it.

    Tokens are the words of the normalized answers, counted with repetition. 0.0 where no token is shared, so also
    where prediction and reference are both empty.

    Raises:
        DataError: `references` is empty.
    """
    _require_references(references)
    tokens = normalize_answer(prediction).split()
    return max(_token_f1(tokens, normalize_answer(reference).split()) for reference in references)


def squad_scores(predictions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """The SQuAD 1.1 scores of a data set, as evaluate-v1.1.py computes them.

    Args:
        predictions: question id -> predicted answer. A question without one scores 0 and still counts; an id that
            `references` does not have is ignored.
        references: question id -> accepted answers, at least one.

    Returns:
        {"F1": ..., "Exact_Match": ...}, both in percent.

    Raises:
        DataError: there is no question, or an answered question has no reference.
    """
    _require_questions(references)
    total_f1 = total_exact_match = 0.0
    # Added one by one as in the script: from Python 3.12 on sum() compensates rounding and ends in other last bits.
    for question_id, answers in references.items():
        if question_id in predictions:
            _require_references(answers, question_id)
            total_f1 += f1(predictions[question_id], answers)
            total_exact_match += exact_match(predictions[question_id], answers)
    return {"F1": 100.0 * total_f1 / len(references), "Exact_Match": 100.0 * total_exact_match / len(references)}


def squad_v2_scores(
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    no_answer_probabilities: Mapping[str, float] | None = None,
    threshold: float = NEVER_NO_ANSWER,
) -> dict[str, float]:
    """The SQuAD 2.0 scores of a data set, as evaluate-v2.0.py computes them.

    A question whose no-answer probability is greater than `threshold` counts as answered with "". An answerable
    question keeps only the references of which normalization leaves something; one that has none left expects "".

    Args:
        predictions: question id -> predicted answer, "" for "no answer"; one for each question. An id that
            `references` does not have is ignored.
        references: question id -> accepted answers; an empty list marks an unanswerable question.
        no_answer_probabilities: question id -> probability in [0, 1] that there is no answer; None: 0 for all.
        threshold: the greatest probability at which the predicted answer still counts.

    Returns:
        "F1" and "Exact_Match" over all questions, in percent; the same with the prefix "HasAns_" over the answerable
        and "NoAns_" over the unanswerable ones, each pair only if there is such a question.

    Raises:
        DataError: there is no question, a question has no prediction or no probability, or a probability is outside
            [0, 1]. (The script fails with a KeyError on the former two and does not check the last.)
    """
    scores_by_metric = _v2_question_scores(predictions, references)
    if no_answer_probabilities is None:
        no_answer_probabilities = dict.fromkeys(references, 0.0)
    _require_probabilities(no_answer_probabilities, references)
    for scores in scores_by_metric.values():
        for question_id, answers in references.items():
            if no_answer_probabilities[question_id] > threshold:
                scores[question_id] = float(not answers)

    groups = {
        "": list(references),
        "HasAns_": [question_id for question_id, answers in references.items() if answers],
        "NoAns_": [question_id for question_id, answers in references.items() if not answers],
    }
    return {
        f"{prefix}{metric}": 100.0 * sum(scores[question_id] for question_id in question_ids) / len(question_ids)
        for prefix, question_ids in groups.items()
        if question_ids
        for metric, scores in scores_by_metric.items()
    }


def best_no_answer_threshold(
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    no_answer_probabilities: Mapping[str, float],
) -> dict[str, tuple[float, float]]:
    """The thresholds at which F1 and Exact_Match are best, as `find_best_thresh` of evaluate-v2.0.py finds them.

    One pass over the questions by rising probability, O(n log n). The start is "no answer" everywhere, at threshold
    0.0; of equal scores the lowest threshold wins. Two properties of the script are kept: among questions of the same
    probability it may stop halfway, and it takes a probability of exactly 0 to be above the threshold 0. With such ties
    the best score can be higher than `squad_v2_scores` at its threshold.

    Args:
        predictions: question id -> predicted answer; it should be the best non-empty one, so that there is a choice.
        references: question id -> accepted answers; an empty list marks an unanswerable question.
        no_answer_probabilities: question id -> probability in [0, 1] that there is no answer.

    Returns:
        For "F1" and "Exact_Match" the best score in percent, and its threshold: a question counts as unanswerable where
        its probability is greater.

    Raises:
        DataError: as `squad_v2_scores`.
    """
    scores_by_metric = _v2_question_scores(predictions, references)
    _require_probabilities(no_answer_probabilities, references)
    # In the order of no_answer_probabilities, because the sort is stable and the script sorts that mapping.
    by_probability = sorted(
        (question_id for question_id in no_answer_probabilities if question_id in references),
        key=no_answer_probabilities.__getitem__,
    )
    found = {}
    for metric, scores in scores_by_metric.items():
        total = best_total = sum(not answers for answers in references.values())
        threshold = 0.0
        for question_id in by_probability:
            if references[question_id]:
                total += scores[question_id]
            elif predictions[question_id]:
                total -= 1
            if total > best_total:
                best_total, threshold = total, no_answer_probabilities[question_id]
        found[metric] = (100.0 * best_total / len(references), threshold)
    return found


def _token_f1(prediction_tokens: Sequence[str], reference_tokens: Sequence[str]) -> float:
    num_shared = sum((Counter(prediction_tokens) & Counter(reference_tokens)).values())
    if num_shared == 0:
        return 0.0
    precision = num_shared / len(prediction_tokens)
    recall = num_shared / len(reference_tokens)
    # This order of operations, not 2 * shared / (both lengths): the last bit has to be the script's.
    return 2 * precision * recall / (precision + recall)


def _v2_question_scores(
    predictions: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, float]]:
    """Metric name -> question id -> score in [0, 1] before any threshold, in the order of `references`."""
    _require_questions(references)
    _require_all(predictions, references, "prediction")
    scores: dict[str, dict[str, float]] = {"F1": {}, "Exact_Match": {}}
    for question_id, answers in references.items():
        prediction = normalize_answer(predictions[question_id])
        gold = [normalized for answer in answers if (normalized := normalize_answer(answer))] or [""]
        matches = float(prediction in gold)
        scores["Exact_Match"][question_id] = matches
        # Where either side is empty there are no tokens to compare, and 2.0 asks only whether both are.
        is_empty = not prediction or gold == [""]
        tokens = prediction.split()
        scores["F1"][question_id] = matches if is_empty else max(_token_f1(tokens, text.split()) for text in gold)
    return scores


def _require_questions(references: Mapping[str, Sequence[str]]) -> None:
    if not references:
        raise DataError("no question to score: the references are empty; check the validation file")


def _require_references(references: Sequence[str], question_id: str | None = None) -> None:
    if not references:
        where = "" if question_id is None else f"question {question_id}: "
        raise DataError(
            f"{where}no reference answer; SQuAD 1.1 scores need at least one, "
            "score unanswerable questions with squad_v2_scores"
        )


def _require_all(found: Iterable[str], references: Mapping[str, Sequence[str]], what: str) -> None:
    missing = [question_id for question_id in references if question_id not in found]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(references)} questions have no {what}, the first is {missing[0]}; "
            f'SQuAD 2.0 scores need one for each question ("" is the prediction for "no answer")'
        )


def _require_probabilities(probabilities: Mapping[str, float], references: Mapping[str, Sequence[str]]) -> None:
    _require_all(probabilities, references, "no-answer probability")
    for question_id in references:
        if not 0.0 <= probabilities[question_id] <= 1.0:  # a NaN fails this test too
            raise DataError(
                f"question {question_id}: no-answer probability {probabilities[question_id]} is not between 0 and 1; "
                "pass a score difference through a sigmoid first"
            )
