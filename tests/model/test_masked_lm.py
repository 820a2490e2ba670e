"""Masked tokens: whole ones, as many as wanted, and the loss of guessing them."""

import math

import pytest
import torch
from torch import nn

from him.model.embeddings import TokenEmbedding
from him.model.initialization import initialize
from him.model.masked_lm import MLMHead, PretrainingModel, mask_positions

V, D = 11, 6


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- which words are hidden -------------------------------------------------------------------------------------------


def words_of_pieces(num_rows: int, num_words: int) -> torch.Tensor:
    """Words of one to four pieces; rows end at different positions, with -1 behind."""
    lengths = torch.randint(1, 5, (num_rows, num_words), generator=seeded())
    rows = [torch.arange(num_words).repeat_interleave(each) for each in lengths]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)


def test_whole_words_are_masked_about_as_many_as_wanted():
    """Of 20,000 words 3,000 with a deviation of 50."""
    words_BL = words_of_pieces(20, 1000)
    is_masked_BL = mask_positions(words_BL, 0.15, words_BL >= 0, seeded())
    assert is_masked_BL.dtype == torch.bool and not is_masked_BL[words_BL < 0].any()
    num_hidden = 0
    for words, is_hidden in zip(words_BL, is_masked_BL, strict=True):
        hidden, seen = set(words[is_hidden].tolist()), set(words[~is_hidden].tolist())
        assert not hidden & seen
        num_hidden += len(hidden)
    assert abs(num_hidden - 3000) < 5 * math.sqrt(20_000 * 0.15 * 0.85)
    rows = is_masked_BL[:, :1000].tolist()
    assert len({tuple(row) for row in rows}) == len(rows)


def test_the_other_positions_stay():
    words_BL = words_of_pieces(4, 50)
    may_mask_BL = torch.rand(words_BL.shape, generator=seeded(1)) < 0.5
    assert torch.equal(mask_positions(words_BL, 1.0, may_mask_BL), may_mask_BL)
    assert not mask_positions(words_BL, 0.0, may_mask_BL).any()
    half_BL = mask_positions(words_BL, 0.5, may_mask_BL, seeded())
    assert torch.equal(half_BL, mask_positions(words_BL, 0.5, torch.ones_like(may_mask_BL), seeded()) & may_mask_BL)


def test_the_generator_decides():
    words_BL = words_of_pieces(4, 100)
    first, again, other = (mask_positions(words_BL, 0.5, words_BL >= 0, seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    torch.manual_seed(3)
    own = mask_positions(words_BL, 0.5, words_BL >= 0)
    torch.manual_seed(3)
    assert torch.equal(own, mask_positions(words_BL, 0.5, words_BL >= 0))


def test_a_batch_without_words():
    words_BL = torch.full((2, 5), -1)
    assert not mask_positions(words_BL, 1.0, words_BL >= 0).any()


# --- the head and its loss --------------------------------------------------------------------------------------------


class Embedded(nn.Module):
    """A model of which the head needs the token embedding only."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Module()
        self.embedding.tokens = TokenEmbedding(V, D)


@pytest.fixture
def model() -> PretrainingModel:
    """With weights that are large enough to be felt."""
    torch.manual_seed(2)
    made = PretrainingModel(Embedded(), MLMHead(D, V))
    initialize(made)
    for parameter in made.parameters():
        parameter.data += 0.5 * torch.randn_like(parameter)
    return made


HIDDEN_BLD = torch.randn(2, 4, D, generator=seeded(5))
IDS_BL = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 10]])
IS_HIDDEN_BL = torch.tensor([[False, True, True, False], [False, False, False, True]])


def logits_of(model: PretrainingModel, hidden_ND: torch.Tensor) -> torch.Tensor:
    return model.model.embedding.tokens.project(model.words(hidden_ND), model.words.bias).float()


def logits_by_hand(model: PretrainingModel, hidden: torch.Tensor) -> list[float]:
    """GELU with the error function, norm over the vector, products with all token vectors."""
    head = model.words
    x = [
        sum(weight * value for weight, value in zip(row, hidden.tolist(), strict=True)) + bias
        for row, bias in zip(head.transform.weight.tolist(), head.transform.bias.tolist(), strict=True)
    ]
    x = [each * 0.5 * (1 + math.erf(each / math.sqrt(2))) for each in x]
    mean = sum(x) / D
    deviation = math.sqrt(sum((each - mean) ** 2 for each in x) / D + head.norm.eps)
    scales = zip(x, head.norm.weight.tolist(), head.norm.bias.tolist(), strict=True)
    x = [(each - mean) / deviation * weight + bias for each, weight, bias in scales]
    tokens = model.model.embedding.tokens.weight.tolist()
    return [
        sum(a * b for a, b in zip(token, x, strict=True)) + bias
        for token, bias in zip(tokens, head.bias.tolist(), strict=True)
    ]


def test_word_loss_by_hand(model):
    """Summed over the three masked positions, of which the ids were 2, 3 and 10."""
    expected, num_met = 0.0, 0
    for hidden, id in ((HIDDEN_BLD[0, 1], 2), (HIDDEN_BLD[0, 2], 3), (HIDDEN_BLD[1, 3], 10)):
        logits = logits_by_hand(model, hidden)
        expected += math.log(sum(math.exp(each) for each in logits)) - logits[id]
        num_met += max(range(V), key=logits.__getitem__) == id
    loss, _, num_correct = model.mlm_loss(HIDDEN_BLD, IDS_BL, IS_HIDDEN_BL)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert int(num_correct) == num_met


def test_what_the_first_choice_met_is_counted(model):
    logits_NV = logits_of(model, HIDDEN_BLD[IS_HIDDEN_BL])
    assert logits_NV.shape == (3, V)
    ids_BL = IDS_BL.clone()
    ids_BL[IS_HIDDEN_BL] = logits_NV.argmax(dim=1)
    assert int(model.mlm_loss(HIDDEN_BLD, ids_BL, IS_HIDDEN_BL)[2]) == 3
    ids_BL[0, 1] = (ids_BL[0, 1] + 1) % V
    assert int(model.mlm_loss(HIDDEN_BLD, ids_BL, IS_HIDDEN_BL)[2]) == 2


def test_products_are_bf16_and_the_loss_is_float32_under_autocast(model):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        transformed_ND = model.words(HIDDEN_BLD[IS_HIDDEN_BL])
        loss, *_ = model.mlm_loss(HIDDEN_BLD.bfloat16(), IDS_BL, IS_HIDDEN_BL)
    assert transformed_ND.dtype == torch.bfloat16 and loss.dtype == torch.float32


def test_the_head_is_tied_to_the_embedding(model):
    tokens = model.model.embedding.tokens
    assert not [name for name, each in model.words.named_parameters() if each.numel() >= V * D]
    before = logits_of(model, HIDDEN_BLD[0])
    tokens.weight.data[7] += 1.0
    changed = (logits_of(model, HIDDEN_BLD[0]) - before).abs().amax(dim=0) > 1e-4
    assert changed.tolist() == [token == 7 for token in range(V)]
    model.mlm_loss(HIDDEN_BLD, IDS_BL, IS_HIDDEN_BL)[0].backward()
    assert all(each.grad.abs().sum() > 0 for each in model.parameters())


def test_nothing_masked_is_no_loss(model):
    loss, _, num_correct = model.mlm_loss(HIDDEN_BLD, IDS_BL, torch.zeros_like(IS_HIDDEN_BL))
    loss.backward()
    assert float(loss.detach()) == 0.0 and int(num_correct) == 0
    assert all(torch.isfinite(each.grad).all() for each in model.parameters() if each.grad is not None)


def test_of_many_masked_positions_the_last_few_are_left_out(model):
    generator = torch.Generator().manual_seed(0)
    hidden_BLD = torch.randn(3, 100, D, generator=generator)
    ids_BL = torch.randint(V, (3, 100), generator=generator)
    everywhere_BL = torch.ones(3, 100, dtype=torch.bool)
    loss, number, _ = model.mlm_loss(hidden_BLD, ids_BL, everywhere_BL)
    logits_NV = logits_of(model, hidden_BLD.flatten(0, 1)[:256])
    assert number == 256
    torch.testing.assert_close(
        loss,
        torch.nn.functional.cross_entropy(logits_NV, ids_BL.flatten()[:256], reduction="sum"),
        rtol=1e-5,
        atol=1e-4,
    )
