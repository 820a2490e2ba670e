"""A side's run in the language-model benchmark: in a process of its own it trains, is timed, and scores a text."""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from him.config import Config
from him.core.compute import Compute, choose_compute, keep_freed_memory
from him.data.batching import epoch_batches, evaluation_batches
from him.runs.folder import RunFolder
from him.tasks.base import Task
from him.tasks.lm.task import LanguageModelingTask
from him.tasks.lm.windows import ScoringWindows
from him.training.trainer import LOG_EVERY_STEPS, Trainer
from scripts.benchmarks.benchmark_run import cpu_name
from scripts.benchmarks.plain_lm import PlainGPT, plain_steps

SCORING_TOKENS = 8192  # in a batch of validation windows


@dataclass(frozen=True)
class LmJob:
    """What a run is to do.

    Attributes:
        side: a key of `SIDES`.
        config: sizes, data, rates, threads, device; `cache_dir` holds the tokens.
        folder: for files of the run.
        num_warmup: steps before the clock starts.
        num_timed: steps that are timed.
        scored: whether the validation text is scored afterwards.
    """

    side: str
    config: Config
    folder: Path
    num_warmup: int
    num_timed: int
    scored: bool


@dataclass(frozen=True)
class LmRun:
    """What was measured in a run.

    Attributes:
        ms_per_step: milliseconds.
        tokens_per_second: tokens trained on.
        loss: nats per token of the whole validation text; None if it was not scored.
        num_parameters: of the model.
        precision: bf16 or fp32.
        device: name of the processor or the GPU.
        num_threads: CPU threads.
    """

    ms_per_step: float
    tokens_per_second: float
    loss: float | None
    num_parameters: int
    precision: str
    device: str
    num_threads: int


def prepare_tokens(config: Config) -> dict[str, int]:
    """Fills the cache with the tokens that both sides read; returns how many there are, and the vocabulary's size."""
    task = LanguageModelingTask.prepare(config)
    return {
        "train_tokens": len(task.corpus.train.ids),
        "validation_tokens": len(task.corpus.validation.ids),
        "vocab_size": task.tokenizer.get_vocab_size(),
    }


def measure_lm_run(job: LmJob) -> LmRun:
    """Trains one side and measures it."""
    compute = choose_compute(job.config.device, job.config.precision, job.config.num_threads)
    task = LanguageModelingTask.prepare(job.config)
    torch.manual_seed(job.config.seed)
    side = SIDES[job.side](task, job.config, compute, job.folder)
    for _ in range(job.num_warmup):
        next(side.steps)
    started_at = _now(side.compute)
    num_tokens = sum(next(side.steps) for _ in range(job.num_timed))
    seconds = _now(side.compute) - started_at
    side.steps.close()
    return LmRun(
        ms_per_step=1000 * seconds / job.num_timed,
        tokens_per_second=num_tokens / seconds,
        loss=validation_loss(side, task.corpus.validation.ids, job.config.max_seq_len) if job.scored else None,
        num_parameters=sum(parameter.numel() for parameter in side.model.parameters()),
        precision="bf16" if side.compute.bf16 else "fp32",
        device=torch.cuda.get_device_name(compute.device) if compute.device.type == "cuda" else cpu_name(),
        num_threads=torch.get_num_threads(),
    )


def _now(compute: Compute) -> float:
    if compute.device.type == "cuda":
        torch.cuda.synchronize(compute.device)
    return time.perf_counter()


# -- the two sides -----------------------------------------------------------------------------------------------------


@dataclass
class Side:
    """A model in training.

    Attributes:
        model: on its device.
        compute: device and precision of this side.
        steps: trains a step for each item that is asked for, which is the number of its tokens.
        loss_sum: sum of the cross-entropy of a batch's targets (see `ScoringWindows`), in nats.
    """

    model: nn.Module
    compute: Compute
    steps: Iterator[int]
    loss_sum: Callable[[dict[str, Tensor]], Tensor]


def plain_side(task: Task, config: Config, compute: Compute, folder: Path) -> Side:
    """`PlainGPT` in float32."""
    compute = Compute(compute.device, bf16=False)
    model = PlainGPT(config, task.tokenizer.get_vocab_size()).to(compute.device)

    def loss_sum(batch: dict[str, Tensor]) -> Tensor:
        is_target = batch["is_target"]
        return F.cross_entropy(model(batch["input_ids"])[is_target], batch["labels"][is_target], reduction="sum")

    return Side(model, compute, plain_steps(model, task.corpus.train.ids, config, compute), loss_sum)


def him_side(task: Task, config: Config, compute: Compute, folder: Path) -> Side:
    """HIM's model and Trainer, set up as `him.workflows.train.train` does it."""
    keep_freed_memory()
    model = task.build_model().to(compute.device)
    trainer = Trainer(task, config, RunFolder(Path(tempfile.mkdtemp(dir=folder))), compute, model)

    def loss_sum(batch: dict[str, Tensor]) -> Tensor:
        with compute.autocast():
            return task.loss(model, batch).loss

    return Side(model, compute, him_steps(trainer), loss_sum)


def him_steps(trainer: Trainer) -> Iterator[int]:
    """The steps of `Trainer.fit` with their records, without evaluations and checkpoints; ends never."""
    config, task = trainer.config, trainer.task
    try:
        while True:
            epoch, step_in_epoch = divmod(trainer.state.step, trainer.steps_per_epoch)
            if step_in_epoch == 0:
                trainer.batches = epoch_batches(task.train_lengths, config.batch_size, config.seed, epoch)
            num_before = trainer.progress.tokens_seen
            trainer.train_step()
            trainer.state.step += 1
            if trainer.due(LOG_EVERY_STEPS):
                trainer.progress.record_training()
            yield trainer.progress.tokens_seen - num_before
    finally:
        trainer.progress.close_records()


SIDES = {"plain": plain_side, "him": him_side}


@torch.inference_mode()
def validation_loss(side: Side, ids: np.ndarray, length: int) -> float:
    """Nats per token of a whole text, cut into windows that do not overlap; the same windows for both sides."""
    side.model.eval()
    total = 0.0
    windows = ScoringWindows(ids, length, stride=length)
    for numbers in evaluation_batches(windows.lengths, max(1, SCORING_TOKENS // length)):
        total += float(side.loss_sum(side.compute.to_device(windows.batch(numbers))))
    return total / (len(ids) - 1)
