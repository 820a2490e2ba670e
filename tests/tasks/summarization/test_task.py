"""The summarization task end to end: it learns to sum up, and its numbers are those of its files."""

import json
import math
import re
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

import him
from him.config import Config
from him.core.errors import CheckpointError, ConfigError
from him.data.records import read_pairs
from him.metrics.bertscore import BertScorer, find_scorer_model
from him.metrics.rouge import rouge_scores
from him.tasks import evaluation
from him.tasks.summarization import features as pair_features
from him.tasks.summarization import task as summarization
from him.tasks.summarization.task import SummarizationTask
from him.workflows.predict import Predictor
from tests.small_runs import records, trained_writer, write_jsonl, writing_settings


@pytest.fixture(scope="module")
def settings() -> dict:
    return trained_writer("summarization")[0]


@pytest.fixture(scope="module")
def run() -> Path:
    return trained_writer("summarization")[1]


@pytest.fixture(scope="module")
def predictor(run) -> Predictor:
    return him.load(run)


@pytest.fixture
def task(settings) -> SummarizationTask:
    return SummarizationTask.prepare(SummarizationTask.resolve(Config(**settings)))


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


# -- learning ----------------------------------------------------------------------------------------------------------


def lead_1(path: str) -> dict[str, float]:
    """Scores of the first sentence of each document."""
    pairs = read_pairs(path).pairs
    first = [re.match(r".*?[.!?](?=\s|$)", pair.document, re.DOTALL)[0] for pair in pairs]
    return rouge_scores(first, [pair.summaries for pair in pairs])


@pytest.mark.slow
def test_it_beats_the_first_sentence(tmp_path):
    """Half a minute with 2,000 pairs of the built-in data: ROUGE-L 54 and ROUGE-2 40, where lead-1 has 30 and 16."""
    settings = writing_settings("summarization", tmp_path, num_train=2000, num_validation=100)
    more = {"embed_dim": 128, "num_encoder_layers": 3, "num_heads": 4, "dim_feedforward": 256, "conv_kernel_size": 5}
    more |= {"max_seq_len": 208, "max_target_len": 48, "vocab_size": 4000, "num_epochs": 2, "learning_rate": 2e-3}
    result = him.train(Config(**{**settings, **more}, optimizer="muon", word_dropout=0.05))
    baseline = lead_1(settings["validation_file"])
    assert result["metrics"]["ROUGE-L"] > baseline["ROUGE-L"] + 12
    assert result["metrics"]["ROUGE-2"] > baseline["ROUGE-2"] + 12


def test_untrained_loss_is_that_of_a_guess(settings, tmp_path):
    """ln V without copying; with it, a half of the mass is on the document's tokens, whose loss is lower."""
    more = {"max_steps": 1, "learning_rate": 1e-9, "copy_head": False, "attention_examples": 0}
    more |= {"output_dir": str(tmp_path), "bertscore_samples": 0}
    result = him.train(Config(**{**settings, **more}))
    vocab_size = len(read(Path(result["run"]) / "best" / "tokenizer.json")["model"]["vocab"])
    assert result["metrics"]["Loss"] == pytest.approx(math.log(vocab_size), abs=0.15)


def test_every_parameter_gets_a_gradient(task):
    torch.manual_seed(0)
    model = task.build_model()
    task.loss(model, task.train_batch(np.arange(16))).loss.backward()
    for name, parameter in model.named_parameters():
        # The same shift of all keys changes no weight.
        if not re.fullmatch(r"copy\.(previous_)?key\.bias|.*\.key\.bias|.*k_proj\.bias", name):
            assert parameter.grad is not None and parameter.grad.any(), name


@pytest.mark.parametrize(("batch_size", "length"), [(1, 32), (3, 60)])
def test_a_batch_to_time_is_like_one_to_train_on(task, batch_size, length):
    """A document, and behind it a summary whose every token but the first is in the row: each is predicted."""
    torch.manual_seed(0)
    model, batch = task.build_model().eval(), task.dummy_batch(batch_size, length)
    like = task.train_batch(np.arange(2))
    assert set(batch) == set(like)
    for name, values in batch.items():
        assert values.dtype == like[name].dtype, name
        assert values.shape[0] == batch_size and name.startswith("label") == (values.shape[1] < length), name
    assert torch.equal(batch["input_ids"].gather(1, batch["label_positions"] + 1), batch["labels"])
    assert torch.equal(batch["token_type_ids"].sum(dim=1), torch.full((batch_size,), batch["labels"].shape[1]))
    with torch.no_grad():
        sums = task.forward(model, batch)
    assert sums.num_targets == task.num_targets(batch) == batch["labels"].numel()
    assert 1 < float(sums.loss) / sums.num_targets < 2 * math.log(task.tokenizer.get_vocab_size())


# -- its numbers -------------------------------------------------------------------------------------------------------


def test_scores_are_those_of_the_predictions(settings, run):
    predictions, metrics = read(run / "predictions.json"), read(run / "best" / "metrics.json")
    pairs = read_pairs(settings["validation_file"]).pairs
    texts, references = [predictions[pair.id] for pair in pairs], [pair.summaries for pair in pairs]
    scores = rouge_scores(texts, references)
    assert scores == {name: metrics[name] for name in scores}
    if name := find_scorer_model(None):
        expected = BertScorer(name).f1(texts, [list(accepted) for accepted in references])
        assert metrics["BERTScore_F1"] == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("size", [1, 7])
def test_perplexity_recomputed_at_other_batch_sizes(run, settings, predictor, size):
    """exp(total loss / total targets) over full softmaxes mixed by hand, not by the model's own loss."""
    batches = predictor.task.batches_of(
        pair_features.build_pair_features(read_pairs(settings["validation_file"]), predictor.task.tokenizer)
    )
    total, targets = 0.0, 0
    for start in range(0, len(batches.lengths), size):
        for number in range(start, min(start + size, len(batches.lengths))):
            summary = batches.features.summaries[number][: batches.summary_room].tolist()
            with torch.no_grad():
                rows = [summary[:end] for end in range(len(summary) + 1)]
                found = predictor.model.recompute([batches.prompt(number)] * len(rows), rows)
            wanted = torch.tensor([*summary, batches.sep_id])
            total -= float(found.gather(1, wanted[:, None]).double().sum())
            targets += len(wanted)
    metrics = read(run / "best" / "metrics.json")
    assert metrics["Loss"] == pytest.approx(total / targets, rel=1e-4)
    assert metrics["Perplexity"] == pytest.approx(math.exp(total / targets), rel=1e-3)


@pytest.mark.parametrize("size", [1, 3])
def test_summaries_do_not_depend_on_the_batches(settings, predictor, size):
    expected = predictor.predict_file(settings["validation_file"])
    with mock.patch.object(summarization, "GENERATION_BATCH", size):
        assert predictor.predict_file(settings["validation_file"]) == expected


def test_one_text_is_summed_up_as_in_a_file(settings, predictor):
    answers = predictor.predict_file(settings["validation_file"])
    for pair in read_pairs(settings["validation_file"]).pairs[:4]:
        assert predictor.predict(text=pair.document) == answers[pair.id]


def test_evaluations_in_training_write_only_some(settings, tmp_path):
    """`--eval_samples`, spread over the validation pairs and the same ones each time; all of them at the end."""
    written = []
    original = SummarizationTask._write

    def write(task, model, compute, batches, numbers):
        written.append(list(numbers))
        return original(task, model, compute, batches, numbers)

    with mock.patch.object(SummarizationTask, "_write", write):
        more = {"output_dir": str(tmp_path), "attention_examples": 0, "bertscore_samples": 0, "num_epochs": 2}
        result = him.train(Config(**{**settings, **more}))
    assert written == [[0, 2, 5, 7], [0, 2, 5, 7], list(range(10))]
    run = Path(result["run"])
    assert len(read(run / "predictions.json")) == 10
    last = {record["tag"]: record["value"] for record in records(run) if record["step"] == result["best_step"]}
    assert last["Loss/val"] == result["metrics"]["Loss"], "the loss is always that of all pairs"


def test_bertscore_reads_only_some(settings, tmp_path):
    if find_scorer_model(None) is None:
        pytest.skip("its model is not installed")
    read_texts = []

    class Scorer:
        def __init__(self, *args, **kwargs) -> None:
            pass

        def f1(self, predictions, references):
            read_texts.append(len(predictions))
            return 0.5

    more = {"output_dir": str(tmp_path), "attention_examples": 0, "bertscore_samples": 3, "max_steps": 1}
    with mock.patch.object(evaluation, "BertScorer", Scorer):
        result = him.train(Config(**{**settings, **more}))
        assert (read_texts, result["metrics"]["BERTScore_F1"]) == ([3, 10], 0.5)
        metrics = him.train(Config(**{**settings, **more, "bertscore_samples": 0, "run_name": "none"}))["metrics"]
        assert "BERTScore_F1" not in metrics
    assert read_texts == [3, 10]


def test_several_references_count(settings, predictor, tmp_path):
    """The best of them for each text: with the text itself among them the score is perfect."""
    pairs = read_pairs(settings["validation_file"]).pairs[:3]
    texts = {pair.id: predictor.predict(text=pair.document).text for pair in pairs}
    lines = [{"document": pair.document, "summaries": [*pair.summaries, texts[pair.id]]} for pair in pairs]
    several = predictor.evaluate(str(write_jsonl(tmp_path / "several.jsonl", lines))).metrics
    single = him.load(predictor.config.output_dir + "/run", validation_size=3).evaluate(settings["validation_file"])
    assert several["ROUGE-L"] == pytest.approx(100.0)
    assert several["Loss"] == pytest.approx(single.metrics["Loss"]), "the loss is that of the first reference"
    assert single.metrics["ROUGE-L"] < 90
    assert len(single.predictions["predictions.json"]) == 3


def test_label_smoothing_is_for_training_only(settings):
    task = SummarizationTask.prepare(SummarizationTask.resolve(Config(**settings, label_smoothing=0.3, dropout=0.0)))
    torch.manual_seed(0)
    model = task.build_model()
    torch.nn.init.normal_(model.output_bias)  # or all tokens are nearly alike, with or without
    batch = task.train_batch(np.arange(4))
    with torch.no_grad():
        smooth, plain = float(task.loss(model, batch).loss), float(task.loss(model.eval(), batch).loss)
        assert plain == pytest.approx(float(model.loss(batch)[0]))
    assert abs(smooth - plain) > 0.01


# -- its data ----------------------------------------------------------------------------------------------------------


def test_prepared_data_is_used_again(settings, tmp_path):
    config = SummarizationTask.resolve(Config(**{**settings, "cache_dir": str(tmp_path)}))
    first = SummarizationTask.prepare(config)
    with mock.patch.object(pair_features, "build_pair_features", side_effect=AssertionError("built again")):
        second = SummarizationTask.prepare(config)
    assert first.tokenizer.to_str() == second.tokenizer.to_str()
    for name, tensor in first.train_batch(np.arange(8)).items():
        assert torch.equal(tensor, second.train_batch(np.arange(8))[name]), name


def test_what_is_cut_is_counted(settings, task, tmp_path):
    documents, summaries = (int(re.match(r"[\d,]+", note)[0]) for note in task.notes)
    lengths = task.train_batches.features
    assert documents == (lengths.documents.lengths > 128 - 32 - 1).sum() > 0
    assert summaries == (lengths.summaries.lengths > 31).sum()
    assert task.notes[0].endswith("of 96 training documents are longer than 95 tokens and are cut there; "
                                  "raise --max_seq_len to keep more")  # fmt: skip
    roomy = Config(**{**settings, "max_seq_len": 2000, "max_target_len": 500})
    assert SummarizationTask.prepare(SummarizationTask.resolve(roomy)).notes == ()


def test_a_long_document_is_cut_where_it_says(predictor):
    """What is beyond the limit changes nothing; what is before it does."""
    tokenizer, room = predictor.task.tokenizer, 128 - 32 - 1
    text = "the mill of Ann Bell " * 100
    num_tokens = len(tokenizer.encode(text, add_special_tokens=False).ids)
    answer = predictor.predict(text=text)
    assert answer.num_cut == num_tokens - room
    assert predictor.predict(text=text + "an entirely different end").text == answer.text
    assert predictor.task.line(answer) == f"{answer.text}  (the last {answer.num_cut:,} tokens were not read)"
    short = predictor.predict(text="Ann Bell built the mill.")
    assert (short.num_cut, predictor.task.line(short)) == (0, short.text)
    assert answer.num_tokens <= 32


def test_save_and_restore(task, tmp_path):
    task.save(tmp_path)
    assert SummarizationTask.restore(task.config, tmp_path).tokenizer.to_str() == task.tokenizer.to_str()
    for content in (None, "", "{}", '{"model": 3}'):
        path = tmp_path / "tokenizer.json"
        path.unlink() if content is None else path.write_text(content)
        with pytest.raises(CheckpointError, match="tokenizer.json: cannot be read.*; train the run again"):
            SummarizationTask.restore(task.config, tmp_path)


def test_no_room_for_a_document(settings):
    with pytest.raises(ConfigError, match="--max_seq_len 32 and --max_target_len 32 leave -1 tokens for a document"):
        SummarizationTask.prepare(SummarizationTask.resolve(Config(**{**settings, "max_seq_len": 32})))


def test_an_example_is_of_the_validation_data(predictor):
    (name, text), = predictor.task.example_inputs().items()  # fmt: skip
    assert name == "text"
    assert text == him.data.sample.summarization_sample(0, 1, 1)[1][0]["document"]


def test_samples_are_a_table_whatever_is_written(predictor):
    """Bars and line breaks would end cells and rows."""
    from him.data.records import Pair

    table = summarization._samples_table([(Pair("a|b", "d", ("one\ntwo | three",)), ""), (Pair("2", "d", ("x",)), "y")])
    lines = table.splitlines()
    assert lines[2:] == ["| a\\|b | (nothing) | one two \\| three |", "| 2 | y | x |"]
