"""Language modelling: its own settings, its defaults, and what it is known by."""

from dataclasses import dataclass

from him.config.options.option import TaskSpec, option


@dataclass(frozen=True, kw_only=True)
class LanguageModelingOptions:
    """Language modelling."""

    corpus_dir: str | None = option(
        None, "lm: folder whose .txt files, at any depth, are the corpus", "data validation path", metavar="FOLDER"
    )
    text_field: str | None = option(None, "lm: column of a hub set with the text (none: `text`)", "data")
    eval_stride: int | None = option(
        None,
        "lm: new tokens that each validation window scores; fewer see more context (none: --seq_len)",
        "evaluation",
        low=1,
    )
    max_new_tokens: int = option(128, "lm: longest continuation", "decoding", low=1, high=100_000)


SPEC = TaskSpec(
    options=LanguageModelingOptions,
    defaults={"max_seq_len": 128, "vocab_size": 8192, "tokenizer_type": "bpe"},
    inputs=("text",),
    best_metric="Bits_Per_Byte",
    shown_metrics=("Accuracy", "Perplexity", "Bits_Per_Byte"),
    cache_prefix="corpus",
)
