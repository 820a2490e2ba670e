"""int8: how far it is from floats with every kernel there is and with none, and what is on the disk.

# N output channels   K input channels
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time

import pytest
import torch
import torch.nn.functional as F

import him
from him.compression import quantization
from him.compression.pipeline import compress
from him.compression.quantization import (
    BACKENDS,
    DESCRIPTION,
    FEW_ROWS,
    Int8Embedding,
    Int8Linear,
    backend_note,
    find_backend,
    is_faster_in_int8,
    pack,
    quantize,
    quantized_rows,
    save_int8,
)
from him.core.compute import Compute, has_fast_bf16
from him.core.errors import CheckpointError
from him.core.files import write_checksums
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
KERNELS = pytest.mark.parametrize(
    ("backend", "bf16"), [(backend, bf16) for backend in [*THERE, None] for bf16 in (False, True)]
)
EVERY_TASK = pytest.mark.parametrize("task_type", TASKS)
CPU = torch.device("cpu")


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative_error(found, expected):
    return float((found.float() - expected).norm() / expected.norm())


def without_kernels(monkeypatch):
    """As on a machine whose PyTorch has none."""
    monkeypatch.setattr(torch._C, "_supported_qengines", lambda: [0])
    assert list(torch.backends.quantized.supported_engines) == ["none"] or not THERE


# -- numbers -----------------------------------------------------------------------------------------------------------


def test_rows_by_hand():
    """The largest of each row becomes 127; halves are rounded to even."""
    weight = torch.tensor([[1.27, -0.635, 0.0], [-254.0, 3.0, 2.1], [0.0, 0.0, 0.0]])
    rounded, scale = quantized_rows(weight)
    assert rounded.tolist() == [[127, -64, 0], [-127, 2, 1], [0, 0, 0]]
    assert scale.tolist() == pytest.approx([0.01, 2.0, 1.0])
    assert (rounded.dtype, scale.dtype) == (torch.int8, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_number_is_off_by_more_than_half_a_step_of_its_row(dtype):
    weight = (random(200, 96) * torch.logspace(-6, 3, 200)[:, None]).to(dtype)
    weight[17] = 0.0
    weight[18] = 0.0
    weight[18, 5] = -3.0
    rounded, scale = quantized_rows(weight.requires_grad_())
    error = (rounded * scale[:, None] - weight.detach().float()).abs()
    assert (error <= 0.5 * scale[:, None] * (1 + 1e-5)).all()
    assert error.max() > 0.4 * scale.max()
    assert (rounded.abs().amax(dim=1) == 127)[torch.arange(200) != 17].all()
    assert (rounded[17] == 0).all() and scale[17] == 1
    assert (scale > 0).all() and not scale.requires_grad


# -- layers ------------------------------------------------------------------------------------------------------------

# Wide ones, as an output layer is, have other kernels in bf16, and so have few rows whose length is whole vectors.
LAYERS = pytest.mark.parametrize(("N", "K"), [(48, 96), (48, 100), (2048, 64)], ids=["narrow", "odd", "wide"])


def packed_layer(N, K, backend, bf16, bias=True):
    layer = torch.nn.Linear(K, N, bias=bias)
    layer.weight.data.copy_(random(N, K, seed=1))
    if bias:
        layer.bias.data.copy_(10 * random(N, seed=2))
    model = torch.nn.Sequential(layer)
    expected = layer.weight.detach().clone(), None if layer.bias is None else layer.bias.detach().clone()
    pack(quantize(model), backend, bf16)
    assert isinstance(model[0], Int8Linear)
    return model[0], expected


@KERNELS
@LAYERS
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1,), (1, 1), (2, FEW_ROWS // 2), (1, FEW_ROWS + 1), (3, 70)], ids=str)
def test_a_layer_is_close_to_its_floats(backend, bf16, N, K, bias, shape):
    """Rounding to 8 bits costs 1.2 % of a normal product, to 7 bits, on CPUs that need it, 1.9 %; a sum in bf16 0.3 %.

    Then the sum with a bias that is ten times as large as it need be, of which 8 bits are kept in bf16.
    """
    layer, (weight, of_bias) = packed_layer(N, K, backend, bf16, bias)
    x = random(*shape, K, seed=3).to(torch.bfloat16 if bf16 else torch.float32)
    with computed_in(bf16):
        found = layer(x)
    product = F.linear(x.float(), weight)
    assert (found.shape, found.dtype) == (product.shape, x.dtype)
    error = (found.float() - (product if of_bias is None else product + of_bias)).norm() / product.norm()
    assert 1e-4 < error < (0.03 if not bf16 or of_bias is None else 0.05)


def computed_in(bf16):
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16)


@KERNELS
@LAYERS
@pytest.mark.parametrize("num_rows", [1, 40])
def test_zeros_leave_the_bias(backend, bf16, N, K, num_rows):
    layer, (_, bias) = packed_layer(N, K, backend, bf16)
    with computed_in(bf16):
        found = layer(torch.zeros(1, num_rows, K, dtype=torch.bfloat16 if bf16 else torch.float32))
    torch.testing.assert_close(found.float(), bias.expand(1, num_rows, N), rtol=0.005 if bf16 else 1e-5, atol=1e-5)


@KERNELS
@LAYERS
@pytest.mark.parametrize("num_rows", [4, 30])
def test_inputs_of_any_layout(backend, bf16, N, K, num_rows):
    layer, _ = packed_layer(N, K, backend, bf16)
    x = random(K, num_rows, seed=3).T[None].to(torch.bfloat16 if bf16 else torch.float32)
    assert not x.is_contiguous()
    with computed_in(bf16):
        assert relative_error(layer(x), layer(x.contiguous()).float()) < 0.01


@KERNELS
@LAYERS
@pytest.mark.parametrize("num_rows", [1, FEW_ROWS])
def test_few_rows_alone_or_among_neighbours(backend, bf16, N, K, num_rows):
    """What lies behind a row in memory is of no account: a kernel that reads whole vectors could read it."""
    layer, _ = packed_layer(N, K, backend, bf16)
    many = random(num_rows + 1, K, seed=3).to(torch.bfloat16 if bf16 else torch.float32)
    few = many[:num_rows].clone()
    many[num_rows:] = float("nan")
    with computed_in(bf16):
        assert torch.equal(layer(many[:num_rows]), layer(few))


# -- which kernel ------------------------------------------------------------------------------------------------------

# What pruning leaves of an encoder of 256 channels with 8 heads of 32: (N, K), and what its layers are elsewhere.
OUTPUTS = [(256, 32 * heads) for heads in range(1, 9)]
INPUTS = [(96 * heads, 256) for heads in range(1, 9)]
NEURONS = (32, 33, 64, 100, 256, 512, 1024)
LEFT = [*OUTPUTS, *INPUTS, *((256, width) for width in NEURONS), *((width, 256) for width in NEURONS)]
IN_BF16 = pytest.mark.skipif(
    THERE[:1] != ["onednn"] or not has_fast_bf16(CPU), reason="bf16 is slow here, or oneDNN is missing"
)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"architecture": "x86_64", "avx512_vnni": True}, True),
        ({"architecture": "x86_64", "avx_vnni": True}, True),
        ({"architecture": "x86_64"}, False),
        ({"architecture": "aarch64"}, False),
    ],
)
def test_output_layers_are_multiplied_in_int8_and_what_pruning_leaves_is_not(monkeypatch, capabilities, expected):
    """A rule: timing each layer could choose another kernel, and so another result, each time a model is loaded."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert not any(is_faster_in_int8(*shape) for shape in LEFT)
    assert not any(is_faster_in_int8(embed_dim, embed_dim // 8) for embed_dim in (256, 512, 768)), "one head of eight"
    for shape in ((8192, 256), (2048, 256), (30522, 768), (2048, 64)):
        assert is_faster_in_int8(*shape) == expected, shape
    assert not is_faster_in_int8(8192, 2048)


@pytest.mark.skipif("onednn" not in THERE, reason="oneDNN is missing")
@pytest.mark.parametrize(("N", "K"), [(2048, 64), (1040, 130)])
def test_an_offset_of_the_activations_changes_no_bit(N, K):
    """Against the same kernel with signed activations, which is hundreds of times slower on CPUs without AMX."""
    layer, _ = packed_layer(N, K, "onednn", bf16=True)
    if layer._packed_for_bf16 is None:
        pytest.skip("this CPU multiplies in bf16")
    x = random(9, K, seed=3).bfloat16()
    scale = float(x.abs().max()) / 127
    rounded = (x * (1.0 / scale)).round().to(torch.int8)
    of_weight = (layer._packed_for_bf16, layer.scale, torch.zeros(N, dtype=torch.int32))
    expected = torch.ops.onednn.qlinear_pointwise(
        rounded, scale, 0, *of_weight, layer.bias, 1.0, 0, torch.bfloat16, "none", [], ""
    )
    with computed_in(True):
        assert torch.equal(layer(x), expected)


def median_ms(runs, turns):
    """Of each of some calls, made in turns, so that a machine that gets busy slows all alike."""
    milliseconds = [[] for _ in runs]
    for _ in range(1 + turns):
        for run, times in zip(runs, milliseconds, strict=True):
            started_at = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - started_at))
    return [statistics.median(times[1:]) for times in milliseconds]


def slower_than_bf16(shape, num_rows):
    """How a layer's times in int8 and in bf16 differ, if int8 takes more than twice as long; else None.

    A tenth of a millisecond is the module's own and the machine's; what seems slow is measured again, for longer.
    """
    N, K = shape
    layer, (weight, bias) = packed_layer(N, K, find_backend(CPU), bf16=True)
    x, weight, bias = random(1, num_rows, K, seed=3).bfloat16(), weight.bfloat16(), bias.bfloat16()
    for turns in (3, 9, 21):
        int8, bf16 = median_ms((lambda: layer(x), lambda: F.linear(x, weight, bias)), turns)
        if int8 < 2 * bf16 + 0.1:
            return None
    return f"{K} -> {N}, {num_rows} rows: {int8:.2f} ms, in bf16 {bf16:.2f}"


@pytest.fixture
def one_thread():
    """Two threads that wait for each other on a busy machine take a hundred times as long, whatever they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@IN_BF16
@torch.inference_mode()
def test_no_width_that_pruning_can_leave_is_slow(one_thread):
    """One head of eight left an output projection of 32 -> 256 whose kernel took 31 ms for 128 rows, bf16 0.05."""
    shapes = [*dict.fromkeys(LEFT), (8192, 256)]
    with computed_in(True):
        found = [slower_than_bf16(shape, rows) for rows in (1, 128, 384) for shape in shapes]
        found += [slower_than_bf16(shape, 32 * 384) for shape in (*OUTPUTS, (96, 256), (1024, 256), (256, 1024))]
    assert [line for line in found if line] == []


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


@EVERY_TASK
@KERNELS
@pytest.mark.parametrize("norm_first", [True, False])
def test_a_model_is_close_to_its_floats(task_type, backend, bf16, norm_first):
    """Two layers of random weights, four times as large as trained ones are: less than a tenth of the logits."""
    task, model = new_model(task_type, norm_first=norm_first)
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


def test_the_backend_is_the_first_that_is_there(monkeypatch):
    assert find_backend(CPU) == (THERE[0] if THERE else None)
    assert find_backend(torch.device("cuda")) is None
    assert "x86 kernels" in backend_note("x86", False, CPU)
    assert "bf16" in backend_note("onednn", True, CPU)
    without_kernels(monkeypatch)
    assert find_backend(CPU) is None


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
    has_int8 = any(isinstance(module, quantization.Int8Weight) for module in predictor.model.modules())
    assert has_int8 == (stage == "int8")
    assert (predictor.config.layer_heads == ()) == (stage == "trained")
