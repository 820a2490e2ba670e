"""HIM's feature building against `datasets.map` as in `run_qa`: the same windows and spans, and the time they take."""

import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from tokenizers import Tokenizer

from him.benchmark.prepare import training_data
from him.benchmark.rounds import Spread, ratios
from him.benchmark.run_qa import map_features, squad_dataset, wrap_tokenizer
from him.config import Config
from him.data.cache import save_columns
from him.data.squad_batches import SquadBatches
from him.data.squad_features import SquadFeatures, build_features, cut_windows, find_spans
from him.data.squad_json import Question, SquadData
from him.tokenization import CLS, PAD, SEP, encode_texts, load_tokenizer, special_id, train_tokenizer

CHECKED_AT_ONCE = 256  # windows
LABELS = {
    "run_qa": "datasets.map as in run_qa",
    "him_windows": "HIM, the same: windows and spans",
    "him": "HIM, with lexical inputs, written to disk",
}


@dataclass(frozen=True)
class Differences:
    """Where HIM's features and those of `run_qa` differ.

    Attributes:
        num_windows: of `run_qa`; `num_windows_him` those of HIM.
        different_windows: windows whose tokens differ.
        different_spans: windows in which the first answer's start or end differs, the next ones not counted.
        starts_on_padding: windows in which `run_qa` puts the start behind the context, and HIM on the answer, the last
            piece of the window: a known fault of `run_qa`, whose search for the start runs on over [SEP] and padding.
    """

    num_windows: int
    num_windows_him: int
    different_windows: int
    different_spans: int
    starts_on_padding: int

    @property
    def identical(self) -> bool:
        """Whether all windows and spans are the same, apart from that fault."""
        return self.num_windows == self.num_windows_him and not self.different_windows and not self.different_spans


def compare_features(config: Config, num_rounds: int) -> dict[str, Any]:
    """Builds the features both ways, in turn, and compares them.

    Returns:
        Plain data: `questions`, `windows`, `questions_per_second` by key of `LABELS` (median, min and max over the
        rounds), `ratios` (HIM's divided by those of `run_qa`), `identical` and `differences`.

    Raises:
        ConfigError, DataError: a setting is wrong, or the data cannot be had.
    """
    data = training_data(config)
    tokenizer = load_tokenizer(config.tokenizer) if config.tokenizer else train_tokenizer(_texts(data), config.vocab_size)
    with tempfile.TemporaryDirectory(prefix="him-benchmark-") as name:
        peer, differences = _Contest(config, data, tokenizer, Path(name)), None
        speeds: dict[str, list[float]] = {name: [] for name in LABELS}
        for number in range(1, num_rounds + 1):
            seconds = peer.play(number)
            for name in LABELS:
                speeds[name].append(data.num_questions / seconds[name])
            print(f"round {number}/{num_rounds}", file=sys.stderr, flush=True)
        differences = peer.differences()
    return {
        "benchmark": "features",
        "source": data.source,
        "questions": data.num_questions,
        "windows": differences.num_windows,
        "questions_per_second": {name: Spread.of(values).to_dict() for name, values in speeds.items()},
        "ratios": {name: ratios(speeds[name], speeds["run_qa"]).to_dict() for name in ("him_windows", "him")},
        "identical": differences.identical,
        "differences": asdict(differences),
    }
