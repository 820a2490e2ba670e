"""The ablation: what is trained and what is left out, going on, the report, and what is refused."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

import scripts.experiments.ablation
from him.core.errors import CheckpointError, ConfigError
from him.tasks.squad.reader import read_squad, squad_from_document
from him.training.trainer import Trainer
from scripts.experiments.ablation import (
    ADDITIONS,
    Ablation,
    config_of,
    differences,
    is_finished,
    planned_runs,
    read_steps,
)
from scripts.experiments.ablation_report import (
    TrainedStep,
    bootstrap_interval,
    draw_report,
    f1_text,
    minutes_of,
    question_f1,
    report_of,
    report_table,
)
from tests.small_runs import SETTINGS, assert_one_line, call_script, records, small_settings, tree, with_impossible

SHAPE = {name: SETTINGS[name] for name in ("embed_dim", "num_encoder_layers", "num_heads", "dim_feedforward")}
SMALL = SHAPE | {"max_seq_len": 96, "doc_stride": 32, "vocab_size": 500, "num_epochs": 2, "precision": "fp32"}
SMALL |= {"pretrain_epochs": 0, "num_augmentations": 0, "ema_decay": 0.0}
ARTIFACTS = ("ablation.json", "ablation.md", "ablation.png")


def write_configs(folder: Path, steps: dict[str, dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, settings in steps.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**SMALL, **settings}, sort_keys=False), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, str]:
    """Flags that name the data."""
    settings = small_settings(tmp_path_factory.mktemp("data"))
    return {name: settings[name] for name in ("train_file", "validation_file")}


@pytest.fixture(scope="module")
def configs(tmp_path_factory) -> Path:
    steps = {"1_naive": {"lexical_features": False}, "3_features": {"lexical_features": True}, "7_data": {}}
    return write_configs(tmp_path_factory.mktemp("configs"), steps)


def call(data: dict[str, str], *more: Any):
    flags = [part for name, value in data.items() for part in (f"--{name}", value)]
    return call_script("ablation.py", *flags, "--num_threads", 1, *more)


@pytest.fixture(scope="module")
def done(data, configs, tmp_path_factory) -> tuple[Path, Any]:
    """Two steps with two seeds each, and what the script said; a third step lacks its files."""
    folder = tmp_path_factory.mktemp("ablation") / "runs"
    return folder, call(data, "--configs", configs, "--output_dir", folder, "--seeds", 0, 1)


# -- end to end --------------------------------------------------------------------------------------------------------


def test_every_step_is_trained_for_every_seed(done):
    folder, said = done
    assert said.status == 0, said.err
    runs = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    assert runs == ["1_naive-0", "1_naive-1", "3_features-0", "3_features-1"]
    for name in runs:
        config = json.loads((folder / name / "config.json").read_text())
        assert (config["seed"], config["lexical_features"]) == (int(name[-1]), name.startswith("3"))
        assert (config["compress"], config["bertscore_samples"], config["attention_examples"]) == (False, 0, 0)
    assert "7_data: left out, it needs --extra_files\n" in said.out
    assert (folder / "ablation.md").read_text(encoding="utf-8") in said.out


def test_the_report_has_the_numbers_of_the_runs(done):
    folder, _ = done
    report = json.loads((folder / "ablation.json").read_text())
    assert [step["step"] for step in report["steps"]] == ["1_naive", "3_features"]
    assert set(report) == {"num_questions", "steps"}
    for step in report["steps"]:
        assert set(step) == {
            *("step", "adds", "config", "seeds", "parameters", "F1", "F1_spread", "F1_interval", "Exact_Match"),
            *("minutes", "runs"),
        }
        names = {"seed", "F1", "F1_interval", "Exact_Match", "best_epoch", "minutes", "parameters", "curve"}
        assert all(set(run) == names for run in step["runs"])
    for step in report["steps"]:
        assert step["seeds"] == [0, 1] and step["config"]["num_epochs"] == 2
        for run in step["runs"]:
            place = folder / f"{step['step']}-{run['seed']}"
            metrics = json.loads((place / "best" / "metrics.json").read_text())
            assert (run["F1"], run["Exact_Match"]) == (metrics["F1"], metrics["Exact_Match"])
            found = [(each["epoch"], each["value"]) for each in records(place) if each["tag"] == "F1/val"]
            assert list(zip(run["curve"]["epoch"], run["curve"]["F1"], strict=True)) == found and len(found) == 2
            assert run["F1"] == max(run["curve"]["F1"])
            assert run["F1_interval"][0] <= run["F1"] <= run["F1_interval"][1]
            assert 0 < run["minutes"] < 1
        first, second = (run["F1"] for run in step["runs"])
        assert (step["F1"], step["F1_spread"]) == pytest.approx(((first + second) / 2, abs(first - second) / 2))
    assert report["steps"][1]["parameters"] > report["steps"][0]["parameters"] > 500 * SHAPE["embed_dim"]
    table = (folder / "ablation.md").read_text(encoding="utf-8").splitlines()
    assert len([line for line in table if line.startswith("| ")]) == 3
    assert (folder / "ablation.png").read_bytes().startswith(b"\x89PNG")


def test_f1_of_questions_adds_up(done, data):
    folder, _ = done
    predictions = json.loads((folder / "3_features-0" / "predictions.json").read_text())
    scores = question_f1(predictions, read_squad(data["validation_file"]))
    metrics = json.loads((folder / "3_features-0" / "best" / "metrics.json").read_text())
    assert sum(scores) / len(scores) == pytest.approx(metrics["F1"])


def test_nothing_is_trained_twice(done, data, configs, monkeypatch):
    folder, _ = done
    before = tree(folder)
    for name in ("train", "resume"):
        monkeypatch.setattr(scripts.experiments.ablation, name, None)
    said = call(data, "--configs", configs, "--output_dir", folder, "--seeds", 0, 1)
    assert said.status == 0 and said.out.count("finished before") == 4
    assert tree(folder) == before


def test_one_seed_has_an_interval(done, data, configs, monkeypatch):
    folder, _ = done
    before = {name: (folder / name).read_bytes() for name in ARTIFACTS}
    monkeypatch.setattr(scripts.experiments.ablation, "train", None)
    said = call(data, "--configs", configs, "--output_dir", folder, "--only", "3_features", "--json")
    for name, content in before.items():
        (folder / name).write_bytes(content)
    report = json.loads(said.out)
    assert set(report) == {"num_questions", "steps", "table", "picture"}
    (step,) = report["steps"]
    low, high = step["F1_interval"]
    assert (step["seeds"], step["F1_spread"]) == ([0], None) and low < high
    assert "finished before" in said.err


def test_a_stopped_run_goes_on(done, data, configs, tmp_path, monkeypatch):
    """Ctrl-C in the first run; the same command ends with the weights and the answers of a run that was not stopped."""
    folder, _ = done
    arguments = ("--configs", configs, "--output_dir", tmp_path / "runs", "--only", "3_features")
    original = Trainer.train_step

    def stopping_step(trainer: Trainer) -> None:
        if trainer.state.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        original(trainer)

    monkeypatch.setattr(Trainer, "train_step", stopping_step)
    said = call(data, *arguments)
    assert said.status == 130 and said.err.startswith("stopped; go on with: python ablation.py --train_file ")
    assert not is_finished(tmp_path / "runs" / "3_features-0")
    monkeypatch.setattr(Trainer, "train_step", original)
    said = call(data, *arguments)
    assert said.status == 0 and "3_features-0 at step 3 of " in said.out
    for name in ("predictions.json", "best/model.safetensors"):
        ours, straight = (place / "3_features-0" / name for place in (tmp_path / "runs", folder))
        assert ours.read_bytes() == straight.read_bytes()


# -- plan --------------------------------------------------------------------------------------------------------------


def fake_encoder(folder: Path) -> Path:
    """A folder that passes for a BERT encoder as long as nobody reads its weights."""
    folder.mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        (folder / name).touch()
    shape = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
    config = {"model_type": "bert", "hidden_act": "gelu", "type_vocab_size": 2, "layer_norm_eps": 1e-12, **shape}
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 512}))
    return folder


def test_what_the_last_steps_take(tmp_path):
    """Step 7 takes more files; step 8 the shape of its encoder, and the first files alone."""
    folder = tmp_path / "configs"
    folder.mkdir()
    recipe = {"norm_first": False, "positions": "learned", "conv_kernel_size": 0, "learning_rate": 0.0001}
    for name in ("5_pretraining", "7_data", "8_warm_start"):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe if name[0] == "8" else {"conv_kernel_size": 7}))
    ablation = Ablation(
        train_file=["a.json"],
        validation_file="v.json",
        output_dir=Path("runs"),
        configs=folder,
        extra_files=["b.json", "c.json"],
        init_from=str(fake_encoder(tmp_path / "bert")),
    )
    configs = {step.name: config_of(step, 3, ablation) for step in read_steps(folder)}
    assert [len(config.train_file) for config in configs.values()] == [1, 3, 1]
    assert configs["7_data"].train_file == ("a.json", "b.json", "c.json")
    assert [config.embed_dim for config in configs.values()] == [256, 256, 32]
    assert configs["8_warm_start"].init_from == ablation.init_from and configs["7_data"].init_from is None
    assert configs["8_warm_start"].learning_rate == 0.0001
    assert {(config.seed, config.compress) for config in configs.values()} == {(3, False)}


@pytest.mark.parametrize(
    ("extra_files", "left_out"),
    [
        ([], {"7_data": "--extra_files", "8_warm_start": "--init_from"}),
        (["b.json"], {"8_warm_start": "--init_from"}),
    ],
)
def test_steps_without_their_needs_are_left_out(tmp_path, capsys, extra_files, left_out):
    names = ("5_pretraining", "7_data", "8_warm_start")
    folder = write_configs(tmp_path, {name: {} for name in names})
    runs = planned_runs(Ablation(["a.json"], "v.json", tmp_path / "runs", folder, extra_files))
    assert [run.folder.name for run in runs] == [f"{name}-0" for name in names if name not in left_out]
    said = [f"{name}: left out, it needs {needs}" for name, needs in left_out.items()]
    assert capsys.readouterr().out.splitlines() == said


def test_steps_of_ones_own_are_described_by_their_settings(tmp_path):
    folder = write_configs(tmp_path, {"a": {"dropout": 0.1}, "b": {"dropout": 0.3}, "c": {}})
    assert [step.addition.what for step in read_steps(folder)] == ["", "dropout 0.3", "dropout as by default"]
    assert differences({"b": 2, "c": [1]}, {"a": 1, "b": 2}) == "a as by default, c [1]"


def test_shipped_steps_are_all_described():
    folder = Path(__file__).resolve().parents[2] / "configs" / "ablation"
    assert [path.stem for path in sorted(folder.glob("*.yaml"))] == list(ADDITIONS)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (["--only", "9_more"], ["--only 9_more: no such step; use 1_naive, 3_features, 7_data"]),
        (["--only", "7_data"], ["no step has what it needs"]),
        (["--configs", "nowhere"], ["--configs nowhere: no .yaml file there"]),
        (["--seeds", "0", "1", "0"], ["--seeds names 0 twice"]),
        (["--seeds", "x"], ["invalid int value: 'x'"]),
        (["--seeds=-1"], ["--seed -1 is out of range"]),
        (["--init_from", "nowhere"], ["--init_from nowhere: no pretrained BERT encoder there"]),
        (["--extra_files", "nowhere.json"], ["nowhere.json"]),
        (["--validation_file", "nowhere.json"], ["nowhere.json"]),
        (["--num_threads", "0"], ["--num_threads 0 is out of range"]),
        (["--sedes", "1"], ["unrecognized arguments: --sedes"]),
    ],
)
def test_bad_input_is_refused_before_anything_is_trained(data, configs, tmp_path, more, parts):
    said = call(data, "--configs", configs, "--output_dir", tmp_path / "runs", *more)
    assert_one_line(said, *parts, prog="ablation.py")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("settings", "part"),
    [({"lerning_rate": 1}, "unknown setting lerning_rate"), ({"task_type": "lm"}, "for --task_type squad, not lm")],
)
def test_a_bad_config_is_refused(data, tmp_path, settings, part):
    folder = write_configs(tmp_path / "configs", {"1_naive": {}, "2_bad": settings})
    said = call(data, "--configs", folder, "--output_dir", tmp_path / "runs")
    assert_one_line(said, part, prog="ablation.py")
    assert not (tmp_path / "runs").exists()


def test_another_task_is_refused(data, tmp_path):
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "1_lm.yaml").write_text("task_type: lm\n")
    said = call(data, "--configs", folder, "--output_dir", tmp_path / "runs")
    assert_one_line(said, "1_lm.yaml: task_type lm; the ablation is of squad", prog="ablation.py")


def test_a_run_with_other_settings_is_refused(done, data, tmp_path):
    folder, _ = done
    before = tree(folder)
    configs = write_configs(tmp_path, {"1_naive": {"lexical_features": False, "dropout": 0.3}})
    said = call(data, "--configs", configs, "--output_dir", folder)
    assert_one_line(said, "1_naive-0: trained with --dropout 0.2, and now it is 0.3; remove it", prog="ablation.py")
    assert tree(folder) == before


def test_a_folder_that_is_no_run_is_refused(data, configs, tmp_path):
    (tmp_path / "1_naive-0").mkdir()
    said = call(data, "--configs", configs, "--output_dir", tmp_path)
    assert_one_line(said, "1_naive-0/config.json: no such file", prog="ablation.py")


def test_answers_to_other_questions_are_refused(done, data):
    folder, _ = done
    step = TrainedStep("3_features", "", {}, {0: folder / "3_features-0"})
    with pytest.raises(CheckpointError, match="3_features-0: cannot be used .it answers other questions"):
        report_of(step, read_squad(data["train_file"]))
    with pytest.raises(CheckpointError, match="none-0: cannot be used .*remove it, and it is trained again"):
        report_of(TrainedStep("none", "", {}, {0: folder / "none-0"}), read_squad(data["validation_file"]))


def test_names_given_twice():
    with pytest.raises(ConfigError, match="--only names 1_naive twice; name each once"):
        Ablation(["t.json"], "v.json", only=["1_naive", "2_schedule", "1_naive"])


# -- by hand -----------------------------------------------------------------------------------------------------------


def test_bootstrap_by_hand():
    """Means of 10 draws out of 0 and 100 are binomial(10, 1/2) tenths: P(≤ 1) = 11/1024 < 2.5 % < 56/1024 = P(≤ 2)."""
    assert bootstrap_interval([40.0] * 7) == (40.0, 40.0)
    assert bootstrap_interval([0.0, 100.0]) == (0.0, 100.0)
    assert bootstrap_interval([0.0, 100.0] * 5) == (20.0, 80.0)
    assert bootstrap_interval([0.0, 100.0] * 5) == bootstrap_interval([0.0, 100.0] * 5)
    low, high = bootstrap_interval([0.0, 100.0] * 200)  # 50 ± 1.96 * 50 / 20
    assert (low, high) == pytest.approx((45.1, 54.9), abs=0.6)


def document(*questions: dict) -> dict:
    return {"data": [{"title": "t", "paragraphs": [{"context": "red blue green", "qas": list(questions)}]}]}


def test_question_f1_by_hand():
    """One of two words, and one of one: precision 1, recall 1/2, F1 2/3."""
    answers = [{"text": "red blue", "answer_start": 0}]
    asked = [{"id": name, "question": "?", "answers": answers} for name in ("a", "b", "c")]
    data = squad_from_document(document(*asked), "by hand")
    scores = question_f1({"a": "red", "b": "red blue", "c": "green"}, data)
    assert scores == pytest.approx([200 / 3, 100.0, 0.0])


def test_question_f1_of_impossible_questions():
    paragraphs = document({"id": "a", "question": "?", "answers": [{"text": "red", "answer_start": 0}]})["data"][0]
    made = with_impossible({"data": [{"paragraphs": paragraphs["paragraphs"]}]})
    data = squad_from_document(made, "by hand")
    assert question_f1({"a": "red", "a-not": ""}, data) == [100.0, 100.0]
    assert question_f1({"a": "", "a-not": "red"}, data) == [0.0, 0.0]


STEPS = [
    {"step": "1_naive", "adds": "plain", "F1": 20.0, "F1_spread": 1.25, "F1_interval": None, "Exact_Match": 10.04},
    {"step": "2_schedule", "adds": "+ rate", "F1": 58.66, "F1_spread": None, "F1_interval": [56.0, 61.0]},
]


def by_hand() -> dict[str, Any]:
    runs = [{"curve": {"epoch": [1.0, 2.0], "F1": [10.0, 20.0]}}]
    filled = [{"Exact_Match": 45.91, "minutes": 4.7, "seeds": [0], "runs": runs, **step} for step in STEPS]
    return {"num_questions": 1238, "steps": [{**filled[0], "seeds": [0, 1]}, filled[1]]}


def test_table_by_hand():
    lines = report_table(by_hand()).splitlines()
    assert lines[:4] == [
        "| step | what it adds | F1 | Exact_Match | minutes |",
        "|---|---|---|---|---|",
        "| 1_naive | plain | 20.0 ± 1.2 | 10.0 | 4.7 |",
        "| 2_schedule | + rate | 58.7 (56.0 to 61.0) | 45.9 | 4.7 |",
    ]
    both, one = lines[-1], report_table({**by_hand(), "steps": by_hand()["steps"][1:]}).splitlines()[-1]
    assert "1,238 validation questions. Means over seeds 0, 1; F1 ± half" in both
    assert "In brackets" in both and "In brackets" in one and "Means" not in one
    assert f1_text(STEPS[1]) == "58.7 (56.0 to 61.0)"


def test_a_picture_of_eight_steps():
    steps = [{**by_hand()["steps"][number % 2], "step": name} for number, name in enumerate(ADDITIONS)]
    assert draw_report({"num_questions": 1, "steps": steps}).startswith(b"\x89PNG")


def test_minutes_of_a_run_that_was_gone_on_with(tmp_path, monkeypatch):
    """Two processes of 60 s and 30 s, and a pretraining of 30 s; the hour between them does not count."""
    from him.runs.records import MetricWriter

    now = 1_000_000.0
    monkeypatch.setattr("him.runs.records.time.time", lambda: now)
    for place, seconds in (("pretraining", 30), ("", 60), ("", 30)):
        (tmp_path / place).mkdir(exist_ok=True)
        writer = MetricWriter(tmp_path / place)
        now += seconds
        writer.write({"Loss/train": 1.0}, 1, 0.5)
        writer.close()
        now += 3600
    assert minutes_of(tmp_path) == pytest.approx(2.0)
