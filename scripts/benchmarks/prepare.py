"""The data of all systems, laid out beforehand, so that their runs measure training only."""

from pathlib import Path
from typing import Any

import numpy as np

from him.config import Config
from him.tasks.squad.sources import load_squad
from him.tasks.squad.task import SquadTask
from scripts.benchmarks.run_qa import map_features, squad_dataset, wrap_tokenizer


def prepare(config: Config, folder: Path) -> dict[str, Any]:
    """Writes to `folder` the tokenizer and the features of `run_qa`, padded and not, and fills HIM's feature cache.

    Returns:
        Numbers of questions and windows, mean length of a window in tokens, and size of the vocabulary.
    """
    tokenizer = SquadTask.prepare(config).tokenizer
    tokenizer.save(str(folder / "tokenizer.json"))
    train = load_squad(config).train
    raw, wrapped = squad_dataset(train, folder / "raw"), wrap_tokenizer(tokenizer)
    for name in ("padded", "unpadded"):
        features = map_features(raw, wrapped, config.max_seq_len, config.doc_stride, padded=name == "padded")
        features.save_to_disk(str(folder / name))
    lengths = np.array([len(ids) for ids in features["input_ids"]])
    np.save(folder / "lengths.npy", lengths)
    return {
        "questions": train.num_questions,
        "windows": len(lengths),
        "mean_tokens": round(float(lengths.mean()), 1),
        "vocab_size": tokenizer.get_vocab_size(),
    }
