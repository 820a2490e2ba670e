"""What a setting is, and what HIM knows of a task before its code is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


def option(default: Any, help: str, **checks: Any) -> Any:
    """A dataclass field that is also a flag.

    Args:
        default: its value when nobody names one; None stands for "the task's own" or "none".
        help: its line in `--help`.
        **checks: `choices`, `low` and `high` (inclusive), `above` and `below` (exclusive), `aliases` (other flags),
            `tasks` (the only ones that read it; a task's own section says so by itself), `fallback` (what stands for
            None where a task has no value of its own).
    """
    return field(default=default, metadata={"help": help, **checks})


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """A task as the settings, the command lines and the records know it.

    Attributes:
        options: its section: the settings that it alone reads.
        defaults: its own values of the settings of all tasks.
        inputs: keywords of `predict`, which are flags of `scripts/predict.py`.
        best_metric: the metric by which the best model is chosen.
        best_metric_without_samples: the same where no text is generated in evaluations, if that is another one.
        shown_metrics: the metrics in the line after each epoch, those that the evaluation has.
        cache_prefix: how the folders of its prepared data begin.
    """

    options: type
    defaults: Mapping[str, Any]
    inputs: tuple[str, ...]
    best_metric: str
    best_metric_without_samples: str = ""
    shown_metrics: tuple[str, ...]
    cache_prefix: str

    def best_metric_of(self, config: Any) -> str:
        """The metric by which a run with these settings chooses its best model."""
        return self.best_metric if config.eval_samples else self.best_metric_without_samples or self.best_metric
