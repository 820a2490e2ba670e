"""The summarization model: who sees whom, its loss against what generation says, and training reaches every weight.

# B batch   L length   T longest summary   D embed_dim   V vocabulary
"""

import math

import numpy as np
import pytest
import torch

from him.core.ragged import Ragged
from him.model.generation import Decoder, generate
from him.tasks.summarization.features import PairBatches, PairFeatures
from him.tasks.summarization.model import prefix_mask

DOCUMENTS = [[9, 5, 14, 9, 8], [6], [7, 7, 12, 16, 5, 18, 9, 11]]
SUMMARIES = [[9, 8], [10, 11, 6, 6, 13], []]

KINDS = pytest.mark.parametrize("kind", ["summaries", "copying"])
SETTINGS = pytest.mark.parametrize(
    "settings",
    [
        {"norm_first": True, "rotary": True, "conv_kernel_size": 5},
        {"norm_first": False, "rotary": True, "conv_kernel_size": 0, "activation": "relu_squared"},
        {"norm_first": False, "rotary": False, "conv_kernel_size": 3},
    ],
    ids=["pre", "post", "post, learned positions"],
)


@pytest.fixture
def batches():
    features = PairFeatures(Ragged.from_rows(DOCUMENTS, "int32"), Ragged.from_rows(SUMMARIES, "int32"))
    return PairBatches(features, 2, 3, 0, 64, 8)


@pytest.fixture
def batch(batches):
    return batches.batch(np.arange(3))


def test_mask_by_hand():
    """Two tokens of the prompt, two of the summary, one of padding."""
    present = torch.tensor([[True, True, True, True, False]])
    in_prompt = torch.tensor([[True, True, False, False, False]])
    expected = [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]
    assert prefix_mask(present, in_prompt)[0, :4].int().tolist() == expected
    in_prompt[0, 4] = True
    assert prefix_mask(present, in_prompt)[0, :4].int().tolist() == expected


@KINDS
@SETTINGS
def test_who_sees_whom(make_writer, batch, kind, settings):
    """A document token is seen by the whole document and the summary, a summary token by itself and later ones."""
    model = make_writer(kind, **settings)
    before = model(batch).hidden_BLD
    for row, (document, summary) in enumerate(zip(DOCUMENTS, SUMMARIES, strict=True)):
        prompt_length, length = len(document) + 2, len(document) + 2 + len(summary)
        for place in range(length):
            ids = batch["input_ids"].clone()
            ids[row, place] = 19
            difference = (model({**batch, "input_ids": ids}).hidden_BLD - before).abs().amax(dim=-1)
            seeing = range(length) if place < prompt_length else range(place, length)
            for other in range(length):
                assert (difference[row, other] > 1e-4) == (other in seeing), (row, place, other)
            beside = [other for other in range(3) if other != row]
            assert (difference[beside] == 0).all()


@KINDS
@SETTINGS
def test_padding_and_neighbours_change_nothing(make_writer, batches, kind, settings):
    """Losses of the rows alone add up to that of all together, and what stands in the padding is of no account."""
    model = make_writer(kind, **settings)
    batch = batches.batch(np.arange(3))
    loss, num_correct = model.loss(batch, 0.1)
    alone = [model.loss(batches.batch(np.array([number])), 0.1) for number in range(3)]
    torch.testing.assert_close(loss, sum(each for each, _ in alone))
    assert num_correct == sum(each for _, each in alone)
    other = {**batch, "input_ids": batch["input_ids"].masked_fill(~batch["attention_mask"], 9)}
    torch.testing.assert_close(model.loss(other, 0.1)[0], loss)
    longer = {name: batch[name] for name in ("labels", "label_positions")}
    for name, padding in (("input_ids", 7), ("token_type_ids", 0), ("attention_mask", False)):
        more = torch.full((3, 5), padding, dtype=batch[name].dtype)
        longer[name] = torch.cat((batch[name], more), dim=1)
    torch.testing.assert_close(model.loss(longer, 0.1)[0], loss)


@KINDS
@SETTINGS
def test_loss_agrees_with_what_is_written(make_writer, batch, kind, settings):
    """Teacher forcing: minus the log-probabilities that generation gives to the summary and to its end.

    And the first choices that count as right are those of greedy decoding.
    """
    model = make_writer(kind, **settings)
    expected, num_right = 0.0, 0
    for document, summary in zip(DOCUMENTS, SUMMARIES, strict=True):
        targets = [*summary, 3]
        prompts = [[2, *document, 3]] * len(targets)
        with torch.inference_mode():
            found = model.recompute(prompts, [summary[:length] for length in range(len(targets))])
        torch.testing.assert_close(found.exp().sum(dim=-1), torch.ones(len(targets)))
        expected -= sum(found[place, target].item() for place, target in enumerate(targets))
        num_right += sum(int(found[place].argmax()) == target for place, target in enumerate(targets))
    loss, num_correct = model.loss(batch)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert num_correct.item() == num_right


@KINDS
def test_what_greedy_decoding_writes_is_right(make_writer, kind):
    """Every token of it is a first choice, and so is its end, if it came before the limit."""
    model = make_writer(kind, conv_kernel_size=3)
    texts = generate(model, [[2, *document, 3] for document in DOCUMENTS], Decoder(end_id=3, max_new_tokens=7))
    features = PairFeatures(Ragged.from_rows(DOCUMENTS, "int32"), Ragged.from_rows(texts, "int32"))
    batch = PairBatches(features, 2, 3, 0, 64, 8).batch(np.arange(3))
    num_ended = sum(len(text) < 7 for text in texts)
    assert sum(map(len, texts)) > 3
    assert model.loss(batch)[1].item() - sum(map(len, texts)) in range(num_ended, 4)
    batch["labels"] = torch.where(batch["labels"] >= 0, (batch["labels"] + 1) % 20, -1)
    assert model.loss(batch)[1] == 0


@KINDS
def test_label_smoothing_spreads_over_the_vocabulary(make_writer, batch, kind):
    """(1 - s) of the loss and s of the mean over all tokens, which copying has no part in."""
    model = make_writer(kind)
    plain = model.loss(batch)[0].item()
    counted = batch["labels"] >= 0
    hidden = model(batch).hidden_BLD
    rows = torch.arange(3)[:, None].expand(counted.shape)
    logits = hidden[rows, batch["label_positions"]] @ model.embedding.tokens.weight.T + model.output_bias
    even = -logits.log_softmax(dim=-1).mean(dim=-1)[counted].sum().item()
    assert model.loss(batch, 0.2)[0].item() == pytest.approx(0.8 * plain + 0.2 * even, rel=1e-5)


@KINDS
@SETTINGS
def test_every_parameter_gets_a_gradient(make_writer, batch, kind, settings):
    model = make_writer(kind, **settings, max_seq_len=32).train()
    model.loss(batch, 0.1)[0].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-4, name


@pytest.mark.parametrize("norm_first", [True, False])
def test_starts_undecided(make_writer, norm_first):
    """Guessing evenly among 1,000 tokens; while half is copied, those not in the document have half of the rest."""
    random = np.random.default_rng(0)
    documents = [list(random.integers(5, 500, 20)) for _ in range(20)]
    summaries = [list(random.integers(500, 1000, 10)) for _ in range(20)]
    features = PairFeatures(Ragged.from_rows(documents, "int32"), Ragged.from_rows(summaries, "int32"))
    batch = PairBatches(features, 2, 3, 0, 64, 20).batch(np.arange(20))
    batch["labels"] = batch["labels"].masked_fill(batch["labels"] == 3, -1)
    for kind, expected in (("summaries", math.log(1000)), ("copying", math.log(2000))):
        model = make_writer(kind, norm_first=norm_first, conv_kernel_size=3, vocab_size=1000, large_weights=False)
        assert model.loss(batch)[0].item() / 200 == pytest.approx(expected, abs=0.15)


@KINDS
@pytest.mark.parametrize("norm_first", [True, False])
def test_under_autocast(make_writer, batch, kind, norm_first):
    """Near the float32 loss, and gradients in float32."""
    model = make_writer(kind, norm_first=norm_first, conv_kernel_size=3).train()
    exact, _ = model.loss(batch, 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough, _ = model.loss(batch, 0.1)
    assert rough.dtype is torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=0.03)
    rough.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.run
def test_learns_to_copy(make_writer):
    """The summary is the document's token behind the mark: by copying, also for tokens that it was not trained on.

    Guessing among the document's tokens is right in one of seven; without copying, unseen tokens are never right.
    """
    random = np.random.default_rng(0)

    def made(number, low, high):
        documents, summaries = [], []
        for _ in range(number):
            ids = random.choice(np.arange(low, high), 7, replace=False).tolist()
            place = int(random.integers(6))
            ids.insert(place, 5)
            documents.append(ids)
            summaries.append([5, ids[place + 1]])
        rows = PairFeatures(Ragged.from_rows(documents, "int32"), Ragged.from_rows(summaries, "int32"))
        return PairBatches(rows, 2, 3, 0, 32, 4)

    train, test = made(512, 10, 60), made(100, 60, 90).batch(np.arange(100))
    model = make_writer("copying", vocab_size=90, conv_kernel_size=3, large_weights=False).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(120):
        batch = train.batch(np.arange(32 * (step % 16), 32 * (step % 16) + 32))
        loss = model.loss(batch)[0] / 96
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    test["labels"][:, [0, 2]] = -1
    assert model.eval().loss(test)[1] > 50


# -- a teacher ---------------------------------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_a_share_of_0_is_the_loss_without_a_teacher(make_writer, batch, kind, label_smoothing):
    model, teacher = make_writer(kind), make_writer(kind, norm_first=False)
    plain, plain_correct = model.loss(batch, label_smoothing)
    taught, taught_correct = model.loss(batch, label_smoothing, teacher, 0.0)
    assert (plain.item(), plain_correct.item()) == (pytest.approx(taught.item(), rel=1e-6), taught_correct.item())
    assert model.loss(batch, label_smoothing, teacher, 0.5)[0].item() != pytest.approx(plain.item(), rel=1e-3)


@KINDS
def test_a_model_that_is_its_own_teacher_has_nothing_to_learn(make_writer, batch, kind):
    model, teacher = make_writer(kind), make_writer(kind)
    loss, _ = model.loss(batch, 0.0, teacher, 1.0)
    loss.backward()
    assert abs(loss.item()) < 1e-4
    plain = make_writer(kind)
    plain.loss(batch)[0].backward()
    for (name, parameter), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert parameter.grad.abs().max() < 1e-3 * max(1.0, other.grad.abs().max()), name
    assert all(parameter.grad is None for parameter in teacher.parameters())


@KINDS
@pytest.mark.parametrize("teacher_kind", ["summaries", "copying"])
def test_the_divergence_is_that_of_what_is_written(make_writer, batch, kind, teacher_kind):
    """Token by token, from the log-probabilities that generation goes by, copying included."""
    model, teacher = make_writer(kind), make_writer(teacher_kind, norm_first=False)
    expected = 0.0
    for document, summary in zip(DOCUMENTS, SUMMARIES, strict=True):
        prompt = [2, *document, 3]
        for written in range(len(summary) + 1):
            student, taught = (each.recompute([prompt], [summary[:written]])[0] for each in (model, teacher))
            expected += (taught.exp() * (taught - student)).sum().item()
    assert model.loss(batch, 0.0, teacher, 1.0)[0].item() == pytest.approx(expected, rel=1e-3)
    assert expected > 1


@KINDS
def test_the_targets_that_fill_up_do_not_count_for_a_teacher(make_writer, batches, kind):
    model, teacher = make_writer(kind), make_writer(kind, norm_first=False)
    together = model.loss(batches.batch(np.arange(3)), 0.1, teacher, 0.5)[0]
    alone = [model.loss(batches.batch(np.array([number])), 0.1, teacher, 0.5)[0] for number in range(3)]
    torch.testing.assert_close(together, sum(alone))
