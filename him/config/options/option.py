"""What a setting is, and what HIM knows of a task before its code is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# What a setting is for. Which settings a run may change when it goes on, which a pretraining depends on, which flags a
# script takes: all that is derived from these, and listed nowhere.
ROLES = {
    "shape": "decides what weights there are and how they are used; taken over with the weights of an earlier model",
    "examples": "decides how data become examples: what is learned of them, and where they are cut",
    "data": "decides which data there are, and how they are mixed and changed",
    "validation": "among the data: decides by name or number what is validated on",
    "records": "among the data: the names of the fields in a file of records, also of a file to predict",
    "optimization": "decides the trained weights, beside shape and data: rates, batch sizes, precision, seed",
    "start": "what a training learns from beside its data: an earlier model, a teacher, a tokenizer, a pretraining",
    "budget": "decides how long something goes on or whether it is done at all; what is done before stays the same",
    "machine": "decides where it is computed",
    "path": "says where something is; it may move, as its content is compared by itself",
    "cache": "says where prepared data are kept, from which nothing else depends",
    "decoding": "decides how a trained model generates text",
    "evaluation": "decides how much is measured, and on what; also of a file that a finished model is measured on",
    "compression": "decides what the stage after training does",
    "report": "decides what is recorded of a run: pictures, slow metrics, checkpoints; no weight depends on it",
}


def option(default: Any, help: str, role: str, aliases: str = "", **checks: Any) -> Any:
    """A dataclass field that is also a flag.

    Args:
        default: its value when nobody names one; None stands for "the task's own" or "none".
        help: its line in `--help`.
        role: what it is for, among `ROLES`; several, with blanks between them, where it is for several things.
        aliases: other flags, with blanks between them.
        **checks: `choices`, `low` and `high` (inclusive), `above` and `below` (exclusive), `metavar` (what stands for
            its value in `--help`; by itself N or NAME), `check` (of a value: what is wrong with it, or an empty text),
            `tasks` (the only ones that read it; a task's own section says so by itself), `fallback` (what stands for
            None where a task has no value of its own).
    """
    roles = frozenset(role.split())
    assert roles and roles <= ROLES.keys(), f"unknown roles {roles - ROLES.keys()}"
    return field(default=default, metadata={"help": help, "roles": roles, "aliases": tuple(aliases.split()), **checks})


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
