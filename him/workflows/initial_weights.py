"""The weights that a run begins from: those of an earlier run, or of a pretrained encoder; see `him.config.bert`."""

from pathlib import Path

import torch
from torch import nn

from him.config import Config
from him.config.bert import check_settings, is_bert, read_bert
from him.core.errors import CheckpointError
from him.runs.checkpoint import load_tensors, load_weights
from him.runs.folder import ModelFolder
from him.runs.models import find_model
from him.runs.untrusted import check_files


def initial_folder(config: Config) -> Path | None:
    """The model folder that `--init_from` names. Raises CheckpointError: it holds no model, or one of another task."""
    if config.init_from is None:
        return None
    if is_bert(Path(config.init_from)):
        check_files(Path(config.init_from))
        check_settings(config, read_bert(Path(config.init_from)))
        return Path(config.init_from)
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
