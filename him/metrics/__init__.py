"""Metrics that several tasks use: functions of texts and numbers, which know no model and no data set."""

from him.metrics.bertscore import BertScorer, find_scorer_model
from him.metrics.diversity import distinct_n
from him.metrics.rouge import rouge_scores
from him.metrics.running import RunningMean, perplexity

__all__ = ["BertScorer", "RunningMean", "distinct_n", "find_scorer_model", "perplexity", "rouge_scores"]
