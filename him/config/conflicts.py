"""Settings against each other: what is sound one by one, and not together."""

from dataclasses import fields
from typing import Any

from him.config.options import readers_of


def conflicts(config: Any) -> list[str]:
    """What is wrong between settings that are sound one by one.

    Args:
        config: a `Config`.
    """
    faults = []
    if config.train_file_weights and len(config.train_file_weights) != len(config.train_file):
        faults.append(
            f"--train_file_weights names {len(config.train_file_weights)} weights and --train_file "
            f"{len(config.train_file)} files; name a weight for each file"
        )
    if config.train_file_weights and not any(config.train_file_weights):
        faults.append("--train_file_weights are all 0; leave something to train on")
    if config.embed_dim % config.num_heads:
        lower = config.embed_dim // config.num_heads * config.num_heads
        examples = " or ".join(str(width) for width in (lower, lower + config.num_heads) if width)
        faults.append(
            f"--embed_dim {config.embed_dim} is not divisible by --num_heads {config.num_heads}; use a multiple of "
            f"{config.num_heads}, such as {examples}"
        )
    elif config.positions == "rotary" and config.embed_dim // config.num_heads % 2:
        faults.append(
            f"--embed_dim {config.embed_dim} with --num_heads {config.num_heads} makes heads of odd width "
            f"{config.embed_dim // config.num_heads}, which rotary positions cannot turn; use --positions learned"
        )
    for name in ("layer_heads", "layer_feedforward"):
        if (given := getattr(config, name)) and len(given) != config.num_encoder_layers:
            faults.append(
                f"--{name} names {len(given)} layers and --num_encoder_layers is {config.num_encoder_layers}; name each"
            )
    if config.micro_batch_size and config.batch_size and config.micro_batch_size > config.batch_size:
        faults.append(
            f"--micro_batch_size {config.micro_batch_size} is larger than --batch_size {config.batch_size}; lower it"
        )
    if config.max_seq_len is not None and config.task_type == "squad" and config.doc_stride >= config.max_seq_len:
        faults.append(f"--doc_stride {config.doc_stride} is not below --max_seq_len {config.max_seq_len}; lower it")
    if config.num_beams is not None and config.num_beams > 1 and config.temperature > 0:
        faults.append(
            f"--temperature {config.temperature:g} with --num_beams {config.num_beams}: beam search does not sample; "
            "use --num_beams 1, or leave --temperature out"
        )
    if config.eval_stride and config.max_seq_len and config.eval_stride > config.max_seq_len:
        faults.append(f"--eval_stride {config.eval_stride} is above --seq_len {config.max_seq_len}; lower it")
    return faults + _flags_of_other_tasks(config)


def _flags_of_other_tasks(config: Any) -> list[str]:
    """What was set and only other tasks read."""
    return [
        f"--{each.name} is for --task_type {' or '.join(readers_of(each.name))}, not {config.task_type}; leave it out"
        for each in fields(config)
        if config.task_type not in readers_of(each.name) and getattr(config, each.name) != each.default
    ]
