"""The settings that more than one task reads: a field here is a flag, a YAML key, an argument and a line of `--help`.

A default of None stands for the task's own value, or for none.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from him.config.options.option import option

WRITERS = ("summarization", "lm")  # the tasks that write text
SHARE = {"low": 0.0, "below": 1.0}
UP_TO_1 = {"above": 0.0, "high": 1.0}
RATE = {"above": 0.0, "high": 10.0}
WIDTH = {"low": 1, "high": 2**16}


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

    num_encoder_layers: int = option(4, "encoder layers", "shape", low=1, high=1000, aliases="num_layers")
    embed_dim: int = option(256, "width of the encoder", "shape", **WIDTH)
    num_heads: int = option(8, "attention heads; divides --embed_dim", "shape", **WIDTH)
    dim_feedforward: int = option(
        1024, "width of the feed-forward layers", "shape", low=1, high=2**20, aliases="ff_dim"
    )
    layer_heads: tuple[int, ...] = option(
        (),
        "heads of each layer, as pruning leaves them, --embed_dim / --num_heads wide (none: --num_heads)",
        "shape",
        **WIDTH,
    )
    layer_feedforward: tuple[int, ...] = option(
        (),
        "feed-forward width of each layer, as pruning leaves them (none: --dim_feedforward)",
        "shape",
        low=1,
        high=2**20,
    )
    conv_kernel_size: int | None = option(
        None,
        "neighbours that a convolution before each attention mixes; odd, 0 is off",
        "shape",
        check=_even,
        fallback=0,
        low=0,
        high=63,
        aliases="conv_width",
    )
    norm_first: bool = option(True, "pre-LN; --no-norm_first is post-LN", "shape")
    layer_norm_eps: float = option(1e-5, "added to the variance in all norms", "shape", **UP_TO_1)
    activation: str | None = option(
        None, "of the feed-forward layers", "shape", fallback="gelu", choices=("gelu", "relu_squared")
    )
    positions: str = option("rotary", "how the model knows positions", "shape", choices=("rotary", "learned"))
    dropout: float | None = option(
        None, "dropout on embeddings and residual branches", "optimization", fallback=0.1, **SHARE
    )
    variational_dropout: bool | None = option(
        None,
        "all positions of a sample lose the same channels",
        "optimization",
        fallback=False,
        aliases="shared_dropout",
    )
    attention_dropout: float = option(0.0, "dropout on attention weights; slow", "optimization", **SHARE)
    word_dropout: float | None = option(
        None, "share of tokens masked while training", "optimization", fallback=0.0, **SHARE
    )


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The data."""

    task_type: str = option("squad", "what to learn", "examples")
    dataset: str | None = option(
        None, "hub name, or `sample` for the built-in data (none: the task's public set)", "data validation"
    )
    dataset_config: str | None = option(
        None, "which configuration of the hub's set (none: the task's own, or its only)", "data"
    )
    train_file: tuple[str, ...] = option((), "local training files", "data path", metavar="FILE")
    train_file_weights: tuple[float, ...] = option(
        (),
        "how often the examples of each --train_file are seen in an epoch, such as 1 0.5 (none: once each)",
        "data",
        low=0.0,
        high=4.0,
        tasks=("squad", "summarization"),
        aliases="train_weights",
    )
    end_with_first_file: bool = option(
        False,
        "the last epoch ends with the examples of the first --train_file",
        "data",
        tasks=("squad", "summarization"),
        aliases="first_file_last",
    )
    validation_file: str | None = option(
        None, "local validation file; for lm also a folder", "data validation path", metavar="FILE"
    )
    sample_size: int | None = option(
        None, "train on N examples only; lm: N documents of the corpus in all", "data validation", low=1
    )
    validation_size: int | None = option(
        None, "validate on the first N examples or documents only", "data validation evaluation", low=1, tasks=WRITERS
    )
    tokenizer: str | None = option(
        None, "tokenizer to load: folder, file or hub name (none: train one on the data)", "start path"
    )
    tokenizer_type: str | None = option(
        None, "kind of the trained tokenizer", "data", choices=("wordpiece", "bpe", "char"), tasks=WRITERS
    )
    vocab_size: int | None = option(None, "pieces of the trained tokenizer", "data", low=300, high=1_000_000)
    max_seq_len: int | None = option(
        None, "longest sequence, in tokens", "shape examples", low=16, high=8192, aliases="seq_len"
    )
    cache_dir: str | None = option(
        None, "where prepared data is kept (none: .cache in --output_dir)", "cache path", metavar="FOLDER"
    )


@dataclass(frozen=True, kw_only=True)
class OptimizationOptions:
    """Optimization."""

    optimizer: str | None = option(
        None,
        "muon: matrices inside the layers by Muon, the rest by AdamW",
        "optimization",
        fallback="adamw",
        choices=("adamw", "muon"),
    )
    learning_rate: float = option(1e-3, "highest learning rate", "optimization", **RATE)
    muon_learning_rate: float = option(0.02, "highest learning rate of Muon's matrices", "optimization", **RATE)
    schedule: str = option(
        "cosine", "learning rate after the warm-up", "optimization", choices=("cosine", "linear", "constant", "plateau")
    )
    warmup_ratio: float = option(
        0.1, "share of all steps in which the rate rises", "optimization", **SHARE, aliases="warmup_share"
    )
    weight_decay: float = option(0.01, "AdamW's decay, on matrices only", "optimization", low=0.0, high=10.0)
    beta1: float = option(0.9, "AdamW's first moment decay", "optimization", **SHARE)
    beta2: float = option(0.98, "AdamW's second moment decay", "optimization", **SHARE)
    max_grad_norm: float = option(1.0, "gradient norm to clip to", "optimization", above=0.0)
    label_smoothing: float | None = option(
        None, "share of the target spread over all classes", "optimization", fallback=0.0, **SHARE
    )
    ema_decay: float | None = option(
        None,
        "decay per step of the EMA weights that are evaluated and kept; 0 is off",
        "optimization",
        fallback=0.0,
        **SHARE,
    )


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Training."""

    num_epochs: int | None = option(
        None, "passes over the training data", "budget", fallback=10, low=1, aliases="epochs epoch"
    )
    max_steps: int | None = option(None, "stop after this many optimizer steps", "budget", low=1)
    batch_size: int | None = option(None, "examples per optimizer step", "optimization", fallback=16, low=1)
    micro_batch_size: int | None = option(
        None, "examples per forward pass; the rest is accumulated", "optimization", low=1
    )
    eval_every_steps: int | None = option(
        None, "also evaluate every N steps (always: each epoch)", "optimization", low=1
    )
    micro_batch_tokens: int | None = option(
        None,
        "tokens per forward pass, padding included; the rest is accumulated (none: 6144 on a CPU)",
        "optimization",
        low=1,
    )
    early_stopping_epochs: int = option(
        0, "stop when the best epoch is this many epochs ago; 0 is off", "budget", low=0
    )
    save_every_steps: int | None = option(
        None, "also save a checkpoint every N steps (always: each epoch)", "report", low=1
    )
    save_every_minutes: float = option(1.0, "also save a checkpoint every N minutes; 0 is off", "report", low=0.0)
    keep_checkpoints: int = option(2, "checkpoints kept for resuming, beside that of the best model", "report", low=1)
    init_from: str | None = option(
        None,
        "start from the weights and tokenizer of this run, or of a folder with a pretrained BERT encoder",
        "start path",
        metavar="FOLDER",
    )
    teacher: str | None = option(
        None,
        "learn from the predictions of this run's best model too, and use its tokenizer",
        "start path",
        metavar="FOLDER",
    )
    distillation_weight: float = option(
        0.5,
        "what the predictions of --teacher count; the labels count the rest",
        "start",
        low=0.0,
        high=1.0,
        aliases="teacher_weight",
    )
    seed: int = option(
        0, "decides weights, order, dropout and the built-in data", "optimization decoding", low=0, high=2**32 - 1
    )
    precision: str = option(
        "auto", "auto is bf16 where the hardware has it", "optimization", choices=("auto", "bf16", "fp32")
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:N", "machine", check=_no_device)
    num_threads: int | None = option(None, "CPU threads (none: PyTorch's choice)", "machine", low=1, high=1024)
    dry_run: bool = option(False, "two steps of everything, to see that it works", "data")


@dataclass(frozen=True, kw_only=True)
class PretrainingOptions:
    """Before training: learn from the texts alone."""

    pretrain_epochs: int | None = option(
        None,
        "passes over the training texts without their labels, before the others; 0 is off",
        "start",
        fallback=0,
        low=0,
    )
    pretrain_files: tuple[str, ...] = option(
        (),
        "more texts for these passes: .txt files and folders of them, or files such as --train_file",
        "start path",
        metavar="FILE",
    )
    pretrain_learning_rate: float = option(1e-3, "highest learning rate of these passes", "start", **RATE)


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
        1.0, "sampling: among the likeliest that make up this probability", "decoding", **UP_TO_1, tasks=WRITERS
    )


@dataclass(frozen=True, kw_only=True)
class CompressionOptions:
    """After training: prune, fine-tune, quantize."""

    compress: bool = option(True, "make the trained model smaller and faster, and measure it", "budget")
    pruning_amount: float = option(
        0.3, "share of the encoder layers' weights to remove; 0: no pruning, no fine-tuning", "compression", **SHARE
    )
    pruning_method: str = option(
        "taylor",
        "removes whole heads and neurons; magnitude only zeroes weights, for comparison",
        "compression",
        choices=("taylor", "magnitude"),
    )
    fine_tune_epochs: int | None = option(
        None,
        "epochs of training after pruning, distilled from the unpruned model (none: a third of the steps before)",
        "compression",
        low=0,
    )
    fine_tune_learning_rate: float | None = option(
        None, "highest rate of these epochs (none: half of --learning_rate)", "compression", **RATE
    )
    fine_tune_distillation_weight: float = option(
        0.5,
        "what the unpruned model's predictions count in these epochs; the labels count the rest",
        "compression",
        low=0.0,
        high=1.0,
        aliases="distillation",
    )


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """What is written."""

    output_dir: str = option("runs", "folder of all runs", "path", metavar="FOLDER")
    run_name: str | None = option(
        None, "name of this run's folder (none: task and time)", "path", check=_no_folder_name
    )
    attention_dir: str = option(
        "attention_visualizations", "folder of the attention pictures", "report path", metavar="FOLDER"
    )
    attention_examples: int = option(
        2, "validation examples whose attention is drawn at each evaluation", "report", low=0, high=50
    )
    eval_samples: int = option(
        200,
        "validation examples generated at each evaluation; all of them at the end; 0 is off",
        "evaluation",
        low=0,
        tasks=WRITERS,
    )
    bertscore_model: str | None = option(
        None, "folder or hub name of BERTScore's encoder (none: the installed MiniLM)", "report"
    )
    bertscore_samples: int = option(
        200, "predictions that BERTScore reads at each evaluation; 0 is off", "report", low=0
    )
