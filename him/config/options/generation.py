"""Settings of the tasks that write text."""

from dataclasses import dataclass

from him.config.options.option import option
from him.config.options.shared import WRITERS


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """Generating text."""

    num_beams: int | None = option(
        None, "hypotheses of beam search; 1 is greedy", "decoding", fallback=1, low=1, high=64, tasks=WRITERS
    )
    length_penalty: float = option(
        1.0, "beam search: score is log-probability / length ** this", "decoding", low=-10.0, high=10.0, tasks=WRITERS
    )
    no_repeat_ngram_size: int | None = option(
        None, "no run of so many tokens is written twice; 0 is off", "decoding", fallback=0, low=0, tasks=WRITERS
    )
    no_repeat_words: bool | None = option(None, "no word is written twice", "decoding", fallback=False, tasks=WRITERS)
    temperature: float = option(
        0.0,
        "sampling: 1 as predicted, below 1 safer; 0 takes the likeliest",
        "decoding",
        low=0.0,
        high=100.0,
        tasks=WRITERS,
    )
    top_k: int = option(0, "sampling: among the k likeliest tokens only; 0 is off", "decoding", low=0, tasks=WRITERS)
    top_p: float = option(
        1.0,
        "sampling: among the likeliest that make up this probability",
        "decoding",
        above=0.0,
        high=1.0,
        tasks=WRITERS,
    )
