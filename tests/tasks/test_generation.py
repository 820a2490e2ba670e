"""What summarization and language modelling promise alike: what a run leaves behind, options, odd and tiny data."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import him
from him.config import Config
from him.core.errors import CheckpointError
from him.core.files import verify_folder
from him.metrics.bertscore import find_scorer_model
from him.metrics.diversity import distinct_n
from him.runs.checkpoint import load_tensors
from him.tasks import task_class
from him.tasks.base import LOWER_IS_BETTER
from him.tasks.generation import evenly_spread
from him.text.tokenizer import SEP, special_id
from tests.small_runs import (
    exact_records,
    records,
    sample_texts,
    scalar_series,
    trained_writer,
    tree,
    write_jsonl,
    writing_settings,
)

TASKS = ("summarization", "lm")
TRAIN_TAGS = {"Loss/train", "Accuracy/train", "Gradient_Norm/train", "Learning_Rate", "Throughput/tokens_per_second"}
BOTH_TAGS = {"Loss/val", "Perplexity/val", "Accuracy/val", "Diversity/distinct-1", "Diversity/distinct-2"}
ROUGE_TAGS = {"ROUGE-1/val", "ROUGE-2/val", "ROUGE-L/val", "ROUGE-Lsum/val"}
OWN_TAGS = {
    "summarization": ROUGE_TAGS | ({"BERTScore_F1/val"} if find_scorer_model(None) else set()),
    "lm": {"Bits_Per_Byte/val"},
}


@pytest.fixture(params=TASKS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def trained(kind) -> tuple[dict, Path]:
    return trained_writer(kind)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> dict[str, dict]:
    """Settings for short runs of both tasks, with a cache that they share."""
    made = {kind: writing_settings(kind, tmp_path_factory.mktemp(kind)) for kind in TASKS}
    return {kind: settings | {"max_steps": 2, "precision": "fp32"} for kind, settings in made.items()}


@pytest.fixture
def settings(small, kind, tmp_path) -> dict:
    return {**small[kind], "output_dir": str(tmp_path / "runs"), "run_name": "run"}


def read(path: Path) -> dict | list:
    return json.loads(path.read_text(encoding="utf-8"))


def events_of(run: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"tensors": 0})
    events.Reload()
    return events


# -- what a run leaves behind ------------------------------------------------------------------------------------------


def test_every_file_of_the_layout(trained):
    settings, run = trained
    names = {path.name.split(".tfevents.")[0] for path in run.iterdir()}
    assert names == {
        "config.json",
        "command.txt",
        "events.out",
        "metrics.jsonl",
        "checkpoints",
        "best",
        "predictions.json",
        ".lock",
    }
    best = {"config.json", "model.safetensors", "tokenizer.json", "metrics.json", "checksums.json"}
    assert {path.name for path in (run / "best").iterdir()} == best
    verify_folder(run / "best")
    assert len(list((run / "checkpoints").iterdir())) in (2, 3), "the last two and that of the best model"
    assert {path.name for path in run.parent.iterdir()} == {"run"}, "prepared data is where --cache_dir says"


def test_tags_are_exactly_those_of_the_design(kind, trained):
    _, run = trained
    assert set(scalar_series(run)) == TRAIN_TAGS | BOTH_TAGS | OWN_TAGS[kind]
    for record in records(run):
        assert record["stage"] == ("train" if record["tag"] in TRAIN_TAGS else "validation")


def test_values_are_in_the_promised_ranges(kind, trained):
    series = scalar_series(trained[1])
    for tag in OWN_TAGS["summarization"] & set(series) | {"Accuracy/val"}:
        assert all(0 <= value <= (1 if tag.startswith("BERT") else 100) for _, value in series[tag])
    for tag in ("Diversity/distinct-1", "Diversity/distinct-2"):
        assert all(0 <= value <= 1 for _, value in series[tag])
    for (_, loss), (_, perplexity) in zip(series["Loss/val"], series["Perplexity/val"], strict=True):
        assert perplexity == pytest.approx(math.exp(loss), rel=1e-5)
    assert series["Loss/val"][-1][1] < series["Loss/val"][0][1], "it learns something in three epochs"


def test_metrics_jsonl_holds_the_same_numbers(trained):
    found: dict[str, list] = {}
    for record in records(trained[1]):
        found.setdefault(record["tag"], []).append((record["step"], record["value"]))
    for tag, series in scalar_series(trained[1]).items():
        assert [step for step, _ in series] == [step for step, _ in found[tag]]
        if not tag.startswith("Throughput"):
            assert [value for _, value in series] == pytest.approx([value for _, value in found[tag]], rel=1e-6)


def test_text_samples_are_in_tensorboard(kind, trained):
    """A text at each evaluation, which holds the texts that were written."""
    settings, run = trained
    samples = events_of(run).Tensors("Samples/val/text_summary")
    assert len(samples) == 3
    text = samples[-1].tensor_proto.string_val[0].decode("utf-8")
    if kind == "lm":
        assert text.count("**") == 2 * settings["eval_samples"]
    else:
        assert text.startswith("| id | written | reference |")
        assert len(text.splitlines()) == 2 + settings["eval_samples"]


def test_predictions(kind, trained):
    """All validation pairs at the end; of a text, a few positions."""
    settings, run = trained
    predictions = read(run / "predictions.json")
    if kind == "lm":
        assert len(predictions) == settings["eval_samples"]
        text = Path(settings["validation_file"]).read_text(encoding="utf-8")
        assert all(sample["prompt"] and sample["prompt"] in text for sample in predictions)
        texts = [sample["text"] for sample in predictions]
    else:
        lines = Path(settings["validation_file"]).read_text(encoding="utf-8").splitlines()
        assert list(predictions) == [json.loads(line)["id"] for line in lines]
        texts = list(predictions.values())
    metrics = read(run / "best" / "metrics.json")
    for n in (1, 2):
        assert metrics[f"Diversity/distinct-{n}"] == distinct_n(texts, n)


def test_attention_pictures(trained):
    settings, run = trained
    folder = Path(settings["attention_dir"]) / "run"
    pictures = {f"epoch{epoch}_{example}_layer1.png" for epoch in (1, 2, 3) for example in (1, 2)}
    assert {path.name for path in folder.iterdir()} == pictures | {"index.html"}
    assert sorted(events_of(run).Tags()["images"]) == ["Attention/1/layer1", "Attention/2/layer1"]


def test_attention_examples_have_sections(kind, trained):
    settings, run = trained
    predictor = him.load(run)
    task = task_class(kind).prepare(predictor.config, run / "best")
    examples = task.attention_examples(predictor.model, predictor.compute, 2)
    assert [example.name for example in examples] == ["1", "2"]
    for example in examples:
        length = len(example.tokens)
        assert len(example.special) == length
        (weights,) = example.weights
        assert weights.shape == (2, length, length)
        assert weights.sum(axis=-1) == pytest.approx(np.ones((2, length)), abs=1e-5)
        sections = {name: (first, last) for name, first, last in example.sections}
        if kind == "lm":
            assert sections == {"text": (0, length - 1)}
            assert np.triu(weights, 1).max() == 0.0, "nothing looks ahead"
            continue
        first, last = sections["document"]
        assert (example.special[first - 1], example.special[last + 1]) == (True, True), "between [CLS] and [SEP]"
        assert not any(example.special[first : last + 1])
        assert example.title.startswith("Written: ")
        if "summary" in sections:
            assert sections["summary"] == (last + 2, length - 1)
            assert np.triu(weights, 1)[:, last + 2 :].max() == 0.0, "a summary does not look ahead"
        assert weights[:, first, last].min() > 0.0, "a document is read in both directions"


def test_the_best_model_is_the_one_that_was_evaluated_best(kind, trained):
    name = {"lm": "Bits_Per_Byte", "summarization": "ROUGE-L"}[kind]
    values = {record["step"]: record["value"] for record in records(trained[1]) if record["tag"] == f"{name}/val"}
    assert len(values) == 3
    best = min(values, key=values.get) if kind == "lm" else max(values, key=values.get)
    assert read(trained[1] / "best" / "metrics.json")["step"] == best
    assert (name in LOWER_IS_BETTER) == (kind == "lm")


def test_a_reloaded_run_gives_its_own_numbers(trained):
    settings, run = trained
    again = him.load(run, bertscore_samples=settings["bertscore_samples"]).evaluate(settings["validation_file"])
    expected = read(run / "best" / "metrics.json")
    assert again.metrics == {name: value for name, value in expected.items() if name not in ("step", "epoch")}
    assert again.predictions == {"predictions.json": read(run / "predictions.json")}


def test_using_a_run_changes_nothing_anywhere(trained, tmp_path, monkeypatch):
    """The evaluation of a file once put its prepared data into the cache of the run, or into ./runs if it had moved."""
    settings, run = trained
    monkeypatch.chdir(tmp_path)
    before = tree(run.parent.parent)
    predictor = him.load(run, cache_dir=None, output_dir="runs")
    predictor.predict(text="Ann Bell built the mill in 1902.")
    predictor.predict_file(settings["validation_file"])
    predictor.evaluate(settings["validation_file"])
    assert tree(run.parent.parent) == before
    assert list(tmp_path.iterdir()) == []


def test_the_same_settings_give_the_same_run(settings):
    runs = [Path(him.train(Config(**{**settings, "run_name": name}))["run"]) for name in "ab"]
    assert exact_records(runs[0]) == exact_records(runs[1])
    assert (runs[0] / "best" / "model.safetensors").read_bytes() == (
        runs[1] / "best" / "model.safetensors"
    ).read_bytes()


# -- options -----------------------------------------------------------------------------------------------------------

OPTIONS = {
    "post-LN": {"norm_first": False},
    "convolution": {"conv_kernel_size": 5},
    "characters": {"tokenizer_type": "char"},
    "word pieces": {"tokenizer_type": "wordpiece"},
    "muon": {"optimizer": "muon"},
    "learned positions": {"positions": "learned"},
    "averaged": {"ema_decay": 0.9, "label_smoothing": 0.1, "dropout": 0.2, "word_dropout": 0.1},
    "micro-batches": {"micro_batch_size": 3, "activation": "relu_squared"},
    "sampling": {"num_beams": 1, "temperature": 0.8, "top_k": 50, "top_p": 0.9},
    "beams": {"num_beams": 3, "no_repeat_ngram_size": 2, "length_penalty": 0.5},
    "bf16": {"precision": "bf16"},
}
OWN_OPTIONS = {
    "no copying": ("summarization", {"copy_head": False}),
    "one reference": ("summarization", {"validation_size": 1, "sample_size": 20}),
    "overlapping windows": ("lm", {"eval_stride": 16}),
    "part of the corpus": ("lm", {"sample_size": 5, "validation_size": 1}),
}


def run_and_reload(settings: dict) -> dict:
    """Trains, and checks that the run is usable and gives its own numbers again."""
    result = him.train(Config(**settings))
    assert all(map(math.isfinite, result["metrics"].values()))
    predictor = him.load(result["run"])
    again = predictor.evaluate(settings["validation_file"])
    assert again.metrics == result["metrics"]
    assert isinstance(predictor.predict(text="Ann Bell built the mill. " * 30).text, str)
    return result["metrics"]


@pytest.mark.parametrize("option", OPTIONS)
def test_options_of_both(settings, option):
    run_and_reload({**settings, **OPTIONS[option]})


@pytest.mark.parametrize("option", OWN_OPTIONS)
def test_options_of_one(small, tmp_path, option):
    kind, more = OWN_OPTIONS[option]
    run_and_reload({**small[kind], **more, "output_dir": str(tmp_path)})


def test_no_texts_are_written_if_none_are_wanted(kind, settings, capsys):
    """Summarization ended in a traceback after its first epoch, because there was no ROUGE-L to print."""
    result = him.train(Config(**{**settings, "eval_samples": 0}))
    losses = {"Loss", "Perplexity", "Accuracy"}
    assert set(result["metrics"]) == losses | ({"Bits_Per_Byte"} if kind == "lm" else set())
    run = Path(result["run"])
    assert not (run / "predictions.json").exists()
    assert events_of(run).Tags()["tensors"] == []
    assert "ROUGE" not in capsys.readouterr().out


def test_a_dry_run_makes_two_steps_of_everything(settings, tmp_path):
    more = {"dry_run": True, "max_steps": None, "batch_size": 4, "attention_examples": 1}
    result = him.train(Config(**{**settings, **more}, attention_dir=str(tmp_path / "pictures")))
    assert {record["step"] for record in records(Path(result["run"]))} == {2}
    assert list((tmp_path / "pictures" / "run").glob("*.png"))


# -- starting from another run -----------------------------------------------------------------------------------------


def test_init_from_takes_weights_and_tokenizer(kind, trained, settings):
    """One update with a vanishing rate leaves the weights of the earlier run; the new data has another vocabulary."""
    earlier = trained[1]
    more = {"init_from": str(earlier), "max_steps": 1, "learning_rate": 1e-12, "seed": 9}
    if kind == "lm":
        corpus = Path(settings["output_dir"]).parent / "other"
        corpus.mkdir()
        (corpus / "one.txt").write_text("Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. " * 40)
        more |= {"corpus_dir": str(corpus), "validation_file": None}
    else:
        more |= {"train_file": settings["validation_file"]}
    result = him.train(Config(**{**settings, **more}))
    before, after = (load_tensors(Path(run) / "best" / "model.safetensors") for run in (earlier, result["run"]))
    for name, weight in before.items():
        assert (weight - after[name]).abs().max() < 1e-6, name
    texts = [(Path(run) / "best" / "tokenizer.json").read_text() for run in (earlier, result["run"])]
    assert texts[0] == texts[1]
    assert isinstance(him.load(result["run"]).predict(text="Zwölf Boxkämpfer").text, str)


@pytest.mark.parametrize("more", [{"embed_dim": 64}, {"conv_kernel_size": 3}, {"num_encoder_layers": 2}])
def test_init_from_another_shape(trained, settings, more):
    with pytest.raises(CheckpointError, match=r"model.safetensors: .* has shape .*; give the model flags of that run$"):
        him.train(Config(**{**settings, **more}, init_from=str(trained[1])))
    assert not Path(settings["output_dir"]).exists()


@pytest.mark.parametrize(("positions", "fits"), [("rotary", True), ("learned", False)])
def test_init_from_a_run_of_shorter_sequences(kind, settings, positions, fits):
    """Rotary positions have no weights; learned ones have a row for each place."""
    earlier = him.train(Config(**{**settings, "run_name": "earlier", "positions": positions}))["run"]
    more = {"positions": positions, "max_seq_len": settings["max_seq_len"] + 16, "init_from": earlier}
    if fits:
        assert him.train(Config(**{**settings, **more}))["best_step"] == 2
    else:
        with pytest.raises(CheckpointError, match=r"positions.* has shape \[\d+, 32\], this model has \[\d+, 32\]"):
            him.train(Config(**{**settings, **more}))


def test_init_from_a_run_of_another_task(kind, settings):
    (other,) = set(TASKS) - {kind}
    with pytest.raises(CheckpointError, match=f"a {other} model, and --task_type is {kind}; name a run of {kind}$"):
        him.train(Config(**settings, init_from=str(trained_writer(other)[1])))
    assert not Path(settings["output_dir"]).exists()


# -- tiny and odd data -------------------------------------------------------------------------------------------------

ODD = "Zoë fuhr nach Łódź. 東京は大きい。 Ей 7 лет… 🦀🦀 e\u0301te\u0301 \u200b ½ ẞ [SEP] [PAD] </s> \ufffd\r\n\tEnde."


def data_of(kind: str, folder: Path, train: list[str], validation: list[str]) -> dict:
    """Files of texts: for summarization each is a document, whose last word is its summary."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {}
    for name, texts in (("train", train), ("validation", validation)):
        if kind == "summarization":
            pairs = [{"document": text, "summary": text.split()[-1]} for text in texts]
            named[f"{name}_file"] = str(write_jsonl(folder / f"{name}.jsonl", pairs))
        else:
            path = folder / f"{name}.txt"
            path.write_bytes("\n".join(texts).encode())
            named[f"{name}_file"] = str(path)
    return named | {"corpus_dir": None}


def test_one_example(kind, settings, tmp_path):
    """Fewer than a batch: one pair, or a text of one sequence, to train on and to validate on."""
    text = "The mill was built by Ann Bell in 1902 and sold to the town of Norwick in 1910."
    more = data_of(kind, tmp_path / "data", [text], [text]) | {"batch_size": 64, "max_steps": None, "num_epochs": 2}
    more |= {"max_seq_len": 16, "max_target_len": 8} if kind == "summarization" else {"max_seq_len": 16}
    more |= {"attention_examples": 2, "attention_dir": str(tmp_path / "pictures")}
    metrics = run_and_reload({**settings, **more})
    assert metrics["Loss"] > 0
    pictures = {path.name for path in (tmp_path / "pictures" / "run").glob("*.png")}
    assert {"epoch1_1_layer1.png", "epoch2_1_layer1.png"} <= pictures


def test_texts_of_one_word(kind, settings, tmp_path):
    words = [word for word in sample_texts()[0][0].split() if word.isalpha()][:40]
    more = data_of(kind, tmp_path / "data", words, words[:4])
    if kind == "lm":
        more |= {"max_seq_len": 16}
    run_and_reload({**settings, **more})


@pytest.mark.parametrize("tokenizer_type", ["bpe", "wordpiece", "char"])
def test_texts_in_any_script(kind, settings, tmp_path, tokenizer_type):
    more = data_of(kind, tmp_path / "data", [ODD + f" {number} Ende." for number in range(8)], [ODD * 2])
    more |= {"tokenizer_type": tokenizer_type, "validation_size": None}
    run = him.train(Config(**{**settings, **more}))["run"]
    for text in (ODD, "x", "\u200b", "東京", "[SEP]", "[CLS] [PAD] [MASK] [UNK]", "\x00", "a" * 3000, "🦀" * 50):
        answer = him.load(run, num_beams=1, temperature=1.0).predict(text=text)
        assert isinstance(answer.text, str)
        assert "[" not in answer.text or "[SEP]" not in answer.text
    json.dumps(read(Path(run) / "predictions.json"))


def test_line_ends_of_windows(kind, settings, tmp_path):
    """Read as they are, and nothing is lost in counting."""
    texts = sample_texts()[0][:6]
    if kind == "lm":
        texts = ["\r\n".join(text.split("\n")) for text in texts]
    more = data_of(kind, tmp_path / "data", texts, texts[:2])
    if kind == "summarization":
        for name in ("train_file", "validation_file"):
            path = Path(more[name])
            path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    run_and_reload({**settings, **more})


# -- nothing written ---------------------------------------------------------------------------------------------------


def always_ends(predictor) -> None:
    """Makes a model that writes the end token first, whatever it reads."""
    bias = predictor.model.output_bias
    torch.nn.init.zeros_(bias)
    bias.data[special_id(predictor.task.tokenizer, SEP)] = 60.0
    if getattr(predictor.model, "copy", None) is not None:
        torch.nn.init.zeros_(predictor.model.copy.gate.weight)
        torch.nn.init.constant_(predictor.model.copy.gate.bias, -60.0)


@pytest.mark.parametrize("more", [{"num_beams": 1}, {"num_beams": 4}, {"num_beams": 1, "temperature": 1.0}])
def test_empty_texts_break_no_metric(kind, trained, more):
    settings, run = trained
    predictor = him.load(run, **more)
    always_ends(predictor)
    assert predictor.predict(text="Ann Bell built the mill.").text == ""
    found = predictor.evaluate(settings["validation_file"])
    predictions = found.predictions["predictions.json"]
    texts = list(predictions.values()) if kind == "summarization" else [sample["text"] for sample in predictions]
    assert set(texts) == {""}
    for name, value in found.metrics.items():
        assert math.isfinite(value), name
        if name.startswith(("ROUGE", "Diversity", "BERTScore")):
            assert value == 0.0, name
    assert found.samples
    if kind == "lm" and more["num_beams"] == 1:
        assert list(predictor.stream(text="Ann")) == []


def test_evenly_spread():
    assert evenly_spread(5, None) == evenly_spread(5, 9) == [0, 1, 2, 3, 4]
    assert evenly_spread(10, 3) == [0, 3, 6]
    assert evenly_spread(10, 0) == []
    for wanted in (1, 7, 99):
        numbers = evenly_spread(100, wanted)
        assert len(set(numbers)) == wanted
        assert sorted(numbers) == numbers
        assert numbers[-1] < 100
