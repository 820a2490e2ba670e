"""The Hugging Face Trainer as a baseline, with `BertForQuestionAnswering` of HIM's size."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, load_from_disk
from tokenizers import Tokenizer
from torch import nn
from transformers import (
    AutoModelForQuestionAnswering,
    BertConfig,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)
from transformers.trainer_pt_utils import LengthGroupedSampler

from him.config import Config
from him.core.compute import Compute
from scripts.benchmarks.batch_plan import plan_steps, random_batches
from scripts.benchmarks.measure import Meter
from scripts.benchmarks.run_qa import wrap_tokenizer

DROPOUT = 0.1  # BERT's default, on hidden states and on attention weights


def run_trainer_default(config: Config, folder: Path, compute: Compute, meter: Meter, **options: Any) -> None:
    """The Trainer as `run_qa` sets it up: float32, every window padded to `max_seq_len`, random order."""
    dataset = load_from_disk(str(folder / "padded"))
    lengths = np.load(folder / "lengths.npy")
    batches = random_batches(len(dataset), config.batch_size, config.seed)
    plan = plan_steps(batches, lengths, meter.num_warmup, meter.num_timed)
    model = build_bert(config, load_wrapped(folder), attention_dropout=DROPOUT, attention="sdpa")
    _train(model, dataset, plan, default_data_collator, compute, meter, bf16=False)


def run_trainer_best(
    config: Config, folder: Path, compute: Compute, meter: Meter, *, attention: str, pad_to_multiple_of: int
) -> None:
    """The Trainer with everything that makes it faster: bf16, like lengths together, no dropout on attention weights.

    Args:
        attention: `sdpa` or `eager`.
        pad_to_multiple_of: what a batch's length is rounded up to.
    """
    dataset = load_from_disk(str(folder / "unpadded"))
    lengths = np.load(folder / "lengths.npy")
    # What `train_sampling_strategy="group_by_length"` uses; the Trainer then gets a choice of its batches in order.
    generator = torch.Generator().manual_seed(config.seed)
    order = list(LengthGroupedSampler(config.batch_size, lengths=lengths.tolist(), generator=generator))
    batches = [np.array(order[start : start + config.batch_size]) for start in range(0, len(order), config.batch_size)]
    plan = plan_steps(batches, lengths, meter.num_warmup, meter.num_timed)
    tokenizer = load_wrapped(folder)
    model = build_bert(config, tokenizer, attention_dropout=0.0, attention=attention)
    collator = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=pad_to_multiple_of)
    _train(model, dataset, plan, collator, compute, meter, bf16=compute.bf16)


def load_wrapped(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer that was prepared for all systems."""
    return wrap_tokenizer(Tokenizer.from_file(str(folder / "tokenizer.json")))


def build_bert(
    config: Config, tokenizer: PreTrainedTokenizerFast, attention_dropout: float, attention: str
) -> nn.Module:
    """`BertForQuestionAnswering` of HIM's size, with weights drawn anew."""
    bert = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.embed_dim,
        num_hidden_layers=config.num_encoder_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=config.dim_feedforward,
        hidden_dropout_prob=DROPOUT,
        attention_probs_dropout_prob=attention_dropout,
        max_position_embeddings=config.max_seq_len,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(config.seed)
    return AutoModelForQuestionAnswering.from_config(bert, attn_implementation=attention)


def _train(
    model: nn.Module,
    dataset: Dataset,
    plan: Sequence[np.ndarray],
    collator: Any,
    compute: Compute,
    meter: Meter,
    bf16: bool,
) -> None:
    """Lets a Trainer take the steps of the plan, quietly and without a trace on the disk.

    One batch more is laid out than is taken: the Trainer fetches a batch ahead, and the last step shall do so too.
    """
    meter.watch(model)
    rows = np.concatenate([*plan, plan[-1]]).tolist()
    with tempfile.TemporaryDirectory() as output:
        trainer = _quiet_trainer(model, dataset.select(rows), collator, output, len(plan[0]), compute, bf16, meter)
        trainer.train()
    assert meter.seconds, "the Trainer has taken all steps"


def _quiet_trainer(
    model: nn.Module,
    dataset: Dataset,
    collator: Any,
    output: str,
    batch_size: int,
    compute: Compute,
    bf16: bool,
    meter: Meter,
) -> Trainer:

    arguments = TrainingArguments(
        output_dir=output,
        per_device_train_batch_size=batch_size,
        num_train_epochs=1,
        bf16=bf16,
        use_cpu=compute.device.type == "cpu",
        dataloader_pin_memory=compute.device.type != "cpu",
        train_sampling_strategy="sequential",  # the plan's order
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        log_level="error",
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # with more GPUs it would split the batch among them
    trainer = Trainer(model, arguments, collator, dataset, callbacks=[_step_callback(meter)])
    trainer.remove_callback(PrinterCallback)
    return trainer


def _step_callback(meter: Meter) -> Any:
    """A callback that tells the meter of each step and ends the training when the meter has seen enough."""

    class StepCallback(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if meter.step_done():
                control.should_training_stop = True

    return StepCallback()
