"""Text generation token by token: greedy, sampling, beam search, over prompts of any lengths side by side.

Beam search with length normalisation: Wu et al. 2016 (arXiv:1609.08144), section 7. Blocked n-grams: Paulus et al. 2017
(arXiv:1705.04304), section 2.5. Nucleus sampling: Holtzman et al. 2019 (arXiv:1904.09751), section 3.1.

# B prompts   N hypotheses, W of each prompt   V vocabulary
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from him.model.generative import GenerativeModel
from him.model.repeated_words import RepeatedWords

NEVER = float("-inf")


@dataclass(frozen=True)
class Decoder:
    """How tokens are chosen.

    Attributes:
        end_id: token that ends a text; it is not part of what is returned.
        max_new_tokens: longest text, the end token included.
        forbidden_ids: tokens that are never written.
        num_beams: W hypotheses of beam search; 1 takes the likeliest token each time, or samples.
        length_penalty: the score of a hypothesis is its log-probability divided by its length to this power.
        no_repeat_ngram_size: no run of so many tokens occurs twice in a text; 0 is off.
        repeated_words: no word occurs twice in a text; None is off.
        temperature: log-probabilities are divided by it before sampling; 0 takes the likeliest token.
        top_k: only the k likeliest tokens are sampled from; 0 is off.
        top_p: only the likeliest tokens that together reach this probability are sampled from; 1 is off.
        seed: of the sampling.
    """

    end_id: int
    max_new_tokens: int
    forbidden_ids: tuple[int, ...] = ()
    num_beams: int = 1
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    repeated_words: RepeatedWords | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        assert not (self.num_beams > 1 and self.temperature > 0), "beam search does not sample"


class Steps(Protocol):
    """A source of log-probabilities, one step after the other."""

    def first(self) -> Tensor:
        """(N, V) for the first token of each hypothesis."""

    def next(self, written: Sequence[Sequence[int]], origins: Sequence[int] | None) -> Tensor:
        """(N, V) for the token after `written`, whose last token is new.

        Args:
            written: all tokens of each hypothesis.
            origins: number of the hypothesis that each continues; None if each goes on with itself.
        """


class CachedSteps:
    """Computes only what is new in each step."""

    def __init__(self, model: GenerativeModel, prompts: Sequence[Sequence[int]], num_hypotheses: int) -> None:
        self.model = model
        self.prompts = prompts
        self.num_hypotheses = num_hypotheses
        self.lengths = [len(prompt) for prompt in prompts for _ in range(num_hypotheses)]
        self.starts = [model.window_start(length) for length in self.lengths]

    def first(self) -> Tensor:
        log_probabilities_BV, self.decoding = self.model.prefill(self.prompts, self.num_hypotheses)
        return log_probabilities_BV.repeat_interleave(self.num_hypotheses, dim=0)

    def next(self, written: Sequence[Sequence[int]], origins: Sequence[int] | None) -> Tensor:
        starts = [self.model.window_start(length + len(written[0])) for length in self.lengths]
        if starts != self.starts:  # a text has outgrown the context: its shortened window is read anew
            self.starts = starts
            texts = [[*self.prompts[n // self.num_hypotheses], *ids] for n, ids in enumerate(written)]
            log_probabilities_NV, self.decoding = self.model.prefill(texts, num_hypotheses=1)
            return log_probabilities_NV
        device = self.model.device
        if origins is not None and list(origins) != list(range(len(origins))):
            self.decoding.reorder(torch.tensor(origins, device=device))
        return self.model.decode_step(torch.tensor([ids[-1] for ids in written], device=device), self.decoding)


class RecomputedSteps:
    """Computes prompts and all that was written anew in each step: slow, and what the other one is checked against."""

    def __init__(self, model: GenerativeModel, prompts: Sequence[Sequence[int]], num_hypotheses: int) -> None:
        self.model = model
        self.prompts = [prompt for prompt in prompts for _ in range(num_hypotheses)]

    def first(self) -> Tensor:
        return self.model.recompute(self.prompts, [[] for _ in self.prompts])

    def next(self, written: Sequence[Sequence[int]], origins: Sequence[int] | None) -> Tensor:
        return self.model.recompute(self.prompts, written)


@torch.inference_mode()
def generate(
    model: GenerativeModel,
    prompts: Sequence[Sequence[int]],
    decoder: Decoder,
    steps_type: type[CachedSteps] | type[RecomputedSteps] = CachedSteps,
) -> list[list[int]]:
    """Continues each prompt.

    Args:
        model: in evaluation mode.
        prompts: B lists of ids, none empty; each gets the same text alone and beside others, but for rounding and
            for the draws of sampling.
        steps_type: how log-probabilities are computed.

    Returns:
        B lists of at most `max_new_tokens` new ids, without the end token.
    """
    steps = steps_type(model, prompts, decoder.num_beams)
    if decoder.num_beams > 1:
        return _beam_search(steps, len(prompts), decoder)
    texts: list[list[int]] = [[] for _ in prompts]
    for ids in _choose_step_by_step(steps, decoder):
        for text, token in zip(texts, ids, strict=True):
            if token is not None:
                text.append(token)
    return texts


@torch.inference_mode()
def stream(model: GenerativeModel, prompt: Sequence[int], decoder: Decoder) -> Iterator[int]:
    """Continues one prompt, token by token; greedy or sampling."""
    assert decoder.num_beams == 1, "beam search knows no token for certain before the end"
    for (token,) in _choose_step_by_step(CachedSteps(model, [prompt], 1), decoder):
        if token is not None:
            yield token


def _choose_step_by_step(steps: Steps, decoder: Decoder) -> Iterator[list[int | None]]:
    """Yields the next token of each text, None where it has ended."""
    log_probabilities_NV = steps.first()
    generator = torch.Generator(log_probabilities_NV.device).manual_seed(decoder.seed)
    written: list[list[int]] = [[] for _ in log_probabilities_NV]
    ended = [False] * len(written)
    for number in range(decoder.max_new_tokens):
        if number > 0:
            log_probabilities_NV = steps.next(written, None)
        # Of a text that has ended, nothing is blocked: it is carried along, and everything may be in it already.
        _forbid(log_probabilities_NV, [[] if over else ids for over, ids in zip(ended, written, strict=True)], decoder)
        chosen = _choose(log_probabilities_NV, decoder, generator).tolist()
        for row, token in enumerate(chosen):
            written[row].append(token)
            ended[row] = ended[row] or token == decoder.end_id
        yield [None if over else token for over, token in zip(ended, chosen, strict=True)]
        if all(ended):
            return


def _choose(log_probabilities_NV: Tensor, decoder: Decoder, generator: torch.Generator) -> Tensor:
    """(N,) ids."""
    if decoder.temperature == 0:
        return log_probabilities_NV.max(dim=-1).indices  # a third of the time of `argmax` on CPUs
    # From the highest down, so that no temperature is too low to divide by.
    scores_NV = (log_probabilities_NV - log_probabilities_NV.amax(dim=-1, keepdim=True)) / decoder.temperature
    if decoder.top_k:
        lowest_N1 = scores_NV.topk(min(decoder.top_k, scores_NV.shape[1])).values[:, -1:]
        scores_NV = scores_NV.masked_fill(scores_NV < lowest_N1, NEVER)
    probabilities_NV = scores_NV.softmax(dim=-1)
    if decoder.top_p < 1.0:
        sorted_NV, order_NV = probabilities_NV.sort(dim=-1, descending=True)
        before_NV = sorted_NV.cumsum(dim=-1) - sorted_NV  # what the likelier ones make up already
        sorted_NV = sorted_NV.masked_fill(before_NV >= decoder.top_p, 0.0)
        probabilities_NV = torch.zeros_like(sorted_NV).scatter_(1, order_NV, sorted_NV)
    return torch.multinomial(probabilities_NV, 1, generator=generator)[:, 0]


def _forbid(log_probabilities_NV: Tensor, written: Sequence[Sequence[int]], decoder: Decoder) -> None:
    """Makes impossible, in place, what must not be written."""
    log_probabilities_NV[:, list(decoder.forbidden_ids)] = NEVER
    size, words = decoder.no_repeat_ngram_size, decoder.repeated_words
    if not (size or words):
        return
    for row, ids in enumerate(written):
        blocked = _tokens_that_repeat(ids, size) if size else []
        if words is not None:
            blocked += words.tokens_that_repeat(ids)
        if blocked:
            log_probabilities_NV[row, blocked] = NEVER


def _tokens_that_repeat(ids: Sequence[int], size: int) -> list[int]:
    """Tokens that would complete a run of `size` tokens that is there already."""
    beginning = list(ids[len(ids) - size + 1 :]) if size > 1 else []
    if len(ids) < size:
        return []
    return [ids[end] for end in range(size - 1, len(ids)) if list(ids[end - size + 1 : end]) == beginning]


@dataclass
class _Search:
    """Beam search over one prompt.

    Attributes:
        ended: (score, ids) of hypotheses that have ended, the best `num_beams` of them.
        is_over: whether none that still runs can become better than these.
    """

    decoder: Decoder
    ended: list[tuple[float, list[int]]] = field(default_factory=list)
    is_over: bool = False

    def end(self, log_probability: float, ids: list[int], length: int) -> None:
        """Adds a hypothesis that has ended after `length` tokens."""
        self.ended.append((log_probability / length**self.decoder.length_penalty, ids))
        self.ended.sort(key=lambda hypothesis: -hypothesis[0])
        del self.ended[self.decoder.num_beams :]

    def look_ahead(self, best_running: float, length: int) -> None:
        """Ends the search, for good, when even the best running hypothesis, ended now, would come last."""
        if not self.is_over and len(self.ended) == self.decoder.num_beams:
            self.is_over = self.ended[-1][0] >= best_running / length**self.decoder.length_penalty


def _beam_search(steps: Steps, num_prompts: int, decoder: Decoder) -> list[list[int]]:
    W = decoder.num_beams
    searches = [_Search(decoder) for _ in range(num_prompts)]
    log_probabilities_NV = steps.first()
    device, V = log_probabilities_NV.device, log_probabilities_NV.shape[1]
    scores_BW1 = torch.full((num_prompts, W, 1), NEVER, device=device)
    scores_BW1[:, 0] = 0.0  # all hypotheses of a prompt are alike at first
    written: list[list[int]] = [[] for _ in range(num_prompts * W)]
    for length in range(1, decoder.max_new_tokens + 1):
        _forbid(log_probabilities_NV, written, decoder)
        candidates_BC = (scores_BW1 + log_probabilities_NV.view(num_prompts, W, V)).flatten(1)
        best = candidates_BC.topk(min(2 * W, candidates_BC.shape[1]))
        origins, scores, texts = [], [], []
        for number, search in enumerate(searches):
            running = _extend(search, number, best.values[number].tolist(), best.indices[number].tolist(), V, written)
            origins += [origin for origin, _, _ in running]
            texts += [text for _, _, text in running]
            scores.append([score for _, score, _ in running])
            search.look_ahead(scores[-1][0], length)
        written, scores_BW1 = texts, torch.tensor(scores, device=device)[:, :, None]
        if length == decoder.max_new_tokens or all(search.is_over for search in searches):
            break
        log_probabilities_NV = steps.next(written, origins)
    for number, search in enumerate(searches):
        if not search.is_over:
            for beam in range(W):
                search.end(float(scores_BW1[number, beam]), written[number * W + beam], length)
    return [search.ended[0][1] for search in searches]


def _extend(
    search: _Search, number: int, scores: list[float], choices: list[int], V: int, written: list[list[int]]
) -> list[tuple[int, float, list[int]]]:
    """The W best hypotheses of a prompt that go on, as (origin, score, ids); the search gets those that end."""
    W = search.decoder.num_beams
    running: list[tuple[int, float, list[int]]] = []
    for rank, (score, choice) in enumerate(zip(scores, choices, strict=True)):
        origin, token = number * W + choice // V, choice % V
        if token != search.decoder.end_id:
            running.append((origin, score, [*written[origin], token]))
        elif rank < W and score > NEVER and not search.is_over:
            search.end(score, written[origin], len(written[origin]) + 1)
        if len(running) == W:
            break
    while len(running) < W:  # a vocabulary so small that too few can go on
        running.append((number * W, NEVER, [*written[number * W], search.decoder.end_id]))
    return running
