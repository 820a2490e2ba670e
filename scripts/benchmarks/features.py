"""HIM's feature building against `datasets.map` as in `run_qa`: the same windows and spans, and the time they take."""

import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from tokenizers import Tokenizer

from him.config import Config
from him.data.cache import save_columns
from him.tasks.squad.batches import SquadBatches
from him.tasks.squad.features import FeatureOptions, SquadFeatures, build_features, cut_windows, find_spans
from him.tasks.squad.reader import SquadData
from him.tasks.squad.sources import load_squad
from him.text.tokenizer import CLS, PAD, SEP, encode_texts, load_tokenizer, special_id
from him.text.training import train_tokenizer
from scripts.benchmarks.benchmark_run import cpu_name
from scripts.benchmarks.rounds import Spread, ratios
from scripts.benchmarks.run_qa import map_features, squad_dataset, wrap_tokenizer

WINDOWS_AT_ONCE = 256
LABELS = {
    "run_qa": "datasets.map as in run_qa",
    "him_windows": "HIM: the same windows and spans",
    "him": "HIM: with lexical inputs, written to disk",
}


@dataclass(frozen=True)
class Differences:
    """Where HIM's features and those of `run_qa` differ.

    Attributes:
        num_windows: of `run_qa`; `num_windows_him` those of HIM.
        different_windows: windows with other tokens.
        different_spans: windows in which the first answer starts or ends elsewhere, those below left out.
        starts_on_padding: windows whose last piece is where the answer starts. There `run_qa` labels the last position
            of all, [SEP] or padding, as its source concedes ("we could go after the last offset"); HIM labels the
            answer.
    """

    num_windows: int
    num_windows_him: int
    different_windows: int
    different_spans: int
    starts_on_padding: int

    @property
    def identical(self) -> bool:
        """Whether all windows and spans are the same, but for that fault of `run_qa`."""
        return self.num_windows == self.num_windows_him and not self.different_windows + self.different_spans


def compare_features(config: Config, num_rounds: int) -> dict[str, Any]:
    """Builds the features both ways, alternating, and compares them.

    Returns:
        Plain data: `questions`, `windows`, `questions_per_second` by key of `LABELS` (median, min and max over the
        rounds), `ratios` (HIM's to those of `run_qa`), `identical` and `differences`.

    Raises:
        ConfigError, DataError: a setting is wrong, or the data cannot be had.
    """
    data = load_squad(config).train
    tokenizer = _tokenizer(config, data)
    speeds: dict[str, list[float]] = {name: [] for name in LABELS}
    with tempfile.TemporaryDirectory(prefix="him-benchmark-") as name:
        for number in range(1, num_rounds + 1):
            seconds, theirs, ours = _round(config, data, tokenizer, Path(name) / str(number))
            for way in LABELS:
                speeds[way].append(data.num_questions / seconds[way])
            print(f"round {number}/{num_rounds}", file=sys.stderr, flush=True)
        differences = find_differences(theirs, ours, tokenizer, config.max_seq_len)
    return {
        "benchmark": "features",
        "source": data.source,
        "device": cpu_name(),
        "questions": data.num_questions,
        "windows": differences.num_windows,
        "questions_per_second": {way: Spread.of(values).to_dict() for way, values in speeds.items()},
        "ratios": {way: ratios(speeds[way], speeds["run_qa"]).to_dict() for way in LABELS if way != "run_qa"},
        "identical": differences.identical,
        "differences": asdict(differences),
    }


def _tokenizer(config: Config, data: SquadData) -> Tokenizer:
    """The one that `--tokenizer` names, or one trained on the data."""
    if config.tokenizer is not None:
        return load_tokenizer(config.tokenizer)
    return train_tokenizer(
        [paragraph.context for paragraph in data.paragraphs] + _question_texts(data), config.vocab_size
    )


def _question_texts(data: SquadData) -> list[str]:
    return [question.text.strip() for paragraph in data.paragraphs for question in paragraph.questions]


def _round(
    config: Config, data: SquadData, tokenizer: Tokenizer, folder: Path
) -> tuple[dict[str, float], Dataset, SquadFeatures]:
    """Seconds of each way, and the features of `run_qa` and of HIM."""
    sizes = (config.max_seq_len, config.doc_stride)
    raw, wrapped = squad_dataset(data, folder / "raw"), wrap_tokenizer(tokenizer)
    seconds = {}
    seconds["run_qa"], theirs = _timed(partial(map_features, raw, wrapped, *sizes, padded=True))
    seconds["him_windows"], _ = _timed(partial(windows_and_spans, data, tokenizer, *sizes))
    seconds["him"], ours = _timed(partial(_features_on_disk, data, tokenizer, *sizes, folder / "him"))
    return seconds, theirs, ours


def _timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that a call takes, and its result."""
    started_at = time.perf_counter()
    result = function()
    return time.perf_counter() - started_at, result


def windows_and_spans(data: SquadData, tokenizer: Tokenizer, max_seq_len: int, doc_stride: int) -> None:
    """The part of HIM's feature building that `run_qa` has too, by its own functions: no lexical inputs."""
    contexts = encode_texts(tokenizer, [paragraph.context for paragraph in data.paragraphs])
    questions = encode_texts(tokenizer, _question_texts(data))
    context_of = np.repeat(np.arange(len(contexts)), [len(paragraph.questions) for paragraph in data.paragraphs])
    cut_windows(questions.ids.lengths, contexts.ids.lengths[context_of], max_seq_len, doc_stride)
    answers = [
        (number, answer.start, answer.start + len(answer.text))
        for number, paragraph in enumerate(data.paragraphs)
        for question in paragraph.questions
        for answer in question.answers
    ]
    find_spans(contexts, *np.array(answers, np.int64).reshape(-1, 3).T)


def _features_on_disk(
    data: SquadData, tokenizer: Tokenizer, max_seq_len: int, doc_stride: int, folder: Path
) -> SquadFeatures:
    """All that HIM does at a first start; `datasets.map` writes its result to the disk too."""
    features, _ = build_features(data, tokenizer, FeatureOptions(max_seq_len, doc_stride), None)
    save_columns(folder, features.to_columns(), {})
    return features


# -- are they the same? ------------------------------------------------------------------------------------------------


def find_differences(theirs: Dataset, ours: SquadFeatures, tokenizer: Tokenizer, max_seq_len: int) -> Differences:
    """Compares every window's tokens, and the first answer's position in it.

    Args:
        theirs: the features of `run_qa`, padded or not.
        ours: HIM's features of the same data.
        tokenizer: that both were made with.
        max_seq_len: longest sequence.
    """
    num_windows, num_windows_him = len(theirs), len(ours.window_question)
    common = min(num_windows, num_windows_him)
    same_tokens, last_positions = _compare_tokens(theirs, ours, tokenizer, max_seq_len, common)
    starts, ends = (part[:common] for part in first_answer_positions(ours))
    their_starts, their_ends = (np.asarray(theirs[name][:common]) for name in ("start_positions", "end_positions"))
    # An answer that starts in the last piece of the context: before [SEP], so two before the sequence's end.
    fault = (starts > 0) & (starts == ours.lengths[:common] - 2) & (their_starts == last_positions)
    same_span = ((starts == their_starts) | fault) & (ends == their_ends)
    return Differences(
        num_windows=num_windows,
        num_windows_him=num_windows_him,
        different_windows=int((~same_tokens).sum()),
        different_spans=int((~same_span).sum()),
        starts_on_padding=int(fault.sum()),
    )


def _compare_tokens(
    theirs: Dataset, ours: SquadFeatures, tokenizer: Tokenizer, max_seq_len: int, num_windows: int
) -> tuple[np.ndarray, np.ndarray]:
    """Whether each window has the same tokens, and the last position of each of theirs, padding included."""
    special_ids = tuple(special_id(tokenizer, token) for token in (PAD, CLS, SEP))
    batches = SquadBatches(ours, special_ids, max_seq_len, lexical=False)
    same, last_positions = np.zeros(num_windows, bool), np.zeros(num_windows, np.int64)
    for start in range(0, num_windows, WINDOWS_AT_ONCE):
        windows = np.arange(start, min(start + WINDOWS_AT_ONCE, num_windows))
        batch, rows = batches.batch(windows), theirs[windows]
        for row, window in enumerate(windows):
            our_ids = batch["input_ids"][row][batch["attention_mask"][row]].tolist()
            their_ids = rows["input_ids"][row]
            same[window] = our_ids == their_ids[: sum(rows["attention_mask"][row])]
            last_positions[window] = len(their_ids) - 1
    return same, last_positions


def first_answer_positions(features: SquadFeatures) -> tuple[np.ndarray, np.ndarray]:
    """Start and end of the first answer in each window, counted from [CLS]; 0 where it is not wholly inside."""
    rows = features.answers
    answered = rows.lengths > 0
    spans = np.full((len(rows), 2), -1, np.int64)
    spans[answered] = rows.values[rows.offsets[:-1][answered], :2]
    first, last = spans[features.window_question].T
    inside = (first >= features.window_start) & (last < features.window_end)
    shift = features.questions.ids.lengths[features.window_question] + 2 - features.window_start
    return np.where(inside, first + shift, 0), np.where(inside, last + shift, 0)


def features_table(result: Mapping[str, Any]) -> str:
    """The result of `compare_features` as text."""
    found = result["differences"]
    lines = [
        f"{result['questions']:,} questions, {result['windows']:,} windows ({result['source']}), {result['device']}",
        "",
    ]
    for way, figures in result["questions_per_second"].items():
        ratio = f"{result['ratios'][way]['median']:.2f} x" if way in result["ratios"] else ""
        lines.append(f"{LABELS[way]:<44}{Spread(*figures.values()).text():>26} questions/s{ratio:>10}")
    lines += [
        "",
        f"identical: {'yes' if result['identical'] else 'no'} ({found['different_windows']:,} windows and "
        f"{found['different_spans']:,} spans differ; HIM has {found['num_windows_him']:,} windows)",
    ]
    if found["starts_on_padding"]:
        lines.append(
            f"in {found['starts_on_padding']:,} windows run_qa labels padding, where the answer is the last piece"
        )
    return "\n".join(lines)
