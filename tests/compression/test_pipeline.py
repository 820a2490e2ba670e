"""The whole stage: what it leaves after a run, and that a kill, a Ctrl-C or a refusal at any moment harms nothing."""

import json
import os
import shlex
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

import him
from him.compression import latency, pipeline, stages
from him.config import Config
from him.config.options import OPTIONS, with_role
from him.core.errors import CheckpointError, ConfigError
from him.core.files import checksum, verify_folder, write_json
from him.runs.folder import STAGES, RunFolder
from him.training.trainer import Trainer
from him.workflows.compress import compress_run
from him.workflows.resume import resume
from tests.compression.tiny import (
    TASKS,
    compressed_run,
    loaded,
    new_model,
    outputs,
    random_batch,
    settings_of,
    stage_of,
    tensors_of,
)
from tests.small_runs import (
    ForkedMain,
    assert_one_line,
    call_main,
    call_script,
    exact_records,
    flags,
    in_child,
    scalar_series,
    slow_steps,
    tree,
)

EVERY_TASK = pytest.mark.parametrize("task_type", TASKS)
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and signals")


def report_of(run: Path) -> dict:
    return json.loads((run / "compressed" / "report.json").read_text())


# -- after every run ---------------------------------------------------------------------------------------------------


@EVERY_TASK
def test_the_report(task_type):
    """design.md, section 8."""
    run = compressed_run(task_type).run
    report = report_of(run)
    assert [stage["stage"] for stage in report["stages"]] == ["trained", "pruned", "fine_tuned", "int8"]
    metric = {"squad": "F1", "summarization": "ROUGE-L", "lm": "Bits_Per_Byte"}[task_type]
    assert report["metric"] == metric
    wanted = {"stage", "parameters", "file_mb", "latency_ms_1x128", "latency_ms_1x384", "examples_per_second_32x384"}
    for stage in report["stages"]:
        folder = stage_of(run, stage["stage"])
        assert wanted | {metric, "Loss"} <= set(stage)
        tensors = tensors_of(folder)
        numbers = sum(tensor.numel() for name, tensor in tensors.items() if not name.endswith(".scale"))
        assert stage["parameters"] == numbers
        assert stage["file_mb"] == pytest.approx((folder / "model.safetensors").stat().st_size / 1e6, abs=6e-4)
        assert all(stage[name] > 0 for name in wanted - {"stage"})
        saved = json.loads((folder / "metrics.json").read_text())
        assert {name: stage[name] for name in saved if name not in ("step", "epoch")} == {
            name: value for name, value in saved.items() if name not in ("step", "epoch")
        }
    trained, pruned, tuned, int8 = report["stages"]
    assert pruned["parameters"] == tuned["parameters"] == int8["parameters"] < trained["parameters"]
    assert int8["file_mb"] < 0.5 * tuned["file_mb"] < 0.5 * trained["file_mb"]
    assert [stage.get("verdict", "").split(",")[0] for stage in report["stages"]] == ["", *["smaller"] * 3]


@EVERY_TASK
def test_what_python_gets_is_what_is_written(task_type):
    compressed = compressed_run(task_type)
    assert compressed.result["compression"] == report_of(compressed.run)
    options = {name: compressed.settings.get(name, OPTIONS[name].default) for name in with_role("compression")}
    assert options.items() <= report_of(compressed.run)["settings"].items()


@EVERY_TASK
def test_every_file_of_the_layout(task_type):
    run = compressed_run(task_type).run
    names = {path.name.split(".tfevents.")[0] for path in (run / "compressed").iterdir()}
    expected = {"pruned", "fine_tuned", "int8", "report.json", "report.png", "events.out"}
    assert expected <= names <= expected | {"progress.json", "metrics.jsonl"}
    assert {path.name.split(".tfevents.")[0] for path in (run / "compressed" / "fine_tuned").iterdir()} == {
        *("best", "events.out", "metrics.jsonl")
    }
    for stage in STAGES:
        assert RunFolder(run).find_model(stage) == stage_of(run, stage)
        verify_folder(stage_of(run, stage))
    left = [path for path in run.iterdir() if path.name.startswith((".", "compressed.")) or path.suffix == ".old"]
    assert [path.name for path in left] == [".lock"]


@EVERY_TASK
def test_tensorboard_has_the_picture_and_the_table(task_type):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = compressed_run(task_type).run
    events = EventAccumulator(str(run / "compressed"), size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    assert events.Tags()["images"] == ["Compression"]
    (image,) = events.Images("Compression")
    shown = Image.open(run / "compressed" / "report.png")
    assert (image.width, image.height) == shown.size and image.step == 0
    assert len(np.unique(np.asarray(shown).reshape(-1, 3), axis=0)) > 20
    (text,) = events.Tensors("Compression/table/text_summary")
    said = text.tensor_proto.string_val[0].decode()
    assert report_of(run)["table"] in said and report_of(run)["summary"] in said
    assert not events.Tags()["scalars"]
    assert len(list((run / "compressed").glob("events.out.tfevents.*"))) == 1
    assert len(list(run.glob("events.out.tfevents.*"))) == 1


def test_main_prints_the_table(copied):
    run = copied("lm")
    finished = call_main("--resume", run)
    assert (finished.status, finished.err) == (0, "")
    report = report_of(run)
    assert finished.out.endswith(f"{report['table']}\n{report['summary']}\n")
    assert tree(run / "compressed") == tree(compressed_run("lm").run / "compressed"), "it was there already"


def test_no_compress(tmp_path):
    typed = settings_of("lm", tmp_path) | {"run_name": "run", "compress": False, "max_steps": 1}
    finished = call_main(*flags(typed))
    assert (finished.status, finished.err) == (0, "")
    assert not list((tmp_path / "runs" / "run").glob("*compressed*"))
    assert "int8" not in finished.out
    assert "compression" not in him.train(Config(**{**typed, "run_name": "other"}))


def test_dry_run(tmp_path):
    """Two steps of everything, the fine-tuning included."""
    typed = settings_of("squad", tmp_path) | {"run_name": "run", "compress": True, "num_epochs": 30, "batch_size": 4}
    finished = call_main(*flags(typed), "--dry_run")
    assert (finished.status, finished.err) == (0, "")
    run = tmp_path / "runs" / "run"
    assert [stage["stage"] for stage in report_of(run)["stages"]] == list(STAGES)
    assert {step for step, _ in scalar_series(run / "compressed" / "fine_tuned")["Loss/val"]} == {0, 2}


@pytest.mark.parametrize(
    ("task_type", "more"),
    [
        pytest.param("squad", {"norm_first": False, "conv_kernel_size": 0}, marks=pytest.mark.slow),
        pytest.param("summarization", {"norm_first": True, "copy_head": False}, marks=pytest.mark.slow),
        ("lm", {"norm_first": False, "positions": "learned", "conv_kernel_size": 3, "optimizer": "muon"}),
    ],
)
def test_the_other_norm_order_from_end_to_end(tmp_path, task_type, more):
    """That of lm has learned positions for 64 tokens: it is timed where it reaches, and judged by an example."""
    typed = settings_of(task_type, tmp_path) | more | {"run_name": "run", "compress": True, "ema_decay": 0.9}
    report = him.train(Config(**typed))["compression"]
    assert [stage["stage"] for stage in report["stages"]] == list(STAGES)
    assert {stage["latency_ms_1x384"] is None for stage in report["stages"]} == {"positions" in more}
    run = tmp_path / "runs" / "run"
    inputs = {"question": "Who came?", "context": "Ann Bell came."} if task_type == "squad" else {"text": "Ann came."}
    for stage in STAGES:
        assert him.load(run, stage).predict(**inputs) == him.load(run, stage).predict(**inputs)
    config = Config.load(stage_of(run, "int8") / "config.json")
    assert (config.norm_first, len(config.layer_heads)) == (typed["norm_first"], 2)


# -- what is asked for -------------------------------------------------------------------------------------------------


def test_amount_0_prunes_nothing_and_trains_nothing(copied):
    run = copied("lm", compressed=False)
    report = compress_run(run, {"pruning_amount": 0})
    assert [stage["stage"] for stage in report["stages"]] == ["trained", "int8"]
    assert not (run / "compressed" / "pruned").exists() and not (run / "compressed" / "fine_tuned").exists()
    assert report["stages"][0]["parameters"] == report["stages"][1]["parameters"]
    batch = random_batch(loaded("lm", "trained")[0])
    task, model = loaded("lm", "trained")
    int8 = him.load(run, "int8", precision="fp32").model
    torch.testing.assert_close(outputs(task, int8, batch), outputs(task, model, batch), rtol=0.05, atol=0.05)


def test_no_epochs_of_fine_tuning(copied):
    run = copied("lm", compressed=False)
    report = compress_run(run, {"fine_tune_epochs": 0})
    assert [stage["stage"] for stage in report["stages"]] == ["trained", "pruned", "int8"]
    assert not (run / "compressed" / "fine_tuned").exists()
    with pytest.raises(CheckpointError, match="no model of the stage fine_tuned there, only trained, pruned, int8"):
        him.load(run, "fine_tuned")


def test_more_goes_where_more_is_asked_for(copied):
    run = copied("lm")
    before = [stage["parameters"] for stage in report_of(run)["stages"]]
    after = [each["parameters"] for each in compress_run(run, {"pruning_amount": 0.6, "fine_tune_epochs": 0})["stages"]]
    assert before[0] == after[0]
    assert before[1] > after[1] == after[-1]


def test_zeroed_weights_are_called_what_they_are(copied):
    run = copied("squad", compressed=False)
    report = compress_run(run, {"pruning_method": "magnitude", "pruning_amount": 0.5})
    trained, zeroed, tuned, _ = report["stages"]
    assert trained["parameters"] == zeroed["parameters"] == tuned["parameters"]
    assert zeroed["verdict"].startswith("not smaller") and tuned["verdict"].startswith("not smaller")
    assert "not smaller" in report["table"]
    assert zeroed["Loss"] != trained["Loss"]


@pytest.mark.parametrize("stage", STAGES)
def test_evaluating_a_stage_gives_the_numbers_of_the_report(stage):
    settings, run, _ = compressed_run("squad")
    finished = call_script("evaluate.py", run, "--file", settings["validation_file"], "--stage", stage, "--json")
    assert (finished.status, finished.err) == (0, "")
    (expected,) = (each for each in report_of(run)["stages"] if each["stage"] == stage)
    metrics = json.loads(finished.out)["metrics"]
    assert {"F1", "Exact_Match", "Loss"} < set(metrics)
    assert metrics == {name: pytest.approx(expected[name], rel=1e-6) for name in metrics}


# -- doing it again ----------------------------------------------------------------------------------------------------


def weights_of(run: Path) -> dict[str, bytes]:
    paths = sorted((run / "compressed").rglob("model.safetensors"))
    return {str(path.relative_to(run)): path.read_bytes() for path in paths}


def test_other_settings_take_the_place_of_the_earlier_result(copied):
    run = copied("lm")
    before = weights_of(run)
    report = compress_run(run, {"pruning_amount": 0.6, "fine_tune_epochs": 0})
    assert report == report_of(run)
    assert report["settings"]["pruning_amount"] == 0.6
    assert set(weights_of(run)) == {"compressed/int8/model.safetensors", "compressed/pruned/model.safetensors"}
    assert all(len(content) < len(before[name]) for name, content in weights_of(run).items())
    assert not {path.name for path in run.iterdir()} - {".lock", *tree(compressed_run("lm").run)}


def test_the_same_settings_give_the_same_weights(copied):
    run = copied("lm", compressed=False)
    compress_run(run, {})
    assert weights_of(run) == weights_of(compressed_run("lm").run)


def test_resuming_with_other_settings_does_it_again(copied, straight):
    run = copied("lm")
    finished = call_main("--resume", run, *flags(CHANGES))
    assert (finished.status, finished.err) == (0, "")
    assert "--pruning_amount: 0.3 → 0.4" in finished.out.splitlines()
    assert report_of(run)["settings"]["pruning_amount"] == 0.4
    assert_same_result(run, straight("lm"))


@pytest.mark.parametrize("was_compressed", [True, False])
def test_an_amount_that_cannot_go_leaves_everything_as_it_was(copied, was_compressed):
    run = copied("lm", compressed=was_compressed)
    before = tree(run)
    with pytest.raises(ConfigError, match=r"--pruning_amount 0\.98 is more than there is to remove"):
        compress_run(run, {"pruning_amount": 0.98})
    assert tree(run) == before


def test_an_amount_that_cannot_go_is_refused_before_the_training(tmp_path):
    typed = settings_of("lm", tmp_path) | {"run_name": "run", "compress": True, "pruning_amount": 0.98}
    assert_one_line(call_main(*flags(typed)), "--pruning_amount 0.98 is more than there is to remove", "or less")
    assert not (tmp_path / "runs" / "run").exists()


def test_an_error_on_the_way_leaves_the_earlier_result(copied, monkeypatch):
    run = copied("lm")
    before = tree(run / "compressed")
    monkeypatch.setattr(latency, "measure_speeds", mock.Mock(side_effect=CheckpointError("no space")))
    with pytest.raises(CheckpointError, match="no space"):
        compress_run(run, {"pruning_amount": 0.5, "fine_tune_epochs": 0})
    assert tree(run / "compressed") == before
    assert him.load(run, "int8").config.layer_heads == him.load(compressed_run("lm").run, "int8").config.layer_heads


# -- kills -------------------------------------------------------------------------------------------------------------


def kill_before(owner: object, name: str, number: int = 1, when: Callable[..., bool] = lambda *args: True) -> None:
    """Kills this process before the call of that number, as a power cut would."""
    original, calls = getattr(owner, name), []

    def call(*args, **named):
        calls.extend([1] if when(*args) else [])
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **named)

    setattr(owner, name, call)


def is_part(source: object, *_: object) -> bool:
    return str(source).endswith(".part")


MOMENTS: dict[str, Callable[[], None]] = {
    "ranking units": lambda: kill_before(stages, "choose_units"),
    "before the pruned model is noted": lambda: kill_before(pipeline, "write_json", 3),
    "before the first step": lambda: kill_before(Trainer, "train_step", 1),
    "before the first checkpoint": lambda: kill_before(Trainer, "save", 1),
    "before the last checkpoint": lambda: kill_before(Trainer, "save", 2),
    "before the tuned model is noted": lambda: kill_before(pipeline, "write_json", 4),
    "quantizing": lambda: kill_before(stages, "save_int8"),
    "before the int8 model is noted": lambda: kill_before(pipeline, "write_json", 5),
    "measuring": lambda: kill_before(latency, "measure_speeds"),
    "before the report": lambda: kill_before(pipeline, "draw_report"),
    "before the renames": lambda: kill_before(shutil, "rmtree", 1, lambda path, *_: str(path).endswith("checkpoints")),
    "between the renames": lambda: kill_before(os, "rename", 1, is_part),
    "after the renames": lambda: kill_before(
        shutil, "rmtree", 1, lambda path, *_: str(path).endswith("compressed.old") and Path(path).exists()
    ),
}
SOME_MOMENTS = (
    *("ranking units", "before the first checkpoint", "before the last checkpoint", "quantizing", "measuring"),
    *("between the renames", "after the renames"),
)
CHANGES = {"pruning_amount": 0.4, "fine_tune_epochs": 2}


def assert_same_result(run: Path, straight: Path) -> None:
    """Bit for bit the same models, the same records but for the speed, and nothing left over."""
    assert weights_of(run) == weights_of(straight) != {}
    tuned, expected = (folder / "compressed" / "fine_tuned" for folder in (run, straight))
    assert exact_records(tuned) == exact_records(expected)
    assert scalar_series(tuned) == scalar_series(expected)
    names, expected_names = ({name for name in tree(folder) if ".tfevents." not in name} for folder in (run, straight))
    assert names == expected_names


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Callable[[str], Path]:
    """The runs that nothing happens to, compressed again with `CHANGES`."""
    made = {}

    def make(task_type: str) -> Path:
        if task_type not in made:
            made[task_type] = tmp_path_factory.mktemp(task_type) / "run"
            shutil.copytree(compressed_run(task_type).run, made[task_type])
            compress_run(made[task_type], CHANGES)
        return made[task_type]

    return make


def compress_until(run: Path, moment: str) -> int:
    """What became of a process that compresses a run and is killed at a moment."""

    def work() -> None:
        MOMENTS[moment]()
        compress_run(run, CHANGES)

    return in_child(work)


@needs_fork
def test_many_kills_in_a_row(copied, straight):
    """Each process goes on from where the one before it was killed."""
    run = copied("lm")
    expected = straight("lm")
    for moment in SOME_MOMENTS:
        assert compress_until(run, moment) == -signal.SIGKILL, moment
        assert (RunFolder(run).find_model("int8") / "model.safetensors").is_file(), "the old result or the new one"
    compress_run(run, CHANGES)
    assert_same_result(run, expected)


@needs_fork
@pytest.mark.slow
@EVERY_TASK
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_at_any_moment(copied, straight, task_type, moment):
    run = copied(task_type)
    expected = straight(task_type)
    assert compress_until(run, moment) == -signal.SIGKILL
    him.load(run, "int8")
    compress_run(run, CHANGES)
    assert_same_result(run, expected)


@needs_fork
@pytest.mark.parametrize(
    "moment", [pytest.param("ranking units", marks=pytest.mark.slow), "before the last checkpoint"]
)
def test_a_killed_main_is_resumed(copied, straight, moment):
    """`main.py --resume` after a kill in the stage: the run is not trained again, and the stage goes on."""
    run = copied("lm", compressed=False)
    expected = straight("lm")

    def work() -> None:
        MOMENTS[moment]()
        resume(run, CHANGES)

    assert in_child(work) == -signal.SIGKILL
    finished = call_main("--resume", run)
    assert (finished.status, finished.err) == (0, "")
    assert_same_result(run, expected)


@needs_fork
def test_leftovers_of_other_settings_are_not_gone_on_from(copied):
    run = copied("lm", compressed=False)
    assert compress_until(run, "quantizing") == -signal.SIGKILL
    assert (run / "compressed.part" / "fine_tuned" / "best").is_dir()
    compress_run(run, {})
    assert weights_of(run) == weights_of(compressed_run("lm").run)
    assert not (run / "compressed.part").exists()


@pytest.mark.parametrize("content", ["{", '{"settings": 3}', "[" * 100_000], ids=["cut", "other", "deep"])
def test_notes_that_cannot_be_read_are_begun_anew(copied, content):
    run = copied("lm", compressed=False)
    (run / "compressed.part").mkdir()
    (run / "compressed.part" / "progress.json").write_text(content)
    (run / "compressed.part" / "pruned").mkdir()
    compress_run(run, {"fine_tune_epochs": 0})
    pruned = "compressed/pruned/model.safetensors"
    assert weights_of(run)[pruned] == weights_of(compressed_run("lm").run)[pruned]


# -- signals -----------------------------------------------------------------------------------------------------------


@needs_fork
def test_ctrl_c_in_the_fine_tuning_of_main(copied, straight):
    run = copied("lm", compressed=False)
    expected = straight("lm")
    process = ForkedMain(["--resume", run, *flags(CHANGES)], lambda: slow_steps(0.05))
    process.wait_for("step 3 begins")
    process.send_signal(signal.SIGINT)
    found, out, err = process.finish()
    assert (found, err) == (130, "")
    (stopped,) = (line for line in out.splitlines() if line.startswith("stopped; "))
    assert shlex.split(stopped.removeprefix("stopped; go on with: ")) == ["python", "main.py", "--resume", str(run)]
    assert not (run / "compressed").exists()
    assert call_main("--resume", run).status == 0
    assert_same_result(run, expected)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_signal_in_the_fine_tuning_of_the_script(copied, straight, monkeypatch, number, status):
    """It goes on with the command that it prints; what was there stays until then."""
    run = copied("lm")
    before = tree(run / "compressed")
    typed = [run, *flags(CHANGES)]
    original = Trainer.train_step

    def train_step(trainer: Trainer) -> None:
        if trainer.state.step == 2:
            os.kill(os.getpid(), number)
            time.sleep(0.01)
        original(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", train_step)
        finished = call_script("compress.py", *typed)
    assert finished.status == status
    assert finished.err == f"stopped; go on with: {shlex.join(['python', 'compress.py', *map(str, typed)])}\n"
    assert tree(run / "compressed") == before
    finished = call_script("compress.py", *typed)
    assert (finished.status, finished.err) == (0, "")
    assert_same_result(run, straight("lm"))


def test_units_are_ranked_on_training_data_whatever_was_drawn_before(copied):
    """Where random windows begin comes from the global generator, which is elsewhere after a kill."""
    runs = []
    for seed in (1, 2):
        runs.append(copied("lm", compressed=False, name=f"run{seed}"))
        torch.manual_seed(seed)
        compress_run(runs[-1], {"fine_tune_epochs": 0})
    assert weights_of(runs[0]) == weights_of(runs[1])


def test_models_are_not_alike_by_chance():
    """Or the comparisons of bytes above would prove nothing."""
    weights = weights_of(compressed_run("lm").run)
    assert len(weights) == 3 and len(set(weights.values())) == 3
    task, other = new_model("lm")
    batch = random_batch(task)
    assert not torch.equal(outputs(task, other, batch), outputs(task, loaded("lm", "trained")[1], batch))


def test_a_report_of_an_earlier_version_has_the_names_of_today(tmp_path):
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "model.safetensors").write_bytes(b"weights")
    settings = {"trained": checksum(tmp_path / "best" / "model.safetensors"), "distillation": 0.25}
    (tmp_path / "compressed").mkdir()
    write_json(tmp_path / "compressed" / "report.json", {"settings": settings, "stages": [{}], "metric": "F1"})
    found = pipeline.report_of(RunFolder(tmp_path))
    assert found["settings"] == {"trained": settings["trained"], "fine_tune_distillation_weight": 0.25}
    for damaged in ([], {"distillation": 0.25, "fine_tune_distillation_weight": 0.25, **settings}, None):
        write_json(tmp_path / "compressed" / "report.json", {"settings": damaged, "stages": [{}]})
        assert pipeline.report_of(RunFolder(tmp_path)) is None
