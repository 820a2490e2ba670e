"""ONNX files against the models that they come from, opened as any program would open them."""

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

import him.export.folders
import him.export.onnx
from him.core.errors import CheckpointError, ConfigError
from him.data.sample import squad_sample, summarization_sample, text_sample
from him.export.onnx import export_onnx
from tests.export.tiny_runs import make_run, opened
from tests.small_runs import ROOT, first_paragraphs, tree, write_jsonl

# Both norm orders of each task; convolution, lexical inputs, activation, copying and learned positions on and off.
CASES = {
    "squad": {"task_type": "squad"},
    "squad post-LN": {
        "task_type": "squad",
        "norm_first": False,
        "positions": "learned",
        "conv_kernel_size": 0,
        "lexical_features": False,
    },
    "lm": {"task_type": "lm", "conv_kernel_size": 3, "activation": "relu_squared"},
    "lm post-LN": {
        "task_type": "lm",
        "norm_first": False,
        "positions": "learned",
        "num_encoder_layers": 2,
        "layer_heads": [3, 1],
        "layer_feedforward": [32, 96],
    },
    "summarization": {"task_type": "summarization"},
    "summarization post-LN": {
        "task_type": "summarization",
        "norm_first": False,
        "conv_kernel_size": 0,
        "copy_head": False,
    },
}
BY_SCRIPT = "squad post-LN"
PLACE = TemporaryDirectory()


@cache
def validation_file(task_type: str) -> Path:
    path = Path(PLACE.name) / f"{task_type}.jsonl"
    if task_type == "squad":
        path.write_text(json.dumps(first_paragraphs(squad_sample(0, 0, 12)[1], 12)), encoding="utf-8")
    elif task_type == "lm":
        path = path.with_suffix(".txt")
        path.write_text(text_sample(0, 0, 1)[1][0], encoding="utf-8")
    else:
        write_jsonl(path, summarization_sample(0, 0, 12)[1])
    return path


@cache
def from_command_line(run: Path, output: Path) -> subprocess.CompletedProcess:
    """`scripts/export.py` in a process of its own."""
    command = [sys.executable, "scripts/export.py", str(run), "--format", "onnx", "--output", str(output)]
    command += ["--file", str(validation_file("squad")), "--num_threads", "1"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@cache
def exported(name: str) -> tuple[him.workflows.predict.Predictor, Path, dict]:
    """A case's model, the folder of its export, and what was said about it."""
    run = make_run(Path(PLACE.name) / name, **CASES[name])
    predictor, output = opened(run), run / "new" / "export"
    if name == BY_SCRIPT:
        finished = from_command_line(run, output)
        assert finished.returncode == 0, finished.stderr
        return predictor, output, json.loads((output / "export.json").read_text())
    return predictor, output, export_onnx(predictor, output, str(validation_file(CASES[name]["task_type"])))


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def longer(batch: dict[str, torch.Tensor], by: int) -> dict[str, torch.Tensor]:
    """With more padding, of zeros."""
    length = batch["input_ids"].shape[1]
    return {
        name: torch.cat((each, each.new_zeros(len(each), by, *each.shape[2:])), dim=1)
        if each.shape[1:2] == (length,)
        else each
        for name, each in batch.items()
    }


@pytest.fixture(params=CASES)
def case(request):
    return exported(request.param)


def test_what_is_written(case):
    predictor, folder, report = case
    expected = {"model.onnx", "model_int8.onnx", "config.json", "tokenizer.json", "export.json", "checksums.json"}
    assert {path.name for path in folder.iterdir()} - {"task.json"} == expected
    assert (folder / "task.json").is_file() == (predictor.task.name == "squad")
    assert json.loads((folder / "export.json").read_text()) == json.loads(json.dumps(report))
    assert set(report) == {
        *("format", "task", "stage", "forms", "opset", "inputs", "outputs", "max_difference", "largest_output"),
        "checked_shapes",
    }
    assert report["max_difference"] <= 1e-5 and report["opset"] >= 18
    batches, lengths = zip(*report["checked_shapes"], strict=True)
    assert {1, 3} <= set(batches) and len(set(lengths)) >= 2
    for name in ("model.onnx", "model_int8.onnx"):
        onnx.checker.check_model(folder / name, full_check=True)
        assert b"him/" not in (folder / name).read_bytes(), "paths of source files stay at home"


def test_the_script_says_what_it_wrote():
    """Our lines on stdout, and nothing at all on stderr, whatever the packages have to say."""
    _, folder, report = exported(BY_SCRIPT)
    finished = from_command_line(folder.parents[1], folder)
    assert finished.stderr == ""
    first, header, *rows = finished.stdout.splitlines()
    assert first.startswith(f"{folder}: model.onnx 0.") and "model_int8.onnx 0." in first and "opset" in first
    assert re.split(r"\s{2,}", header.strip()) == ["HIM float", "ONNX float", "ONNX int8"]
    numbers = {name: [float(each) for each in row] for name, *row in (row.split() for row in rows)}
    assert {"file_mb", "latency_ms_1x128", "F1", "Exact_Match"} <= set(numbers)
    for name, row in numbers.items():
        assert row == pytest.approx([form[name] for form in report["forms"]], abs=1e-4)
    assert {path.name for path in folder.parent.iterdir()} == {"export"}


def test_inputs_are_named_and_free(case):
    _, folder, report = case
    for name in ("model.onnx", "model_int8.onnx"):
        inputs = [(each.name, each.shape) for each in session(folder / name).get_inputs()]
        assert inputs == [(each["name"], each["shape"]) for each in report["inputs"]]
        assert all(shape[0] == "batch" and shape[1:2] in ([], ["length"]) for _, shape in inputs)
        assert [each.name for each in session(folder / name).get_outputs()] == report["outputs"]


def test_questions_have_the_same_logits():
    """In shapes that the export did not see; forbidden positions are as low."""
    for name in ("squad", "squad post-LN"):
        predictor, folder, report = exported(name)
        assert ("scalars" in [each["name"] for each in report["inputs"]]) == predictor.config.lexical_features
        run = session(folder / "model.onnx").run
        for batch in predictor.task.export_graph(predictor.model).batches:
            room = predictor.config.max_seq_len - batch["input_ids"].shape[1]
            shapes = [batch, longer(batch, room), {key: torch.cat((each, each)) for key, each in batch.items()}]
            for each in shapes:
                with torch.no_grad():
                    expected = predictor.model(each)
                feed = {key["name"]: each[key["name"]].numpy() for key in report["inputs"]}
                start, end = run(["start_logits", "end_logits"], feed)
                np.testing.assert_allclose(start, expected.start_logits_BL, rtol=0, atol=1e-5)
                np.testing.assert_allclose(end, expected.end_logits_BL, rtol=0, atol=1e-5)
                assert expected.start_logits_BL[each["may_start"]].std() > 0.1


@pytest.mark.parametrize("name", ["lm", "lm post-LN"])
def test_texts_have_the_same_next_tokens(name):
    predictor, folder, _ = exported(name)
    ids = predictor.task.tokenizer.encode(text_sample(3, 0, 1)[1][0]).ids
    run = session(folder / "model.onnx").run
    for rows in ([ids[:2]], [ids[:51], ids[60:111], ids[5:56], ids[30:81]], [ids[:160]]):
        (logits_BLV,) = run(["logits"], {"input_ids": np.array(rows)})
        for place in (0, len(rows[0]) // 2, len(rows[0]) - 1):
            with torch.no_grad():
                expected = predictor.model.recompute([row[: place + 1] for row in rows], [[]] * len(rows))
            found = torch.from_numpy(logits_BLV[:, place]).log_softmax(dim=-1)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
            assert expected.std() > 0.1


@pytest.mark.parametrize("name", ["summarization", "summarization post-LN"])
def test_summaries_have_the_same_next_tokens(name):
    """At each place of a summary what the model would write next, copying included; rows are padded."""
    predictor, folder, _ = exported(name)
    run = session(folder / "model.onnx").run
    batch = longer(predictor.task.export_graph(predictor.model).batches[1], 5)
    feed = {key: batch[key].numpy() for key in ("input_ids", "token_type_ids", "attention_mask")}
    (found_BLV,) = run(["log_probabilities"], feed)
    compared = 0
    for row in range(len(found_BLV)):
        length = int(batch["attention_mask"][row].sum())
        prompt_length = int(((batch["token_type_ids"][row] == 0) & batch["attention_mask"][row]).sum())
        ids = batch["input_ids"][row, :length].tolist()
        cuts = range(prompt_length, length + 1)
        with torch.no_grad():
            prompts, written = [ids[:prompt_length]] * len(cuts), [ids[prompt_length:cut] for cut in cuts]
            expected = predictor.model.recompute(prompts, written)
        found = torch.from_numpy(found_BLV[row, [cut - 1 for cut in cuts]])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        compared += len(cuts)
    assert compared > 12


def test_int8_files_are_small(case):
    """No large float is left; a tied table is there once."""
    predictor, folder, report = case
    assert (folder / "model_int8.onnx").stat().st_size < 0.6 * (folder / "model.onnx").stat().st_size
    weights = {
        each.name: numpy_helper.to_array(each) for each in onnx.load(folder / "model_int8.onnx").graph.initializer
    }
    large_floats = [
        name
        for name, each in weights.items()
        if each.dtype == np.float32 and each.ndim == 2 and each.size >= 1024 and min(each.shape) >= 32
    ]
    assert large_floats == []
    tokens = predictor.model.embedding.tokens.weight
    tables = [name for name, each in weights.items() if each.dtype == np.int8 and each.size == tokens.numel()]
    assert len(tables) == 1
    sizes = [form["file_mb"] for form in report["forms"]]
    assert sizes[2] < 0.6 * sizes[1] and abs(sizes[1] - sizes[0]) < 0.2


def test_int8_outputs_are_near(case):
    predictor, folder, report = case
    run = session(folder / "model_int8.onnx").run
    graph = predictor.task.export_graph(predictor.model)
    errors, outputs = ([[] for _ in graph.outputs] for _ in range(2))
    for batch in graph.batches:
        with torch.no_grad():
            expected = graph.module(batch)
        found = run(report["outputs"], {key: each.numpy() for key, each in graph.feed(batch).items()})
        for number, (name, wanted, given) in enumerate(zip(graph.masks, expected, found, strict=True)):
            counts = slice(None) if name is None else batch[name]
            errors[number].append((torch.from_numpy(given)[counts] - wanted[counts]).flatten())
            outputs[number].append(wanted[counts].flatten())
    for error, wanted in zip(errors, outputs, strict=True):
        assert 0 < torch.cat(error).std() < 0.12 * torch.cat(wanted).std(), "rounded to 7 and 8 bits"


def test_files_are_measured_as_the_task_measures(case):
    predictor, _, report = case
    own, floats, rounded = report["forms"]
    expected = {"squad": "F1", "lm": "Bits_Per_Byte", "summarization": "Loss"}[predictor.task.name]
    assert expected in own and set(own) < set(floats) == set(rounded)
    metrics = [name for name in own if name[0].isupper()]
    assert len(metrics) >= 3
    for name in metrics:
        assert floats[name] == pytest.approx(own[name], rel=1e-4), name
    assert rounded["Loss"] != own["Loss"]
    assert rounded["Loss"] == pytest.approx(own["Loss"], rel=0.1)
    assert all(form["latency_ms_1x128"] > 0 and "latency_ms_1x384" not in form for form in report["forms"])


def test_another_output_is_an_error_and_leaves_nothing(tmp_path, monkeypatch):
    """The float file of another model is made in the place of the right one."""
    predictor, folder, _ = exported("squad")
    changed = onnx.load(folder / "model.onnx")
    (bias,) = (each for each in changed.graph.initializer if each.name.endswith("span.bias"))
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 1e-3, bias.name))

    def write(graph, path):
        onnx.save(changed, path)
        return 20

    monkeypatch.setattr(him.export.onnx, "_write_float", write)
    with pytest.raises(CheckpointError, match=r"^model\.onnx: its outputs differ .* by 0\.001, allowed are .*e-05"):
        export_onnx(predictor, tmp_path / "out")
    assert tree(tmp_path) == {}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "export.json").write_text("{}")
    before = tree(tmp_path)
    with pytest.raises(CheckpointError):
        export_onnx(predictor, tmp_path / "out")
    assert tree(tmp_path) == before


def test_models_that_are_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(him.export.onnx, "MOST_MB", 0)
    with pytest.raises(ConfigError, match="^--format onnx: 0 MB of weights do not fit into one file of 0 MB$"):
        export_onnx(exported("squad")[0], tmp_path / "out")
    assert tree(tmp_path) == {}


def test_nan_is_a_difference():
    differences = him.export.folders.Differences()
    differences.add(torch.ones(2), torch.tensor([1.0, float("nan")]))
    differences.add(torch.ones(2), torch.ones(2))
    with pytest.raises(CheckpointError, match="model: its outputs differ from the trained model's by nan"):
        differences.check("model")
