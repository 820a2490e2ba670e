"""Answers to questions: a model's logits over all windows of a data set, merged into one answer a question."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from him.core.compute import Compute, in_parts
from him.data.batching import evaluation_batches
from him.metrics.running import RunningMean
from him.tasks.base import LossSums
from him.tasks.squad.batches import SquadBatches
from him.tasks.squad.features import word_spans
from him.tasks.squad.model import SpanOutput
from him.tasks.squad.reader import SquadData
from him.tasks.squad.spans import SpanCandidate, best_spans

EVALUATION_BATCH = 64
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
class Answers:
    """All answers of a data set.

    Attributes:
        answers: in the order of the questions.
        loss: over all start and end targets.
        accuracy: share of these targets that the highest logit met.
    """

    answers: list[Answer]
    loss: RunningMean
    accuracy: RunningMean


@torch.inference_mode()
def answer_all(
    model: nn.Module,
    compute: Compute,
    batches: SquadBatches,
    data: SquadData,
    max_answer_words: int,
    no_answer_threshold: float | None,
) -> Answers:
    """Answers every question of a data set.

    Args:
        model: a `QuestionAnsweringModel`.
        compute: where and how.
        batches: windows of `data`.
        data: the questions.
        max_answer_words: longest answer.
        no_answer_threshold: of the no-answer probability; None for a model that knows answerable questions only.
    """
    model.eval()
    features = batches.features
    candidates: list[list[SpanCandidate]] = [[] for _ in range(len(features.questions))]
    null_scores = np.full(len(candidates), math.inf)
    loss, accuracy = RunningMean(), RunningMean()

    def read(windows: np.ndarray) -> tuple[dict[str, Tensor], SpanOutput]:
        batch = compute.to_device(batches.batch(windows))
        with compute.autocast():
            return batch, model(batch)

    cut = evaluation_batches(features.lengths, EVALUATION_BATCH)
    for windows, (batch, output) in (part for whole in cut for part in in_parts(whole, read)):
        sums = span_loss(output, batch)
        loss.add(float(sums.loss), sums.num_targets)
        accuracy.add(float(sums.num_correct), sums.num_targets)
        spans = best_spans(output.start_logits_BL, output.end_logits_BL, batch["word_ids"], max_answer_words)
        nulls = (output.start_logits_BL[:, 0] + output.end_logits_BL[:, 0]).tolist()
        for question, found, null in zip(features.window_question[windows].tolist(), spans, nulls, strict=True):
            candidates[question] += found
            null_scores[question] = min(null_scores[question], null)
    answers = []
    for found, null, context in zip(candidates, null_scores.tolist(), features.context_of.tolist(), strict=True):
        answer = _merge(found, None if no_answer_threshold is None else null)
        starts, ends = word_spans(features.contexts, context)
        answers.append(answer.in_text(data.paragraphs[context].context, starts, ends, no_answer_threshold))
    return Answers(answers, loss, accuracy)


@dataclass
class _Ranking:
    """The best spans of a question in words, best first, with their probabilities, and that of no answer."""

    spans: list[tuple[int, int]]
    probabilities: list[float]
    no_answer_probability: float

    def in_text(self, context: str, starts: np.ndarray, ends: np.ndarray, threshold: float | None) -> Answer:
        """The answer as text; `starts` and `ends` are the characters of the context's words."""
        answerable = threshold is None or self.no_answer_probability <= threshold
        if not self.spans:
            return Answer("", 0, 0, 0.0, self.no_answer_probability, answerable, [])
        places = [(int(starts[first]), int(ends[last])) for first, last in self.spans]
        texts = [context[start:end] for start, end in places]
        alternatives = list(zip(texts, self.probabilities, strict=True))[1:5]
        return Answer(texts[0], *places[0], self.probabilities[0], self.no_answer_probability, answerable, alternatives)


def _merge(candidates: list[SpanCandidate], null: float | None) -> _Ranking:
    """Ranks the spans of all windows; one that several windows see counts with its best score.

    Args:
        candidates: of all windows of a question.
        null: score of "no answer", the lowest of all windows; None where there is always an answer.
    """
    best: dict[tuple[int, int], float] = {}
    for found in candidates:
        place = (found.first_word, found.last_word)
        best[place] = max(best.get(place, -math.inf), found.score)
    ranked = sorted(best.items(), key=lambda item: (-item[1], item[0]))[:NUM_BEST]
    scores = [score for _, score in ranked] + ([] if null is None else [null])
    probabilities = torch.tensor(scores, dtype=torch.float64).softmax(dim=0).tolist()
    no_answer = 0.0 if null is None else probabilities.pop()
    return _Ranking([place for place, _ in ranked], probabilities, no_answer)


def span_loss(output: SpanOutput, batch: dict[str, Tensor], label_smoothing: float = 0.0) -> LossSums:
    """Cross-entropy of the start and the end distribution against the annotators' ones, summed over the rows.

    Args:
        output: the model's logits.
        batch: `start_targets`, `end_targets`, `may_start`, `may_end`.
        label_smoothing: share of the target spread evenly over the allowed places (Szegedy et al. 2015,
            arXiv:1512.00567, section 7).
    """
    loss, correct = 0.0, 0.0
    for logits_BL, targets_BL, allowed_BL in (
        (output.start_logits_BL, batch["start_targets"], batch["may_start"]),
        (output.end_logits_BL, batch["end_targets"], batch["may_end"]),
    ):
        correct = correct + targets_BL.gather(1, logits_BL.argmax(dim=1, keepdim=True)).gt(0).sum()
        if label_smoothing:
            even_BL = allowed_BL / allowed_BL.sum(dim=1, keepdim=True)
            targets_BL = (1.0 - label_smoothing) * targets_BL + label_smoothing * even_BL
        loss = loss - (targets_BL * F.log_softmax(logits_BL, dim=1)).sum()
    return LossSums(loss, 2 * len(batch["input_ids"]), correct)


def distilled_span_loss(
    output: SpanOutput, taught: SpanOutput, batch: dict[str, Tensor], share: float, label_smoothing: float = 0.0
) -> LossSums:
    """(1 - share) * `span_loss` + share * divergence of start and end from a teacher's, summed over the rows.

    At a temperature of 1, as in Sanh et al. 2019 (arXiv:1910.01108) for its second step on SQuAD.

    Args:
        output, taught: logits of student and teacher.
        batch, label_smoothing: see `span_loss`.
        share: what the teacher counts, in [0, 1].
    """
    sums = span_loss(output, batch, label_smoothing)
    divergence = 0.0
    for logits_BL, taught_BL in (
        (output.start_logits_BL, taught.start_logits_BL),
        (output.end_logits_BL, taught.end_logits_BL),
    ):
        log_taught_BL = taught_BL.log_softmax(dim=1)
        divergence = divergence + (log_taught_BL.exp() * (log_taught_BL - logits_BL.log_softmax(dim=1))).sum()
    return LossSums((1.0 - share) * sums.loss + share * divergence, sums.num_targets, sums.num_correct)
