"""A trained model as a folder that stock `transformers` classes open without HIM, with a tokenizer that fits.

HIM allows answers to start at the first piece of a context word only and to end at a last one. Stock classes know
nothing of words, so that their logits are those of all places; `tokenizer(..., return_offsets_mapping=True)` has what
is needed to choose among them.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import processors
from torch import Tensor, nn

from him.core.errors import CheckpointError
from him.core.files import write_folder, write_json
from him.data.sample import squad_sample, text_sample
from him.export.differences import Differences
from him.export.folders import check_floats, check_packages, quiet, size_mb, write_report
from him.export.graphs import squad_batches, text_batches
from him.export.stock_weights import stock_class, stock_settings, stock_weights
from him.tasks.base import Task
from him.text.tokenizer import CLS, MASK, PAD, SEP, UNK, special_id
from him.workflows.predict import Predictor

ROLES = {"pad_token": PAD, "unk_token": UNK, "cls_token": CLS, "sep_token": SEP, "mask_token": MASK}


def export_transformers(predictor: Predictor, output: Path, stage: str = "trained") -> dict[str, Any]:
    """Writes the folder; whole or not at all.

    Args:
        predictor: a trained model, in float32 on a CPU.
        output: folder to write.
        stage: which model of its run this is, for the report.

    Returns:
        What `export.json` holds.

    Raises:
        ConfigError: no stock class computes what this model does; names each obstacle. Or the model is int8.
        CheckpointError: the class computes something else, or its tokenizer gives other ids.
    """
    check_floats(predictor.model)
    stock = stock_class(predictor.config)
    check_packages(("transformers",), "--format transformers")
    import transformers

    task, model = predictor.task, predictor.model
    pad_id, end_id = (special_id(task.tokenizer, token) for token in (PAD, SEP))
    report: dict[str, Any] = {"format": "transformers", "task": task.name, "stage": stage}
    report |= {"class": stock.name, "open_with": stock.auto}

    def fill(folder: Path) -> None:
        with _quiet():
            made_class = getattr(transformers, stock.name)
            settings = stock_settings(predictor.config, model, pad_id, end_id)
            made = made_class(made_class.config_class(**settings)).eval()
            made.load_state_dict(stock_weights(predictor.config, model, pad_id))
            made.save_pretrained(folder)
            _tokenizer_of(task).save_pretrained(folder)
            _name_class(folder / "tokenizer_config.json")
            # As any reader would: all that is known is the folder.
            opened = getattr(transformers, stock.auto).from_pretrained(folder, local_files_only=True).eval()
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            differences = _compared(task, model, opened)
            _check_ids(task, tokenizer)
        assert type(opened) is made_class
        differences.check(stock.name)
        report.update(file_mb=size_mb(folder / "model.safetensors"), **differences.to_dict())
        write_report(folder, report)

    write_folder(output, fill)
    return report


def _tokenizer_of(task: Task) -> Any:
    """The run's tokenizer as one of `transformers`, which puts the special tokens where HIM puts them."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer.from_str(task.tokenizer.to_str())
    names = {role: tokenizer.id_to_token(special_id(tokenizer, token)) for role, token in ROLES.items()}
    cls, sep = names["cls_token"], names["sep_token"]
    specials = [(token, tokenizer.token_to_id(token)) for token in (cls, sep)]
    inputs = ["input_ids", "attention_mask"]
    if task.name == "lm":  # the end of the text before begins a text
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{sep} $A", special_tokens=specials)
        more = {"bos_token": sep, "eos_token": sep, "split_special_tokens": True}
    else:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{cls} $A {sep}", pair=f"{cls} $A {sep} $B:1 {sep}:1", special_tokens=specials
        )
        inputs.insert(1, "token_type_ids")
        more = {}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=task.config.max_seq_len,
        model_input_names=inputs,
        clean_up_tokenization_spaces=False,
        **names,
        **more,
    )


def _name_class(path: Path) -> None:
    """Gives the tokenizer the name that older versions of `transformers` know it by too."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, settings | {"tokenizer_class": "PreTrainedTokenizerFast"})


@torch.inference_mode()
def _compared(task: Task, model: nn.Module, opened: nn.Module) -> Differences:
    """Both on real inputs, at tokens."""
    differences = Differences()
    for batch in squad_batches(task) if task.name == "squad" else text_batches(task):
        differences.shapes.append(list(batch["input_ids"].shape))
        for expected, found in zip(*_outputs(task, model, opened, batch), strict=True):
            differences.add(expected, found)
    return differences


def _outputs(
    task: Task, model: nn.Module, opened: nn.Module, batch: dict[str, Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """The logits of both models, at tokens."""
    if task.name == "lm":
        hidden_BLD = model(batch).hidden_BLD
        logits_BLV = model.embedding.tokens.project(hidden_BLD, model.output_bias)
        return [logits_BLV], [opened(input_ids=batch["input_ids"]).logits]
    mask_BL = batch["attention_mask"]
    hidden_BLD = model.encoder(model.embedding(batch), mask_BL).hidden_BLD
    own = model.span(hidden_BLD)[mask_BL].unbind(dim=-1)  # before some places are forbidden
    inputs = {name: batch[name] for name in ("input_ids", "token_type_ids")}
    found = opened(**inputs, attention_mask=mask_BL.long())
    return list(own), [found.start_logits[mask_BL], found.end_logits[mask_BL]]


def _check_ids(task: Task, tokenizer: Any) -> None:
    """Sees to it that the saved tokenizer gives what the model was trained on.

    Raises:
        CheckpointError: it does not.
    """
    if task.name == "lm":
        text = text_sample(0, 0, 1)[1][0][:400]
        expected = [special_id(task.tokenizer, SEP), *task.tokenizer.encode(text, add_special_tokens=False).ids]
        same = tokenizer(text)["input_ids"] == expected
    else:
        paragraph = squad_sample(0, 0, 1)[1]["data"][0]["paragraphs"][0]
        question, context = paragraph["qas"][0]["question"], paragraph["context"]
        cls, sep = (special_id(task.tokenizer, token) for token in (CLS, SEP))
        asked, read = (task.tokenizer.encode(text, add_special_tokens=False).ids for text in (question, context))
        found = tokenizer(question, context)
        types = [0] * (len(asked) + 2) + [1] * (len(read) + 1)
        same = found["input_ids"] == [cls, *asked, sep, *read, sep] and found["token_type_ids"] == types
    if not same:
        raise CheckpointError("the tokenizer gives other ids in transformers than in HIM; nothing was written")


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars, warnings or log messages."""
    from transformers.utils import logging

    verbosity, shows_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with quiet():
            yield
    finally:
        logging.set_verbosity(verbosity)
        if shows_bars:
            logging.enable_progress_bar()
