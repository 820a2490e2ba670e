"""Question answering: its own settings, its defaults, and what it is known by."""

from dataclasses import dataclass

from him.config.options.option import TaskSpec, option


@dataclass(frozen=True, kw_only=True)
class SquadOptions:
    """Question answering."""

    lexical_features: bool = option(True, "question answering: feed in word matches, shapes and IDF", "shape")
    num_augmentations: int | None = option(
        None,
        "squad: each epoch sees one of so many augmented copies of a question, with words and sentences left out, or "
        "the question itself; 0 is off",
        "data",
        fallback=0,
        low=0,
        high=100,
        aliases="variants",
    )
    doc_stride: int = option(128, "squad: tokens that neighbouring windows of a long context share", "examples", low=0)
    max_answer_words: int = option(15, "squad: longest answer, in words", "data", low=1)


SPEC = TaskSpec(
    options=SquadOptions,
    # More epochs than 3 or 4 cost F1 on a few thousand questions; the other values were the better of the few tried.
    defaults={
        "num_epochs": 3,
        "pretrain_epochs": 4,
        "batch_size": 32,
        "conv_kernel_size": 7,
        "dropout": 0.2,
        "word_dropout": 0.2,
        "max_seq_len": 384,
        "vocab_size": 8000,
    },
    inputs=("question", "context"),
    best_metric="F1",
    shown_metrics=("F1", "Exact_Match"),
    cache_prefix="squad",
)
