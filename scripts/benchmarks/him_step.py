"""HIM's part in the training benchmark: the step of its own Trainer."""

import tempfile
from pathlib import Path
from typing import Any

import torch

from him.config import Config
from him.core.compute import Compute, keep_freed_memory
from him.data.batching import epoch_batches
from him.runs.folder import RunFolder
from him.tasks.squad.task import SquadTask
from him.training.trainer import LOG_EVERY_STEPS, Trainer
from scripts.benchmarks.batch_plan import plan_steps
from scripts.benchmarks.measure import Meter


def run_him(config: Config, folder: Path, compute: Compute, meter: Meter, **options: Any) -> None:
    """Set up as `him.workflows.train.train` does it, with everything switched on that is on in a run."""
    keep_freed_memory()
    task = SquadTask.prepare(config)
    torch.manual_seed(config.seed)
    model = task.build_model().to(compute.device)
    meter.watch(model)
    trainer = Trainer(task, config, RunFolder(Path(tempfile.mkdtemp(dir=folder))), compute, model)
    batches = epoch_batches(task.train_lengths, config.batch_size, config.seed, epoch=0)
    for examples in plan_steps(batches, task.train_lengths, meter.num_warmup, meter.num_timed):
        trainer.batches = [examples] * trainer.steps_per_epoch  # whatever the step's number, these are its examples
        trainer.train_step()
        trainer.state.step += 1
        if trainer.due(LOG_EVERY_STEPS):
            trainer.progress.record_training()
        meter.step_done()
    trainer.progress.close_records()
