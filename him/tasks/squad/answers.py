"""Answers to questions: the best spans of all windows of a data set, merged into one answer a question, and scored.

# B batch   L length   W words of a window   A longest answer in words   N spans
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from him.core.compute import Compute
from him.tasks.evaluation import TargetMeans, forward_passes
from him.tasks.squad.batches import SquadBatches
from him.tasks.squad.features import word_spans
from him.tasks.squad.loss import span_loss
from him.tasks.squad.metrics import best_no_answer_threshold, squad_scores, squad_v2_scores
from him.tasks.squad.reader import SquadData

EVALUATION_BATCH = 64
SPANS_PER_WINDOW = 20
IMPOSSIBLE = -1e8  # below any sum of two real logits, above any sum with a forbidden one
NUM_BEST = 20  # spans among which the probabilities of an answer are shared out


@dataclass
class Answer:
    """What the model says to a question.

    Attributes:
        text: the best span of the context.
        start, end: its first character, and the character after its last.
        score: its probability among the best spans (and "no answer", where the data has such questions), in [0, 1].
        no_answer_probability: the probability that the context has no answer, in [0, 1]; 0.0 for a model that was
            trained without such questions.
        answerable: whether that probability is not above the threshold tuned on the validation data.
        alternatives: the next best (text, score) pairs.
    """

    text: str
    start: int
    end: int
    score: float
    no_answer_probability: float
    answerable: bool
    alternatives: list[tuple[str, float]]


@dataclass
class SpanCandidate:
    """An answer: its first and last word in the context, and the sum of its start and end logit."""

    first_word: int
    last_word: int
    score: float


@torch.inference_mode()
def answer_all(
    model: nn.Module,
    compute: Compute,
    batches: SquadBatches,
    data: SquadData,
    max_answer_words: int,
    no_answer_threshold: float | None,
) -> tuple[list[Answer], TargetMeans]:
    """Answers every question of `data`.

    Args:
        model: a `QuestionAnsweringModel`.
        batches: windows of `data`.
        max_answer_words: longest answer.
        no_answer_threshold: of the no-answer probability; None for a model that knows answerable questions only.

    Returns:
        The answers in the order of the questions, and loss and accuracy over all start and end targets; accuracy is the
        share that the highest logit met.
    """
    model.eval()
    features = batches.features
    candidates: list[list[SpanCandidate]] = [[] for _ in range(len(features.questions))]
    null_scores = np.full(len(candidates), math.inf)
    means = TargetMeans()
    for windows, batch, output in forward_passes(batches, EVALUATION_BATCH, compute, model):
        means.add(span_loss(output, batch))
        spans = best_spans(output.start_logits_BL, output.end_logits_BL, batch["word_ids"], max_answer_words)
        nulls = (output.start_logits_BL[:, 0] + output.end_logits_BL[:, 0]).tolist()
        for question, found, null in zip(features.window_question[windows].tolist(), spans, nulls, strict=True):
            candidates[question] += found
            null_scores[question] = min(null_scores[question], null)
    answers = []
    for found, null, context in zip(candidates, null_scores.tolist(), features.context_of.tolist(), strict=True):
        characters = word_spans(features.contexts, context)
        answers.append(_answer(found, null, no_answer_threshold, data.paragraphs[context].context, *characters))
    return answers, means


def best_spans(
    start_logits_BL: Tensor, end_logits_BL: Tensor, word_ids_BL: Tensor, max_answer_words: int
) -> list[list[SpanCandidate]]:
    """The best spans of each window, best first.

    A span starts with the first piece of a word and ends with the last piece of one, so the search runs over words:
    every span of at most `max_answer_words` words is looked at, none is pruned.

    Args:
        start_logits_BL, end_logits_BL: float32, a large negative number where an answer may not start or end.
        word_ids_BL: word of the context at each position, -1 outside the context.
        max_answer_words: A.
    """
    in_context_BL = word_ids_BL >= 0
    first_word_B1 = word_ids_BL.masked_fill(~in_context_BL, torch.iinfo(torch.int64).max).amin(dim=1, keepdim=True)
    slot_BL = torch.where(in_context_BL, word_ids_BL - first_word_B1, 0)
    num_words = int(slot_BL.max()) + 1
    max_answer_words = min(max_answer_words, num_words)

    def per_word(logits_BL: Tensor) -> Tensor:
        blank_BW = torch.full((len(logits_BL), num_words), -1e9, device=logits_BL.device)
        return blank_BW.scatter_reduce(1, slot_BL, logits_BL.masked_fill(~in_context_BL, -1e9), "amax")

    starts_BW = per_word(start_logits_BL)
    ends_BWA = F.pad(per_word(end_logits_BL), (0, max_answer_words - 1), value=-1e9).unfold(1, max_answer_words, 1)
    scores_BN = (starts_BW[:, :, None] + ends_BWA).flatten(1)
    scores_BN, best_BN = scores_BN.topk(min(SPANS_PER_WINDOW, scores_BN.shape[1]), dim=1)
    first_BN = best_BN // max_answer_words + first_word_B1
    last_BN = first_BN + best_BN % max_answer_words
    rows = zip(first_BN.tolist(), last_BN.tolist(), scores_BN.tolist(), strict=True)
    return [[SpanCandidate(*span) for span in zip(*row, strict=True) if span[2] > IMPOSSIBLE] for row in rows]


def _answer(
    candidates: list[SpanCandidate],
    null: float,
    threshold: float | None,
    context: str,
    starts: np.ndarray,
    ends: np.ndarray,
) -> Answer:
    """Ranks the spans of all windows of a question; one that several windows see counts with its best score.

    Args:
        candidates: of all windows.
        null: score of "no answer", the lowest of all windows.
        threshold: of the probability of no answer; None where there is always one.
        context: the question's.
        starts, ends: first character of each of its words, and the character after its last.
    """
    best: dict[tuple[int, int], float] = {}
    for found in candidates:
        span = (found.first_word, found.last_word)
        best[span] = max(best.get(span, -math.inf), found.score)
    ranked = sorted(best.items(), key=lambda item: (-item[1], item[0]))[:NUM_BEST]
    scores = [score for _, score in ranked] + ([] if threshold is None else [null])
    probabilities = torch.tensor(scores, dtype=torch.float64).softmax(dim=0).tolist()
    no_answer = 0.0 if threshold is None else probabilities.pop()
    answerable = threshold is None or no_answer <= threshold
    if not ranked:
        return Answer("", 0, 0, 0.0, no_answer, answerable, [])
    characters = [(int(starts[first]), int(ends[last])) for (first, last), _ in ranked]
    texts = [context[start:end] for start, end in characters]
    alternatives = list(zip(texts, probabilities, strict=True))[1:5]
    return Answer(texts[0], *characters[0], probabilities[0], no_answer, answerable, alternatives)


@dataclass
class ScoredAnswers:
    """Answers compared with the annotators'.

    Attributes:
        metrics: F1 and Exact_Match; of data with impossible questions, those of both kinds too.
        texts: by question id, "" where there is said to be no answer.
        references: the annotators' answers by question id.
        predictions: file name -> what is written beside the run's metrics.
        threshold: of the no-answer probability that was used.
    """

    metrics: dict[str, float]
    texts: dict[str, str]
    references: dict[str, list[str]]
    predictions: dict[str, Any]
    threshold: float


def score_answers(answers: Sequence[Answer], data: SquadData, threshold: float, tune: bool) -> ScoredAnswers:
    """Scores one answer a question.

    Args:
        answers: in the order of the questions.
        data: the questions.
        threshold: of the no-answer probability, above which there is said to be none.
        tune: whether to use the threshold instead that is best for the F1 of these answers.
    """
    by_id = {question.id: answer for question, answer in zip(data.questions, answers, strict=True)}
    references = {question.id: [answer.text for answer in question.answers] for question in data.questions}
    texts = {id: answer.text for id, answer in by_id.items()}
    if not data.has_impossible:
        scores = squad_scores(texts, references)
        return ScoredAnswers(scores, texts, references, {"predictions.json": texts}, threshold)
    probabilities = {id: answer.no_answer_probability for id, answer in by_id.items()}
    if tune:
        threshold = best_no_answer_threshold(texts, references, probabilities)["F1"][1]
    scores = squad_v2_scores(texts, references, probabilities, threshold)
    texts = {id: "" if probabilities[id] > threshold else text for id, text in texts.items()}
    predictions = {"predictions.json": texts, "no_answer_probabilities.json": probabilities}
    return ScoredAnswers(scores, texts, references, predictions, threshold)
