"""HIM's cached generation against computing every sequence anew for each token, which is how one begins.

The same model, with weights that a seed draws, continues the same documents with the same number of tokens, in the same
precision and with the same number of threads. `uncached` computes the whole sequence for each new token and the output
layer at its last position only: for batches of the sizes that are asked for, 1 among them, which is the naive loop over
documents. The ratio of record is that to the fastest of these.
"""

import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from him.config import Config
from him.core.errors import ConfigError
from him.tasks import task_class
from scripts.benchmarks.benchmark_run import cpu_name
from scripts.benchmarks.own_process import in_own_process
from scripts.benchmarks.rounds import Spread, ratios

TASKS = ("lm", "summarization")
NUM_SPECIAL = 5  # ids 0 to 4 stand for the special tokens: they are in no document, and never written
# With the weights that training starts from, a model with a tied output layer writes one token for ever. Times six, so
# that attention is sharp and layers outweigh the embedding, it writes about 18 different tokens in 24.
WEIGHT_SCALE = 6.0
WARMUP_TOKENS = 2
SHOWN = (  # of the settings, in the result
    *("task_type", "num_encoder_layers", "embed_dim", "num_heads", "dim_feedforward", "conv_kernel_size"),
    *("vocab_size", "num_beams", "seed"),
)


@dataclass(frozen=True)
class GenerationPlan:
    """How much is measured.

    Attributes:
        num_documents, prompt_tokens, max_new_tokens: the work; every text gets all its tokens.
        batch_size: documents that HIM writes side by side; None for all.
        peer_batch_sizes: those of the uncached ways.
        rounds: how often each way is run.
    """

    num_documents: int = 64
    prompt_tokens: int = 256
    max_new_tokens: int = 32
    batch_size: int | None = None
    peer_batch_sizes: Sequence[int] = (64, 8, 1)
    rounds: int = 3

    def ways(self) -> dict[str, "Way"]:
        """Who takes part, by a name for each; a batch is never larger than there are documents."""
        sizes = sorted({min(size, self.num_documents) for size in self.peer_batch_sizes}, reverse=True)
        own = min(self.batch_size or self.num_documents, self.num_documents)
        return {"him": Way(True, own)} | {f"uncached_{size}": Way(False, size) for size in sizes}


@dataclass(frozen=True)
class Way:
    """A way to generate: with the cache or without it, and how many documents side by side."""

    cached: bool
    batch_size: int

    @property
    def label(self) -> str:
        """Its name in the table."""
        batch = f"batches of {self.batch_size}" if self.batch_size > 1 else "one by one"
        return f"{'HIM, cached' if self.cached else 'uncached'}, {batch}"


@dataclass(frozen=True)
class GenerationRun:
    """What was measured in a run.

    Attributes:
        seconds: for all documents.
        texts: the new ids of each.
        num_parameters, precision, device, num_threads: with what.
    """

    seconds: float
    texts: list[list[int]]
    num_parameters: int
    precision: str
    device: str
    num_threads: int


def compare_generation(config: Config, plan: GenerationPlan) -> dict[str, Any]:
    """Runs all rounds, and once more in float32 where they were not, to compare what is written.

    Args:
        config: of the model, beams (1 where nothing is said), precision, threads and device; with `vocab_size`.
        plan: how much is measured.

    Returns:
        Plain data: `settings`, `machine`, `contestants` (label, `cached`, `batch_size`, `seconds`, `tokens_per_second`
        and `ms_per_document` as median, min and max over the rounds), `ratios` of HIM's speed to that of each other
        way, round by round, `fastest_peer`, `ratio`, that to it, `equal_tokens` by precision: share of the tokens, and
        of whole texts, that HIM and the fastest peer write alike, and `distinct_tokens`, of a text on average.

    Raises:
        ConfigError: a setting is wrong.
    """
    config = _resolved(config, plan)
    ways = plan.ways()
    runs: dict[str, list[GenerationRun]] = {name: [] for name in ways}
    for number in range(1, plan.rounds + 1):
        for name, way in ways.items():
            run = in_own_process(measure_generation_run, config, plan, way)
            _say(f"round {number}/{plan.rounds}: {way.label}: {run.seconds:.2f} s")
            runs[name].append(run)
    seconds = {name: [run.seconds for run in rounds] for name, rounds in runs.items()}
    baselines = [name for name in ways if name != "him"]
    fastest = min(baselines, key=lambda name: Spread.of(seconds[name]).median)
    relative = {name: ratios(seconds[name], seconds["him"]).to_dict() for name in baselines}
    first = runs["him"][0]
    return {
        "benchmark": "generate",
        "settings": {
            **{name: getattr(config, name) for name in SHOWN},
            **dataclasses.asdict(plan),
            "parameters": first.num_parameters,
            "precision": first.precision,
        },
        "machine": {
            "device": first.device,
            "num_threads": first.num_threads,
            "packages": {"torch": version("torch")},
        },
        "contestants": {name: _figures(way, seconds[name], plan) for name, way in ways.items()},
        "ratios": relative,
        "fastest_peer": fastest,
        "ratio": relative[fastest],
        "equal_tokens": _equal_tokens(config, plan, first, runs[fastest][0], ways[fastest]),
        "distinct_tokens": sum(len(set(text)) for text in first.texts) / len(first.texts),
    }


def _equal_tokens(
    config: Config, plan: GenerationPlan, ours: GenerationRun, theirs: GenerationRun, baseline: Way
) -> dict[str, dict[str, float]]:
    """See `equal_shares`: of these runs and, where they were not in float32, of two more that are; by precision."""
    equal = {ours.precision: equal_shares(ours.texts, theirs.texts)}
    if ours.precision != "fp32":
        exact = dataclasses.replace(config, precision="fp32")
        both = (plan.ways()["him"], baseline)
        one, other = (in_own_process(measure_generation_run, exact, plan, way) for way in both)
        equal["fp32"] = equal_shares(one.texts, other.texts)
    return equal


def _figures(way: Way, seconds: Sequence[float], plan: GenerationPlan) -> dict[str, Any]:
    num_tokens = plan.num_documents * plan.max_new_tokens
    return {
        "label": way.label,
        **dataclasses.asdict(way),
        "seconds": Spread.of(seconds).to_dict(),
        "tokens_per_second": Spread.of([num_tokens / each for each in seconds]).to_dict(),
        "ms_per_document": Spread.of([1000 * each / plan.num_documents for each in seconds]).to_dict(),
    }


def _resolved(config: Config, plan: GenerationPlan) -> Config:
    """The configuration with its task's defaults, and room for prompt and text."""
    if config.task_type not in TASKS:
        raise ConfigError(f"--task_type {config.task_type} writes no text; use {' or '.join(TASKS)}")
    length = plan.prompt_tokens + plan.max_new_tokens
    if not 16 <= length <= 8192:
        raise ConfigError(
            f"--prompt_tokens {plan.prompt_tokens} and --max_new_tokens {plan.max_new_tokens} make {length} tokens; "
            "use 16 to 8192 together"
        )
    config = dataclasses.replace(config, max_seq_len=length, num_beams=config.num_beams or 1)
    return task_class(config.task_type).resolve(config)


def measure_generation_run(config: Config, plan: GenerationPlan, way: Way) -> GenerationRun:
    """Writes all texts one way, after the beginnings of the first batch to warm up."""
    import torch

    from him.core.compute import choose_compute, keep_freed_memory
    from him.model.generation import CachedSteps, RecomputedSteps, generate

    compute = choose_compute(config.device, config.precision, config.num_threads)
    keep_freed_memory()
    model = build_model(config).to(compute.device).eval()
    steps_type = CachedSteps if way.cached else RecomputedSteps
    generator = torch.Generator().manual_seed(config.seed)
    shape = (plan.num_documents, plan.prompt_tokens)
    prompts = torch.randint(NUM_SPECIAL, config.vocab_size, shape, generator=generator).tolist()
    decoder = _decoder(config, plan.max_new_tokens)
    with compute.autocast():
        generate(
            model, prompts[: way.batch_size], _decoder(config, min(WARMUP_TOKENS, plan.max_new_tokens)), steps_type
        )
        started_at = time.perf_counter()
        texts = []
        for start in range(0, len(prompts), way.batch_size):
            texts += generate(model, prompts[start : start + way.batch_size], decoder, steps_type)
        seconds = time.perf_counter() - started_at  # the ids are on the CPU: a GPU has done everything
    return GenerationRun(
        seconds=seconds,
        texts=texts,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        precision="bf16" if compute.bf16 else "fp32",
        device=torch.cuda.get_device_name(compute.device) if compute.device.type == "cuda" else cpu_name(),
        num_threads=torch.get_num_threads(),
    )


def _decoder(config: Config, max_new_tokens: int) -> Any:
    """The likeliest tokens; a text never ends before it has all of them."""
    from him.model.generation import Decoder

    forbidden = tuple(range(NUM_SPECIAL))
    return Decoder(end_id=0, max_new_tokens=max_new_tokens, forbidden_ids=forbidden, num_beams=config.num_beams)


def build_model(config: Config) -> Any:
    """The task's model with weights drawn by `--seed`; see `WEIGHT_SCALE`."""
    import torch
    from torch import nn

    from him.model.embeddings import EmbeddingShape, InputEmbedding
    from him.model.initialization import initialize
    from him.tasks.building import build_encoder
    from him.tasks.lm.model import LanguageModel
    from him.tasks.summarization.model import SummarizationModel

    torch.manual_seed(config.seed)
    summarizes = config.task_type == "summarization"
    shape = EmbeddingShape(
        vocab_size=config.vocab_size,
        embed_dim=config.embed_dim,
        max_seq_len=config.max_seq_len,
        mask_id=NUM_SPECIAL - 1,
        learned_positions=config.positions == "learned",
        num_segments=2 if summarizes else 0,
    )
    embedding = InputEmbedding(shape)
    encoder = build_encoder(config, causal=True)
    if summarizes:
        model = SummarizationModel(embedding, encoder, config.embed_dim, copies=config.copy_head)
    else:
        model = LanguageModel(embedding, encoder, config.max_seq_len)
    initialize(model)
    with torch.no_grad():
        for module in model.encoder.modules():
            if isinstance(module, nn.Linear):
                module.weight.mul_(WEIGHT_SCALE)
    return model


def equal_shares(ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> dict[str, float]:
    """Share of `tokens` that are the same at the same position, and of `texts` that are the same to their end."""
    pairs = [pair for one, other in zip(ours, theirs, strict=True) for pair in zip(one, other, strict=True)]
    return {
        "tokens": sum(one == other for one, other in pairs) / len(pairs),
        "texts": sum(one == other for one, other in zip(ours, theirs, strict=True)) / len(ours),
    }


def generation_table(result: Mapping[str, Any]) -> str:
    """The result of `compare_generation` as text."""
    settings, machine = result["settings"], result["machine"]
    beams = "greedy" if settings["num_beams"] == 1 else f"{settings['num_beams']} beams"
    lines = [
        f"{settings['num_documents']:,} documents of {settings['prompt_tokens']:,} tokens, "
        f"{settings['max_new_tokens']:,} new tokens each, {beams}, {settings['precision']}; {settings['task_type']}, "
        f"{settings['num_encoder_layers']} layers, {settings['embed_dim']} dim, {settings['parameters']:,} parameters",
        f"{machine['device']}, {machine['num_threads']} threads; median (min-max) of {settings['rounds']} rounds",
        "",
        f"{'':<32}{'seconds':>24}{'new tokens/s':>26}{'ms/document':>14}{'HIM is':>10}",
    ]
    for name, figures in result["contestants"].items():
        faster = f"{result['ratios'][name]['median']:.1f} x" if name in result["ratios"] else ""
        lines.append(
            f"{figures['label']:<32}{Spread(*figures['seconds'].values()).text('.2f'):>24}"
            f"{Spread(*figures['tokens_per_second'].values()).text():>26}"
            f"{figures['ms_per_document']['median']:>14,.1f}{faster:>10}"
        )
    lines += ["", f"HIM is {result['ratio']['median']:.1f} x as fast as the fastest way without a cache"]
    lines += [
        f"{precision}: {100 * shares['tokens']:.1f} % of the tokens and {100 * shares['texts']:.1f} % of the texts are "
        "the same"
        for precision, shares in result["equal_tokens"].items()
    ]
    return "\n".join(line.rstrip() for line in lines)


def _say(line: str) -> None:
    """Progress, on stderr: stdout is for the result."""
    print(line, file=sys.stderr, flush=True)
