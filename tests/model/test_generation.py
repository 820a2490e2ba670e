"""How tokens are chosen, on tables of probabilities and on models."""

import itertools
import math
from functools import partial

import pytest
import torch

from him.model.generation import CachedSteps, Decoder, RecomputedSteps, generate, stream

END, A, B, C = range(4)
KINDS = ("lm", "summaries", "copying")
PROMPTS = [[2], [2, 9, 5, 14, 3, 9, 3], [2, 6, 5, 3], [2, 9, 9, 9, 9, 3]]


class Table:
    """Steps whose probabilities are a function of prompt and text, in place of a model's."""

    def __init__(self, probabilities, prompts, num_hypotheses):
        self.probabilities = probabilities
        self.prompts = [prompt for prompt in prompts for _ in range(num_hypotheses)]
        self.written = [[] for _ in self.prompts]

    def first(self):
        return self._rows()

    def next(self, written, origins):
        for row, text in enumerate(written):  # a hypothesis is the one that it says it continues, and a token
            assert text[:-1] == self.written[row if origins is None else origins[row]]
        self.written = [list(text) for text in written]
        return self._rows()

    def _rows(self):
        found = [self.probabilities(tuple(p), tuple(w)) for p, w in zip(self.prompts, self.written, strict=True)]
        return torch.tensor(found).log()


def write(probabilities, prompts=((0,),), end_id=END, max_new_tokens=4, **settings):
    """What is written by a table, or the same for all texts."""
    if not callable(probabilities):
        constant = probabilities
        probabilities = lambda prompt, text: constant  # noqa: E731
    decoder = Decoder(end_id=end_id, max_new_tokens=max_new_tokens, **settings)
    return generate(probabilities, prompts, decoder, steps_type=Table)


def random_table(num_tokens, seed=0, sharpness=1.0):
    """Other probabilities for each prompt and text."""

    def probabilities(prompt, text):
        key = hash((seed, prompt, text)) % 2**31  # of integers: the same in every process
        scores = torch.randn(num_tokens, generator=torch.Generator().manual_seed(key))
        return (sharpness * scores).softmax(dim=0).tolist()

    return probabilities


# --- token by token ---------------------------------------------------------------------------------------------------


def test_greedy_by_hand():
    table = {(): [0.1, 0.2, 0.4, 0.3], (B,): [0.3, 0.4, 0.2, 0.1], (B, A): [0.5, 0.1, 0.2, 0.2]}
    assert write(lambda prompt, text: table[text]) == [[B, A]]


def test_the_end_ends_each_text_on_its_own():
    """Rows of different lengths, one of them empty, one cut off; what a row would write after its end is not there."""

    def probabilities(prompt, text):
        return [0.9, 0.1, 0, 0] if len(text) == prompt[0] else [0.0, 0.1, 0.2, 0.7]

    assert write(probabilities, [[1], [0], [9], [3]]) == [[C], [], [C] * 4, [C] * 3]
    assert write(probabilities, [[0], [0]]) == [[], []]
    assert write(probabilities, [[9]], max_new_tokens=1) == [[C]]


@pytest.mark.parametrize("num_beams", [1, 3])
def test_nothing_is_computed_after_the_last_token(num_beams):
    """Neither behind `max_new_tokens` nor when all texts have ended."""
    lengths = []

    def probabilities(prompt, text):
        lengths.append(len(text))
        return [1.0, 0, 0, 0] if len(text) >= prompt[0] else [0.0, 0.2, 0.3, 0.5]

    write(probabilities, [[9]], max_new_tokens=5, num_beams=num_beams)
    assert max(lengths) == 4
    lengths.clear()
    write(probabilities, [[2], [1]], max_new_tokens=50, num_beams=num_beams)
    assert max(lengths) == 2


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"temperature": 2.0}], ids=["greedy", "beams", "sampling"])
def test_forbidden_tokens_are_never_written(settings):
    table = random_table(6)
    for seed in range(20):
        (text,) = write(table, [[seed]], forbidden_ids=(0, 2), end_id=5, max_new_tokens=12, seed=seed, **settings)
        assert set(text) <= {1, 3, 4}
    free = {token for seed in range(20) for token in write(table, [[seed]], end_id=5, max_new_tokens=12)[0]}
    assert free & {0, 2}


@pytest.mark.parametrize("settings", [{}, {"num_beams": 4}, {"temperature": 1.0}], ids=["greedy", "beams", "sampling"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_ngram_comes_twice(settings, size):
    """Over few tokens, which would repeat soon."""

    def repeats(text):
        runs = [tuple(text[start : start + size]) for start in range(len(text) - size + 1)]
        return len(runs) != len(set(runs))

    def unending(prompt, text):  # the end is so unlikely that only blocking leads there
        return [1e-6, *random_table(3)(prompt, text)]

    prompts = [[number] for number in range(10)]
    blocked = write(unending, prompts, max_new_tokens=40, no_repeat_ngram_size=size, **settings)
    free = write(unending, prompts, max_new_tokens=40, **settings)
    assert not any(map(repeats, blocked))
    assert all(map(repeats, free))
    assert all(len(text) <= 3**size + size - 1 for text in blocked)  # as many as there are n-grams of three tokens


def test_blocking_by_hand():
    """After A B A, A B may not come again, then A A neither, and only the end is left; a prompt's own runs are free."""

    def probabilities(prompt, text):
        return [0.1, 0.5, 0.4, 0.0] if len(text) % 2 == 0 else [0.1, 0.4, 0.5, 0.0]

    assert write(probabilities, [[A, B, A, B]], max_new_tokens=6, no_repeat_ngram_size=2) == [[A, B, A, A]]
    assert write(probabilities, [[A, B, A, B]], max_new_tokens=6) == [[A, B] * 3]


def test_a_text_that_has_ended_is_not_in_the_way():
    """It is carried along until all have ended; with everything blocked in it, sampling used to fail.

    The first ends at once, and after three more ends no end can follow, nor the other token, which has no probability.
    """

    def probabilities(prompt, text):
        return [1.0, 0.0] if prompt == (0,) else [1e-6, 1.0 - 1e-6]

    texts = write(probabilities, [[0], [1]], max_new_tokens=50, no_repeat_ngram_size=3, temperature=1.0)
    assert texts == [[], [A, A, A]]


# --- sampling ---------------------------------------------------------------------------------------------------------

PROBABILITIES = [0.02, 0.48, 0.3, 0.15, 0.05]
DRAWS = 20_000


def expected_by_temperature(temperature):
    weights = [p ** (1 / temperature) for p in PROBABILITIES]
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, PROBABILITIES),
        ({"temperature": 0.5}, expected_by_temperature(0.5)),
        ({"temperature": 2.0}, expected_by_temperature(2.0)),
        ({"top_k": 2}, [0, 48 / 78, 30 / 78, 0, 0]),
        ({"top_k": 99}, PROBABILITIES),
        ({"top_p": 0.4}, [0, 1, 0, 0, 0]),
        ({"top_p": 0.5}, [0, 48 / 78, 30 / 78, 0, 0]),
        ({"top_p": 0.77}, [0, 48 / 78, 30 / 78, 0, 0]),
        ({"top_p": 0.8}, [0, 48 / 93, 30 / 93, 15 / 93, 0]),
        # Of the three likeliest, 48 / 93 is above a half.
        ({"top_k": 3, "top_p": 0.5}, [0, 1, 0, 0, 0]),
        # The temperature comes first: 0.48 ** 2 is three fifths of all squares.
        ({"temperature": 0.5, "top_p": 0.6}, [0, 1, 0, 0, 0]),
        ({"forbidden_ids": (1,)}, [2 / 52, 0, 30 / 52, 15 / 52, 5 / 52]),
    ],
    ids=str,
)
def test_distribution_of_samples(settings, expected):
    """Counts of 20,000 draws, each within five deviations; what has no probability never comes."""
    settings = {"temperature": 1.0, **settings}
    texts = write(PROBABILITIES, [[0]] * DRAWS, end_id=9, max_new_tokens=1, seed=1, **settings)
    counts = torch.bincount(torch.tensor(texts).flatten(), minlength=len(PROBABILITIES)).tolist()
    for count, probability in zip(counts, expected, strict=True):
        if probability in (0, 1):
            assert count == probability * DRAWS
        assert abs(count - probability * DRAWS) <= 5 * math.sqrt(DRAWS * probability * (1 - probability))


@pytest.mark.parametrize("settings", [{"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-4}], ids=str)
def test_the_narrowest_sampling_is_greedy(settings):
    table, prompts = random_table(8), [[number] for number in range(10)]
    settings = {"temperature": 1.0, **settings}
    assert write(table, prompts, max_new_tokens=10, **settings) == write(table, prompts, max_new_tokens=10)


def test_the_seed_decides_samples():
    table = random_table(8)
    texts = [write(table, max_new_tokens=30, temperature=1.0, end_id=9, seed=seed) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    torch.manual_seed(0)
    assert write(table, max_new_tokens=30, temperature=1.0, end_id=9, seed=0) == texts[0]
    before = torch.get_rng_state()
    write(table, temperature=1.0)
    assert torch.equal(before, torch.get_rng_state())


# --- beam search ------------------------------------------------------------------------------------------------------


def test_two_beams_by_hand():
    """A is likelier than B at first, but what follows B is so certain that B C is the likeliest text."""
    table = {
        (): [0.0, 0.6, 0.4, 0.0],
        (A,): [0.0, 0.4, 0.3, 0.3],
        (B,): [0.0, 0.05, 0.05, 0.9],
    }
    end = [1.0, 0.0, 0.0, 0.0]
    probabilities = lambda prompt, text: table.get(text, end)  # noqa: E731
    assert write(probabilities) == [[A, A]]  # 0.24
    assert write(probabilities, num_beams=2) == [[B, C]]  # 0.36


@pytest.mark.parametrize(("num_beams", "text"), [(2, [A, A]), (3, [])])
def test_only_an_end_among_the_best_counts(num_beams, text):
    """As in `transformers`: the end at once has 0.2 and is the third, so two beams go on to 0.15 at most."""
    probabilities = lambda _, text: [0.0, 0.3, 0.3, 0.2, 0.2] if text else [0.2, 0.5, 0.3, 0.0, 0.0]  # noqa: E731
    assert write(probabilities, num_beams=num_beams, length_penalty=0.0, max_new_tokens=2) == [text]


@pytest.mark.parametrize(("length_penalty", "text"), [(0.0, []), (0.5, []), (2.0, [A, A])])
def test_length_penalty_by_hand(length_penalty, text):
    """ln 0.5 = -0.69 for the end at once against ln 0.4 = -0.92 for three tokens; from 3 ** p > 1.32 on, p > 0.25."""
    table = {(): [0.5, 0.4, 0.1, 0.0], (A,): [0.0, 1.0, 0.0, 0.0], (A, A): [1.0, 0.0, 0.0, 0.0]}
    other = [0.25] * 4
    found = write(lambda _, text: table.get(text, other), num_beams=20, length_penalty=length_penalty)
    if length_penalty == 0.5:
        text = [A, A]
    assert found == [text]


def best_of_all(probabilities, prompt, num_tokens, max_new_tokens, length_penalty):
    """The text with the best score among all there are, ended or as long as may be."""
    best = (-math.inf, None)
    for length in range(1, max_new_tokens + 1):
        for ids in itertools.product(range(num_tokens), repeat=length):
            has_ended = ids[-1] == END
            if END in ids[:-1] or not (has_ended or length == max_new_tokens):
                continue
            chosen = [probabilities(prompt, ids[:place])[token] for place, token in enumerate(ids)]
            score = sum(map(math.log, chosen)) / length**length_penalty
            best = max(best, (score, list(ids[:-1] if has_ended else ids)))
    return best[1]


@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("sharpness", [0.5, 2.0])
def test_enough_beams_find_the_best_of_all(length_penalty, sharpness):
    """4 tokens, 4 steps: 40 texts that end and 81 that do not, and a beam for each."""
    table = random_table(4, sharpness=sharpness)
    prompts = [(number,) for number in range(8)]
    found = write(table, prompts, num_beams=128, length_penalty=length_penalty)
    assert found == [best_of_all(table, prompt, 4, 4, length_penalty) for prompt in prompts]
    if sharpness == 2.0:
        assert len({len(text) for text in found}) >= 2


def test_one_beam_too_many_changes_nothing_where_greedy_is_best():
    """Where the likeliest token is nearly certain, all beams agree with the greedy text."""
    table = random_table(6, sharpness=40.0)
    prompts = [[number] for number in range(10)]
    greedy = write(table, prompts, max_new_tokens=8)
    certain = [number for number, text in enumerate(greedy) if is_certain(table, prompts[number], text, 8)]
    assert len(certain) >= 3
    for num_beams in (2, 5):
        found = write(table, prompts, max_new_tokens=8, num_beams=num_beams, length_penalty=0.0)
        assert [found[number] for number in certain] == [greedy[number] for number in certain]


def is_certain(table, prompt, text, max_new_tokens):
    """More than half of all probability is on this text."""
    tokens = text if len(text) == max_new_tokens else [*text, END]
    chosen = [table(tuple(prompt), tuple(tokens[:place]))[token] for place, token in enumerate(tokens)]
    return math.prod(chosen) > 0.5


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("num_beams", [2, 4])
def test_beams_do_not_depend_on_what_is_beside(num_beams, length_penalty):
    """A search that was over used to begin again while others went on, if a longer text had become the better one."""
    table = random_table(5, seed=3)
    prompts = [[number] for number in range(40)]
    settings = {"max_new_tokens": 12, "num_beams": num_beams, "length_penalty": length_penalty}
    together = write(table, prompts, **settings)
    assert together == [write(table, [prompt], **settings)[0] for prompt in prompts]
    assert len({len(text) for text in together}) > 3


def test_more_beams_than_tokens():
    """Most hypotheses are empty at first."""
    assert write([0.2, 0.8], num_beams=8, length_penalty=0.0, max_new_tokens=3) == [[A, A, A]]  # 0.512
    assert write([0.6, 0.4], num_beams=8, length_penalty=0.0, max_new_tokens=3) == [[]]
    assert write([0.0, 0.5, 0.5], num_beams=8, max_new_tokens=1, forbidden_ids=(2,)) == [[A]]


def test_beam_search_does_not_sample():
    with pytest.raises(AssertionError, match="beam search does not sample"):
        Decoder(end_id=END, max_new_tokens=3, num_beams=2, temperature=1.0)


# --- models -----------------------------------------------------------------------------------------------------------

DECODERS = {
    "greedy": {},
    "beams": {"num_beams": 4, "no_repeat_ngram_size": 3},
    "sampling": {"temperature": 1.0, "top_k": 12, "top_p": 0.95, "seed": 4},
}
decoder_of = partial(Decoder, end_id=3, forbidden_ids=(0, 1, 2, 4))


@pytest.mark.parametrize("decoding", DECODERS)
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_cached_and_recomputed_write_the_same(make_writer, kind, norm_first, decoding):
    """Token for token; the language model's window moves meanwhile, the others outgrow the first room of the cache."""
    settings = (
        {"rotary": False, "conv_kernel_size": 0}
        if norm_first
        else {"conv_kernel_size": 5, "activation": "relu_squared"}
    )
    model = make_writer(kind, norm_first=norm_first, max_seq_len=12 if kind == "lm" else 64, **settings)
    decoder = decoder_of(max_new_tokens=40, **DECODERS[decoding])
    found = generate(model, PROMPTS, decoder)
    assert found == generate(model, PROMPTS, decoder, RecomputedSteps)
    assert max(map(len, found)) > 12
    assert {token for text in found for token in text} <= set(range(5, 20))
    if decoding != "sampling":
        assert found == [generate(model, [prompt], decoder)[0] for prompt in PROMPTS]


@pytest.mark.parametrize("decoding", ["greedy", "sampling"])
@pytest.mark.parametrize("kind", KINDS)
def test_streamed_text_is_the_generated_one(make_writer, kind, decoding):
    model = make_writer(kind, max_seq_len=32)
    for prompt in PROMPTS:
        for end_id in (3, 17):
            decoder = Decoder(end_id=end_id, max_new_tokens=20, **DECODERS[decoding])
            assert [list(stream(model, prompt, decoder))] == generate(model, [prompt], decoder)


def test_beams_cannot_be_streamed(make_writer):
    with pytest.raises(AssertionError, match="knows no token for certain"):
        next(stream(make_writer("lm"), [2], decoder_of(max_new_tokens=3, num_beams=2)))


def test_generating_leaves_no_trace(make_writer):
    """Neither in the prompts nor in the model."""
    model, prompts = make_writer("copying"), [list(prompt) for prompt in PROMPTS]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generate(model, prompts, decoder_of(max_new_tokens=5, num_beams=2))
    assert prompts == PROMPTS
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.is_grad_enabled() and not model.training


def test_beams_of_a_model_by_its_own_probabilities(make_writer):
    """128 beams over four steps of four tokens: the best of all texts by what the model itself says of each."""
    model = make_writer("copying", vocab_size=8)
    decoder = Decoder(end_id=3, max_new_tokens=4, forbidden_ids=(0, 1, 2, 4), num_beams=256, length_penalty=1.0)
    prompt = [2, 5, 6, 7, 7, 3]
    texts = [
        list(ids)
        for length in range(1, 5)
        for ids in itertools.product((3, 5, 6, 7), repeat=length)
        if 3 not in ids[:-1] and (ids[-1] == 3 or length == 4)
    ]
    prefixes = {tuple(text[:place]) for text in texts for place in range(len(text))}
    with torch.inference_mode():
        rows = model.recompute([prompt] * len(prefixes), list(prefixes))
    table = dict(zip(prefixes, rows.tolist(), strict=True))
    scores = [sum(table[tuple(text[:place])][token] for place, token in enumerate(text)) / len(text) for text in texts]
    best = max(zip(scores, texts, strict=True))[1]
    for steps_type in (CachedSteps, RecomputedSteps):
        assert generate(model, [prompt], decoder, steps_type) == [[token for token in best if token != 3]]
