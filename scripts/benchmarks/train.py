"""HIM's training step against the Hugging Face Trainer's and a plain PyTorch loop's: alternating runs on equal terms.

All train a model of the same size on the same questions with the same tokenizer, in batches of the same number of
examples, with the same number of threads; each pads, orders and computes as it really would. Who computes in which
precision: `trainer` in float32, the others in `--precision`.
"""

import dataclasses
import itertools
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from him.config import Config
from him.tasks import task_class
from scripts.benchmarks.benchmark_run import SYSTEMS, BenchmarkRun, Job, measure_run
from scripts.benchmarks.own_process import in_own_process
from scripts.benchmarks.prepare import prepare
from scripts.benchmarks.requirements import require_peers
from scripts.benchmarks.rounds import Spread, ratios

FIGURES = ("tokens_per_second", "share_of_peak", "ms_per_step", "peak_mb", "above_imports_mb", "device_mb")
PACKAGES = ("torch", "transformers", "accelerate", "datasets", "tokenizers")
# Settings of `trainer_best` that depend on the machine: the fastest pair is searched before the first round.
BEST_CHOICES = {"attention": ("sdpa", "eager"), "pad_to_multiple_of": (8, 32)}
SEARCH_ROUNDS, SEARCH_WARMUP = 2, 3


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        systems: keys of `SYSTEMS`, in the order of their runs.
        rounds: how often each system is run.
        steps: timed steps of a run; `padded_steps` those of `trainer`, whose batches all have one shape and take long.
        warmup_steps: steps before the clock starts, at least 1; `trainer` takes no more than 2.
        search_steps: timed steps of each try in the search for the best settings of `trainer_best`.
    """

    systems: Sequence[str] = tuple(SYSTEMS)
    rounds: int = 3
    steps: int = 24
    padded_steps: int = 4
    warmup_steps: int = 6
    search_steps: int = 12

    def job(self, name: str, config: Config, folder: Path, options: Mapping[str, Any]) -> Job:
        """A run of one system."""
        if name == "trainer":
            return Job(name, config, folder, min(2, self.warmup_steps), self.padded_steps)
        return Job(name, config, folder, self.warmup_steps, self.steps, dict(options.get(name, {})))


def compare_training(config: Config, plan: Plan) -> dict[str, Any]:
    """Runs all rounds.

    Args:
        config: sizes, data, batch, threads and device; the rest as in a run of HIM.
        plan: how much is measured.

    Returns:
        Plain data: `settings`, `data`, `machine`, `contestants` (label, settings, figures as median, min and max over
        the rounds), `ratios` (HIM's tokens per second divided by each peer's, and each peer's peak memory divided by
        HIM's), `turns`, everything that was measured, and `search`, the tries for the best settings of `trainer_best`.

    Raises:
        ConfigError: a package of the peers is missing, or a setting is wrong.
        DataError: the data cannot be had.
    """
    require_peers()
    config = task_class("squad").resolve(config)
    with tempfile.TemporaryDirectory(prefix="him-benchmark-") as name:
        folder = Path(name)
        config = dataclasses.replace(config, cache_dir=str(folder / "cache"))
        _say("preparing the data")
        data = in_own_process(prepare, config, folder)
        search = search_best_settings(config, plan, folder) if "trainer_best" in plan.systems else []
        options = {"trainer_best": search[0]["options"]} if search else {}
        runs = _run_all(config, plan, folder, options)
    return {**_result(config, plan, data, options, runs), "search": search}


def search_best_settings(config: Config, plan: Plan, folder: Path) -> list[dict[str, Any]]:
    """Tries all settings of `trainer_best`, fastest first.

    Each is tried `SEARCH_ROUNDS` times, alternating; its best time counts: what else runs on the machine only slows.

    Returns:
        `options`, `tokens_per_second` and `peak_mb` of each.
    """
    tried = [dict(zip(BEST_CHOICES, values, strict=True)) for values in itertools.product(*BEST_CHOICES.values())]
    best: list[BenchmarkRun | None] = [None] * len(tried)
    for _ in range(SEARCH_ROUNDS):
        for index, options in enumerate(tried):
            job = Job("trainer_best", config, folder, SEARCH_WARMUP, plan.search_steps, options)
            run = in_own_process(measure_run, job)
            _say(f"search: HF Trainer with {_words(options)}: {run.tokens_per_second:,.0f} tokens/s")
            best[index] = max(best[index] or run, run, key=lambda run: run.tokens_per_second)
    found = [
        {"options": options, "tokens_per_second": round(run.tokens_per_second, 1), "peak_mb": round(run.peak_mb, 1)}
        for options, run in zip(tried, best, strict=True)
    ]
    return sorted(found, key=lambda one: -one["tokens_per_second"])


def _run_all(config: Config, plan: Plan, folder: Path, options: Mapping[str, Any]) -> dict[str, list[BenchmarkRun]]:
    """All runs by system, round after round."""
    runs: dict[str, list[BenchmarkRun]] = {name: [] for name in plan.systems}
    for number in range(1, plan.rounds + 1):
        for name in plan.systems:
            run = in_own_process(measure_run, plan.job(name, config, folder, options))
            _say(f"round {number}/{plan.rounds}: {SYSTEMS[name].label}: {run.tokens_per_second:,.0f} tokens/s")
            runs[name].append(run)
    return runs


def _result(
    config: Config, plan: Plan, data: dict[str, Any], options: Mapping[str, Any], runs: dict[str, list[BenchmarkRun]]
) -> dict[str, Any]:
    first = next(iter(runs.values()))[0]
    sizes = (
        "num_encoder_layers",
        "embed_dim",
        "num_heads",
        "dim_feedforward",
        "batch_size",
        "max_seq_len",
        "doc_stride",
    )
    return {
        "benchmark": "train",
        "settings": {**{name: getattr(config, name) for name in sizes}, **_plan_settings(plan)},
        "data": {"source": ", ".join(config.train_file) or config.dataset or "the hub", **data},
        "machine": {
            "device": first.device,
            "num_threads": first.num_threads,
            "packages": {name: version(name) for name in PACKAGES},
        },
        "contestants": {name: _summary(name, rounds, options.get(name, {})) for name, rounds in runs.items()},
        "ratios": _all_ratios(runs),
        "turns": {name: [dataclasses.asdict(run) for run in rounds] for name, rounds in runs.items()},
    }


def _plan_settings(plan: Plan) -> dict[str, Any]:
    settings = dataclasses.asdict(plan)
    return {"contestants": settings.pop("systems"), **settings}


def _summary(name: str, rounds: Sequence[BenchmarkRun], options: Mapping[str, Any]) -> dict[str, Any]:
    figures = {
        figure: Spread.of([getattr(run, figure) for run in rounds]).to_dict()
        for figure in (*FIGURES, "gemm_gflops", "tokens_per_step")
        if getattr(rounds[0], figure) is not None
    }
    return {"label": SYSTEMS[name].label, "precision": rounds[0].precision, "options": dict(options), **figures}


def _all_ratios(runs: Mapping[str, Sequence[BenchmarkRun]]) -> dict[str, dict[str, dict[str, float]]]:
    """How many times as fast HIM is as each peer, and how many times its memory the peer takes."""
    if "him" not in runs:
        return {}
    speed, memory = (
        {name: [getattr(run, figure) for run in rounds] for name, rounds in runs.items()}
        for figure in ("tokens_per_second", "peak_mb")
    )
    return {
        name: {
            "speed": ratios(speed["him"], speed[name]).to_dict(),
            "memory": ratios(memory[name], memory["him"]).to_dict(),
        }
        for name in runs
        if name != "him"
    }


def training_table(result: Mapping[str, Any]) -> str:
    """The result of `compare_training` as text."""
    settings, data, machine = result["settings"], result["data"], result["machine"]
    lines = [
        f"{settings['num_encoder_layers']} layers, {settings['embed_dim']} dim, batch {settings['batch_size']}, "
        f"vocabulary {data['vocab_size']:,}; {data['windows']:,} windows of {data['mean_tokens']:g} tokens on average "
        f"({data['source']})",
        f"{machine['device']}, {machine['num_threads']} threads; median (min-max) of {settings['rounds']} rounds",
        "",
        f"{'':<36}{'tokens/s':>24}{'share of peak':>16}{'ms/step':>10}{'peak MB':>9}{'w/o imports':>13}{'HIM is':>9}",
    ]
    lines += [_table_row(name, figures, result["ratios"].get(name)) for name, figures in result["contestants"].items()]
    for name, figures in result["contestants"].items():
        if figures["options"]:
            lines += ["", f"{SYSTEMS[name].label}: {_words(figures['options'])} was the fastest"]
    return "\n".join(lines)


def _table_row(name: str, figures: Mapping[str, Any], ratio: Mapping[str, Any] | None) -> str:
    speed = Spread(*figures["tokens_per_second"].values())
    memory = figures.get("device_mb", figures["peak_mb"])["median"]
    faster = f"{ratio['speed']['median']:.2f} x" if ratio else ""
    return (
        f"{SYSTEMS[name].label:<36}{speed.text():>24}"
        f"{100 * figures['share_of_peak']['median']:>6.0f} % of {figures['precision']}"
        f"{figures['ms_per_step']['median']:>10,.0f}{memory:>9,.0f}{figures['above_imports_mb']['median']:>13,.0f}{faster:>9}"
    )


def _words(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items())


def _say(line: str) -> None:
    """Progress, on stderr: stdout is for the result."""
    print(line, file=sys.stderr, flush=True)
