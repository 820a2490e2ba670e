"""`main.py` as its users type it: flags, files, what a run leaves behind, and `him` from Python."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import him
from him.config import Config
from him.core.files import verify_folder
from tests.small_runs import (
    ROOT,
    SETTINGS,
    assert_one_line,
    call_main,
    call_script,
    flags,
    records,
    run_main,
    sample_documents,
    scalar_series,
    small_settings,
    trained_writer,
    tree,
    write_jsonl,
    writing_settings,
)

# design.md, section 7
TRAIN_TAGS = {"Loss/train", "Accuracy/train", "Gradient_Norm/train", "Learning_Rate", "Throughput/tokens_per_second"}
VALIDATION_TAGS = {
    "Loss/val",
    "Perplexity/val",
    "Accuracy/val",
    "F1/val",
    "Exact_Match/val",
    "Diversity/distinct-1",
    "Diversity/distinct-2",
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> dict:
    return small_settings(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def sample_run(tmp_path_factory) -> tuple[Path, "subprocess.CompletedProcess"]:
    """One run on the built-in data, in a process of its own."""
    output = tmp_path_factory.mktemp("sample")
    typed = SETTINGS | {"dataset": "sample", "sample_size": 200, "run_name": "run", "output_dir": output}
    typed |= {"attention_examples": 1, "attention_dir": output / "pictures"}
    # A terminal of another encoding, because the epoch lines have arrows, which ASCII lacks.
    return output / "run", run_main(*flags(typed), environment={"PYTHONIOENCODING": "ascii"})


# -- a whole run -------------------------------------------------------------------------------------------------------


def test_it_ends_well(sample_run):
    run, finished = sample_run
    assert (finished.status, finished.err) == (0, "")
    lines = finished.out.splitlines()
    assert any(line.startswith("epoch 1/2  loss ") for line in lines)
    assert any(line.startswith(f"best model: {run}/best, of epoch ") for line in lines)


def test_every_file_of_the_layout(sample_run):
    run, _ = sample_run
    names = {path.name.split(".tfevents.")[0] for path in run.iterdir()}
    expected = {"config.json", "command.txt", "events.out", "metrics.jsonl", "checkpoints", "best", "predictions.json"}
    assert names == expected | {".lock"}
    best = {"config.json", "model.safetensors", "tokenizer.json", "metrics.json", "task.json", "checksums.json"}
    assert {path.name for path in (run / "best").iterdir()} == best
    verify_folder(run / "best")
    for checkpoint in (run / "checkpoints").iterdir():
        verify_folder(checkpoint)
    assert len(list((run / "checkpoints").iterdir())) == 2


def test_one_event_file_and_no_second_run_beside_it(sample_run):
    """The HParams tab of `SummaryWriter.add_hparams` would be a run of its own in TensorBoard."""
    run, _ = sample_run
    assert len(list(run.parent.rglob("events.out.tfevents.*"))) == 1
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run))
    events.Reload()
    assert len(events.PluginTagToContent("hparams")) == 3


def test_tags_are_exactly_those_of_the_design(sample_run):
    run, _ = sample_run
    assert set(scalar_series(run)) == TRAIN_TAGS | VALIDATION_TAGS


def test_values_are_in_the_promised_ranges(sample_run):
    series = scalar_series(sample_run[0])
    for tag in ("F1/val", "Exact_Match/val", "Accuracy/val", "Accuracy/train"):
        assert all(0 <= value <= 100 for _, value in series[tag])
        assert max(value for _, value in series[tag]) > 1, "percent"
    for tag in ("Diversity/distinct-1", "Diversity/distinct-2"):
        assert all(0 < value <= 1 for _, value in series[tag])
    for (_, loss), (_, perplexity) in zip(series["Loss/val"], series["Perplexity/val"], strict=True):
        assert perplexity == pytest.approx(math.exp(loss), rel=1e-5)


def test_metrics_jsonl_holds_the_same_numbers(sample_run):
    run, _ = sample_run
    found: dict[str, list] = {}
    for record in records(run):
        assert list(record) == ["step", "epoch", "stage", "tag", "value"]
        assert record["stage"] == ("train" if record["tag"] in TRAIN_TAGS else "validation")
        found.setdefault(record["tag"], []).append((record["step"], record["value"]))
    for tag, series in scalar_series(run).items():
        assert [step for step, _ in series] == [step for step, _ in found[tag]]
        if not tag.startswith("Throughput"):
            assert [value for _, value in series] == pytest.approx([value for _, value in found[tag]], rel=1e-6)


def test_predictions_are_in_the_official_format(sample_run):
    predictions = json.loads((sample_run[0] / "predictions.json").read_text(encoding="utf-8"))
    _, validation = sample_documents()
    paragraphs = [paragraph for article in validation["data"] for paragraph in article["paragraphs"]]
    context_of = {qa["id"]: paragraph["context"] for paragraph in paragraphs for qa in paragraph["qas"]}
    assert predictions.keys() == context_of.keys()
    assert all(text and text in context_of[id] for id, text in predictions.items())


def test_config_and_command_tell_how_the_run_was_made(sample_run):
    run, _ = sample_run
    config = Config.load(run / "config.json")
    assert (config.dataset, config.embed_dim, config.num_epochs) == ("sample", 32, 2)
    assert config.dropout is not None, "the task's own defaults are written out"
    assert config == Config.load(run / "best" / "config.json")
    command = (run / "command.txt").read_text()
    assert command.startswith("python main.py --embed_dim 32 --num_encoder_layers 1 ")
    assert command.endswith("\n")


def test_attention_pictures(sample_run):
    folder = sample_run[0].parent / "pictures" / "run"
    assert {path.name for path in folder.iterdir()} == {"epoch1_1_layer1.png", "epoch2_1_layer1.png", "index.html"}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(sample_run[0]))
    events.Reload()
    assert all(tag.startswith("Attention/") for tag in events.Tags()["images"])
    assert len(events.Tags()["images"]) == 1


def test_python_gives_what_the_command_line_prints(settings, tmp_path):
    named = {**settings, "output_dir": str(tmp_path)}
    finished = call_main(*flags({**named, "run_name": "typed"}))
    result = him.train(him.Config(**named, run_name="called"))
    assert finished.status == 0
    table = [line.split() for line in finished.out.splitlines() if line.startswith("  ")]
    assert {name: float(value) for name, value in table} == {
        name: pytest.approx(value, abs=5e-5) for name, value in result["metrics"].items()
    }
    assert result["run"] == str(tmp_path / "called")
    saved = json.loads((tmp_path / "called" / "best" / "metrics.json").read_text())
    assert saved == {"step": result["best_step"], "epoch": result["best_epoch"], **result["metrics"]}
    assert him.load(tmp_path / "called").predict(question="Who?", context="Ann came.").text


def test_evaluation_of_the_reloaded_run_gives_the_same_numbers(settings, tmp_path):
    result = him.train(him.Config(**{**settings, "output_dir": str(tmp_path)}, run_name="run"))
    again = him.load(tmp_path / "run").evaluate(settings["validation_file"])
    assert again.metrics == result["metrics"]
    assert again.predictions == {"predictions.json": json.loads((tmp_path / "run" / "predictions.json").read_text())}


# -- flags -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        *(
            ("main.py", arguments)
            for arguments in (["--help"], ["--nosuchflag"], ["--embed_dim", "250"], ["--num_epochs", "many"], ["stray"])
        ),
        *(
            ("scripts/compress.py", arguments)
            for arguments in (["--help"], ["RUN", "--nosuchflag"], [], ["RUN", "--sweep"])
        ),
    ],
)
@pytest.mark.timing
def test_help_and_wrong_flags_load_no_pytorch(script, arguments):
    """They answer in 0.05 s of processor time; 0.5 s leaves room for a slow disk. The best of three counts."""
    code = (
        f"import atexit, sys; sys.argv[0] = {script!r}; "
        "atexit.register(lambda: print('torch' in sys.modules, 'numpy' in sys.modules, file=sys.stderr)); "
        f"import runpy; runpy.run_path({script!r}, run_name='__main__')"
    )
    seconds = []
    for _ in range(3):
        started_at = time.perf_counter()
        finished = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        seconds.append(time.perf_counter() - started_at)
        assert finished.stderr.splitlines()[-1] == "False False"
        assert finished.returncode == (0 if arguments == ["--help"] else 2)
        if min(seconds) < 0.5:
            break
    assert min(seconds) < 0.5


def test_help_of_compressing_names_its_settings():
    finished = call_script("compress.py", "--help")
    assert (finished.status, finished.err) == (0, "")
    for name in (
        "pruning_amount",
        "pruning_method",
        "fine_tune_epochs",
        "fine_tune_learning_rate",
        "fine_tune_distillation_weight",
    ):
        assert f"--{name}" in finished.out, name
    for name in ("--sweep", "--json", "--train_file", "--num_threads", "RUN"):
        assert name in finished.out, name


def test_help_names_every_setting():
    finished = call_main("--help")
    assert finished.status == 0
    for name in Config().to_dict():
        assert f"--{name}" in finished.out, name
    for name in ("--no-norm_first", "--epochs", "--epoch", "--num_layers", "--ff_dim", "--config", "--resume"):
        assert name in finished.out


@pytest.mark.parametrize(
    ("typed", "name", "value"),
    [
        ("--epochs 1", "num_epochs", 1),
        ("--epoch 1", "num_epochs", 1),
        ("--num_layers 3", "num_encoder_layers", 3),
        ("--ff_dim 48", "dim_feedforward", 48),
        ("--no-norm_first", "norm_first", False),
        ("--norm_first", "norm_first", True),
        ("--no-lexical_features", "lexical_features", False),
        ("--max_steps=1", "max_steps", 1),
        ("--learning_rate 5e-5", "learning_rate", 5e-5),
    ],
)
def test_aliases_and_negated_flags_reach_the_run(settings, tmp_path, typed, name, value):
    base = {**settings, "output_dir": tmp_path, "run_name": "run", "max_steps": 1}
    del base["num_encoder_layers"], base["dim_feedforward"], base["num_epochs"]
    finished = call_main(*flags(base), *typed.split())
    assert finished.status == 0, finished
    assert getattr(Config.load(tmp_path / "run" / "config.json"), name) == value


def test_a_yaml_file_sets_defaults_and_flags_win(settings, tmp_path):
    path = tmp_path / "settings.yaml"
    del (named := {**settings, "output_dir": str(tmp_path), "run_name": "from file", "epochs": 7})["num_epochs"]
    path.write_text(yaml.safe_dump(named))
    finished = call_main("--config", path, "--num_epochs", "1", "--run_name", "from flag")
    assert finished.status == 0, finished
    config = Config.load(tmp_path / "from flag" / "config.json")
    assert (config.num_epochs, config.embed_dim, config.train_file) == (1, 32, (settings["train_file"],))
    assert not (tmp_path / "from file").exists()


def test_dry_run_makes_two_steps_of_everything(settings, tmp_path):
    from him.metrics.bertscore import find_scorer_model

    named = {**settings, "output_dir": tmp_path, "num_epochs": 50, "batch_size": 4, "bertscore_samples": 2}
    named |= {"run_name": "run", "attention_examples": 1, "attention_dir": tmp_path / "pictures"}
    finished = call_main(*flags(named), "--dry_run")
    assert (finished.status, finished.err) == (0, "")
    assert {record["step"] for record in records(tmp_path / "run")} == {2}
    series = scalar_series(tmp_path / "run")
    bertscore = {"BERTScore_F1/val"} if find_scorer_model(None) else set()
    assert set(series) == TRAIN_TAGS | VALIDATION_TAGS | bertscore
    assert all(-1 <= value <= 1 for _, value in series.get("BERTScore_F1/val", []))
    assert (tmp_path / "run" / "predictions.json").exists()
    assert list((tmp_path / "pictures" / "run").glob("*.png"))


def test_a_run_without_a_name_is_called_by_task_and_time(settings, tmp_path):
    for _ in range(2):
        finished = call_main(*flags({**settings, "output_dir": tmp_path, "max_steps": 1}))
        assert finished.status == 0, finished
    names = [path.name for path in tmp_path.iterdir()]
    assert len(names) == 2
    assert all(name.startswith("squad-20") for name in names)


def test_both_norm_orders_are_told_apart(settings, tmp_path):
    results = [
        him.train(him.Config(**{**settings, "output_dir": str(tmp_path)}, norm_first=norm_first))["metrics"]["Loss"]
        for norm_first in (True, False)
    ]
    assert results[0] != results[1]


def test_the_seed_decides_everything(settings, tmp_path):
    losses = [
        him.train(him.Config(**{**settings, "output_dir": str(tmp_path)}, seed=seed))["metrics"]["Loss"]
        for seed in (5, 5, 6)
    ]
    assert losses[0] == losses[1] != losses[2]


# -- starting from another run ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def earlier(settings) -> Path:
    return Path(him.train(him.Config(**settings, run_name="earlier"))["run"])


def test_init_from_takes_weights_and_tokenizer(settings, earlier, tmp_path):
    """One update with a vanishing rate leaves the weights of the earlier run; its data has another vocabulary."""
    named = {**settings, "output_dir": str(tmp_path), "run_name": "later", "init_from": str(earlier), "seed": 9}
    named |= {"max_steps": 1, "learning_rate": 1e-12, "train_file": settings["validation_file"]}
    finished = call_main(*flags(named))
    assert (finished.status, finished.err) == (0, "")
    from him.runs.checkpoint import load_tensors

    before, after = (load_tensors(run / "best" / "model.safetensors") for run in (earlier, tmp_path / "later"))
    for name, weight in before.items():
        assert (weight - after[name]).abs().max() < 1e-6, name
    tokenizers = [(run / "best" / "tokenizer.json").read_text() for run in (earlier, tmp_path / "later")]
    assert tokenizers[0] == tokenizers[1]


def test_init_from_a_run_that_was_trained_again_takes_its_new_tokenizer(settings, tmp_path):
    """Prepared data is kept by the tokenizer's content: by its place, the ids of the old one would be used."""
    named = {**settings, "output_dir": str(tmp_path), "max_steps": 1}
    later = {**named, "init_from": str(tmp_path / "earlier")}
    him.train(him.Config(**named, run_name="earlier"))
    him.train(him.Config(**later, run_name="first"))
    import shutil

    shutil.rmtree(tmp_path / "earlier")
    him.train(him.Config(**{**named, "train_file": settings["validation_file"]}, run_name="earlier"))
    him.train(him.Config(**later, run_name="second"))
    texts = [(tmp_path / name / "best" / "tokenizer.json").read_text() for name in ("earlier", "first", "second")]
    assert texts[0] == texts[2] != texts[1]


def test_init_from_another_shape_is_refused(settings, earlier, tmp_path):
    named = {**settings, "output_dir": tmp_path, "run_name": "later", "init_from": earlier, "embed_dim": 64}
    finished = call_main(*flags(named))
    assert_one_line(finished, "model.safetensors: ", "has shape", "give the model flags of that run")
    assert not (tmp_path / "later").exists()


def test_the_run_that_was_started_from_is_left_alone(settings, earlier, tmp_path):
    before = tree(earlier)
    named = {**settings, "output_dir": tmp_path, "init_from": earlier, "max_steps": 1}
    assert call_main(*flags(named)).status == 0
    assert tree(earlier) == before


# -- the cache of prepared data --------------------------------------------------------------------------------------


def test_a_cache_that_was_cut_off_is_made_again(settings, tmp_path):
    """A kill between its two folders left the run with validation data only, and the next one with a traceback."""
    named = {**settings, "output_dir": str(tmp_path), "cache_dir": str(tmp_path / "cache"), "max_steps": 1}
    expected = him.train(him.Config(**named))["metrics"]
    import shutil

    for part in ("train", "validation"):
        (prepared,) = (tmp_path / "cache").iterdir()
        if part == "train":
            shutil.rmtree(prepared / "train")
            assert him.train(him.Config(**named))["metrics"] == expected


def test_without_a_name_for_the_cache_it_lies_in_the_output_folder(settings, tmp_path):
    named = {**settings, "output_dir": tmp_path, "cache_dir": None, "max_steps": 1, "run_name": "run"}
    assert call_main(*flags(named)).status == 0
    assert {path.name for path in tmp_path.iterdir()} == {"run", ".cache"}


def test_importing_him_is_quick_and_loads_no_pytorch():
    code = "import sys, him; him.Config; print('torch' in sys.modules)"
    finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=os.environ)
    assert finished.stdout == "False\n"
    with pytest.raises(AttributeError, match="module 'him' has no attribute 'nothing'"):
        him.nothing  # noqa: B018


# -- tasks that write text ---------------------------------------------------------------------------------------------

WRITING = ("summarization", "lm")
TEXT = "Ann Bell built the mill in 1902. Her brother Tom Reed sold it to the town of Norwick in 1910."


def run_script(name: str, *arguments: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, f"scripts/{name}", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "ascii"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("kind", WRITING)
def test_writing_on_the_built_in_data(tmp_path, kind):
    """`main.py`, `predict.py` and `evaluate.py` in processes of their own, one after the other."""
    typed = writing_settings(kind, tmp_path) | {"train_file": None, "validation_file": None, "corpus_dir": None}
    typed |= {"dataset": "sample", "sample_size": 40, "validation_size": 3, "num_epochs": 1, "run_name": "run"}
    finished = run_main(*flags(typed), environment={"PYTHONIOENCODING": "ascii"})
    assert (finished.status, finished.err) == (0, "")
    run = tmp_path / "runs" / "run"
    lines = finished.out.splitlines()
    assert f"best model: {run}/best, of epoch 1" in lines
    shown = {line.split()[0] for line in lines if line.startswith("  ")}
    assert {"Loss", "Perplexity", "Accuracy", "Diversity/distinct-1"} < shown
    assert ("ROUGE-L" in shown, "Bits_Per_Byte" in shown) == (kind == "summarization", kind == "lm")
    (epoch,) = (line for line in lines if line.startswith("epoch 1/1  loss "))
    assert {"summarization": "ROUGE-L/val", "lm": "Bits_Per_Byte/val"}[kind] in epoch

    predicted = run_script("predict.py", run, "--text", TEXT, "--json")
    assert (predicted.returncode, predicted.stderr) == (0, "")
    assert set(json.loads(predicted.stdout)) == {"text", "num_tokens", "num_cut"}
    config = Config.load(run / "config.json")
    assert (config.dataset, config.task_type, config.doc_stride) == ("sample", kind, Config().doc_stride)


@pytest.mark.parametrize("kind", WRITING)
def test_predicting_a_text(kind):
    """People see the text, of lm as it is written; JSON has the same text."""
    _, run = trained_writer(kind)
    typed = ["--text", TEXT] + (["--max_new_tokens", "20", "--temperature", "1"] if kind == "lm" else [])
    shown, as_json = call_script("predict.py", run, *typed), call_script("predict.py", run, *typed, "--json")
    assert (shown.status, shown.err, as_json.status, as_json.err) == (0, "", 0, "")
    answer = json.loads(as_json.out)
    assert len(as_json.out.splitlines()) == 1
    assert shown.out == f"→ {answer['text']}\n"
    assert answer["num_tokens"] <= {"summarization": 32, "lm": 20}[kind]
    assert call_script("predict.py", run, "--text", TEXT * 20).status == 0
    assert call_script("predict.py", run, typed=f"{TEXT}\n\n").out.startswith("→ ")


@pytest.mark.parametrize("kind", WRITING)
def test_predicting_by_sampling(kind):
    _, run = trained_writer(kind)
    more = ["--text", TEXT, "--num_beams", "1", "--temperature", "1.2", "--top_k", "200", "--top_p", "0.95", "--json"]
    texts = [call_script("predict.py", run, *more, "--seed", str(seed)).out for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    cold = [call_script("predict.py", run, *more[:4], "--json", *rest).out for rest in ([], ["--top_k", "1"])]
    assert cold[0] == cold[1]


@pytest.mark.parametrize("kind", WRITING)
def test_predicting_a_long_text(kind):
    """What was not read is said, once."""
    _, run = trained_writer(kind)
    answer = json.loads(call_script("predict.py", run, "--text", TEXT * 20, "--json").out)
    assert answer["num_cut"] > 500
    if kind == "summarization":
        out = call_script("predict.py", run, "--text", TEXT * 20).out
        assert out.endswith(f"  (the last {answer['num_cut']:,} tokens were not read)\n")
        assert out.count("not read") == 1


@pytest.mark.parametrize("kind", WRITING)
def test_predicting_the_example(kind):
    """The JSON object stood behind the text of the example."""
    _, run = trained_writer(kind)
    shown = call_script("predict.py", run, "--example")
    assert shown.status == 0
    text, answer = shown.out.split("→ ", 1)
    assert len(text) > 80
    again = json.loads(call_script("predict.py", run, "--example", "--json").out)
    assert answer.startswith(again["text"])


@pytest.mark.parametrize(("kind", "ending"), [("summarization", ".jsonl"), ("summarization", ".csv"), ("lm", ".jsonl"),
                                              ("lm", ".csv"), ("lm", ".txt")])  # fmt: skip
def test_predicting_a_file(tmp_path, kind, ending):
    """Documents need no summaries, and their field may have another name than in training."""
    _, run = trained_writer(kind)
    field = "body" if kind == "summarization" else "text"
    path = tmp_path / f"texts{ending}"
    if ending == ".jsonl":
        write_jsonl(path, [{"id": "é1", field: TEXT}, {"id": 2, field: "The mill."}])
        texts = {"é1": TEXT, "2": "The mill."}
    elif ending == ".csv":
        path.write_text(f'{field}\n"{TEXT}"\n"The\nmill."\n')
        texts = {"0": TEXT, "1": "The\nmill."}
    else:
        path.write_text(TEXT)
        texts = {"0": TEXT}
    more = ["--file", path] + (["--document_field", "body"] if kind == "summarization" else [])
    shown, as_json = call_script("predict.py", run, *more), call_script("predict.py", run, *more, "--json")
    assert (shown.status, shown.err, as_json.status) == (0, "", 0)
    answers = json.loads(as_json.out)
    assert list(answers) == list(texts)
    lines = [line.split("\t", 1) for line in shown.out.splitlines()]
    assert [id for id, _ in lines] == list(texts), "a line each, whatever is written"
    predictor = him.load(run)
    for id, text in texts.items():
        assert answers[id]["text"] == predictor.predict(text=text).text


@pytest.mark.parametrize("kind", WRITING)
def test_evaluating_a_file(kind, tmp_path, monkeypatch):
    """The run's own numbers on its own validation file, from any folder, and nothing left behind there."""
    settings, run = trained_writer(kind)
    before = tree(run.parent.parent)
    monkeypatch.chdir(tmp_path)
    more = ["--file", settings["validation_file"], "--json", "--output", "written.json"]
    finished = call_script("evaluate.py", run, *more)
    assert (finished.status, finished.err) == (0, "")
    found = json.loads(finished.out)
    expected = json.loads((run / "best" / "metrics.json").read_text())
    assert found["metrics"] == {name: value for name, value in expected.items() if name not in ("step", "epoch")}
    assert json.loads(Path("written.json").read_text()) == json.loads((run / "predictions.json").read_text())
    assert {path.name for path in tmp_path.iterdir()} == {"written.json"}
    assert tree(run.parent.parent) == before


def test_evaluating_a_part_of_a_file(tmp_path):
    settings, run = trained_writer("summarization")
    file = ["--file", settings["validation_file"], "--json"]
    part = call_script("evaluate.py", run, *file, "--validation_size", "2", "--output", tmp_path / "two.json")
    assert part.status == 0, part
    assert list(json.loads((tmp_path / "two.json").read_text())) == [
        "sample-validation-00000",
        "sample-validation-00001",
    ]
    loss = json.loads(call_script("evaluate.py", run, *file, "--eval_samples", "0").out)["metrics"]
    assert set(loss) == {"Loss", "Perplexity", "Accuracy"}
    greedy = json.loads(call_script("evaluate.py", run, *file, "--num_beams", "1").out)["metrics"]
    assert greedy["Loss"] == loss["Loss"]
    write_jsonl(tmp_path / "other.jsonl", [{"body": TEXT, "title": "The mill."}])
    named = ["--document_field", "body", "--summary_field", "title"]
    assert call_script("evaluate.py", run, "--file", tmp_path / "other.jsonl", *named).status == 0


def test_evaluating_text_with_more_context():
    """Each token sees at least 56 others: that is never much worse, and other numbers than without."""
    settings, run = trained_writer("lm")
    file = ["--file", settings["validation_file"], "--json"]
    values = [
        json.loads(call_script("evaluate.py", run, *file, *more).out)["metrics"]["Bits_Per_Byte"]
        for more in ([], ["--eval_stride", "64"], ["--eval_stride", "8"])
    ]
    assert values[0] == values[1] != values[2]
    assert values[2] < values[0] + 0.01
