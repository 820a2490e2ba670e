"""HIM's training of a language model against a plain PyTorch loop's: the time of a step, and that to the same loss.

Both train a model of the same size with the same numbers on the same tokens, in batches of the same size, with the same
number of threads: the plain one in float32, HIM in `--precision`. Both are measured on the whole validation text, cut
into the same windows. Two small differences are left: the plain rate ends at a tenth of the highest one, as nanoGPT has
it, and HIM's at 0; and HIM rotates queries and keys by their position where the plain model adds a learned position.
"""

import dataclasses
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from him.config import Config
from him.tasks import task_class
from scripts.benchmarks.own_process import in_own_process
from scripts.benchmarks.rounds import Spread, ratios

# nanoGPT's configuration for CPUs, and nothing switched on that the plain model does not have.
LM_SETTINGS: dict[str, Any] = {
    "task_type": "lm",
    "tokenizer_type": "char",
    "num_encoder_layers": 4,
    "num_heads": 4,
    "embed_dim": 128,
    "dim_feedforward": 512,
    "max_seq_len": 64,
    "batch_size": 12,
    "learning_rate": 1e-3,
    "weight_decay": 0.1,
    "beta1": 0.9,
    "beta2": 0.99,
    "max_grad_norm": 1.0,
    "warmup_ratio": 0.05,
    "schedule": "cosine",
    "optimizer": "adamw",
    "activation": "gelu",
    "conv_kernel_size": 0,
    "dropout": 0.0,
    "word_dropout": 0.0,
    "label_smoothing": 0.0,
    "ema_decay": 0.0,
}
LM_LABELS = {"plain": "plain PyTorch loop", "him": "HIM"}
SHOWN = ("num_encoder_layers", "num_heads", "embed_dim", "dim_feedforward", "max_seq_len", "batch_size")


@dataclass(frozen=True)
class LmPlan:
    """How much is measured.

    Attributes:
        rounds: how often each side is run.
        steps: timed steps of a run; `warmup_steps` those before the clock starts.
        train_steps: steps of the one training after which the loss is measured; 0 leaves it out.
        him_train_steps: those of HIM, where it shall have another number, to compare the time to the same loss; None
            for the same.
    """

    rounds: int = 3
    steps: int = 200
    warmup_steps: int = 20
    train_steps: int = 2000
    him_train_steps: int | None = None

    def steps_of(self, side: str) -> int:
        """How long a side trains before its loss is measured."""
        return self.him_train_steps or self.train_steps if side == "him" else self.train_steps


def compare_language_models(config: Config, plan: LmPlan) -> dict[str, Any]:
    """Runs all rounds, then one full training of each side.

    Args:
        config: `LM_SETTINGS` and what the user changes of them, data, threads and device.
        plan: how much is measured.

    Returns:
        Plain data: `settings`, `data`, `machine`, `contestants` (label, precision, parameters, figures as median, min
        and max over the rounds, `train_steps` and `loss`, and `train_seconds`, which those steps take at the median
        speed), `ratio` (HIM's tokens per second divided by the plain loop's, round by round), `time_ratio` (the plain
        loop's `train_seconds` divided by HIM's), `loss_difference` (HIM's minus the plain loop's, in nats per token;
        both are None without a full training) and `turns`, every run.

    Raises:
        ConfigError: a setting is wrong.
        DataError: the data cannot be had.
    """
    from scripts.benchmarks.lm_run import LmJob, measure_lm_run, prepare_tokens

    config = task_class("lm").resolve(config)
    runs: dict[str, list[Any]] = {side: [] for side in LM_LABELS}
    losses: dict[str, float | None] = dict.fromkeys(LM_LABELS)
    with tempfile.TemporaryDirectory(prefix="him-benchmark-") as name:
        folder = Path(name)
        config = dataclasses.replace(config, cache_dir=str(folder / "cache"))
        data = in_own_process(prepare_tokens, config)
        for number in range(1, plan.rounds + 1):
            for side in LM_LABELS:
                timed = _with_steps(config, max(plan.steps_of(side), plan.warmup_steps + plan.steps))
                run = in_own_process(
                    measure_lm_run, LmJob(side, timed, folder, plan.warmup_steps, plan.steps, scored=False)
                )
                _say(f"round {number}/{plan.rounds}: {LM_LABELS[side]}: {run.ms_per_step:.1f} ms a step")
                runs[side].append(run)
        for side in LM_LABELS if plan.train_steps else ():
            steps = plan.steps_of(side)
            job = LmJob(side, _with_steps(config, steps), folder, 0, steps, scored=True)
            losses[side] = in_own_process(measure_lm_run, job).loss
            _say(f"{steps:,} steps: {LM_LABELS[side]}: {losses[side]:.4f} nats a token")
    return _result(config, plan, data, runs, losses)


def _with_steps(config: Config, max_steps: int) -> Config:
    """The configuration of a training of so many steps, however few an epoch has."""
    return dataclasses.replace(config, max_steps=max_steps, num_epochs=max_steps)


def _result(
    config: Config,
    plan: LmPlan,
    data: Mapping[str, int],
    runs: Mapping[str, Sequence[Any]],
    losses: Mapping[str, float | None],
) -> dict[str, Any]:
    first = runs["him"][0]
    speeds = {side: [run.tokens_per_second for run in rounds] for side, rounds in runs.items()}
    step_ms = {side: Spread.of([run.ms_per_step for run in rounds]) for side, rounds in runs.items()}
    seconds = {side: plan.steps_of(side) * step_ms[side].median / 1000 for side in runs}
    scored = plan.train_steps > 0
    return {
        "benchmark": "lm",
        "settings": {name: getattr(config, name) for name in LM_SETTINGS} | dataclasses.asdict(plan),
        "data": {"source": config.corpus_dir or ", ".join(config.train_file) or config.dataset, **data},
        "machine": {
            "device": first.device,
            "num_threads": first.num_threads,
            "packages": {name: version(name) for name in ("torch", "tokenizers")},
        },
        "contestants": {
            side: {
                "label": LM_LABELS[side],
                "precision": rounds[0].precision,
                "parameters": rounds[0].num_parameters,
                "ms_per_step": step_ms[side].to_dict(),
                "tokens_per_second": Spread.of(speeds[side]).to_dict(),
                "train_steps": plan.steps_of(side) if scored else None,
                "train_seconds": seconds[side] if scored else None,
                "loss": losses[side],
            }
            for side, rounds in runs.items()
        },
        "ratio": ratios(speeds["him"], speeds["plain"]).to_dict(),
        "time_ratio": seconds["plain"] / seconds["him"] if scored else None,
        "loss_difference": losses["him"] - losses["plain"] if scored else None,
        "turns": {side: [dataclasses.asdict(run) for run in rounds] for side, rounds in runs.items()},
    }


def language_model_table(result: Mapping[str, Any]) -> str:
    """The result of `compare_language_models` as text."""
    settings, data, machine = result["settings"], result["data"], result["machine"]
    layers, heads, dim, feedforward, length, batch = (settings[name] for name in SHOWN)
    lines = [
        f"{layers} layers, {heads} heads, {dim} dim, feed-forward {feedforward}, batch {batch} x {length} tokens; "
        f"{data['train_tokens']:,} + {data['validation_tokens']:,} tokens, vocabulary {data['vocab_size']:,} "
        f"({data['source']})",
        f"{machine['device']}, {machine['num_threads']} threads; median (min-max) of {settings['rounds']} rounds of "
        f"{settings['steps']:,} steps",
        "",
        f"{'':<20}{'ms/step':>22}{'tokens/s':>28}{'parameters':>13}{'precision':>11}{'HIM is':>9}",
    ]
    for side, figures in result["contestants"].items():
        faster = f"{result['ratio']['median']:.2f} x" if side == "plain" else ""
        lines.append(
            f"{figures['label']:<20}{Spread(*figures['ms_per_step'].values()).text('.1f'):>22}"
            f"{Spread(*figures['tokens_per_second'].values()).text():>28}{figures['parameters']:>13,}"
            f"{figures['precision']:>11}{faster:>9}"
        )
    if result["loss_difference"] is not None:
        lines += [
            "",
            *(
                f"{figures['label']}: {figures['train_steps']:,} steps, {figures['train_seconds']:,.1f} s, "
                f"{figures['loss']:.4f} nats a token on the whole validation text"
                for figures in result["contestants"].values()
            ),
            f"HIM's training is {result['time_ratio']:.2f} x as fast, and its loss is "
            f"{result['loss_difference']:+.4f} nats a token from the plain loop's",
        ]
    return "\n".join(line.rstrip() for line in lines)


def _say(line: str) -> None:
    """Progress, on stderr: stdout is for the result."""
    print(line, file=sys.stderr, flush=True)
