"""A trained model as a folder that stock `transformers` classes open without HIM, with a tokenizer that fits.

What depends on the task is said by its `StockExport`. In question answering HIM allows answers to start at the first
piece of a context word only and to end at a last one; the logits of stock classes are those of all tokens, and
`tokenizer(..., return_offsets_mapping=True)` has what is needed to choose among them.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import processors
from torch import nn

from him.core.errors import CheckpointError
from him.core.files import write_folder, write_json
from him.export.folders import REPORT, Differences, check_packages, exportable, quiet
from him.export.stock_weights import stock_class, stock_settings, stock_weights
from him.tasks.exporting import StockExport
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
    task, model = exportable(predictor), predictor.model
    stock = task.stock_export()
    chosen = stock_class(stock, predictor.config)
    check_packages(("transformers",), "--format transformers")
    import transformers

    pad_id = special_id(task.tokenizer, PAD)
    report: dict[str, Any] = {"format": "transformers", "task": task.name, "stage": stage}
    report |= {"class": chosen.name, "open_with": chosen.auto}

    def fill(folder: Path) -> None:
        with _quiet():
            made_class = getattr(transformers, chosen.name)
            made = made_class(made_class.config_class(**stock_settings(stock, model, pad_id))).eval()
            made.load_state_dict(stock_weights(stock, model, pad_id))
            made.save_pretrained(folder)
            _tokenizer_of(stock).save_pretrained(folder)
            _name_class(folder / "tokenizer_config.json")
            # As any reader would: all that is known is the folder.
            opened = getattr(transformers, chosen.auto).from_pretrained(folder, local_files_only=True).eval()
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            differences = _compared(stock, model, opened)
            _check_ids(stock, tokenizer)
        assert type(opened) is made_class
        differences.check(chosen.name)
        size = (folder / "model.safetensors").stat().st_size
        report.update(file_mb=size / 1e6, **differences.to_dict())
        write_json(folder / REPORT, report)

    write_folder(output, fill)
    return report


def _tokenizer_of(stock: StockExport) -> Any:
    """The run's tokenizer as one of `transformers`, which puts the special tokens where HIM puts them."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer.from_str(stock.tokenizer.to_str())
    names = {role: tokenizer.id_to_token(special_id(tokenizer, token)) for role, token in ROLES.items()}
    cls, sep = names["cls_token"], names["sep_token"]
    specials = [(token, tokenizer.token_to_id(token)) for token in (cls, sep)]
    templates = stock.templates(cls, sep)
    tokenizer.post_processor = processors.TemplateProcessing(**templates, special_tokens=specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=stock.config.max_seq_len,
        clean_up_tokenization_spaces=False,
        **names,
        **stock.tokenizer_settings(sep),
    )


def _name_class(path: Path) -> None:
    """Gives the tokenizer the name that older versions of `transformers` know it by too."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, settings | {"tokenizer_class": "PreTrainedTokenizerFast"})


@torch.inference_mode()
def _compared(stock: StockExport, model: nn.Module, opened: nn.Module) -> Differences:
    """Both on real inputs, at tokens."""
    differences = Differences()
    for batch in stock.batches:
        differences.shapes.append(list(batch["input_ids"].shape))
        for expected, found in zip(*stock.outputs(model, opened, batch), strict=True):
            differences.add(expected, found)
    return differences


def _check_ids(stock: StockExport, tokenizer: Any) -> None:
    """Raises CheckpointError if the saved tokenizer does not give what the model was trained on."""
    texts, expected = stock.example()
    found = tokenizer(*texts)
    if any(found[name] != ids for name, ids in expected.items()):
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
