"""`scripts/export.py`: what it prints, and one line for whatever is wrong."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from him.core.errors import ConfigError
from him.export.onnx import export_onnx
from him.export.transformers import export_transformers
from him.model.int8 import quantize
from tests.export.tiny_runs import make_run, opened
from tests.small_runs import ROOT, assert_one_line, call_script, tree

PLAIN = {"conv_kernel_size": 0, "lexical_features": False, "norm_first": False, "positions": "learned"}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run", "squad", **PLAIN)


@pytest.fixture
def refused(run, tmp_path):
    """Runs the script; it must fail in one line and touch nothing."""

    def call(*arguments: str | Path, parts: tuple[str, ...]) -> None:
        before = tree(tmp_path), tree(run)
        assert_one_line(call_script("export.py", *arguments), *parts, prog="export.py")
        assert (tree(tmp_path), tree(run)) == before

    return call


def test_transformers_from_the_command_line(run, tmp_path):
    """Twice: an earlier export is replaced. With --json there is one object."""
    default = run / "export" / "transformers"
    finished = call_script("export.py", run, "--format", "transformers")
    assert (finished.status, finished.err) == (0, "")
    assert finished.out.startswith(f"{default}: BertForQuestionAnswering, 0.")
    assert "AutoModelForQuestionAnswering.from_pretrained" in finished.out and len(finished.out.splitlines()) == 1
    finished = call_script("export.py", run, "--format", "transformers", "--json")
    assert (finished.status, finished.err) == (0, "")
    said = json.loads(finished.out)
    assert set(said) == {
        *("run", "output", "format", "task", "stage", "class", "open_with", "file_mb", "max_difference"),
        *("largest_output", "checked_shapes"),
    }
    assert said["output"] == str(default) and said["stage"] == "trained"
    assert said["max_difference"] == json.loads((default / "export.json").read_text())["max_difference"]


def test_flags(refused, run):
    refused(run, parts=("--format",))
    refused(run, "--format", "onxx", parts=("invalid choice: 'onxx'", "onnx", "transformers"))
    refused(run, "--format", "onnx", "--stage", "int8", parts=("invalid choice: 'int8'", "fine_tuned"))
    refused(run, "--format", "transformers", "--file", "x.json", parts=("--file is for --format onnx; leave it out",))
    refused(run, "--format", "onnx", "--num_threads", "0", parts=("--num_threads 0 is out of range",))


def test_runs(refused, run, tmp_path):
    refused(tmp_path / "none", "--format", "onnx", parts=("none: no such run; name its folder, such as runs/NAME",))
    (tmp_path / "begun").mkdir()
    refused(tmp_path / "begun", "--format", "onnx", parts=("no finished model there; train the run first",))


def test_stages(refused, run, tmp_path):
    """A pruned model has layers of its own size."""
    pruned = make_run(tmp_path / "pruned", "squad", **PLAIN, layer_feedforward=[32])
    whole = tmp_path / "whole"
    shutil.copytree(run / "best", whole / "best")
    shutil.copytree(pruned / "best", whole / "compressed" / "pruned")
    arguments = (whole, "--format", "transformers", "--stage")
    widths = {}
    for stage in ("trained", "pruned"):
        assert call_script("export.py", *arguments, stage).status == 0
        folder = whole / "export" / "transformers"
        assert json.loads((folder / "export.json").read_text())["stage"] == stage
        widths[stage] = json.loads((folder / "config.json").read_text())["intermediate_size"]
    assert widths == {"trained": 96, "pruned": 32}
    refused(*arguments, "fine_tuned", parts=("no model of the stage fine_tuned there, only trained, pruned",))


@pytest.mark.parametrize("form", ["onnx", "transformers"])
def test_an_int8_model_is_not_exported(run, tmp_path, form):
    predictor = opened(run)
    quantize(predictor.model)
    export = {"onnx": export_onnx, "transformers": export_transformers}[form]
    with pytest.raises(ConfigError, match="^this model is int8 already; export the stage that it was made from"):
        export(predictor, tmp_path / "out")
    assert tree(tmp_path) == {}


def test_a_run_that_no_stock_class_computes(refused, tmp_path):
    other = make_run(tmp_path / "run", "squad")
    refused(other, "--format", "transformers", parts=("a convolution (--conv_kernel_size 0), lexical inputs",))


def test_a_validation_file_that_is_not_sound(refused, run, tmp_path):
    out = ("--output", tmp_path / "out")
    refused(run, "--format", "onnx", *out, "--file", tmp_path / "none.json", parts=("none.json", "no such file"))
    (tmp_path / "cut.json").write_text('{"data": [')
    refused(run, "--format", "onnx", *out, "--file", tmp_path / "cut.json", parts=("cut.json",))


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_packages_that_are_missing(refused, run, tmp_path, package, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == package else find(name, *more))
    needs = f"--format onnx needs {package}; pip install -r requirements.txt"
    refused(run, "--format", "onnx", "--output", tmp_path / "out", parts=(needs,))


def test_foreign_files_stay(refused, run, tmp_path):
    """At the output, in an earlier export, and where files are put aside while writing."""
    out = tmp_path / "out"
    arguments = (run, "--format", "transformers", "--output")
    (tmp_path / "file").write_text("mine")
    refused(*arguments, tmp_path / "file", parts=("file is a file; name another --output",))
    refused(*arguments, run / "best", parts=("best holds", "which is no part of an export"))
    refused(*arguments, tmp_path, parts=("holds file, which is no part of an export",))
    assert call_script("export.py", *arguments, out).status == 0
    (out / "notes.txt").write_text("mine")
    refused(*arguments, out, parts=("out holds notes.txt, which is no part of an export",))
    (out / "notes.txt").unlink()
    (tmp_path / "out.old").mkdir()
    (tmp_path / "out.old" / "letter").write_text("mine")
    refused(*arguments, out, parts=("out.old is in the way of writing",))
    (tmp_path / "out.old").rename(tmp_path / ".out-backup")
    refused(*arguments, out, parts=(".out-backup is in the way of writing",))
    (tmp_path / ".out-backup").rename(tmp_path / "backup")
    assert call_script("export.py", *arguments, out).status == 0


def test_an_empty_folder_is_a_place_too(run, tmp_path):
    (tmp_path / "out").mkdir()
    assert call_script("export.py", run, "--format", "transformers", "--output", tmp_path / "out").status == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_help_loads_nothing_heavy():
    code = (
        "import runpy, sys\nsys.argv = ['export.py', '--help']\n"
        "try:\n    runpy.run_path('scripts/export.py', run_name='__main__')\nexcept SystemExit as stop:\n"
        "    heavy = [name for name in ('torch', 'onnx', 'onnxruntime', 'transformers') if name in sys.modules]\n"
        "    print(stop.code, heavy, file=sys.stderr)"
    )
    finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert finished.stderr == "0 []\n"
    assert "--format" in finished.stdout
