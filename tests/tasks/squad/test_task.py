"""The squad task end to end: it learns to read, and its numbers are those of its files."""

import json
import math
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

import him
from him.config import Config
from him.core.errors import CheckpointError
from him.tasks.squad import answers as squad_answers
from him.tasks.squad import prepared as squad_prepared
from him.tasks.squad.loss import distilled_span_loss, span_loss
from him.tasks.squad.metrics import squad_scores, squad_v2_scores
from him.tasks.squad.model import FORBIDDEN_LOGIT, SpanOutput
from him.tasks.squad.reader import read_squad
from him.tasks.squad.task import SquadTask
from him.workflows.predict import Predictor
from tests.small_runs import trained_run


@pytest.fixture(scope="module")
def settings() -> dict:
    return trained_run(1)[0]


@pytest.fixture(scope="module")
def run() -> Path:
    return trained_run(1)[1]


@pytest.fixture(scope="module")
def v2_files() -> dict:
    return trained_run(2)[0]


@pytest.fixture(scope="module")
def v2_run() -> Path:
    return trained_run(2)[1]


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def references_of(path: str) -> dict[str, list[str]]:
    return {question.id: [answer.text for answer in question.answers] for question in read_squad(path).questions}


# -- learning ----------------------------------------------------------------------------------------------------------


def test_training_beats_no_training(settings, run):
    """240 questions of the built-in data; a seed's noise is about 3 points."""
    untrained = him.train(Config(**{**settings, "max_steps": 1, "learning_rate": 1e-9}, run_name="untrained"))[
        "metrics"
    ]
    trained = read(run / "best" / "metrics.json")
    assert trained["F1"] > untrained["F1"] + 15
    assert trained["Exact_Match"] > untrained["Exact_Match"] + 8
    assert trained["Loss"] < untrained["Loss"] - 0.7
    assert trained["Accuracy"] > untrained["Accuracy"] + 10


def test_untrained_loss_is_that_of_a_guess(settings):
    named = {**settings, "max_steps": 1, "learning_rate": 1e-9, "run_name": "guess"}
    loss = him.train(Config(**named))["metrics"]["Loss"]
    task = SquadTask.prepare(SquadTask.resolve(Config(**settings)))
    batches = task._batches(task.validation_features)
    batch = batches.batch(np.arange(len(batches.lengths)))
    guess = np.mean([batch[name].sum(dim=1).log().mean() for name in ("may_start", "may_end")])
    assert loss == pytest.approx(guess, abs=0.1)


def test_every_parameter_gets_a_gradient(settings):
    task = SquadTask.prepare(SquadTask.resolve(Config(**settings)))
    torch.manual_seed(0)
    model = task.build_model()
    task.loss(model, task.train_batch(np.arange(16))).loss.backward()
    missing = [
        name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    # The same shift of all logits changes no probability.
    assert set(missing) <= {"span.bias"}


# -- its numbers -------------------------------------------------------------------------------------------------------


def test_scores_are_those_of_the_predictions(settings, run):
    predictions, metrics = read(run / "predictions.json"), read(run / "best" / "metrics.json")
    scores = squad_scores(predictions, references_of(settings["validation_file"]))
    assert scores == {"F1": metrics["F1"], "Exact_Match": metrics["Exact_Match"]}
    assert metrics["F1"] > metrics["Exact_Match"] > 0


def test_v2_scores_are_those_of_the_predictions(v2_run, v2_files):
    metrics, references = read(v2_run / "best" / "metrics.json"), references_of(v2_files["validation_file"])
    scores = squad_v2_scores(read(v2_run / "predictions.json"), references)
    assert scores == {name: metrics[name] for name in scores}
    assert {"HasAns_F1", "NoAns_F1", "HasAns_Exact_Match", "NoAns_Exact_Match"} < scores.keys()


def test_the_threshold_is_tuned(v2_run, v2_files):
    """No other threshold gives a better F1 on the validation data, and some give a worse one."""
    references = references_of(v2_files["validation_file"])
    metrics = read(v2_run / "best" / "metrics.json")
    threshold = read(v2_run / "best" / "task.json")["no_answer_threshold"]
    probabilities = read(v2_run / "no_answer_probabilities.json")
    assert probabilities.keys() == references.keys()
    assert 0.0 < threshold < 1.0

    answers = him.load(v2_run).predict_file(v2_files["validation_file"])
    texts = {id: answer.text for id, answer in answers.items()}
    assert all(texts.values()), "the best span, also where there may be no answer"
    tried = [
        squad_v2_scores(texts, references, probabilities, each)["F1"] for each in (0.0, 1.0, *probabilities.values())
    ]
    assert max(tried) == pytest.approx(metrics["F1"])
    assert min(tried) < metrics["F1"] - 2
    predictions = read(v2_run / "predictions.json")
    for id, probability in probabilities.items():
        assert predictions[id] == ("" if probability > threshold else texts[id])
        assert answers[id].answerable == (probability <= threshold)
    assert len({bool(text) for text in predictions.values()}) == 2


def test_another_file_is_scored_with_the_tuned_threshold(v2_run, v2_files):
    """Tuned on the file itself, the scores would be too good."""
    predictor = him.load(v2_run)
    threshold = predictor.task.no_answer_threshold
    found = predictor.evaluate(v2_files["train_file"])
    assert predictor.task.no_answer_threshold == threshold
    references = references_of(v2_files["train_file"])
    assert squad_v2_scores(found.predictions["predictions.json"], references)["F1"] == found.metrics["F1"]


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_perplexity_recomputed_at_other_batch_sizes(request, settings, v2_files, kind, size):
    """exp(total loss / total targets) does not depend on how the windows fall into batches; a mean of means does."""
    folder = request.getfixturevalue("run" if kind == "v1" else "v2_run")
    path = (settings if kind == "v1" else v2_files)["validation_file"]
    predictor = him.load(folder)
    task, model = predictor.task, predictor.model
    batches = task._batches(task._features(read_squad(path)))
    total, targets = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(batches.lengths), size):
            batch = batches.batch(np.arange(start, min(start + size, len(batches.lengths))))
            output = model(batch)
            for logits, wanted in (
                (output.start_logits_BL, batch["start_targets"]),
                (output.end_logits_BL, batch["end_targets"]),
            ):
                total -= float((logits.double().log_softmax(1) * wanted).sum())
                targets += len(wanted)
    metrics = read(folder / "best" / "metrics.json")
    assert targets == 2 * len(batches.lengths)
    assert metrics["Loss"] == pytest.approx(total / targets, rel=1e-5)
    assert metrics["Perplexity"] == pytest.approx(math.exp(total / targets), rel=1e-4)


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_answers_do_not_depend_on_the_batches(run, settings, size):
    predictor = him.load(run)
    expected = predictor.predict_file(settings["validation_file"])
    with mock.patch.object(squad_answers, "EVALUATION_BATCH", size):
        found = predictor.predict_file(settings["validation_file"])
    for id, answer in expected.items():
        assert (found[id].text, found[id].start, found[id].end) == (answer.text, answer.start, answer.end)
        assert found[id].score == pytest.approx(answer.score, abs=1e-4)


def test_answers_are_parts_of_their_contexts(run, settings):
    data = read_squad(settings["validation_file"])
    contexts = {q.id: paragraph.context for paragraph in data.paragraphs for q in paragraph.questions}
    answers = him.load(run).predict_file(settings["validation_file"])
    assert answers.keys() == contexts.keys()
    for id, answer in answers.items():
        assert answer.text == contexts[id][answer.start : answer.end]
        assert answer.text == answer.text.strip() != ""
        assert 0 < answer.score <= 1
        assert answer.no_answer_probability == 0.0
        assert answer.answerable


def test_a_v1_model_on_a_v2_file_answers_everything(run, v2_files):
    found = him.load(run).evaluate(v2_files["validation_file"])
    assert all(found.predictions["predictions.json"].values())
    assert found.metrics["NoAns_F1"] == 0.0
    assert found.metrics["HasAns_F1"] > 0.0


# -- the loss ----------------------------------------------------------------------------------------------------------


def by_hand() -> tuple[SpanOutput, dict[str, torch.Tensor]]:
    """One row of four positions, of which three are allowed; two annotators disagree about the start."""
    start = torch.tensor([[0.0, math.log(2), math.log(5), FORBIDDEN_LOGIT]])
    end = torch.tensor([[0.0, 0.0, FORBIDDEN_LOGIT, 0.0]])
    allowed = {"may_start": start > FORBIDDEN_LOGIT, "may_end": end > FORBIDDEN_LOGIT}
    targets = {
        "start_targets": torch.tensor([[0.0, 0.5, 0.5, 0.0]]),
        "end_targets": torch.tensor([[0.0, 0.0, 0.0, 1.0]]),
    }
    return SpanOutput(start, end, []), {**allowed, **targets, "input_ids": torch.zeros(1, 4, dtype=torch.int64)}


def test_span_loss_by_hand():
    sums = span_loss(*by_hand())
    assert float(sums.loss) == pytest.approx(-0.5 * math.log(2 / 8) - 0.5 * math.log(5 / 8) + math.log(3))
    assert sums.num_targets == 2
    assert float(sums.num_correct) == 1.0  # the start; of the end, where all are alike, the first place counts


def test_label_smoothing_by_hand():
    """A tenth of the target goes to the three allowed positions evenly, none to the forbidden one."""
    sums = span_loss(*by_hand(), label_smoothing=0.1)
    third = 0.1 / 3
    start = -(third * math.log(1 / 8) + (0.45 + third) * (math.log(2 / 8) + math.log(5 / 8)))
    assert float(sums.loss) == pytest.approx(start + math.log(3))


def taught_by_hand() -> SpanOutput:
    """The teacher is sure of neither start nor end: 1/3 each of three positions, and 2/4, 1/4, 1/4."""
    start = torch.tensor([[1.0, 1.0, 1.0, FORBIDDEN_LOGIT]])
    return SpanOutput(start, torch.tensor([[math.log(2), 0.0, FORBIDDEN_LOGIT, 0.0]]), [])


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_distilled_span_loss_by_hand(share, label_smoothing):
    output, batch = by_hand()
    sums = distilled_span_loss(output, taught_by_hand(), batch, share, label_smoothing)
    of_start = sum(math.log((1 / 3) / (part / 8)) / 3 for part in (1, 2, 5))
    of_end = 0.5 * math.log(0.5 / (1 / 3)) + 2 * 0.25 * math.log(0.25 / (1 / 3))
    plain = span_loss(output, batch, label_smoothing)
    assert float(sums.loss) == pytest.approx((1 - share) * float(plain.loss) + share * (of_start + of_end), rel=1e-5)
    assert (sums.num_targets, float(sums.num_correct)) == (2, float(plain.num_correct))


def test_distilling_a_span_from_oneself_teaches_nothing():
    """Forbidden positions, whose logits are far below all others, make no NaN of it."""
    output, batch = by_hand()
    logits = [each.requires_grad_() for each in (output.start_logits_BL, output.end_logits_BL)]
    loss = distilled_span_loss(output, SpanOutput(*(each.detach() for each in logits), []), batch, 1.0).loss
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert all(each.grad.abs().max() < 1e-6 for each in logits)
    loss = distilled_span_loss(output, taught_by_hand(), batch, 1.0).loss
    gradients = torch.autograd.grad(loss, logits)
    assert all(torch.isfinite(each).all() and each.abs().max() > 0.05 for each in gradients)


@pytest.mark.parametrize("lexical_features", [True, False])
@pytest.mark.parametrize(("batch_size", "length"), [(1, 16), (3, 40)])
def test_a_batch_to_time_is_like_one_to_train_on(settings, lexical_features, batch_size, length):
    task = SquadTask.prepare(SquadTask.resolve(Config(**settings, lexical_features=lexical_features)))
    torch.manual_seed(0)
    model, batch = task.build_model().eval(), task.dummy_batch(batch_size, length)
    like = task.train_batch(np.arange(4))
    assert set(batch) <= set(like)
    for name, values in batch.items():
        assert values.shape == (batch_size, *(length if size == like["input_ids"].shape[1] else size
                                              for size in like[name].shape[1:])), name  # fmt: skip
        assert values.is_floating_point() == like[name].is_floating_point(), name
    with torch.no_grad():
        output, sums = task.forward(model, batch), task.loss(model, batch)
    assert output.start_logits_BL.shape == (batch_size, length)
    assert sums.num_targets == task.num_targets(batch) == 2 * batch_size
    assert float(sums.loss) == pytest.approx(float(span_loss(output, batch).loss), rel=1e-5)
    assert float(sums.loss) / sums.num_targets == pytest.approx(math.log(length), rel=0.2)


def test_label_smoothing_is_for_training_only(settings):
    task = SquadTask.prepare(SquadTask.resolve(Config(**settings, label_smoothing=0.3, dropout=0.0, word_dropout=0.0)))
    torch.manual_seed(0)
    model = task.build_model()
    torch.nn.init.normal_(model.span.weight)  # or all positions are alike, with or without
    batch = task.train_batch(np.arange(4))
    with torch.no_grad():
        smooth = float(task.loss(model, batch).loss)
        plain = float(task.loss(model.eval(), batch).loss)
        assert plain == pytest.approx(float(span_loss(model(batch), batch).loss))
    assert abs(smooth - plain) > 0.01


# -- its data ----------------------------------------------------------------------------------------------------------


def test_prepared_data_is_used_again(settings, tmp_path):
    config = SquadTask.resolve(Config(**{**settings, "cache_dir": str(tmp_path)}))
    first = SquadTask.prepare(config)
    with mock.patch.object(squad_prepared, "build_features", side_effect=AssertionError("built again")):
        second = SquadTask.prepare(config)
        with pytest.raises(AssertionError, match="built again"):
            SquadTask.prepare(SquadTask.resolve(Config(**{**settings, "cache_dir": str(tmp_path), "doc_stride": 16})))
    assert first.tokenizer.to_str() == second.tokenizer.to_str()
    assert first.train_lengths.tolist() == second.train_lengths.tolist()
    for name, tensor in first.train_batch(np.arange(8)).items():
        assert torch.equal(tensor, second.train_batch(np.arange(8))[name]), name


def test_sample_size_takes_the_first_questions(settings):
    task = SquadTask.prepare(SquadTask.resolve(Config(**settings, sample_size=10)))
    assert len(task.train_batches.features.questions) == 10
    assert task.validation.num_questions >= 60


def test_save_and_restore(settings, tmp_path):
    task = SquadTask.prepare(SquadTask.resolve(Config(**settings)))
    task.no_answer_threshold = 0.25
    task.save(tmp_path)
    again = SquadTask.restore(task.config, tmp_path)
    assert again.tokenizer.to_str() == task.tokenizer.to_str()
    assert again.frequencies.to_json() == task.frequencies.to_json()
    assert (again.no_answer_threshold, again.has_impossible) == (0.25, False)


@pytest.mark.parametrize("name", ["task.json", "tokenizer.json"])
@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"rarity": 3}'])
def test_damaged_files_of_a_model(settings, tmp_path, name, content):
    task = SquadTask.prepare(SquadTask.resolve(Config(**settings)))
    task.save(tmp_path)
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=rf"{name}: cannot be read.*; train the run again"):
        SquadTask.restore(task.config, tmp_path)


def test_the_best_model_is_the_one_that_was_evaluated_best(run):
    """Reloaded, the best model gives the F1 of its epoch in the records, and no epoch has a higher one."""
    values = {
        record["step"]: record["value"]
        for record in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        if record["tag"] == "F1/val"
    }
    metrics = read(run / "best" / "metrics.json")
    assert values[metrics["step"]] == metrics["F1"] == max(values.values())
    assert isinstance(him.load(run), Predictor)
