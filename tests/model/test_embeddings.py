"""What enters the encoder, by hand."""

import pytest
import torch
from torch import nn

from him.model.embeddings import EmbeddingShape, InputEmbedding, LexicalEmbedding

D = 8


def embedding(**changes):
    torch.manual_seed(0)
    settings = {
        "vocab_size": 20,
        "embed_dim": D,
        "max_seq_len": 12,
        "mask_id": 4,
    }
    lexical = changes.pop("lexical", None)
    made = InputEmbedding(EmbeddingShape(**{**settings, **changes}), lexical)
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


def lexical():
    return LexicalEmbedding({"match": 9, "shape": 8, "class_shape": 105}, 3, D)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return {
        "input_ids": torch.tensor([[2, 5, 3, 7, 8, 3], [2, 6, 3, 9, 3, 0]]),
        "token_type_ids": torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 0]]),
        "match": torch.tensor([[0, 1, 0, 5, 8, 0], [0, 4, 0, 8, 0, 0]]),
        "shape": torch.tensor([[0, 1, 0, 2, 1, 0], [0, 1, 0, 1, 0, 0]]),
        "class_shape": torch.tensor([[0, 0, 0, 11, 10, 0], [0, 0, 0, 10, 0, 0]]),
        "scalars": torch.randn(2, 6, 3, generator=generator),
        "focus_ids": torch.tensor([5, 0]),
    }


@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("with_lexical", [False, True])
def test_sum_then_norm(batch, positions, with_lexical):
    made = embedding(learned_positions=positions, lexical=lexical() if with_lexical else None)
    found = made(batch)
    for row in range(2):
        for place in range(6):
            x = made.tokens.weight[batch["input_ids"][row, place]]
            x = x + made.segments.weight[batch["token_type_ids"][row, place]]
            if positions:
                x = x + made.positions.weight[place]
            if with_lexical:
                for name, table in made.lexical.tables.items():
                    x = x + table.weight[batch[name][row, place]]
                x = x + made.lexical.scalars(batch["scalars"][row, place])
                if batch["class_shape"][row, place] > 0:  # words of the context hear what is asked for
                    x = x + made.lexical.focus(made.tokens.weight[batch["focus_ids"][row]])
            torch.testing.assert_close(found[row, place], made.norm(x), rtol=1e-5, atol=1e-5)


def test_segments_and_positions_matter(batch):
    made = embedding(learned_positions=True)
    assert (made(batch)[0, 2] - made(batch)[0, 5]).abs().max() > 0.1  # [SEP] twice
    assert embedding().positions is None


def test_word_dropout_hides_tokens_while_training(batch):
    """Words become [MASK]; segments and the lexical inputs stay."""
    made = embedding(word_dropout=0.999999, lexical=lexical()).train()
    hidden = made(batch)
    masked = {**batch, "input_ids": torch.full_like(batch["input_ids"], 4)}
    torch.testing.assert_close(hidden, made.eval()(masked))
    assert (hidden - made(batch)).abs().max() > 0.1


def test_share_of_dropped_words():
    """Of 100,000 tokens, within five standard deviations."""
    made = embedding(word_dropout=0.1)
    ids = torch.full((1000, 100), 7)
    batch = {"input_ids": ids, "token_type_ids": torch.zeros_like(ids)}
    torch.manual_seed(0)
    found = made.train()(batch)
    made.eval()
    visible = made({name: value[:1, :1] for name, value in batch.items()})[0, 0]
    hidden = made({"input_ids": torch.tensor([[4]]), "token_type_ids": torch.tensor([[0]])})[0, 0]
    is_hidden = (found - hidden).abs().amax(dim=-1) < 1e-5
    assert ((found - visible).abs().amax(dim=-1)[~is_hidden] < 1e-5).all()
    assert abs(int(is_hidden.sum()) - 10_000) < 5 * (100_000 * 0.1 * 0.9) ** 0.5


def test_dropout_comes_last(batch):
    made = embedding(dropout=0.5)
    still = made.eval()(batch)
    torch.manual_seed(0)
    dropped = made.train()(batch)
    zero = dropped == 0
    assert 0.2 < zero.float().mean() < 0.8
    torch.testing.assert_close(dropped[~zero], 2 * still[~zero])
