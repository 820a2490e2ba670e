"""int8 models of all tasks: how far they are from floats with kernels and without, and what is on the disk."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

import him
from him.compression.pipeline import compress
from him.compression.quantization import DESCRIPTION, save_int8
from him.core.compute import Compute
from him.core.errors import CheckpointError
from him.core.files import write_checksums
from him.model.int8 import Int8Embedding, Int8Linear, Int8Weight, pack, quantize
from him.model.int8_kernels import BACKENDS, find_backend
from him.runs.models import load_stage
from him.tasks import task_class
from tests.compression.tiny import (
    IN_FP32,
    STAGES,
    TASKS,
    compressed_run,
    loaded,
    new_model,
    outputs,
    random_batch,
    stage_of,
    tensors_of,
)
from tests.small_runs import ROOT, call_script

THERE = [name for name in BACKENDS if name in torch.backends.quantized.supported_engines]
CPU = torch.device("cpu")
# All kernels are tried on layers, in tests/model; here are the models that people have.
KERNELS = pytest.mark.parametrize(
    ("backend", "bf16"), [(None, False), (find_backend(CPU), False), (find_backend(CPU), True)]
)
EVERY_TASK = pytest.mark.parametrize("task_type", TASKS)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative_error(found, expected):
    return float((found.float() - expected).norm() / expected.norm())


def without_kernels(monkeypatch):
    """As on a machine whose PyTorch has none."""
    monkeypatch.setattr(torch._C, "_supported_qengines", lambda: [0])
    assert list(torch.backends.quantized.supported_engines) == ["none"] or not THERE


def test_small_layers_stay_floats():
    """The span head with 2 outputs, and the gate with 1, decide a lot and weigh nothing."""
    kinds = {name: type(module) for name, module in loaded("squad", "int8")[1].named_modules()}
    assert kinds["span"] is torch.nn.Linear
    assert kinds["embedding.tokens"] is Int8Embedding
    assert kinds["encoder.blocks.0.attention.query_key_value"] is Int8Linear
    kinds = {name: type(module) for name, module in loaded("summarization", "int8")[1].named_modules()}
    assert kinds["copy.gate"] is torch.nn.Linear
    assert kinds["copy.query"] is Int8Linear


# -- models ------------------------------------------------------------------------------------------------------------


def centred(logits):
    return logits - logits.mean(dim=-1, keepdim=True)


def computed_in(bf16):
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16)


@EVERY_TASK
@KERNELS
def test_a_model_is_close_to_its_floats(task_type, backend, bf16):
    """Two layers of random weights, four times as large as trained ones are: less than a tenth of the logits."""
    task, model = new_model(task_type)
    batch = random_batch(task)
    expected = outputs(task, model, batch)
    pack(quantize(model), backend, bf16)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    with computed_in(bf16):
        found = outputs(task, model, batch)
    assert 1e-4 < relative_error(centred(found), centred(expected)) < 0.1


@pytest.mark.parametrize("task_type", ["summarization", "lm"])
@KERNELS
def test_the_tied_output_layer_has_the_numbers_of_the_embedding(task_type, backend, bf16):
    _, model = new_model(task_type)
    pack(quantize(model), backend, bf16)
    tokens, bias = model.embedding.tokens, model.output_bias
    weight = tokens.weight * tokens.scale[:, None]
    ids = torch.arange(tokens.num_embeddings)
    assert torch.equal(tokens(ids[None])[0], weight)
    hidden = random(2, 20, tokens.embedding_dim).to(torch.bfloat16 if bf16 else torch.float32)
    with computed_in(bf16):
        found = tokens.project(hidden, bias)
    assert relative_error(found, F.linear(hidden.float(), weight, bias)) < 0.02
    assert not [name for name in model.state_dict() if name.endswith("tokens.bias")], "the bias is there once"


@EVERY_TASK
@pytest.mark.parametrize("bf16", [False, True])
def test_padding_alone_is_no_danger(task_type, bf16):
    """A batch of the padding token everywhere gives finite numbers."""
    task, model = loaded(task_type, "int8", Compute(CPU, bf16))
    batch = random_batch(task)
    batch["input_ids"] = torch.zeros_like(batch["input_ids"])
    with computed_in(bf16):
        assert torch.isfinite(task.loss(model, batch).loss)


def test_the_loss_is_that_of_its_probabilities():
    """Nothing is trained any more, and so the loss of a language model goes another way than in training."""
    task, model = loaded("lm", "int8")
    batch = random_batch(task, 2, 24)
    expected = torch.zeros(())
    for place in range(24):
        found = model.recompute(batch["input_ids"][:, : place + 1].tolist(), [[], []])
        expected -= found.gather(1, batch["labels"][:, place : place + 1]).sum()
    assert float(task.loss(model, batch).loss) == pytest.approx(float(expected), rel=0.01)


# -- without kernels ---------------------------------------------------------------------------------------------------


def test_without_kernels_a_line_says_so_and_everything_works(monkeypatch, copied, capsys):
    run = copied("squad", compressed=False)
    predictor = him.load(run)
    config, _ = predictor.config, without_kernels(monkeypatch)
    task = task_class("squad").prepare(config, tokenizer_folder=run / "best")
    report = compress(run, dataclasses.replace(config, pruning_amount=0.0), task, predictor.compute)
    assert (
        f"no int8 kernels for cpu here (looked for {', '.join(BACKENDS)}): the int8 model is computed with floats"
        in (capsys.readouterr().out)
    )
    trained, int8 = report["stages"]
    assert int8["file_mb"] < 0.5 * trained["file_mb"]
    assert int8["Loss"] == pytest.approx(trained["Loss"], abs=0.05)
    answer = him.load(run, stage="int8").predict(question="Who came?", context="Ann Bell came in May.")
    assert answer.text in "Ann Bell came in May."


@pytest.mark.skipif(not THERE, reason="there are no kernels")
@EVERY_TASK
def test_models_written_with_kernels_are_read_without(task_type, monkeypatch):
    batch = random_batch(loaded(task_type, "int8")[0])
    task, expected = loaded(task_type, "int8")
    expected = outputs(task, expected, batch)
    without_kernels(monkeypatch)
    task, model = loaded(task_type, "int8")
    assert relative_error(centred(outputs(task, model, batch)), centred(expected)) < 0.1


# -- files -------------------------------------------------------------------------------------------------------------


@EVERY_TASK
def test_a_round_trip_changes_no_bit(task_type, tmp_path):
    task, model = new_model(task_type)
    pack(quantize(model), find_backend(CPU), bf16=False)
    save_int8(tmp_path / "int8", task.config, model, task, {"Loss": 1.0})
    again = load_stage(task, tmp_path / "int8", IN_FP32)
    batch = random_batch(task)
    assert torch.equal(outputs(task, again, batch), outputs(task, model, batch))
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


@EVERY_TASK
def test_what_is_in_the_file(task_type):
    """Every large matrix once, as int8, with a scale for each row; and the file is as small as that promises."""
    folder = stage_of(compressed_run(task_type).run, "int8")
    tensors, before = tensors_of(folder), tensors_of(stage_of(compressed_run(task_type).run, "fine_tuned"))
    assert {name for name in tensors if not name.endswith(".scale")} == set(before)
    whole = {name for name, tensor in tensors.items() if tensor.dtype == torch.int8}
    assert whole == {
        name
        for name, tensor in before.items()
        if tensor.dim() == 2 and min(tensor.shape) >= 32 and "segments" not in name and "tables" not in name
    }
    for name in whole:
        scale = tensors[name.removesuffix("weight") + "scale"]
        assert scale.shape == tensors[name].shape[:1]
        step = (tensors[name] * scale[:, None] - before[name]).abs()
        assert (step <= 0.5 * scale[:, None] * (1 + 1e-4)).all()
    for name in set(before) - whole:
        assert torch.equal(tensors[name], before[name])
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert num_bytes < (folder / "model.safetensors").stat().st_size < num_bytes + 200 * len(tensors)
    description = json.loads((folder / DESCRIPTION).read_text())
    assert description["layers"] == {name.removesuffix(".weight"): list(tensors[name].shape) for name in whole}


def rewritten(folder, name, content):
    """A file with another content and the checksum of that."""
    (folder / name).write_text(content)
    write_checksums(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", DESCRIPTION, "tokenizer.json", "task.json"])
def test_a_changed_byte_is_found(copied, name):
    run = copied("squad")
    path = run / "compressed" / "int8" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        him.load(run, stage="int8")
    message = str(error.value)
    assert name in message and "\n" not in message
    if name == "model.safetensors":
        assert message.endswith(
            "model.safetensors: damaged, its checksum is another one; make it again with scripts/compress.py"
        )
    assert him.load(run, stage="fine_tuned"), "the others are unharmed"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"format_version": 2}', "format 2, and this HIM reads format 1; make it again with scripts/compress.py"),
        ("{}", "cannot be read"),
        ("[]", "cannot be read"),
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
    ],
    ids=["newer", "empty", "list", "cut", "deep"],
)
def test_another_format_is_refused(copied, content, said):
    run = copied("lm")
    rewritten(run / "compressed" / "int8", DESCRIPTION, content)
    with pytest.raises(
        CheckpointError, match=r"quantization\.json: .*make it again with scripts/compress\.py"
    ) as error:
        him.load(run, stage="int8")
    assert said in str(error.value) and "\n" not in str(error.value)


OPEN_ALL = """
import pickle, sys, warnings
warnings.simplefilter("error")
import torch, him
from him.workflows.predict import Predictor

class Refused(Exception):
    pass

def refuse(*args, **named):
    raise Refused

class Unpickler:
    __init__ = refuse

pickle.load = pickle.loads = torch.load = refuse
pickle.Unpickler = Unpickler
try:
    pickle.loads(b"")
    sys.exit("the trap is not set")
except Refused:
    pass
for folder in sys.argv[1:]:
    kind = him.load(folder).config.task_type
    inputs = {"question": "Who came?", "context": "Ann Bell came."} if kind == "squad" else {"text": "Ann Bell came."}
    print(kind, type(him.load(folder).predict(**inputs)).__name__)
"""


def test_every_artifact_opens_where_unpickling_is_refused():
    """In one new process, because starting it takes longest; warnings are errors there too."""
    folders = [stage_of(compressed_run(kind).run, stage) for kind in TASKS for stage in STAGES]
    finished = subprocess.run(
        [sys.executable, "-c", OPEN_ALL, *map(str, folders)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    said = {"squad": "Answer", "summarization": "Generation", "lm": "Generation"}
    assert finished.stdout.splitlines() == [f"{kind} {said[kind]}" for kind in TASKS for _ in STAGES]


@EVERY_TASK
@pytest.mark.parametrize("stage", STAGES)
def test_predicting_with_a_stage(task_type, stage):
    """Through the script: the stage is used, and the same one each time."""
    run = compressed_run(task_type).run
    asked = (
        ["--question", "Who came?", "--context", "Ann Bell came in May."] if task_type == "squad" else ["--text", "A"]
    )
    shown = [call_script("predict.py", run, *asked, "--stage", stage, "--json") for _ in range(2)]
    assert [(each.status, each.err) for each in shown] == [(0, "")] * 2
    assert shown[0].out == shown[1].out
    predictor = him.load(run, stage)
    has_int8 = any(isinstance(module, Int8Weight) for module in predictor.model.modules())
    assert has_int8 == (stage == "int8")
    assert (predictor.config.layer_heads == ()) == (stage == "trained")
