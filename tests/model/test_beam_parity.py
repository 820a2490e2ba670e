"""Beam search against that of the `transformers` package, on tables of probabilities."""

import math

import pytest
import torch
from transformers import GenerationConfig, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from him.model.generation import Decoder, generate

END, V, NUM_PROMPTS, MAX_NEW_TOKENS = 0, 6, 24, 8
FIRST_PROMPT = V + 2  # prompt number n is the token FIRST_PROMPT + n, which is never written; V and V + 1 are special


def log_probabilities(ids: list[int], end_score: float) -> list[float]:
    """Of the next token, other ones for each prompt and text."""
    generator = torch.Generator().manual_seed(hash(tuple(ids)) % 2**31)
    scores = torch.randn(V, generator=generator)
    scores[END] += end_score
    return scores.log_softmax(dim=0).tolist()


class Table:
    """The probabilities as steps of ours."""

    def __init__(self, end_score, prompts, num_hypotheses):
        self.end_score = end_score
        self.prompts = [prompt for prompt in prompts for _ in range(num_hypotheses)]

    def first(self):
        return self.next([[]] * len(self.prompts), None)

    def next(self, written, origins):
        rows = zip(self.prompts, written, strict=True)
        return torch.tensor([log_probabilities([*prompt, *text], self.end_score) for prompt, text in rows])


class TableConfig(PretrainedConfig):
    model_type = "table"


class TableModel(PreTrainedModel, GenerationMixin):
    """The same as a model of theirs."""

    config_class = TableConfig
    end_score = 0.0

    def __init__(self, config):
        super().__init__(config)
        self.unused = torch.nn.Parameter(torch.zeros(1))
        self.post_init()

    def forward(self, input_ids, **more):
        logits = torch.full((*input_ids.shape, self.config.vocab_size), -math.inf)
        for row, ids in enumerate(input_ids.tolist()):
            logits[row, -1, :V] = torch.tensor(log_probabilities(ids, self.end_score))
        return CausalLMOutput(logits=logits)

    def prepare_inputs_for_generation(self, input_ids, **more):
        return {"input_ids": input_ids}


@pytest.fixture(scope="module")
def theirs():
    return TableModel(TableConfig(vocab_size=FIRST_PROMPT + NUM_PROMPTS)).eval()


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize(
    ("num_beams", "end_score", "size"), [(2, 0.0, 0), (3, 1.5, 0), (4, 0.0, 2), (5, 1.0, 1)], ids=str
)
def test_the_same_texts_as_transformers(theirs, num_beams, end_score, size, length_penalty):
    """With `early_stopping=False`, their default: a search ends when no running hypothesis looks better."""
    settings = {"num_beams": num_beams, "length_penalty": length_penalty, "no_repeat_ngram_size": size}
    prompts = [[FIRST_PROMPT + number] for number in range(NUM_PROMPTS)]
    decoder = Decoder(end_id=END, max_new_tokens=MAX_NEW_TOKENS, **settings)
    ours = generate(end_score, prompts, decoder, steps_type=Table)
    theirs.end_score = end_score
    config = GenerationConfig(
        **settings,
        max_new_tokens=MAX_NEW_TOKENS,
        early_stopping=False,
        do_sample=False,
        use_cache=False,
        eos_token_id=END,
        pad_token_id=V,
        bos_token_id=V + 1,
    )
    with torch.inference_mode():
        found = theirs.generate(torch.tensor(prompts), generation_config=config)[:, 1:].tolist()
    assert ours == [[token for token in ids if token not in (END, V)] for ids in found]
    assert len({len(text) for text in ours}) >= 2 or length_penalty == 2.0
