"""Pretraining: a run within the run, without labels, whose weights other runs take over; and it can be stopped."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from him import Config
from him.config.resolve import pretraining_config
from him.core.errors import CheckpointError, DataError
from him.core.files import verify_folder
from him.data.records import read_pairs
from him.runs.checkpoint import Checkpoint, Checkpoints, load_tensors
from him.runs.folder import RunFolder
from him.tasks import task_class
from him.tasks.pretraining import Pretraining
from him.text.training import train_tokenizer
from him.workflows import pretrain as pretraining
from him.workflows.resume import resume
from him.workflows.train import train
from tests.small_runs import (
    ForkedMain,
    assert_one_line,
    assert_same_run,
    before_steps,
    call_main,
    flags,
    in_child,
    records,
    sample_documents,
    scalar_series,
    slow_steps,
    small_settings,
    tree,
    write_jsonl,
    writing_settings,
)

TASKS = ("squad", "summarization", "lm")
PRETRAINED = {"num_epochs": 1, "pretrain_epochs": 1, "batch_size": 8, "pretrain_learning_rate": 3e-3}
TAGS = {
    "squad": {"F1/val", "Exact_Match/val"},
    "summarization": set(),
    "lm": {"Bits_Per_Byte/val", "Diversity/distinct-1", "Diversity/distinct-2"},
}
USUAL_TAGS = {f"{name}/{part}" for name in ("Loss", "Accuracy") for part in ("train", "val")}
USUAL_TAGS |= {"Perplexity/val", "Gradient_Norm/train", "Learning_Rate", "Throughput/tokens_per_second"}


def settings_of(task_type: str, folder: Path) -> dict:
    made = small_settings(folder, num_train=28) if task_type == "squad" else writing_settings(task_type, folder)
    return made | PRETRAINED | {"save_every_steps": 4, "keep_checkpoints": 9}


@pytest.fixture(scope="module", params=TASKS)
def task_type(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def settings(task_type, tmp_path_factory) -> dict:
    return settings_of(task_type, tmp_path_factory.mktemp(task_type))


@pytest.fixture(scope="module")
def run(settings) -> Path:
    """The first run, which nothing happens to."""
    return Path(train(Config(**settings, run_name="first"))["run"])


@pytest.fixture(scope="module")
def kept(settings, run) -> Path:
    """Where it has put its pretrained weights."""
    return kept_in(settings)


@pytest.fixture(scope="module")
def of_squad(tmp_path_factory) -> dict:
    return settings_of("squad", tmp_path_factory.mktemp("squad settings"))


def kept_in(settings: dict) -> Path:
    (folder,) = Path(settings["cache_dir"]).glob("pretrained-*")
    return folder


class Named(Exception):
    """The name that weights would be kept under."""


@pytest.fixture
def name_of(monkeypatch, tmp_path) -> Callable[[dict], str]:
    """The name that the pretrained weights of a run are kept under, found without any training."""

    def stop(cache: Path, name: str) -> None:
        raise Named(name)

    def find(settings: dict) -> str:
        with monkeypatch.context() as patched:
            patched.setattr(pretraining, "cached_folder", stop)
            with pytest.raises(Named) as found:
                train(Config(**{**settings, "output_dir": str(tmp_path / "runs"), "run_name": None}))
        return str(found.value)

    return find


# --- what it writes ---------------------------------------------------------------------------------------------------


def test_its_curves_have_a_folder_of_their_own(task_type, run):
    found = records(run / "pretraining")
    assert {record["stage"] for record in found} == {"pretraining"}
    assert {record["tag"] for record in found} == USUAL_TAGS | TAGS[task_type]
    (last_step,) = {record["step"] for record in found if record["tag"] == "Loss/val"}
    assert last_step == max(record["step"] for record in found) >= 6
    assert [record["epoch"] for record in found if record["step"] == last_step][-1] == 1.0
    rates = [record["value"] for record in found if record["tag"] == "Learning_Rate"]
    assert all(0 < rate <= 3e-3 for rate in rates)
    assert "pretraining" not in {record["stage"] for record in records(run)}
    series = scalar_series(run / "pretraining")
    assert set(series) == USUAL_TAGS | TAGS[task_type]
    names = [path.name for path in (run / "pretraining").iterdir()]
    assert sorted(name.split(".")[0] for name in names) == ["events", "metrics"], "no checkpoints are left"


def test_the_run_begins_with_its_weights(task_type, settings, run, kept):
    verify_folder(kept)
    weights = load_tensors(kept / "model.safetensors")
    first = load_tensors(run / "checkpoints" / "step_00000000" / "model.safetensors")
    assert weights.keys() == first.keys()
    assert all(torch.equal(weights[name], first[name]) for name in weights)
    config = Config.load(run / "config.json")
    task = task_class(task_type).prepare(config)
    torch.manual_seed(config.seed)
    drawn = task.build_model().state_dict()
    changed = {name for name in weights if not torch.equal(weights[name], drawn[name])}
    assert len(changed) > 0.8 * len(weights)


def test_without_it_there_is_no_folder(task_type, settings, tmp_path):
    more = {"pretrain_epochs": 0, "cache_dir": str(tmp_path / "cache"), "run_name": "without"}
    without = Path(train(Config(**settings | more))["run"])
    assert not (without / "pretraining").exists()
    assert not list((tmp_path / "cache").glob("*pretrained*"))
    cls = task_class(task_type)
    assert cls.resolve(Config(task_type=task_type)).pretrain_epochs == (4 if task_type == "squad" else 0)


# --- taken over by other runs -----------------------------------------------------------------------------------------


def test_another_run_takes_the_weights_over(settings, run, kept, monkeypatch, capsys):
    monkeypatch.setattr(pretraining, "Trainer", lambda *args: pytest.fail("pretrains again"))
    before = tree(kept)
    second = Path(train(Config(**{**settings, "learning_rate": 5e-4, "num_epochs": 2, "run_name": "second"}))["run"])
    assert f"pretraining: taken from {kept}" in capsys.readouterr().out.splitlines()
    assert tree(kept) == before
    first_weights, weights = (
        (each / "checkpoints" / "step_00000000" / "model.safetensors").read_bytes() for each in (run, second)
    )
    assert weights == first_weights
    assert records(second / "pretraining") == records(run / "pretraining")
    assert scalar_series(second / "pretraining") == scalar_series(run / "pretraining")
    assert records(second) != records(run)


OTHERS = {
    "seed": 1,
    "pretrain_epochs": 2,
    "pretrain_learning_rate": 1e-3,
    "batch_size": 4,
    "weight_decay": 0.1,
    "optimizer": "muon",
    "dropout": 0.05,
    "norm_first": False,
    "embed_dim": 16,
    "max_seq_len": 80,
    "doc_stride": 30,
    "lexical_features": False,
    "vocab_size": 400,
    "sample_size": 20,
    "dry_run": True,
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_settings_are_another_pretraining(of_squad, name_of, name):
    assert name_of(of_squad) != name_of({**of_squad, name: OTHERS[name]})


SAME = {
    "num_epochs": 3,
    "max_steps": 2,
    "learning_rate": 5e-4,
    "schedule": "linear",
    "word_dropout": 0.0,
    "label_smoothing": 0.1,
    "ema_decay": 0.9,
    "early_stopping_epochs": 1,
    "eval_every_steps": 3,
    "save_every_steps": 3,
    "max_answer_words": 4,
    "compress": True,
}


@pytest.mark.parametrize("name", SAME)
def test_what_it_does_not_read_changes_nothing(of_squad, name_of, name):
    """And would be paid for with another pretraining."""
    assert name_of(of_squad) == name_of({**of_squad, name: SAME[name]})


@pytest.mark.parametrize("damage", ["a bit", "a file"])
def test_damaged_weights_are_made_again(of_squad, tmp_path, capsys, damage):
    settings = {**of_squad, "cache_dir": str(tmp_path / "cache"), "output_dir": str(tmp_path / "runs")}
    train(Config(**settings, run_name="first"))
    kept = kept_in(settings)
    whole = tree(kept)
    if damage == "a bit":
        content = bytearray(whole["model.safetensors"])
        content[-3] ^= 1
        (kept / "model.safetensors").write_bytes(content)
    else:
        (kept / "metrics.jsonl").unlink()
    capsys.readouterr()
    train(Config(**settings, run_name="second"))
    assert "examples an epoch without labels" in capsys.readouterr().out
    verify_folder(kept)
    assert (kept / "model.safetensors").read_bytes() == whole["model.safetensors"]
    assert [path.name for path in (tmp_path / "cache").glob("*pretrained*")] == [kept.name]
    assert_same_run(tmp_path / "runs" / "second", tmp_path / "runs" / "first")


def test_damaged_weights_that_cannot_be_removed_are_refused(of_squad, tmp_path, monkeypatch):
    """They are of somebody else, say: the run does not begin with them, and its own checkpoints stay."""
    settings = {**of_squad, "cache_dir": str(tmp_path / "cache"), "output_dir": str(tmp_path / "runs")}
    train(Config(**settings, run_name="first"))
    kept = kept_in(settings)
    (kept / "metrics.jsonl").unlink()
    remove = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda path, *rest, **more: path == kept or remove(path, *rest, **more))
    with pytest.raises(CheckpointError, match=r"damaged, and cannot be replaced; remove it, then go on with --resume$"):
        train(Config(**settings, run_name="second"))
    assert list((tmp_path / "runs" / "second" / "pretraining" / "checkpoints").glob("step_*"))


def test_two_runs_keep_the_same_weights_at_once(of_squad, tmp_path, monkeypatch):
    """The other one has put its folder there, and a third one is at it; neither is touched, nor is this run stopped."""
    settings = {**of_squad, "cache_dir": str(tmp_path / "cache"), "output_dir": str(tmp_path / "runs")}
    first = Path(train(Config(**settings, run_name="first"))["run"])
    kept = kept_in(settings)
    other, third = tmp_path / "other", kept.with_name(f".{kept.name}-12345678")
    os.rename(kept, other)
    save = pretraining.save_tensors

    def save_meanwhile(*args) -> None:
        save(*args)
        third.mkdir()
        (third / "model.safetensors").write_bytes(b"begun")
        shutil.copytree(other, kept)

    monkeypatch.setattr(pretraining, "save_tensors", save_meanwhile)
    second = Path(train(Config(**settings, run_name="second"))["run"])
    assert tree(kept) == tree(other)
    assert tree(third) == {"model.safetensors": b"begun"}
    assert {path.name for path in kept.parent.glob("*pretrained*")} == {kept.name, third.name}
    assert_same_run(second, first)


# --- what it learns from ----------------------------------------------------------------------------------------------


def relabelled(task_type: str, settings: dict, folder: Path) -> dict:
    """Settings with other answers, or other summaries, of the same training texts, and a tokenizer of neither."""
    document, _ = sample_documents()
    texts = [paragraph["context"] for paragraph in document["data"][0]["paragraphs"]]
    kind = "wordpiece" if task_type == "squad" else "bpe"
    train_tokenizer(texts, 500, kind).save(str(folder / "tokenizer.json"))
    path = folder / Path(settings["train_file"]).name
    if task_type == "squad":
        data = json.loads(Path(settings["train_file"]).read_text(encoding="utf-8"))
        for paragraph in data["data"][0]["paragraphs"]:
            for qa in paragraph["qas"]:
                qa["answers"] = [{"text": paragraph["context"].split()[0], "answer_start": 0}]
                qa["question"] = f"{qa['question'].rstrip('?')} again?"
        path.write_text(json.dumps(data), encoding="utf-8")
    else:
        pairs = read_pairs(settings["train_file"]).pairs
        write_jsonl(path, [{"document": pair.document, "summary": f"another one, {pair.id}"} for pair in pairs])
    return {**settings, "train_file": str(path), "tokenizer": str(folder), "cache_dir": str(folder / "cache")}


@pytest.mark.parametrize("task_type", ["squad", "summarization"])
def test_labels_are_not_read(task_type, tmp_path):
    """With a given tokenizer; a trained one has seen the questions, or the summaries."""
    (tmp_path / "other").mkdir()
    settings = settings_of(task_type, tmp_path)
    other = relabelled(task_type, settings, tmp_path / "other")
    settings = {**settings, "tokenizer": other["tokenizer"]}
    runs = [Path(train(Config(**each, run_name=name))["run"]) for name, each in (("a", settings), ("b", other))]
    first, second = kept_in(settings), kept_in(other)
    assert first != second and first.name == second.name
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    losses = [[record["value"] for record in records(each) if record["tag"] == "Loss/train"] for each in runs]
    assert losses[0] != losses[1]


@pytest.mark.parametrize("form", ["text", "folder", "file of the task"])
def test_more_texts_are_learned_from(settings, task_type, name_of, tmp_path, capsys, form):
    text = "\n\n".join(f"Ann Bell built mill {number} beside Port Hale in {1900 + number}." for number in range(40))
    (tmp_path / "texts").mkdir()
    path = tmp_path / "texts" / "more.txt"
    path.write_text(text, encoding="utf-8")
    if form == "folder":
        path = path.parent
    elif form == "file of the task" and task_type == "squad":
        qas = [{"id": "0", "question": "Who?"}]
        paragraphs = [{"context": each, "qas": [{**qas[0], "id": each}]} for each in text.split("\n\n")]
        path = tmp_path / "more.json"
        path.write_text(json.dumps({"data": [{"title": "more", "paragraphs": paragraphs}]}), encoding="utf-8")
    elif form == "file of the task" and task_type == "summarization":
        path = write_jsonl(tmp_path / "more.jsonl", [{"document": text}, {"document": text[100:]}])
    assert name_of(settings) != name_of({**settings, "pretrain_files": [str(path)]})
    examples = [
        prepared_pretraining({**settings, "pretrain_files": files}).examples_per_epoch for files in ([], [str(path)])
    ]
    assert examples[0] < examples[1]


def prepared_pretraining(settings: dict) -> Pretraining:
    config = Config(**settings)
    cls = task_class(config.task_type)
    return cls.prepare(cls.resolve(config)).pretraining()


def test_it_begins_with_the_weights_of_an_earlier_run(of_squad, tmp_path):
    """With a rate so low that they stay as they are."""
    settings = {**of_squad, "cache_dir": str(tmp_path / "cache"), "output_dir": str(tmp_path / "runs")}
    earlier = Path(train(Config(**{**settings, "pretrain_epochs": 0, "learning_rate": 3e-3, "run_name": "a"}))["run"])
    more = {"init_from": str(earlier), "pretrain_learning_rate": 1e-9, "run_name": "b"}
    later = Path(train(Config(**settings | more))["run"])
    expected = load_tensors(earlier / "best" / "model.safetensors")
    for name, each in load_tensors(later / "checkpoints" / "step_00000000" / "model.safetensors").items():
        torch.testing.assert_close(each, expected[name], rtol=0, atol=1e-6)


def test_it_learns(task_type, tmp_path):
    """Masked tokens, or in lm the next tokens; to guess the likeliest one would be right for 3 to 5 %.

    Question answering has seen no real question then: without pretraining its F1 is about 6.
    """
    more = {"pretrain_epochs": 6, "precision": "fp32", "run_name": "long"}
    run = Path(train(Config(**settings_of(task_type, tmp_path) | more))["run"])
    found = records(run / "pretraining")
    series = {tag: [each["value"] for each in found if each["tag"] == tag] for tag in ("Accuracy/val", "Loss/val")}
    assert len(series["Accuracy/val"]) == len(series["Loss/val"]) == 6
    assert series["Loss/val"][-1] < series["Loss/val"][0] - 0.1
    assert 2.5 < series["Accuracy/val"][-1] < 60.0
    if task_type == "squad":
        assert [each["value"] for each in found if each["tag"] == "F1/val"][-1] > 12.0


# --- stopped and gone on with -----------------------------------------------------------------------------------------

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and signals")


def steps_made_by(work: Callable[[], None], last: int) -> None:
    """Kills this process before a step, counted over pretraining and training."""
    made = []

    def count(step: int) -> None:
        if len(made) == last:
            os.kill(os.getpid(), signal.SIGKILL)
        made.append(step)

    before_steps(count)
    work()


@pytest.fixture
def elsewhere(settings, run, tmp_path) -> Config:
    """The same run with a cache of its own, so that it pretrains again."""
    return Config(**{**settings, "cache_dir": str(tmp_path / "cache"), "run_name": tmp_path.name})


@needs_fork
@pytest.mark.parametrize("last", [2, 5])
def test_a_killed_pretraining_goes_on(run, elsewhere, last):
    """Killed before and after a checkpoint, then once more; bit for bit the same in the end."""
    folder = Path(elsewhere.output_dir) / elsewhere.run_name
    assert in_child(lambda: steps_made_by(lambda: train(elsewhere), last)) == -signal.SIGKILL
    assert not (folder / "checkpoints").exists()
    if last == 5:
        assert Checkpoints(folder / "pretraining" / "checkpoints", 1).load_newest().step == 4
    assert in_child(lambda: steps_made_by(lambda: resume(folder, {}), 1)) == -signal.SIGKILL
    resume(folder, {})
    assert_same_run(folder, run)


@needs_fork
@pytest.mark.parametrize("task_type", ["lm"], indirect=True)
@pytest.mark.parametrize(
    ("where", "cache_stays"),
    [("_keep", True), ("load_weights", True), ("Checkpoints.save", True), ("Checkpoints.save", False)],
)
def test_killed_between_pretraining_and_training(run, elsewhere, monkeypatch, where, cache_stays):
    """Before the weights are in the cache, before they are taken from it, before the run's own first checkpoint."""
    folder = Path(elsewhere.output_dir) / elsewhere.run_name
    kill = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731

    def work() -> None:
        if where == "Checkpoints.save":
            save = Checkpoints.save
            Checkpoints.save = lambda self, *args: (save if self.folder.parent.name == "pretraining" else kill)(
                self, *args
            )
        else:
            setattr(pretraining, where, kill)
        train(elsewhere)

    assert in_child(work) == -signal.SIGKILL
    assert not list((folder / "checkpoints").glob("step_*"))
    assert len(list(Path(elsewhere.cache_dir).glob("pretrained-*"))) == (where != "_keep")
    if not cache_stays:
        shutil.rmtree(elsewhere.cache_dir)
    resume(folder, {})
    assert_same_run(folder, run)


@needs_fork
def test_ctrl_c_names_the_run(settings, run, elsewhere):
    """And not the folder of the pretraining within it."""
    folder = Path(elsewhere.output_dir) / elsewhere.run_name
    process = ForkedMain(
        flags({**settings, "cache_dir": elsewhere.cache_dir, "run_name": elsewhere.run_name}), lambda: slow_steps(0.05)
    )
    process.wait_for("step 2 begins")
    process.send_signal(signal.SIGINT)
    finished = process.finish()
    stopped = f"stopped; go on with: python main.py --resume {folder}"
    assert (finished.status, finished.err) == (130, "")
    assert finished.out.splitlines()[-1].replace("'", "") == stopped
    finished = call_main("--resume", folder)
    assert (finished.status, finished.err) == (0, "")
    assert_same_run(folder, run, was_stopped=True)


def test_a_finished_pretraining_is_not_looked_at_again(settings, run, tmp_path, monkeypatch):
    """When the run goes on, and also where the cache is gone."""
    again = tmp_path / "again"
    shutil.copytree(run, again)
    before = tree(again / "pretraining")
    monkeypatch.setattr(Pretraining, "__init__", lambda *args: pytest.fail("pretrains again"))
    resume(again, {"cache_dir": str(tmp_path / "cache"), "num_epochs": 2})
    assert tree(again / "pretraining") == before


# --- what cannot be done ----------------------------------------------------------------------------------------------


def test_files_that_are_missing_are_one_line(settings):
    finished = call_main(*flags({**settings, "pretrain_files": ["no/such.txt"], "run_name": "no"}))
    assert_one_line(finished, "--pretrain_files no/such.txt: no such file or folder")


@pytest.mark.parametrize("task_type", ["squad", "summarization"])
def test_texts_that_are_too_short_are_one_line(task_type, tmp_path):
    settings = settings_of(task_type, tmp_path)
    short = "It is in the."
    if task_type == "squad":
        qas = [{"id": "0", "question": "Where?", "answers": [{"text": "the", "answer_start": 9}]}]
        document = {"data": [{"title": "a", "paragraphs": [{"context": short, "qas": qas}]}]}
        Path(settings["train_file"]).write_text(json.dumps(document), encoding="utf-8")
        message = "--pretrain_epochs: the contexts are too short to make questions of; leave the flag out"
    else:
        write_jsonl(Path(settings["train_file"]), [{"document": short, "summary": "the"}] * 8)
        message = "--pretrain_epochs: no document has 16 tokens, to be cut in two; leave the flag out"
    with pytest.raises(DataError, match=f"^{message}$"):
        train(Config(**settings, run_name="short"))


@pytest.mark.parametrize("pretrain_epochs", [1, 50])
def test_dry_runs_are_short(of_squad, tmp_path, pretrain_epochs):
    """Also where an epoch has a fiftieth of the few questions that are made then."""
    more = {"dry_run": True, "pretrain_epochs": pretrain_epochs, "batch_size": 1, "cache_dir": str(tmp_path)}
    run = Path(train(Config(**of_squad | more, run_name=f"dry {pretrain_epochs}"))["run"])
    assert max(record["step"] for record in records(run / "pretraining")) <= 2


def test_a_pretraining_of_an_earlier_version_goes_on(tmp_path):
    """Settings that have been renamed since are the same ones; one that was changed by hand is not."""
    config = pretraining_config(Config(pretrain_epochs=1))
    old = {"conv_kernel_size": "conv_width", "warmup_ratio": "warmup_share", "variational_dropout": "shared_dropout"}
    stored = {old.get(name, name): value for name, value in config.to_dict().items()}
    state = {"loop": {}, "machine": {"num_threads": 1}, "config": stored}
    run = RunFolder(tmp_path)
    checkpoints = Checkpoints(run.pretraining.checkpoints, 1)
    checkpoints.save(Checkpoint(state, {"weight": torch.ones(1)}, {}, {}), 1)
    begun = pretraining.begun_pretraining(run)
    pretraining._check_settings(run, begun, config)
    with pytest.raises(CheckpointError, match="config.json: conv_kernel_size, seed changed since the pretraining was"):
        pretraining._check_settings(run, begun, config.replace(seed=3, conv_kernel_size=3))
