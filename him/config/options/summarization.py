"""Summarization: its own settings, its defaults, and what it is known by."""

from dataclasses import dataclass

from him.config.options.option import TaskSpec, option


@dataclass(frozen=True, kw_only=True)
class SummarizationOptions:
    """Summarization."""

    copy_head: bool = option(True, "summarization: words may be copied from the document", "shape")
    document_field: str | None = option(
        None, "summarization: field with the document (none: `document`)", "data records"
    )
    summary_field: str | None = option(None, "summarization: field with the summary (none: `summary`)", "data records")
    max_target_len: int = option(
        48, "summarization: tokens of --max_seq_len kept for the summary", "examples", low=4, high=4096
    )


SPEC = TaskSpec(
    options=SummarizationOptions,
    defaults={
        "max_seq_len": 208,
        "vocab_size": 8192,
        "tokenizer_type": "bpe",
        "label_smoothing": 0.1,
        "num_beams": 4,
        "no_repeat_ngram_size": 3,
        "no_repeat_words": True,
        "dropout": 0.0,
        "conv_kernel_size": 5,
    },
    inputs=("text",),
    best_metric="ROUGE-L",
    best_metric_without_samples="Loss",  # no summary is written during training, then
    shown_metrics=("ROUGE-L", "Perplexity"),
    cache_prefix="pairs",
)
