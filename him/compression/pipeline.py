"""The stage after training: prune, fine-tune, quantize, and say what it brought.

Everything is written into `compressed.part`, stage by stage, each whole or absent; what is finished takes the place of
`compressed` at the end. A process that is killed at any moment goes on from the last whole stage, or from the last
checkpoint of the fine-tuning, to the same weights.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from him.compression.fine_tuning import fine_tuning_config
from him.compression.latency import Contestant, measure_speeds
from him.compression.plots import as_png, draw_report
from him.compression.pruning import (
    Importance,
    check_amount,
    choose_units,
    magnitude_masks,
    nonzero_masks,
    pruned_weights,
    taylor_importance,
)
from him.compression.quantization import save_int8
from him.compression.report import judge, not_faster_line, report_table, summary_line
from him.config import Config
from him.config.options.shared import CompressionOptions
from him.core.compute import Compute
from him.core.errors import CheckpointError
from him.core.files import checksum, find_folder, remove_leftovers, verify_folder, write_json
from him.core.signals import raise_if_stopped, signal_of
from him.data.batching import epoch_batches
from him.model.embeddings import hold_in_bf16
from him.model.int8 import pack, quantize
from him.model.int8_kernels import backend_note, find_backend
from him.runs.checkpoint import Checkpoints, load_weights, save_model
from him.runs.models import COMPRESSED, FINE_TUNED, INT8, PRUNED, TRAINED, load_stage, stage_in
from him.runs.records import MetricWriter
from him.tasks.base import Task
from him.training.distillation import TaughtTask, apply_masks
from him.training.trainer import Interrupted, Trainer

IMPORTANCE_EXAMPLES = 1024  # training examples that units are ranked on
ROWS = 16  # of them at a time; what is summed up does not depend on it
REPORT, PROGRESS = "report.json", "progress.json"


def compress(
    run: Path,
    config: Config,
    task: Task,
    compute: Compute,
    place: str = COMPRESSED,
    trained_metrics: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Prunes, fine-tunes and quantizes the best model of a run, and measures each stage.

    Args:
        run: folder of a run with a best model.
        config: of the run, with the compression that is wanted.
        task: with training and validation data.
        compute: device and precision of training and evaluation.
        place: where the result is put, below the run.
        trained_metrics: of the best model on all of these validation data, if they are known.

    Returns:
        The content of `report.json`: `metric`, `stages`, and the settings.

    Raises:
        HimError: a setting or the machine does not allow it.
        Interrupted: a signal ended it; another call goes on.
    """
    try:
        return _Compression(run, config, task, compute, run / place).report(trained_metrics)
    except KeyboardInterrupt as stopped:
        raise Interrupted(signal_of(stopped), run) from None


def finished_report(
    run: Path, config: Config, task: Task, compute: Compute, place: str = COMPRESSED
) -> dict[str, Any] | None:
    """The report that is there for this model, these settings, these data and this machine, or None."""
    report = report_of(run, place)
    own = task.with_config(config)  # as it is written: a task that `--teacher` teaches hands on what it learns from
    return report if report and report["settings"] == _settings(run, config, own, compute) else None


def report_of(run: Path, place: str = COMPRESSED) -> dict[str, Any] | None:
    """The report that is there for this trained model, with whatever settings, or None; also if a model is damaged."""
    folder = find_folder(run / place)
    try:
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        for stage in report["stages"][1:]:
            verify_folder(stage_in(folder, stage["stage"]), others_allowed=True)
        return report if report["settings"]["trained"] == _trained_checksum(run) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, CheckpointError):
        return None


def tidy(run: Path, place: str = COMPRESSED) -> None:
    """Removes what a kill between the last renames has left beside a finished report."""
    target = run / place
    remove_leftovers(target)
    if (target / REPORT).is_file():
        (target / PROGRESS).unlink(missing_ok=True)


def _trained_checksum(run: Path) -> str:
    return checksum(find_folder(run / "best") / "model.safetensors")


def _settings(run: Path, config: Config, task: Task, compute: Compute) -> dict[str, Any]:
    """What decides the result: the trained model, the settings of the stage, the data and the machine."""
    names = [each.name for each in dataclasses.fields(CompressionOptions) if each.name != "compress"]
    of_data = ("dataset", "validation_file", "validation_size", "corpus_dir", "sample_size")
    return {
        "trained": _trained_checksum(run),
        **{name: getattr(config, name) for name in (*names, *of_data, "seed", "dry_run")},
        "data": [task.train_digest, task.validation_digest],
        "machine": [str(compute.device), compute.bf16, torch.get_num_threads()],
    }


class _Compression:
    """One pass through the stages; see `compress`."""

    def __init__(self, run: Path, config: Config, task: Task, compute: Compute, target: Path) -> None:
        self.run = run
        self.best = find_folder(run / "best")
        # BERTScore on all validation data, after each stage, would take longer than the stages.
        self.config = dataclasses.replace(config, bertscore_samples=0)
        self.bertscore_samples = config.bertscore_samples
        self.task = task.with_config(self.config)
        self.compute = compute
        self.target = target
        self.part = target.with_name(f"{target.name}.part")
        self.trained = load_stage(self.task, self.best, compute)
        if config.pruning_method == "taylor":
            check_amount(self.trained, config.pruning_amount)  # before anything is written
        self.progress = self._begin()

    def report(self, trained_metrics: dict[str, float] | None) -> dict[str, Any]:
        """All stages that are not there yet, then the measurements."""
        self._once(TRAINED, lambda: trained_metrics or self._evaluate(self.task, self.trained))
        if self.config.pruning_amount > 0:
            self._once(PRUNED, self._prune)
            if self.config.fine_tune_epochs != 0:
                self._once(FINE_TUNED, self._fine_tune)
        self._once(INT8, self._quantize)
        return self._finish()

    # -- progress ------------------------------------------------------------------------------------------------------

    def _begin(self) -> dict[str, Any]:
        """Goes on with what an interrupted call with the same settings left, or begins anew."""
        settings = _settings(self.run, self.config, self.task, self.compute)
        try:
            progress = json.loads((self.part / PROGRESS).read_text(encoding="utf-8"))
            if progress["settings"] == settings:
                for stage in progress["metrics"]:
                    verify_folder(self._folder(stage), others_allowed=True)
                return progress
        except (OSError, ValueError, KeyError, TypeError, RecursionError, CheckpointError):
            pass
        shutil.rmtree(self.part, ignore_errors=True)
        self.part.mkdir(parents=True)
        progress = {"settings": settings, "metrics": {}}
        write_json(self.part / PROGRESS, progress)
        return progress

    def _once(self, stage: str, work: Callable[[], dict[str, float]]) -> None:
        """Does a stage, unless it is done, and notes its metrics."""
        raise_if_stopped()
        if stage in self.progress["metrics"]:
            return
        remove_leftovers(self.part / stage)
        self.progress["metrics"][stage] = work()
        write_json(self.part / PROGRESS, self.progress)

    def _folder(self, stage: str) -> Path:
        """Where a stage's model is while this is going on."""
        return self.best if stage == TRAINED else stage_in(self.part, stage)

    def _last_float(self) -> str:
        """The last stage before int8."""
        return [stage for stage in (TRAINED, PRUNED, FINE_TUNED) if stage in self.progress["metrics"]][-1]

    def _task_of(self, stage: str) -> Task:
        return self.task.with_config(self._config_of(stage))

    def _config_of(self, stage: str) -> Config:
        """The settings with the shape of a stage's model."""
        of_model = Config.load(self._folder(stage) / "config.json")
        return dataclasses.replace(
            self.config, layer_heads=of_model.layer_heads, layer_feedforward=of_model.layer_feedforward
        )

    def _as_saved(self, config: Config) -> Config:
        """The settings that a model of a stage is used with later: the run's, with the model's shape."""
        return dataclasses.replace(config, bertscore_samples=self.bertscore_samples)

    # -- stages --------------------------------------------------------------------------------------------------------

    def _evaluate(self, task: Task, model: nn.Module) -> dict[str, float]:
        """The metrics of a model on all validation data; its task may tune itself on them, and is saved with it."""
        return task.evaluate(model.eval(), self.compute, final=True).metrics

    def _prune(self) -> dict[str, float]:
        config, trained = self.config, self.trained
        if config.pruning_method == "magnitude":
            student, student_config = self.task.build_model(), config
            student.load_state_dict(trained.state_dict())
            apply_masks(student, magnitude_masks(student, config.pruning_amount))
        else:
            kept = choose_units(trained, self._importance(), config.pruning_amount)
            student_config = dataclasses.replace(
                config,
                layer_heads=tuple(len(units.heads) for units in kept),
                layer_feedforward=tuple(len(units.neurons) for units in kept),
            )
            student = self.task.with_config(student_config).build_model()
            student.load_state_dict(pruned_weights(trained, kept))
        student.to(self.compute.device)
        task = self.task.with_config(student_config)
        metrics = self._evaluate(task, student)
        save_model(self.part / PRUNED, self._as_saved(student_config), student, task, metrics)
        return metrics

    def _importance(self) -> Importance:
        task, config, trained = self.task, self.config, self.trained
        batches = epoch_batches(task.train_lengths, config.batch_size, config.seed, 0, task.train_sampling)
        number = 2 if config.dry_run else -(-IMPORTANCE_EXAMPLES // config.batch_size)

        def loss_of(batch: dict[str, torch.Tensor]) -> torch.Tensor:
            with self.compute.autocast():
                return task.loss(trained, batch).loss

        torch.manual_seed(config.seed)  # where crops of texts begin is drawn with each batch
        parts = (batch[start : start + ROWS] for batch in batches[:number] for start in range(0, len(batch), ROWS))
        chosen = (self.compute.to_device(task.train_batch(examples)) for examples in parts)
        return taylor_importance(trained, chosen, loss_of)

    def _fine_tune(self) -> dict[str, float]:
        """The usual trainer in a folder of its own; the pruned model counts as its epoch 0."""
        folder = self.part / FINE_TUNED
        task = self._task_of(PRUNED)
        steps_per_epoch = -(-task.examples_per_epoch // self.config.batch_size)
        config = fine_tuning_config(task.config, steps_per_epoch, self._best_step())
        if self.target.name == COMPRESSED:
            config = dataclasses.replace(config, attention_dir=str(Path(config.attention_dir) / self.run.name))
        else:
            config = dataclasses.replace(config, attention_examples=0)  # the amounts of a sweep would share one folder
        student = load_stage(task, self.part / PRUNED, self.compute)
        masks = {}
        if self.config.pruning_method == "magnitude":
            masks = nonzero_masks(student)
        taught = TaughtTask(task.with_config(config), self.trained, config.fine_tune_distillation_weight, masks)
        checkpoints = Checkpoints(folder / "checkpoints", config.keep_checkpoints)
        checkpoint = checkpoints.load_newest()
        if checkpoint is None:
            shutil.rmtree(folder, ignore_errors=True)  # records from before a first checkpoint would be there twice
            folder.mkdir()
        torch.manual_seed(config.seed)
        trainer = Trainer(taught, config, folder, self.compute, student, checkpoint)
        trainer.restore_best()
        print(f"fine-tuning after pruning: {trainer.max_steps:,} steps, taught by the unpruned model", flush=True)
        if trainer.state.best_value is None:
            trainer.evaluate()
        try:
            trainer.fit()
        except Interrupted as interrupted:
            raise Interrupted(interrupted.signal, self.run) from None
        load_weights(student, folder / "best")
        metrics = taught.evaluate(student.eval(), self.compute, final=True).metrics
        state = trainer.state
        if state.best_step == 0:
            print(f"fine-tuning did not improve {task.best_metric}; the pruned weights are kept", flush=True)
        save_model(folder / "best", self._as_saved(task.config), student, taught, {"step": state.best_step, **metrics})
        return metrics

    def _best_step(self) -> int:
        """The step of the training that the trained model is of."""
        return int(json.loads((self.best / "metrics.json").read_text(encoding="utf-8"))["step"])

    def _quantize(self) -> dict[str, float]:
        stage = self._last_float()
        config = self._config_of(stage)
        task = self.task.with_config(config)
        model = quantize(load_stage(task, self._folder(stage), self.compute))
        backend = find_backend(self.compute.device)
        print(backend_note(backend, self.compute.bf16, self.compute.device), flush=True)
        pack(model.to(self.compute.device), backend, self.compute.bf16)
        metrics = self._evaluate(task, model)
        save_int8(self.part / INT8, self._as_saved(config), model, task, metrics)
        return metrics

    # -- evidence ------------------------------------------------------------------------------------------------------

    def _finish(self) -> dict[str, Any]:
        """Measures, writes the report, and puts everything in its place."""
        stages = self._measured()
        judge(stages)
        metric = self.task.best_metric
        report = {"settings": self.progress["settings"], "metric": metric, "stages": stages}
        reason = backend_note(find_backend(self.compute.device), self.compute.bf16, self.compute.device)
        lines = (report_table(stages, metric), not_faster_line(stages, reason))
        report["table"] = "\n".join(line for line in lines if line is not None)
        report["summary"] = summary_line(stages, metric)
        write_json(self.part / REPORT, report)
        picture = draw_report(stages, metric)
        (self.part / "report.png").write_bytes(as_png(picture))
        self._to_tensorboard(report, picture)
        shutil.rmtree(self.part / FINE_TUNED / "checkpoints", ignore_errors=True)
        old = self.target.with_name(f"{self.target.name}.old")
        if self.target.exists():  # if not, an earlier call was killed here, and what is there is the old one
            shutil.rmtree(old, ignore_errors=True)
            os.rename(self.target, old)
        os.rename(self.part, self.target)
        tidy(self.run, str(self.target.relative_to(self.run)))
        return report

    def _measured(self) -> list[dict[str, Any]]:
        """Of each stage: parameters, size, speed and metrics."""
        in_fp32, as_used = dataclasses.replace(self.compute, bf16=False), self.compute
        contestants, stages = {}, []
        for stage, metrics in self.progress["metrics"].items():
            task, folder = self._task_of(stage), self._folder(stage)
            model = load_stage(task, folder, self.compute)
            is_int8 = stage == INT8
            contestants[stage] = Contestant(model, task, as_used if is_int8 else in_fp32)
            if not is_int8 and as_used.bf16:
                held = load_stage(task, folder, self.compute)
                hold_in_bf16(held)
                contestants[f"{stage} in bf16"] = Contestant(held, task, as_used)
            rest = "bf16" if as_used.bf16 else "fp32"
            stages.append(
                {
                    "stage": stage,
                    "precision": f"int8 and {rest}" if is_int8 else "fp32",
                    "parameters": _num_parameters(model),
                    "file_mb": round((folder / "model.safetensors").stat().st_size / 1e6, 3),
                    **{name: value for name, value in metrics.items() if name not in ("step", "epoch")},
                }
            )
        speeds = measure_speeds(contestants, quick=self.config.dry_run)
        for stage in stages:
            stage.update(speeds[stage["stage"]])
            if (name := f"{stage['stage']} in bf16") in speeds:
                stage["bf16"] = speeds[name]
        return stages

    def _to_tensorboard(self, report: dict[str, Any], picture: np.ndarray) -> None:
        for left in (*self.part.glob("events.out.tfevents.*"), *self.part.glob("metrics.jsonl")):
            left.unlink()
        writer = MetricWriter(self.part)
        writer.picture("Compression", picture, 0)
        writer.text("Compression/table", f"```\n{report['table']}\n```\n\n{report['summary']}", 0)
        writer.close()
        (self.part / "metrics.jsonl").unlink()  # the numbers are in the report


def _num_parameters(model: nn.Module) -> int:
    """Numbers that were learned; the scales of int8 rows are none of them."""
    return sum(tensor.numel() for name, tensor in model.state_dict().items() if not name.endswith(".scale"))
