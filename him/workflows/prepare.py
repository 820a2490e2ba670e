"""What is there before the first step: the task with its data and its tokenizer, the loss, the new model.

The weights that a run begins from are those of an earlier run, or of a pretrained encoder; see `him.config.bert`. Its
teacher is the model of an earlier run that `--teacher` names, to be distilled into the new one.
"""

from pathlib import Path

import torch
from torch import nn

from him.compression.pruning import check_amount
from him.config import Config
from him.config.bert import check_settings, is_bert, read_bert
from him.core.compute import Compute, keep_freed_memory
from him.core.errors import CheckpointError, ConfigError
from him.data.document_files import check_names
from him.model.embeddings import hold_in_bf16
from him.runs.checkpoint import load_tensors, load_weights
from him.runs.folder import ModelFolder, RunFolder
from him.runs.models import find_model, load_stage
from him.runs.untrusted import check_files
from him.tasks import task_class
from him.tasks.base import DistillableTask, Task
from him.tasks.building import check_capabilities
from him.text.tokenizer import parse_tokenizer
from him.training.objective import Distillation, Objective


def build(config: Config, compute: Compute, run: RunFolder | None = None) -> tuple[Task, Objective, nn.Module]:
    """The task with its data, the training loss, and the model with its new weights, on the CPU.

    Args:
        config: with the task's defaults.
        compute: where the teacher is used, if there is one.
        run: that is gone on with, or None for a new one.

    Raises:
        HimError: a setting or the data do not allow it, or so much cannot be pruned, which is said before the hours of
            training, not after them.
    """
    keep_freed_memory()
    task = _prepare_task(config, run)
    objective = build_objective(task, config, compute)
    torch.manual_seed(config.seed)
    model = task.build_model()
    if config.compress and config.pruning_method == "taylor":
        check_amount(model, config.pruning_amount)
    return task, objective, model


def _prepare_task(config: Config, run: RunFolder | None) -> Task:
    if config.pretrain_files and not config.pretrain_epochs:
        raise ConfigError("--pretrain_files without --pretrain_epochs: nothing would read them; name how many epochs")
    if run is None:
        check_names(config.pretrain_files)
    cls = task_class(config.task_type)
    check_capabilities(cls, config)
    return cls.prepare(config, tokenizer_folder=_tokenizer_folder(config, run))


def _tokenizer_folder(config: Config, run: RunFolder | None) -> Path | None:
    """Where a tokenizer is taken from: the model that the run begins from, its teacher, or else its own best model."""
    if run is not None and config.init_from is not None and not Path(config.init_from).exists():
        if not (own := run.find_best()).is_dir():
            raise CheckpointError(
                f"--init_from {config.init_from} is gone, and with it the tokenizer; name its new place with the flag"
            )
        return own
    initial, teacher = initial_folder(config), teacher_folder(config)
    if initial is not None and teacher is not None:
        first, second = (parse_tokenizer(ModelFolder(folder).tokenizer).to_str() for folder in (initial, teacher))
        if first != second:
            raise ConfigError(
                f"--teacher {config.teacher} has another tokenizer than --init_from {config.init_from}; use models "
                "with the same one"
            )
    return initial or teacher


def teacher_folder(config: Config) -> Path | None:
    """The model folder that `--teacher` names. Raises CheckpointError: it holds no model, or one of another task;
    ConfigError: it cannot read what the student reads."""
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

    Raises ConfigError: models of this task cannot learn from a teacher; else see `teacher_folder`; CheckpointError: the
    teacher is missing or damaged.
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


def initial_folder(config: Config) -> Path | None:
    """The model folder that `--init_from` names. Raises CheckpointError: it holds no model, or one of another task."""
    if config.init_from is None:
        return None
    if is_bert(folder := Path(config.init_from)):
        check_files(folder)
        check_settings(config, read_bert(folder))
        return folder
    return find_model("--init_from", config.init_from, config.task_type)


def load_initial(model: nn.Module, config: Config) -> None:
    """Puts the weights that `--init_from` names into a new model."""
    if (initial := initial_folder(config)) is not None:
        load = load_bert if is_bert(initial) else load_weights
        load(model, initial)


def load_bert(model: nn.Module, folder: Path) -> None:
    """Puts an encoder's weights into a model, exactly; the lexical inputs start at 0, so that they change nothing yet.
    Raises CheckpointError: a weight is missing or has another shape."""
    path = ModelFolder(folder).weights
    found = {name.removeprefix("bert."): tensor for name, tensor in load_tensors(path).items()}
    own = model.state_dict()
    taken = {}
    for name, parts in _names(model).items():
        if missing := [part for part in parts if part not in found]:
            raise CheckpointError(f"{path}: it has no {missing[0]}; use the weights of an encoder")
        tensor = torch.cat([found[part] for part in parts]).float()
        if name == "embedding.positions.weight":
            tensor = tensor[: len(own[name])]
        if tensor.shape != own[name].shape:
            raise CheckpointError(
                f"{path}: {parts[0]} has shape {list(tensor.shape)}, this model has {list(own[name].shape)}; use the "
                "tokenizer of the encoder"
            )
        taken[name] = tensor
    for name, tensor in own.items():
        if name.startswith("embedding.lexical."):
            taken[name] = torch.zeros_like(tensor)
    model.load_state_dict(taken, strict=False)


def _names(model: nn.Module) -> dict[str, list[str]]:
    """HIM's names -> the names of what is put there, one below the other."""
    names = {
        "embedding.tokens.weight": ["embeddings.word_embeddings.weight"],
        "embedding.segments.weight": ["embeddings.token_type_embeddings.weight"],
        "embedding.positions.weight": ["embeddings.position_embeddings.weight"],
    }
    pairs = {"embedding.norm": ["embeddings.LayerNorm"]}
    for number in range(len(model.encoder.blocks)):
        theirs, ours = f"encoder.layer.{number}", f"encoder.blocks.{number}"
        joint = [f"{theirs}.attention.self.{name}" for name in ("query", "key", "value")]
        pairs |= {
            f"{ours}.attention.query_key_value": joint,
            f"{ours}.attention.output": [f"{theirs}.attention.output.dense"],
            f"{ours}.attention_norm": [f"{theirs}.attention.output.LayerNorm"],
            f"{ours}.feed_forward.expand": [f"{theirs}.intermediate.dense"],
            f"{ours}.feed_forward.contract": [f"{theirs}.output.dense"],
            f"{ours}.feed_forward_norm": [f"{theirs}.output.LayerNorm"],
        }
    both = {
        f"{name}.{kind}": [f"{part}.{kind}" for part in parts]
        for name, parts in pairs.items()
        for kind in ("weight", "bias")
    }
    return names | both
