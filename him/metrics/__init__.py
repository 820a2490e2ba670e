"""Metrics of the tasks: functions of texts and numbers, which know no model and no data set."""

from him.metrics.bertscore import BertScorer, find_scorer_model
from him.metrics.diversity import distinct_n
from him.metrics.rouge import rouge_scores
from him.metrics.running import RunningMean, perplexity
from him.metrics.squad import (
    NoAnswerThresholds,
    best_no_answer_threshold,
    exact_match,
    f1,
    normalize_answer,
    squad_scores,
    squad_v2_scores,
)

__all__ = [
    "BertScorer",
    "NoAnswerThresholds",
    "RunningMean",
    "best_no_answer_threshold",
    "distinct_n",
    "exact_match",
    "f1",
    "find_scorer_model",
    "normalize_answer",
    "perplexity",
    "rouge_scores",
    "squad_scores",
    "squad_v2_scores",
]
