"""`scripts/compress.py`: one amount, several of them, and what it refuses."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

import him
from him.config.options import with_role
from him.core.errors import CheckpointError, ConfigError
from him.core.files import write_checksums
from him.workflows.compress import compress_run, sweep
from tests.compression.tiny import compressed_run, quickly
from tests.small_runs import assert_one_line, call_script, tree

QUICK = ["--fine_tune_epochs", "0"]


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


# -- one amount --------------------------------------------------------------------------------------------------------


def test_the_script_prints_the_table(copied):
    run = copied("lm")
    finished = call_script("compress.py", run, "--pruning_amount", "0.5", *QUICK)
    assert (finished.status, finished.err) == (0, "")
    report = read(run / "compressed" / "report.json")
    assert finished.out.endswith(f"{report['table']}\n{report['summary']}\n")
    assert (report["settings"]["pruning_amount"], report["settings"]["fine_tune_epochs"]) == (0.5, 0)


def test_the_script_prints_json_and_nothing_else(copied):
    run = copied("lm")
    finished = call_script("compress.py", run, "--pruning_amount", "0", "--json")
    assert finished.status == 0
    assert json.loads(finished.out) == read(run / "compressed" / "report.json")
    assert len(finished.out.splitlines()) == 1


def test_the_settings_of_the_run_hold_where_nothing_else_is_said(copied):
    """And the run's own files are left alone."""
    run = copied("lm")
    before = {name: content for name, content in tree(run).items() if not name.startswith("compressed")}
    report = compress_run(run, {"fine_tune_epochs": 0})
    names = [*with_role("compression"), "trained", "seed"]
    of_run = compressed_run("lm").result["compression"]["settings"] | {"fine_tune_epochs": 0}
    assert {name: report["settings"][name] for name in names} == {name: of_run[name] for name in names}
    after = {name: content for name, content in tree(run).items() if not name.startswith("compressed")}
    assert after == before


def test_data_that_moved_can_be_named(copied, tmp_path):
    """The run's settings name files that are gone."""
    run = copied("lm")
    settings = compressed_run("lm").settings
    config = read(run / "best" / "config.json")
    for name in ("corpus_dir", "validation_file"):
        config[name] = str(tmp_path / "gone" / name)
    (run / "best" / "config.json").write_text(json.dumps(config))
    write_checksums(run / "best")
    assert_one_line(call_script("compress.py", run, *QUICK), "gone", prog="compress.py")
    moved = {name: settings[name] for name in ("corpus_dir", "validation_file", "cache_dir")}
    assert compress_run(run, {**moved, "fine_tune_epochs": 0})["stages"]


# -- several amounts ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> tuple[Path, dict]:
    """A run compressed for two amounts."""
    run = tmp_path_factory.mktemp("swept") / "run"
    shutil.copytree(compressed_run("lm").run, run)
    with quickly():
        return run, sweep(run, {"fine_tune_epochs": 0}, ["0", "0.5"])


def test_a_sweep_writes_table_and_picture(swept):
    run, result = swept
    assert read(run / "sweep" / "sweep.json") == result
    assert [(point["pruning_amount"], point["stage"]) for point in result["points"]] == [
        *((0.0, "trained"), (0.0, "int8")),
        *((0.5, "pruned"), (0.5, "int8")),
    ]
    assert len(result["table"].splitlines()) == 1 + 4
    assert result["summary"] == f"picture: {run / 'sweep' / 'sweep.png'}"
    assert Image.open(run / "sweep" / "sweep.png").width > 600
    for amount in ("0", "0.5"):
        assert (run / "sweep" / amount / "int8" / "model.safetensors").is_file()
        assert read(run / "sweep" / amount / "report.json")["settings"]["pruning_amount"] == float(amount)
        assert him.load(run / "sweep" / amount / "int8").predict(text="Ann").num_tokens > 0


def test_a_sweep_leaves_the_result_of_the_run_alone(swept):
    assert tree(swept[0] / "compressed") == tree(compressed_run("lm").run / "compressed")


def test_sizes_fall_with_the_amount(swept):
    sizes = [point["file_mb"] for point in swept[1]["points"]]
    assert sizes[0] > sizes[2] > sizes[1] > sizes[3]


def test_amounts_that_were_done_are_taken_as_they_are(swept, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(swept[0], run)
    before = {name: content for name, content in tree(run).items() if name.startswith(("sweep/0/", "sweep/0.5/"))}
    result = sweep(run, {"fine_tune_epochs": 0}, ["0.3", "0.5", "0"])
    out = capsys.readouterr().out.splitlines()
    assert [line for line in out if line.startswith("--pruning_amount")] == ["--pruning_amount 0.3"]
    after = {name: content for name, content in tree(run).items() if name.startswith(("sweep/0/", "sweep/0.5/"))}
    assert after == before
    assert [point["pruning_amount"] for point in result["points"]] == [0.3, 0.3, 0.5, 0.5, 0.0, 0.0]


@pytest.mark.parametrize("changed", ["settings", "model", "report"])
def test_amounts_that_were_done_otherwise_are_done_again(swept, tmp_path, capsys, changed):
    run = tmp_path / "run"
    shutil.copytree(swept[0], run)
    changes = {"fine_tune_epochs": 0}
    if changed == "settings":
        changes["seed"] = 5
    elif changed == "model":
        shutil.rmtree(run / "best")
        shutil.copytree(compressed_run("lm").run / "compressed" / "fine_tuned" / "best", run / "best")
    else:
        (run / "sweep" / "0" / "report.json").write_text("{")
    sweep(run, changes, ["0"])
    assert "--pruning_amount 0" in capsys.readouterr().out.splitlines()


def test_the_script_sweeps(copied):
    run = copied("squad", compressed=False)
    finished = call_script("compress.py", run, "--sweep", "0", "0.6", *QUICK)
    assert (finished.status, finished.err) == (0, "")
    result = read(run / "sweep" / "sweep.json")
    assert finished.out.endswith(f"{result['table']}\n{result['summary']}\n")
    assert not (run / "compressed").exists()


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("amounts", "said"),
    [
        (["0.2", "1.2"], "--pruning_amount 1.2 is out of range; use at least 0 and less than 1"),
        (["0.2", "-0.1"], "--pruning_amount -0.1 is out of range"),
        (["0.2", "half"], "--pruning_amount half is not a number"),
        (["0.2", "0.5", "0.20"], "--sweep names an amount twice; name each once"),
    ],
)
def test_amounts_of_a_sweep(copied, amounts, said):
    """All are checked before the first is begun."""
    run = copied("lm")
    before = tree(run)
    with pytest.raises(ConfigError) as error:
        sweep(run, {}, amounts)
    assert said in str(error.value)
    assert tree(run) == before


def test_a_sweep_without_room_leaves_no_part_of_that_amount(copied):
    run = copied("lm", compressed=False)
    with pytest.raises(ConfigError, match=r"--pruning_amount 0\.98 is more than there is to remove"):
        sweep(run, {"fine_tune_epochs": 0}, ["0.98"])
    assert not list(run.glob("sweep/*"))


@pytest.mark.parametrize("damage", ["model.safetensors", "config.json", "tokenizer.json", "metrics.json"])
def test_a_damaged_model_is_not_compressed(copied, damage):
    run = copied("lm")
    path = run / "best" / damage
    path.write_bytes(path.read_bytes()[:-2] + b"??")
    before = tree(run)
    with pytest.raises(CheckpointError, match=damage):
        compress_run(run, {})
    assert tree(run) == before
