"""A run of a language model against n-gram models of the same text, token for token.

The n-gram models are interpolated modified Kneser-Ney: Chen and Goodman 1998, "An Empirical Study of Smoothing
Techniques for Language Modeling", Harvard TR-10-98, section 3. They are counted on the tokens that the run was trained
on and score the same targets, each validation token but the first once, so that their bits per byte are comparable with
`Bits_Per_Byte/val`. The end-of-text between documents is a token like any other: it is predicted, and contexts run over
it. Two differences are left: contexts are always whole here, where the run's windows begin without one (less so with a
small `--eval_stride`), and a run that began from another one, or learned from a teacher, knows of more text.

# T tokens of both texts in a row   G different grams of one length   V vocabulary
"""

import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from him.config import Config
from him.core.errors import CheckpointError, ConfigError, DataError

if TYPE_CHECKING:
    from him.tasks.lm.task import LanguageModelingTask

# Where too little text has no grams of a count that the estimate divides by; those of KenLM's `--discount_fallback`.
USUAL_DISCOUNTS = (0.5, 1.0, 1.5)


# -- the models --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grams:
    """The different grams of one length in both texts, each by a number.

    Attributes:
        numbers: (T - length + 1,) the gram that starts at each position.
        prefixes, suffixes: (G,) the number, among the grams shorter by one, of each without its last or first token.
        counts: (G,) how often each is in the training text; 0 for those of the validation text only.
    """

    numbers: np.ndarray
    prefixes: np.ndarray
    suffixes: np.ndarray
    counts: np.ndarray


def ngram_bits_per_byte(
    train_ids: np.ndarray, validation_ids: np.ndarray, num_bytes: int, vocab_size: int, orders: Collection[int]
) -> dict[int, float]:
    """Bits per byte that n-gram models need for the validation text, by order.

    Args:
        train_ids: (tokens,) unsigned integers, which are counted.
        validation_ids: (tokens,) those that are scored, all but the first.
        num_bytes: of the validation text, in UTF-8.
        vocab_size: V, special tokens included, as in the output layer of a model.
        orders: the n of the models; all are counted in one pass.
    """
    found = enumerate(ngram_probabilities(train_ids, validation_ids, vocab_size, max(orders)), start=1)
    bits = {order: float(-np.log2(probabilities).sum()) / num_bytes for order, probabilities in found}
    return {order: bits[order] for order in orders}


def ngram_probabilities(
    train_ids: np.ndarray, validation_ids: np.ndarray, vocab_size: int, max_order: int
) -> Iterator[np.ndarray]:
    """The probability of each validation token but the first, by the models of order 1, 2, ... `max_order` in turn.

    The grams of both texts are numbered together, so that a validation gram is looked up by its number; only those of
    the training text are counted. A model of order n counts how often an n-gram occurs and, for all shorter ones, how
    many different tokens come before it. Below the unigrams all tokens are equally likely, so that nothing has
    probability 0. The first targets have fewer than n - 1 tokens before them, and get the probability that the next
    shorter context leads to.

    Takes about 100 bytes a token.

    Args:
        train_ids, validation_ids, vocab_size: as for `ngram_bits_per_byte`.
        max_order: at least 1.

    Yields:
        (validation tokens - 1,) float64.
    """
    stream = np.concatenate([train_ids, validation_ids]).astype(np.int64)
    lower = np.full(len(validation_ids) - 1, 1 / vocab_size)
    nothing = np.zeros(len(stream) + 1, np.int64)
    shorter = Grams(nothing, nothing[:1], nothing[:1], nothing[:1])  # the one gram of no tokens starts everywhere
    for order in range(1, max_order + 1):
        grams = _longer(shorter, stream, order, len(train_ids), vocab_size)
        if order > 1:
            num_before = np.bincount(grams.suffixes[grams.counts > 0], minlength=len(shorter.counts))
            lower = _interpolated(shorter, num_before, lower, order - 1, len(train_ids))
        yield _interpolated(grams, grams.counts, lower, order, len(train_ids))
        shorter = grams


def _longer(shorter: Grams, stream: np.ndarray, order: int, num_train: int, vocab_size: int) -> Grams:
    """The grams of `order` tokens, from those that are shorter by one; one sort of T numbers."""
    keys = shorter.numbers[:-1] * vocab_size + stream[order - 1 :]
    keys, numbers = np.unique(keys, return_inverse=True)
    suffixes = np.empty(len(keys), np.int64)
    suffixes[numbers] = shorter.numbers[1:]
    of_train = numbers[: max(0, num_train - order + 1)]  # without those that reach into the validation text
    return Grams(numbers, keys // vocab_size, suffixes, np.bincount(of_train, minlength=len(keys)))


def _interpolated(grams: Grams, counts: np.ndarray, lower: np.ndarray, order: int, num_train: int) -> np.ndarray:
    """The probabilities of all targets by grams of `order` tokens; `lower` are those by shorter ones.

    (c(context, token) - D(c)) / c(context) + lower * (sum of the context's D) / c(context), or `lower` where the
    training text does not have the context.

    Args:
        counts: (G,) c of each gram.
    """
    by_count = np.array([0.0, *discounts(counts)])[np.minimum(counts, 3)]
    num_contexts = int(grams.prefixes.max(initial=-1)) + 1
    totals = np.bincount(grams.prefixes, counts, num_contexts)
    reserved = np.bincount(grams.prefixes, by_count, num_contexts)
    first = max(0, order - 2)  # the first target with a context of this length
    targets = grams.numbers[num_train + first - order + 2 :]
    contexts = grams.prefixes[targets]
    known = totals[contexts] > 0
    targets, contexts = targets[known], contexts[known]
    probabilities = lower.copy()
    longer = probabilities[first:]  # a view
    own = counts[targets] - by_count[targets]
    longer[known] = (own + reserved[contexts] * longer[known]) / totals[contexts]
    return probabilities


def discounts(counts: np.ndarray) -> tuple[float, float, float]:
    """What is taken off the counts 1, 2 and 3 or more: Chen and Goodman's estimates, all above 0.

    Args:
        counts: of all grams of a length; zeros are left out.
    """
    ones, twos, threes, fours = (int((counts == number).sum()) for number in (1, 2, 3, 4))
    if not (ones and twos and threes and fours):
        return USUAL_DISCOUNTS
    share = ones / (ones + 2 * twos)
    found = (1 - 2 * share * twos / ones, 2 - 3 * share * threes / twos, 3 - 4 * share * fours / threes)
    # Counts of counts that rise, as of a small vocabulary, make one negative, and then a probability 0.
    return found if min(found) > 0 else USUAL_DISCOUNTS


# -- a run beside them -------------------------------------------------------------------------------------------------


def compare_with_ngrams(run: Path, orders: Collection[int]) -> dict[str, Any]:
    """Makes the data of a run anew and scores it with n-gram models.

    Args:
        run: folder of a finished run of lm.
        orders: the n of the models.

    Returns:
        Plain data: `run`, `data`, `run_bits_per_byte` of the run's best model as it was measured in training,
        `ngram_bits_per_byte` by name such as `5-gram`, `difference` (the run's minus the lowest of these) and
        `seconds` for counting and scoring.

    Raises:
        CheckpointError: there is no finished run, or it is damaged.
        ConfigError: it is of another task.
        DataError: its data cannot be had, or has changed.
    """
    from him.tasks.lm.task import LanguageModelingTask

    best, config = _load_run(run)
    measured = _bits_per_byte_of(best)
    with tempfile.TemporaryDirectory(prefix="him-benchmark-", ignore_cleanup_errors=True) as cache:
        task = LanguageModelingTask.prepare(dataclasses.replace(config, cache_dir=cache), tokenizer_folder=best)
        for note in task.notes:
            _say(note)
        _check_data(run, task)
        train, validation = task.corpus.train, task.corpus.validation
        vocab_size = task.tokenizer.get_vocab_size()
        started_at = time.perf_counter()
        bits = ngram_bits_per_byte(train.ids, validation.ids, validation.num_bytes, vocab_size, orders)
        seconds = time.perf_counter() - started_at
        data = {
            "source": config.corpus_dir or ", ".join(config.train_file) or config.dataset,
            "train_tokens": len(train.ids),
            "validation_tokens": len(validation.ids),
            "validation_bytes": validation.num_bytes,
            "vocab_size": vocab_size,
        }
    return {
        "benchmark": "ngram",
        "run": str(run),
        "data": data,
        "run_bits_per_byte": measured,
        "ngram_bits_per_byte": {f"{order}-gram": value for order, value in bits.items()},
        "difference": measured - min(bits.values()),
        "seconds": seconds,
    }


def _load_run(run: Path) -> tuple[Path, Config]:
    """The folder of a run's best model, checked, and its configuration."""
    from him.runs.folder import TRAINED, ModelFolder, RunFolder
    from him.runs.models import check_model
    from him.runs.untrusted import check_files

    if not run.is_dir():
        raise CheckpointError(f"{run}: no such run; name its folder, such as runs/NAME")
    best = RunFolder(run).find_model(TRAINED)
    check_files(best)
    config = Config.load(ModelFolder(best).config)
    if config.task_type != "lm":
        raise ConfigError(f"{run}: a run of {config.task_type}, and n-gram models do what lm does; name a run of lm")
    check_model(best)
    return best, config


def _bits_per_byte_of(best: Path) -> float:
    from him.runs.folder import ModelFolder

    path = ModelFolder(best).metrics
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["Bits_Per_Byte"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: tells no Bits_Per_Byte ({error}); train the run again") from None


def _check_data(run: Path, task: "LanguageModelingTask") -> None:
    """Raises DataError if the text is another one than at the run's newest checkpoint."""
    from him.runs.checkpoint import Checkpoints
    from him.runs.folder import RunFolder

    states = [folder / "state.json" for folder in Checkpoints(RunFolder(run).checkpoints, num_kept=1).list()]
    if not states:
        _say(f"{run}: no checkpoint is left that tells whether its data is still the same")
        return
    try:
        digest = str(json.loads(states[-1].read_text(encoding="utf-8"))["data"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{states[-1]}: cannot be read ({error}); restore it, or remove its folder") from None
    if digest.split("-")[0] != task.train_digest:  # what follows tells the teacher
        raise DataError(f"{run}: its text has changed since it was trained; restore the text, or train the run again")


def ngram_table(result: Mapping[str, Any]) -> str:
    """The result of `compare_with_ngrams` as text."""
    data, measured, difference = result["data"], result["run_bits_per_byte"], result["difference"]
    lines = [
        f"{result['run']}: {data['train_tokens']:,} + {data['validation_tokens']:,} tokens, "
        f"vocabulary {data['vocab_size']:,} ({data['source']}); counted and scored in {result['seconds']:.1f} s",
        "",
        f"{'':<12}{'bits per byte':>14}{'the run is':>14}",
        f"{'the run':<12}{measured:>14.4f}",
        *(
            f"{name:<12}{bits:>14.4f}{f'{measured - bits:+.4f}':>14}"
            for name, bits in result["ngram_bits_per_byte"].items()
        ),
        "",
        f"the run needs {abs(difference):.4f} bits per byte {'less' if difference < 0 else 'more'} than the best of "
        "the n-gram models",
    ]
    return "\n".join(lines)


def _say(line: str) -> None:
    """Progress, on stderr: stdout is for the result."""
    print(line, file=sys.stderr, flush=True)
