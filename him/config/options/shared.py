"""The settings that more than one task reads: a field here is a flag, a YAML key, an argument and a line of `--help`.

A default of None stands for the task's own value, or for none.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from him.config.options.option import option


def _even(width: int) -> str:
    return f"{width} is even; use {width + 1}, or 0 for none" if width and width % 2 == 0 else ""


def _no_device(name: str) -> str:
    return "" if re.fullmatch(r"auto|cpu|cuda(:\d+)?", name) else f"{name} is not known; use auto, cpu, cuda or cuda:N"


def _no_folder_name(name: str) -> str:
    is_plain = name not in ("", "..") and Path(name).name == name
    return "" if is_plain else f"{name!r} is not a plain folder name; use --output_dir for the place"


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The network."""

    num_encoder_layers: int = option(4, "encoder layers", role="shape", low=1, high=1000, aliases=("num_layers",))
    embed_dim: int = option(256, "width of the encoder", role="shape", low=1, high=2**16)
    num_heads: int = option(8, "attention heads; divides --embed_dim", role="shape", low=1, high=2**16)
    dim_feedforward: int = option(
        1024, "width of the feed-forward layers", role="shape", low=1, high=2**20, aliases=("ff_dim",)
    )
    layer_heads: tuple[int, ...] = option(
        (),
        "heads of each layer, as pruning leaves them, --embed_dim / --num_heads wide (none: --num_heads)",
        role="shape",
        low=1,
        high=2**16,
    )
    layer_feedforward: tuple[int, ...] = option(
        (),
        "feed-forward width of each layer, as pruning leaves them (none: --dim_feedforward)",
        role="shape",
        low=1,
        high=2**20,
    )
    conv_kernel_size: int | None = option(
        None,
        "neighbours that a convolution before each attention mixes; odd, 0 is off",
        role="shape",
        check=_even,
        fallback=0,
        low=0,
        high=63,
        aliases=("conv_width",),
    )
    norm_first: bool = option(True, "pre-LN; --no-norm_first is post-LN", role="shape")
    layer_norm_eps: float = option(1e-5, "added to the variance in all norms", role="shape", above=0.0, high=1.0)
    activation: str | None = option(
        None, "of the feed-forward layers", role="shape", fallback="gelu", choices=("gelu", "relu_squared")
    )
    positions: str = option("rotary", "how the model knows places", role="shape", choices=("rotary", "learned"))
    dropout: float | None = option(
        None, "dropout on embeddings and residual branches", role="optimization", fallback=0.1, low=0.0, below=1.0
    )
    variational_dropout: bool | None = option(
        None,
        "all places of a sample lose the same channels",
        role="optimization",
        fallback=False,
        aliases=("shared_dropout",),
    )
    attention_dropout: float = option(
        0.0, "dropout on attention weights; slow", role="optimization", low=0.0, below=1.0
    )
    word_dropout: float | None = option(
        None, "share of tokens hidden while training", role="optimization", fallback=0.0, low=0.0, below=1.0
    )


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The data."""

    task_type: str = option("squad", "what to learn", role="examples")
    dataset: str | None = option(
        None, "hub name, or `sample` for the built-in data (none: the task's public set)", role=("data", "validation")
    )
    dataset_config: str | None = option(
        None, "which configuration of the hub's set (none: the task's own, or its only)", role="data"
    )
    train_file: tuple[str, ...] = option((), "local training files", role=("data", "path"), metavar="FILE")
    train_file_weights: tuple[float, ...] = option(
        (),
        "how often the examples of each --train_file are seen in an epoch, such as 1 0.5 (none: once each)",
        role="data",
        low=0.0,
        high=4.0,
        tasks=("squad", "summarization"),
        aliases=("train_weights",),
    )
    end_with_first_file: bool = option(
        False,
        "the last epoch ends with the examples of the first --train_file",
        role="data",
        tasks=("squad", "summarization"),
        aliases=("first_file_last",),
    )
    validation_file: str | None = option(
        None, "local validation file; for lm also a folder", role=("data", "validation", "path"), metavar="FILE"
    )
    sample_size: int | None = option(
        None, "train on N examples only; lm: N documents of the corpus in all", role=("data", "validation"), low=1
    )
    validation_size: int | None = option(
        None,
        "validate on the first N examples or documents only",
        role=("data", "validation", "evaluation"),
        low=1,
        tasks=("summarization", "lm"),
    )
    tokenizer: str | None = option(
        None, "tokenizer to load: folder, file or hub name (none: train one on the data)", role=("start", "path")
    )
    tokenizer_type: str | None = option(
        None,
        "kind of the trained tokenizer",
        role="data",
        choices=("wordpiece", "bpe", "char"),
        tasks=("summarization", "lm"),
    )
    vocab_size: int | None = option(None, "pieces of the trained tokenizer", role="data", low=300, high=1_000_000)
    max_seq_len: int | None = option(
        None, "longest sequence, in tokens", role=("shape", "examples"), low=16, high=8192, aliases=("seq_len",)
    )
    cache_dir: str | None = option(
        None, "where prepared data is kept (none: .cache in --output_dir)", role=("cache", "path"), metavar="FOLDER"
    )


@dataclass(frozen=True, kw_only=True)
class OptimizationOptions:
    """Optimization."""

    optimizer: str | None = option(
        None,
        "muon: matrices inside the layers by Muon, the rest by AdamW",
        role="optimization",
        fallback="adamw",
        choices=("adamw", "muon"),
    )
    learning_rate: float = option(1e-3, "highest learning rate", role="optimization", above=0.0, high=10.0)
    muon_learning_rate: float = option(
        0.02, "highest learning rate of Muon's matrices", role="optimization", above=0.0, high=10.0
    )
    schedule: str = option(
        "cosine",
        "learning rate after the warm-up",
        role="optimization",
        choices=("cosine", "linear", "constant", "plateau"),
    )
    warmup_ratio: float = option(
        0.1,
        "share of all steps in which the rate rises",
        role="optimization",
        low=0.0,
        below=1.0,
        aliases=("warmup_share",),
    )
    weight_decay: float = option(0.01, "AdamW's decay, on matrices only", role="optimization", low=0.0, high=10.0)
    beta1: float = option(0.9, "AdamW's first moment decay", role="optimization", low=0.0, below=1.0)
    beta2: float = option(0.98, "AdamW's second moment decay", role="optimization", low=0.0, below=1.0)
    max_grad_norm: float = option(1.0, "gradient norm to clip to", role="optimization", above=0.0)
    label_smoothing: float | None = option(
        None, "share of the target spread over all classes", role="optimization", fallback=0.0, low=0.0, below=1.0
    )
    ema_decay: float | None = option(
        None,
        "decay per step of the EMA weights that are evaluated and kept; 0 is off",
        role="optimization",
        fallback=0.0,
        low=0.0,
        below=1.0,
    )


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Training."""

    num_epochs: int | None = option(
        None, "passes over the training data", role="budget", fallback=10, low=1, aliases=("epochs", "epoch")
    )
    max_steps: int | None = option(None, "stop after this many optimizer steps", role="budget", low=1)
    batch_size: int | None = option(None, "examples per optimizer step", role="optimization", fallback=16, low=1)
    micro_batch_size: int | None = option(
        None, "examples per forward pass; the rest is accumulated", role="optimization", low=1
    )
    eval_every_steps: int | None = option(
        None, "also evaluate every N steps (always: each epoch)", role="optimization", low=1
    )
    micro_batch_tokens: int | None = option(
        None,
        "tokens per forward pass, padding included; the rest is accumulated (none: 6144 on a CPU)",
        role="optimization",
        low=1,
    )
    early_stopping_epochs: int = option(
        0, "stop when the best epoch is this many epochs ago; 0 is off", role="budget", low=0
    )
    save_every_steps: int | None = option(
        None, "also save a checkpoint every N steps (always: each epoch)", role="report", low=1
    )
    save_every_minutes: float = option(1.0, "also save a checkpoint every N minutes; 0 is off", role="report", low=0.0)
    keep_checkpoints: int = option(
        2, "checkpoints kept for resuming, beside that of the best model", role="report", low=1
    )
    init_from: str | None = option(
        None,
        "start from the weights and tokenizer of this run, or of a folder with a pretrained BERT encoder",
        role=("start", "path"),
        metavar="FOLDER",
    )
    teacher: str | None = option(
        None,
        "learn from the predictions of this run's best model too, and use its tokenizer",
        role=("start", "path"),
        metavar="FOLDER",
    )
    distillation_weight: float = option(
        0.5,
        "what the predictions of --teacher count; the labels count the rest",
        role="start",
        low=0.0,
        high=1.0,
        aliases=("teacher_weight",),
    )
    seed: int = option(
        0,
        "decides weights, order, dropout and the built-in data",
        role=("optimization", "decoding"),
        low=0,
        high=2**32 - 1,
    )
    precision: str = option(
        "auto", "auto is bf16 where the hardware has it", role="optimization", choices=("auto", "bf16", "fp32")
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:N", role="machine", check=_no_device)
    num_threads: int | None = option(None, "CPU threads (none: PyTorch's choice)", role="machine", low=1, high=1024)
    dry_run: bool = option(False, "two steps of everything, to see that it works", role="data")


@dataclass(frozen=True, kw_only=True)
class PretrainingOptions:
    """Before training: learn from the texts alone."""

    pretrain_epochs: int | None = option(
        None,
        "passes over the training texts without their labels, before the others; 0 is off",
        role="start",
        fallback=0,
        low=0,
    )
    pretrain_files: tuple[str, ...] = option(
        (),
        "more texts for these passes: .txt files and folders of them, or files such as --train_file",
        role=("start", "path"),
        metavar="FILE",
    )
    pretrain_learning_rate: float = option(
        1e-3, "highest learning rate of these passes", role="start", above=0.0, high=10.0
    )


@dataclass(frozen=True, kw_only=True)
class CompressionOptions:
    """After training: prune, fine-tune, quantize."""

    compress: bool = option(True, "make the trained model smaller and faster, and measure it", role="budget")
    pruning_amount: float = option(
        0.3,
        "share of the encoder layers' weights to remove; 0: no pruning, no fine-tuning",
        role="compression",
        low=0.0,
        below=1.0,
    )
    pruning_method: str = option(
        "taylor",
        "removes whole heads and neurons; magnitude only zeroes weights, for comparison",
        role="compression",
        choices=("taylor", "magnitude"),
    )
    fine_tune_epochs: int | None = option(
        None,
        "epochs of training after pruning, taught by the unpruned model (none: a third of the steps before)",
        role="compression",
        low=0,
    )
    fine_tune_learning_rate: float | None = option(
        None, "highest rate of these epochs (none: half of --learning_rate)", role="compression", above=0.0, high=10.0
    )
    fine_tune_distillation_weight: float = option(
        0.5,
        "what the unpruned model's predictions count in these epochs; the labels count the rest",
        role="compression",
        low=0.0,
        high=1.0,
        aliases=("distillation",),
    )


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """What is written."""

    output_dir: str = option("runs", "folder of all runs", role="path", metavar="FOLDER")
    run_name: str | None = option(
        None, "name of this run's folder (none: task and time)", role="path", check=_no_folder_name
    )
    attention_dir: str = option(
        "attention_visualizations", "folder of the attention pictures", role=("report", "path"), metavar="FOLDER"
    )
    attention_examples: int = option(
        2, "validation examples whose attention is drawn at each evaluation", role="report", low=0, high=50
    )
    eval_samples: int = option(
        200,
        "validation examples generated at each evaluation; all of them at the end; 0 is off",
        role="evaluation",
        low=0,
        tasks=("summarization", "lm"),
    )
    bertscore_model: str | None = option(
        None, "folder or hub name of BERTScore's encoder (none: the installed MiniLM)", role="report"
    )
    bertscore_samples: int = option(
        200, "predictions that BERTScore reads at each evaluation; 0 is off", role="report", low=0
    )
