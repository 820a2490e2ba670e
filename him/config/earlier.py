"""What the folder that `--init_from` names says about its model; read without PyTorch, and without the weights."""

from pathlib import Path

from him.config.bert import BertEncoder, is_bert, read_bert
from him.config.config import Config


def read_earlier(init_from: str | None) -> Config | BertEncoder | None:
    """The settings of an earlier run, or of a model of one; or the description of a pretrained encoder.

    Returns:
        None where no model is named, or the folder holds none: whoever loads the weights says so.

    Raises:
        CheckpointError: a file is damaged, or the encoder is of a kind that HIM does not compute.
    """
    if not init_from:
        return None
    folder = Path(init_from)
    if is_bert(folder):
        return read_bert(folder)
    found = [path for path in (folder / "best" / "config.json", folder / "config.json") if path.is_file()]
    return Config.load(found[0]) if found else None
