"""The teacher of a run: the model of an earlier run that `--teacher` names, to be distilled into the new one."""

from pathlib import Path

from him.config import Config
from him.core.compute import Compute
from him.core.errors import ConfigError
from him.model.embeddings import hold_in_bf16
from him.runs.folder import ModelFolder
from him.runs.models import find_model, load_stage
from him.tasks.base import DistillableTask, Task
from him.training.objective import Distillation, Objective


def teacher_folder(config: Config) -> Path | None:
    """The model folder that `--teacher` names.

    Raises:
        CheckpointError: it holds no model, or one of another task.
        ConfigError: it cannot read what the student reads.
    """
    if config.teacher is None:
        return None
    best = find_model("--teacher", config.teacher, config.task_type)
    teacher = Config.load(ModelFolder(best).config)
    if config.max_seq_len > teacher.max_seq_len and teacher.positions == "learned":
        raise ConfigError(
            f"--max_seq_len {config.max_seq_len}: the teacher reads {teacher.max_seq_len} tokens; use at most that"
        )
    if teacher.lexical_features and not config.lexical_features:
        raise ConfigError("--no-lexical_features: the teacher reads them; leave the flag out")
    return best


def build_objective(task: Task, config: Config, compute: Compute) -> Objective:
    """The training loss of a run: on the labels, and on the predictions of the teacher that `--teacher` names, if any.

    Student and teacher share a tokenizer.

    Raises:
        ConfigError: models of this task cannot learn from a teacher; else see `teacher_folder`.
        CheckpointError: the teacher is missing or damaged.
    """
    folder = teacher_folder(config)
    if folder is None:
        return Objective(task)
    if not isinstance(task, DistillableTask):
        raise ConfigError(f"--teacher {config.teacher}: {task.name} has no distillation loss; leave the flag out")
    teacher = load_stage(task.with_config(Config.load(ModelFolder(folder).config)), folder, compute)
    if compute.bf16:
        hold_in_bf16(teacher)
    return Distillation(task, teacher, config.distillation_weight)
