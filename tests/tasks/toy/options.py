"""Even or odd: its own settings, its defaults, and what it is known by."""

from dataclasses import dataclass

from him.config.options.option import TaskSpec, option


@dataclass(frozen=True, kw_only=True)
class ToyOptions:
    """Even or odd."""

    num_classes: int = option(2, "toy: classes of a text", role="shape", low=2, high=100)


SPEC = TaskSpec(
    options=ToyOptions,
    defaults={"max_seq_len": 32, "vocab_size": 300, "num_epochs": 6},
    inputs=("text",),
    best_metric="Accuracy",
    shown_metrics=("Accuracy",),
    cache_prefix="toy",
)
