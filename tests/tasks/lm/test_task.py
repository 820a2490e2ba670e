"""The language modelling task end to end: it learns a text, and its numbers are those of its files."""

import json
import math
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

import him
from him.config import Config
from him.core.errors import CheckpointError, DataError
from him.tasks.lm import corpus
from him.tasks.lm.task import LanguageModelingTask
from him.text.tokenizer import plain_text_tokenizer
from him.workflows.predict import Predictor
from tests.small_runs import trained_writer, write_jsonl, writing_settings

TEXT = "Ann Bell built the mill in 1902. Her brother Tom Reed sold it to the town of Norwick in 1910."


@pytest.fixture(scope="module")
def settings() -> dict:
    return trained_writer("lm")[0]


@pytest.fixture(scope="module")
def run() -> Path:
    return trained_writer("lm")[1]


@pytest.fixture(scope="module")
def predictor(run) -> Predictor:
    return him.load(run)


@pytest.fixture
def task(settings) -> LanguageModelingTask:
    return LanguageModelingTask.prepare(LanguageModelingTask.resolve(Config(**settings)))


def read(path: Path) -> dict | list:
    return json.loads(path.read_text(encoding="utf-8"))


# -- learning ----------------------------------------------------------------------------------------------------------


def unigram_entropy(task: LanguageModelingTask) -> float:
    """Nats a validation token costs who knows only how often each occurs in training (one added to each count)."""
    counts = Counter(task.corpus.train.ids.tolist())
    total = sum(counts.values()) + task.tokenizer.get_vocab_size()
    ids = task.corpus.validation.ids[1:].tolist()
    return -sum(math.log((counts[id] + 1) / total) for id in ids) / len(ids)


@pytest.mark.parametrize("norm_first", [True, False])
def test_it_beats_the_frequencies_of_tokens(tmp_path, norm_first):
    """Some 150 steps of a small model; bigrams alone are worth more than the bound."""
    more = {"vocab_size": 1000, "embed_dim": 64, "max_seq_len": 32, "learning_rate": 1e-2, "num_epochs": 6}
    settings = writing_settings("lm", tmp_path, num_train=80) | more
    result = him.train(Config(**settings, norm_first=norm_first, optimizer="muon"))
    task = LanguageModelingTask.prepare(LanguageModelingTask.resolve(Config(**settings)))
    entropy = unigram_entropy(task)
    assert result["metrics"]["Loss"] < entropy - 1.0
    text = task.corpus.validation
    assert result["metrics"]["Bits_Per_Byte"] < (entropy - 1.0) / math.log(2) * (len(text.ids) - 1) / text.num_bytes


def test_untrained_loss_is_that_of_a_guess(settings, tmp_path):
    more = {"max_steps": 1, "learning_rate": 1e-9, "attention_examples": 0, "output_dir": str(tmp_path)}
    result = him.train(Config(**{**settings, **more}))
    vocab_size = len(read(Path(result["run"]) / "best" / "tokenizer.json")["model"]["vocab"])
    assert result["metrics"]["Loss"] == pytest.approx(math.log(vocab_size), abs=0.1)


def test_every_parameter_gets_a_gradient(task):
    torch.manual_seed(0)
    model = task.build_model()
    task.loss(model, task.train_batch(np.arange(16))).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


@pytest.mark.parametrize(("batch_size", "length"), [(1, 16), (3, 40)])
def test_a_batch_to_time_is_like_one_to_train_on(task, batch_size, length):
    torch.manual_seed(0)
    model, batch = task.build_model().eval(), task.dummy_batch(batch_size, length)
    like = task.train_batch(np.arange(2))
    assert set(batch) == set(like)
    for name, values in batch.items():
        assert (values.shape, values.dtype) == ((batch_size, length), like[name].dtype), name
    assert torch.equal(batch["input_ids"][:, 1:], batch["labels"][:, :-1])
    with torch.no_grad():
        sums = task.forward(model, batch)
    assert sums.num_targets == task.num_targets(batch) == batch_size * length
    assert float(sums.loss) / sums.num_targets == pytest.approx(math.log(task.tokenizer.get_vocab_size()), rel=0.05)


# -- its numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [64, 20, 1])
def test_bits_per_byte_by_hand(run, settings, stride):
    """Every token once, each seen with the tokens that its window has, by one forward pass for each window."""
    predictor = him.load(run, eval_stride=stride)
    path = Path(settings["validation_file"])
    text = path.read_text(encoding="utf-8")
    if stride == 1:
        text = text[:600]
        path = path.with_name("short.txt")
        path.write_text(text, encoding="utf-8")
    tokenizer = plain_text_tokenizer(predictor.task.tokenizer)
    ids = [predictor.task.end_id, *tokenizer.encode(text, add_special_tokens=False).ids]
    nats, num_correct, done = 0.0, 0, 0
    while done < len(ids) - 1:
        end = min(done + (64 if done == 0 else stride), len(ids) - 1)
        window = torch.tensor([ids[max(0, end - 64) : end]])
        with torch.no_grad():
            hidden = predictor.model({"input_ids": window}).hidden_BLD[0, -(end - done) :]
            found = predictor.model._log_probabilities(hidden)
        wanted = torch.tensor(ids[done + 1 : end + 1])
        nats -= float(found.gather(1, wanted[:, None]).double().sum())
        num_correct += int((found.argmax(dim=1) == wanted).sum())
        done = end
    metrics = predictor.evaluate(str(path)).metrics
    assert metrics["Bits_Per_Byte"] == pytest.approx(nats / math.log(2) / len(text.encode()), rel=1e-5)
    assert metrics["Perplexity"] == pytest.approx(math.exp(nats / (len(ids) - 1)), rel=1e-4)
    assert metrics["Accuracy"] == pytest.approx(100 * num_correct / (len(ids) - 1), abs=0.1)
    if stride == 64:
        assert metrics["Bits_Per_Byte"] == read(run / "best" / "metrics.json")["Bits_Per_Byte"]


def test_a_folder_is_measured_too(predictor, settings, tmp_path):
    """It was refused as no file. Two documents: the second one's tokens count once, and no byte is lost."""
    text = Path(settings["validation_file"]).read_text(encoding="utf-8")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.txt").write_text(text[:3000], encoding="utf-8")
    (tmp_path / "b.txt").write_text(text[3000:], encoding="utf-8")
    both = predictor.evaluate(str(tmp_path)).metrics
    whole = predictor.evaluate(settings["validation_file"]).metrics
    assert both["Bits_Per_Byte"] == pytest.approx(whole["Bits_Per_Byte"], rel=0.02)
    first = him.load(predictor.config.output_dir + "/run", validation_size=1).evaluate(str(tmp_path)).metrics
    assert first["Bits_Per_Byte"] != both["Bits_Per_Byte"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no .txt file in it or below"):
        predictor.evaluate(str(tmp_path / "empty"))


def test_label_smoothing_is_for_training_only(settings):
    config = LanguageModelingTask.resolve(Config(**settings, label_smoothing=0.3, dropout=0.0))
    task = LanguageModelingTask.prepare(config)
    torch.manual_seed(0)
    model = task.build_model()
    torch.nn.init.normal_(model.output_bias)  # or all tokens are nearly alike, with or without
    batch = task.train_batch(np.arange(4))
    with torch.no_grad():
        smooth, plain = float(task.loss(model, batch).loss), float(task.loss(model.eval(), batch).loss)
    assert abs(smooth - plain) > 1


def test_prompts_of_samples_do_not_cross_documents(task):
    end = task.end_id
    ids = np.array([end, 9, 9, end, *[8] * 30], np.uint16)
    for prompt in task._sample_prompts(ids):
        assert prompt
        assert end not in prompt[1:]


# -- continuing a text -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"temperature": 1.0}, {"temperature": 1.5, "top_k": 200, "seed": 4}])
@pytest.mark.parametrize("text", [TEXT, "", "東京 🦀", TEXT * 9])
def test_streaming_gives_the_same_text(run, more, text):
    """Greedy and sampling, with a long prompt that is read from its end, and characters of several bytes."""
    predictor = him.load(run, max_new_tokens=90, **more)
    answer = predictor.predict(text=text)
    pieces = list(predictor.stream(text=text))
    assert "".join(pieces) == answer.text
    assert answer.num_tokens <= 90
    assert predictor.predict(text=text) == answer, "the seed decides"
    if more:
        assert predictor.task.config.temperature > 0
        assert len(pieces) > 5
        other = him.load(run, max_new_tokens=90, **{**more, "seed": 5}).predict(text=text)
        assert other.text != answer.text


def test_a_character_that_is_never_completed_is_streamed_too(predictor):
    """The end of the stream was lost where the last bytes made no character; the JSON result had it."""
    tokenizer = predictor.task.tokenizer
    ids = tokenizer.encode("mill 🦀", add_special_tokens=False).ids
    cut = ids[: next(n for n in range(len(ids), 0, -1) if tokenizer.decode(ids[:n]).endswith("\ufffd"))]
    with mock.patch("him.tasks.lm.task.stream", lambda *args: iter(cut)):
        pieces = list(predictor.stream(text=TEXT))
    assert "".join(pieces) == tokenizer.decode(cut)
    assert pieces[-1].endswith("\ufffd")


@pytest.mark.parametrize("tokenizer_type", ["wordpiece", "char"])
def test_streaming_with_other_tokenizers(settings, tmp_path, tokenizer_type):
    """Bytes that make no character come out otherwise with those around them, so they wait for what follows."""
    more = {"tokenizer_type": tokenizer_type, "output_dir": str(tmp_path), "max_steps": 2, "attention_examples": 0}
    run = him.train(Config(**{**settings, **more}))["run"]
    text = "it's done, isn't it?"
    for seed in range(3):
        predictor = him.load(run, temperature=1.0, seed=seed, max_new_tokens=60)
        assert "".join(predictor.stream(text=text)) == predictor.predict(text=text).text


def test_beam_search_is_not_streamed(run):
    assert him.load(run, num_beams=3).stream(text=TEXT) is None


def test_no_more_tokens_than_asked_for(run):
    assert him.load(run, max_new_tokens=1, temperature=1.0).predict(text=TEXT).num_tokens <= 1
    counts = [him.load(run, max_new_tokens=7, num_beams=n).predict(text=TEXT).num_tokens for n in (1, 2)]
    assert max(counts) <= 7


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_texts_longer_than_the_context(settings, tmp_path, positions):
    """The window moves on; learned positions have no row beyond it."""
    more = {"positions": positions, "output_dir": str(tmp_path), "max_steps": 2, "attention_examples": 0}
    run = him.train(Config(**{**settings, **more}))["run"]
    predictor = him.load(run, max_new_tokens=150)
    answer = predictor.predict(text=TEXT * 5)
    num_tokens = len(predictor.task.tokenizer.encode(TEXT * 5, add_special_tokens=False).ids)
    assert 64 - 32 <= num_tokens - answer.num_cut <= 64, "what is said to be cut is what is not read"
    assert predictor.predict(text="the mill").num_cut == 0
    far, near = (him.load(run, max_new_tokens=3).predict(text=start + TEXT * 5).text for start in ("", "the " * 64))
    assert far == near, "the beginning is not read"


@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".csv"])
def test_files_of_prompts(predictor, tmp_path, ending):
    path = tmp_path / f"prompts{ending}"
    if ending == ".txt":
        path.write_text(f"{TEXT}\n")
        expected = {"0": TEXT}
    elif ending == ".jsonl":
        write_jsonl(path, [{"id": "a", "text": TEXT}, {"id": 7, "text": "the mill\nof"}])
        expected = {"a": TEXT, "7": "the mill\nof"}
    else:
        path.write_text(f'text,id\n"{TEXT}",x\n')
        expected = {"x": TEXT}
    answers = predictor.predict_file(str(path))
    assert list(answers) == list(expected)
    for id, text in expected.items():
        assert answers[id] == predictor.predict(text=text)


# -- its data ----------------------------------------------------------------------------------------------------------


def test_prepared_data_is_used_again(settings, tmp_path):
    config = LanguageModelingTask.resolve(Config(**{**settings, "cache_dir": str(tmp_path)}))
    first = LanguageModelingTask.prepare(config)
    with mock.patch.object(corpus, "_build", side_effect=AssertionError("built again")):
        second = LanguageModelingTask.prepare(config)
    assert first.train_digest == second.train_digest
    torch.manual_seed(3)
    batch = first.train_batch(np.arange(8))
    torch.manual_seed(3)
    for name, tensor in second.train_batch(np.arange(8)).items():
        assert torch.equal(tensor, batch[name]), name


def test_the_digest_is_the_same_for_a_trained_and_a_loaded_tokenizer(settings, tmp_path):
    """What `main.py` began, `scripts/compress.py` goes on with: it loads the tokenizer that the run has trained."""
    config = LanguageModelingTask.resolve(Config(**{**settings, "cache_dir": str(tmp_path / "cache")}))
    first = LanguageModelingTask.prepare(config)
    first.save(tmp_path)
    second = LanguageModelingTask.prepare(config, tokenizer_folder=tmp_path)
    assert first.corpus.digest != second.corpus.digest
    assert first.train_digest == second.train_digest


def test_the_digest_tells_corpora_of_one_length_apart(settings, tmp_path):
    """By the lengths of its examples, which are all the same, another corpus would not be noticed."""
    digests = set()
    for name in ("a", "b"):
        path = tmp_path / f"{name}.txt"
        path.write_text(f"{name} mill stood on the river Norwick. " * 100)
        more = {"corpus_dir": None, "train_file": str(path), "tokenizer_type": "char"}
        task = LanguageModelingTask.prepare(LanguageModelingTask.resolve(Config(**{**settings, **more})))
        digests.add((task.train_digest, len(task.train_lengths)))
    assert len({digest for digest, _ in digests}) == 2
    assert len({length for _, length in digests}) == 1


def test_a_corpus_shorter_than_a_sequence(settings, tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("mill\n" * 20)
    more = {"corpus_dir": None, "train_file": str(path), "tokenizer_type": "char"}
    message = r"short.txt: \d+ tokens to train on are less than one sequence; use more text, or --seq_len \d+ or less$"
    with pytest.raises(DataError, match=message) as raised:
        LanguageModelingTask.prepare(LanguageModelingTask.resolve(Config(**{**settings, **more, "max_seq_len": 128})))
    advised = int(str(raised.value).split("--seq_len ")[1].split()[0])
    LanguageModelingTask.prepare(LanguageModelingTask.resolve(Config(**{**settings, **more, "max_seq_len": advised})))


def test_save_and_restore(task, tmp_path):
    task.save(tmp_path)
    again = LanguageModelingTask.restore(task.config, tmp_path)
    assert again.tokenizer.to_str() == task.tokenizer.to_str()
    marks = "[SEP] and [PAD]"
    assert again.tokenizer.encode(marks).ids == task.tokenizer.encode(marks).ids
    assert task.end_id not in again.tokenizer.encode(marks).ids, "within a text it is ordinary text"
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="tokenizer.json: cannot be read.*; train the run again"):
        LanguageModelingTask.restore(task.config, tmp_path)
