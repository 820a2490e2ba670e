"""Checkpoints and saved models: what went in comes out, and what is damaged says so."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import nn

from him.config import Config
from him.core.errors import CheckpointError
from him.core.files import CHECKSUMS, verify_folder, write_checksums
from him.runs.checkpoint import (
    FORMAT_VERSION,
    Checkpoint,
    Checkpoints,
    DamagedCheckpoint,
    check_finite,
    load_tensors,
    load_weights,
    optimizer_tensors,
    put_weights,
    restore_optimizers,
    save_model,
    save_tensors,
)
from him.training.optimizers import build_optimizers


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Waiting for the disk would be most of the time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


STATE = {"loop": {"best_value": 0.1 + 0.2}, "machine": {"num_threads": 1}, "config": {}}


def checkpoint(seed: int = 0, ema: bool = True) -> Checkpoint:
    torch.manual_seed(seed)
    weights = {"a.weight": torch.randn(3, 4), "a.bias": torch.randn(3), "half": torch.randn(2).bfloat16()}
    state = {"a.weight.exp_avg": torch.randn(3, 4), "a.weight.step": torch.tensor(7.0)}
    return Checkpoint(STATE, weights, state, {"a.bias": torch.randn(3)} if ema else {})


def rewrite(path: Path, content: bytes) -> None:
    """Changes a file of a checkpoint together with its checksum, as another version of HIM would have written it."""
    path.write_bytes(content)
    write_checksums(path.parent)


@pytest.mark.parametrize("ema", [True, False])
def test_bit_for_bit(tmp_path, ema):
    saved = checkpoint(ema=ema)
    Checkpoints(tmp_path / "checkpoints", 2).save(saved, 12)
    loaded = Checkpoints(tmp_path / "checkpoints", 2).load_newest()
    assert loaded.state == {"format_version": FORMAT_VERSION, "step": 12, **STATE}
    assert loaded.state["loop"]["best_value"] == 0.30000000000000004
    for name in ("weights", "optimizer_state", "ema"):
        before, after = getattr(saved, name), getattr(loaded, name)
        assert before.keys() == after.keys()
        for key, tensor in before.items():
            assert tensor.dtype == after[key].dtype
            assert torch.equal(tensor, after[key])


def test_tensors_that_are_not_contiguous(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    save_tensors({"t": base.t(), "row": base.clone()[1]}, tmp_path / "t.safetensors")
    loaded = load_tensors(tmp_path / "t.safetensors")
    assert torch.equal(loaded["t"], base.t())
    assert torch.equal(loaded["row"], base[1])


def test_no_pickle_anywhere(tmp_path):
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.save(checkpoint(), 1)
    (folder,) = checkpoints.list()
    names = {"model.safetensors", "optimizer.safetensors", "averaged.safetensors", "state.json", CHECKSUMS}
    assert {path.name for path in folder.iterdir()} == names


@pytest.mark.parametrize("num_kept", [1, 2, 3])
def test_the_last_ones_are_kept(tmp_path, num_kept):
    checkpoints = Checkpoints(tmp_path / "checkpoints", num_kept)
    for step in (5, 10, 100, 1000, 20000):
        checkpoints.save(checkpoint(step), step)
    names = ["step_00000010", "step_00000100", "step_00001000", "step_00020000"][-num_kept:]
    assert [path.name for path in checkpoints.list()] == names
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == names
    assert checkpoints.load_newest().state["step"] == 20000


def test_leftovers_of_killed_saves_are_removed(tmp_path):
    """Of every step: the run may never come to the same step again, as after Ctrl-C with another --save_every_steps."""
    for name in (".step_00000005-0123abcd", ".step_00000010-0123abcd"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"half")
    checkpoints = Checkpoints(tmp_path, 2)
    assert checkpoints.list() == []
    checkpoints.save(checkpoint(), 10)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000010"]


def test_a_run_that_was_killed_before_its_first_checkpoint_has_none(tmp_path):
    assert Checkpoints(tmp_path / "checkpoints", 1).load_newest() is None


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "averaged.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "missing"])
def test_damage_is_named_and_the_checkpoint_before_is_used(tmp_path, name, damage):
    checkpoints = Checkpoints(tmp_path, 2)
    checkpoints.save(checkpoint(1), 10)
    checkpoints.save(checkpoint(2), 20)
    path = tmp_path / "step_00000020" / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        changed = bytes([content[-1] ^ 4])
        path.write_bytes({"bit": content[:-1] + changed, "cut": content[:-1], "empty": b""}[damage])
    said: list[str] = []
    assert checkpoints.load_newest(said.append).step == 10
    (line,) = said
    assert line.startswith(f"{tmp_path / 'step_00000020'}")
    assert ("files are missing" if damage == "missing" else f"{name}: damaged, its checksum is another one") in line
    assert name in line
    assert line.endswith("; it is quarantined as step_00000020.damaged")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["step_00000010", "step_00000020.damaged"]
    assert checkpoints.load_newest(said.append).step == 10
    assert len(said) == 1


def test_damage_of_all_checkpoints(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2)
    checkpoints.save(checkpoint(), 10)
    (tmp_path / "step_00000010" / "model.safetensors").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(CheckpointError, match="no whole checkpoint is left; start the run again under"):
            checkpoints.load_newest(str)


def test_a_save_that_was_killed_between_its_renames(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2)
    checkpoints.save(checkpoint(1), 10)
    os.rename(tmp_path / "step_00000010", tmp_path / "step_00000010.old")
    assert checkpoints.load_newest().step == 10
    assert [path.name for path in checkpoints.list()] == ["step_00000010"]


def test_the_checkpoint_of_the_best_model_is_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2)
    for step, best_step in ((0, 0), (10, 10), (20, 10), (30, 10), (40, 40), (50, 40), (60, 40)):
        checkpoints.save(checkpoint(step), step, best_step)
    assert [path.name[-2:] for path in checkpoints.list()] == ["40", "50", "60"]


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, None, "1"])
def test_another_format_is_refused(tmp_path, version):
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.save(checkpoint(), 10)
    state = tmp_path / "step_00000010" / "state.json"
    rewrite(state, json.dumps({**json.loads(state.read_text()), "format_version": version}).encode())
    with pytest.raises(
        CheckpointError, match=f"step_00000010: format {version}, and this HIM reads format {FORMAT_VERSION}"
    ):
        checkpoints.load_newest()


@pytest.mark.parametrize("content", [b'{"step": ', b"[]", b'{"step": "x", "format_version": 2}', b"\xff", b"[" * 9999])
def test_a_state_that_is_none(tmp_path, content):
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.save(checkpoint(), 10)
    rewrite(tmp_path / "step_00000010" / "state.json", content)
    with pytest.raises(CheckpointError, match=r"step_00000010/state\.json: (cannot be read|not the state of)"):
        checkpoints.load(tmp_path / "step_00000010")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("part", ["weights", "optimizer_state", "ema"])
def test_no_checkpoint_holds_a_number_that_is_not_finite(tmp_path, part, value):
    bad = checkpoint()
    name, tensor = next(iter(getattr(bad, part).items()))
    tensor.view(-1)[-1] = value
    with pytest.raises(CheckpointError, match=f"checkpoint at step 10: {name} is not finite and is not saved; lower"):
        Checkpoints(tmp_path, 1).save(bad, 10)
    assert list(tmp_path.iterdir()) == []


def test_whole_numbers_are_finite():
    check_finite({"n": torch.tensor([1, 2])}, "here")


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "averaged.safetensors", "state.json"])
def test_a_full_disk_harms_nothing(tmp_path, name):
    checkpoints = Checkpoints(tmp_path / "checkpoints", 1)
    checkpoints.save(checkpoint(1), 10)

    def full(original):
        def write(path: Path, *args, **kwargs):
            if name in path.name:
                original(path, args[0][: len(args[0]) // 2], **kwargs)
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
            return original(path, *args, **kwargs)

        return write

    with (
        mock.patch.object(Path, "write_bytes", full(Path.write_bytes)),
        mock.patch.object(Path, "write_text", full(Path.write_text)),
        pytest.raises(
            CheckpointError,
            match=r"step_00000020: no space to write it \(0\.1 MB needed, [\d.]+ MB free\); make room; what was saved",
        ),
    ):
        checkpoints.save(checkpoint(2), 20)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000010"]
    assert torch.equal(checkpoints.load_newest().weights["a.weight"], checkpoint(1).weights["a.weight"])


def test_optimizer_state_by_name():
    """The state goes into another optimizer, after which both make the same update."""
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [build_optimizers(model, Config(weight_decay=0.1)) for model in models]
    inputs = torch.randn(5, 3)

    def update(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
        model(inputs).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()

    for _ in range(3):
        update(models[0], optimizers[0])
    tensors = optimizer_tensors(models[0], optimizers[0])
    names = [name for name, _ in models[0].named_parameters()]
    assert set(tensors) == {f"{name}.{key}" for name in names for key in ("step", "exp_avg", "exp_avg_sq")}
    assert tensors["0.weight.step"].item() == 3

    models[1].load_state_dict(models[0].state_dict())
    restore_optimizers(models[1], optimizers[1], {name: tensor.clone() for name, tensor in tensors.items()})
    for model, own in zip(models, optimizers, strict=True):
        update(model, own)
    for name, weight in models[0].state_dict().items():
        assert torch.equal(weight, models[1].state_dict()[name]), name


class Counting(torch.optim.Optimizer):
    """Moves less with each update; what it remembers are Python numbers, a tensor of them, and nothing."""

    def __init__(self, parameters) -> None:
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self) -> None:
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            if not state:
                state |= {"count": 0, "rate": 0.1, "turned": False, "scale.per.row": torch.ones(len(parameter))}
                state["unset"] = None
            assert [type(state[key]) for key in ("count", "rate", "turned")] == [int, float, bool]
            state["count"] += 1
            state["rate"] *= 0.9
            state["turned"] = not state["turned"]
            state["scale.per.row"] *= 0.7
            factor = state["rate"] * (-1 if state["turned"] else 1) / state["count"]
            parameter.sub_(parameter.grad * (factor * state["scale.per.row"]).view(-1, *[1] * (parameter.dim() - 1)))


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "Adamax": lambda parameters: torch.optim.Adamax(parameters, lr=0.01),
    "NAdam": lambda parameters: torch.optim.NAdam(parameters, lr=0.01),
    "Adafactor": lambda parameters: torch.optim.Adafactor(parameters, lr=0.01),
    "AdamW, amsgrad": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, amsgrad=True, fused=True),
    "SGD, momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.001, momentum=0.9),
    "Muon": lambda parameters: torch.optim.Muon([each for each in parameters if each.dim() == 2], lr=0.01),
    "numbers": Counting,
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_optimizer_goes_on_the_same(tmp_path, kind):
    """Only the state of AdamW and Muon used to be put back; of others parts were lost, without a word."""

    def begin() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2)))
        return model, OPTIMIZERS[kind](list(model.parameters()))

    def update(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
            (model(inputs) * 0.3 ** (step % 4)).square().sum().backward()  # gradients fall too, which amsgrad remembers
            optimizer.step()
            model.zero_grad()

    straight, optimizer = begin()
    update(straight, optimizer, range(5))
    weights, held = straight.state_dict(), optimizer_tensors(straight, [optimizer])
    Checkpoints(tmp_path, 1).save(Checkpoint(STATE, weights, held, {}), 5)
    update(straight, optimizer, range(5, 9))

    saved = Checkpoints(tmp_path, 1).load_newest()
    model, optimizer = begin()
    model.load_state_dict(saved.weights)
    restore_optimizers(model, [optimizer], saved.optimizer_state)
    again = optimizer_tensors(model, [optimizer])
    assert again.keys() == saved.optimizer_state.keys()
    assert all(tensor.dtype == again[name].dtype for name, tensor in saved.optimizer_state.items())
    update(model, optimizer, range(5, 9))
    for name, weight in straight.state_dict().items():
        assert torch.isfinite(weight).all() and torch.equal(weight, model.state_dict()[name]), name


def test_what_cannot_be_saved_of_an_optimizer_is_not_lost_in_silence():
    model = nn.Linear(2, 2)
    (optimizer,) = build_optimizers(model, Config())
    optimizer.state[model.bias] = {"history": [torch.zeros(2)]}
    with pytest.raises(TypeError, match=r"^bias\.history: an optimizer's list cannot be saved$"):
        optimizer_tensors(model, [optimizer])


def test_an_optimizer_without_state_has_no_tensors():
    model = nn.Linear(2, 2)
    assert optimizer_tensors(model, build_optimizers(model, Config())) == {}


class FakeTask:
    def save(self, folder: Path) -> None:
        (folder / "task.json").write_text("{}")


def test_a_saved_model_is_whole(tmp_path):
    torch.manual_seed(0)
    model, again = nn.Linear(2, 3), nn.Linear(2, 3)
    save_model(tmp_path / "best", Config(num_epochs=7), model, FakeTask(), {"F1": 0.1})
    verify_folder(tmp_path / "best")
    assert Config.load(tmp_path / "best" / "config.json") == Config(num_epochs=7)
    assert json.loads((tmp_path / "best" / "metrics.json").read_text()) == {"F1": 0.1}
    load_weights(again, tmp_path / "best")
    assert torch.equal(model.weight, again.weight)
    os.rename(tmp_path / "best", tmp_path / "best.old")
    load_weights(again, tmp_path / "best")


def test_no_model_with_a_nan_is_saved(tmp_path):
    model = nn.Linear(2, 3)
    nn.init.constant_(model.bias, float("nan"))
    with pytest.raises(CheckpointError, match="best: bias is not finite and is not saved"):
        save_model(tmp_path / "best", Config(), model, FakeTask(), {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [None, b"", b"abc", b"\xff" * 100])
def test_weights_that_cannot_be_read(tmp_path, content):
    if content is not None:
        (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read"):
        load_weights(nn.Linear(2, 2), tmp_path)


def test_truncated_weights(tmp_path):
    save_tensors(nn.Linear(8, 8).state_dict(), tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    for length in (4, 20, len(content) - 1):
        (tmp_path / "model.safetensors").write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read"):
            load_weights(nn.Linear(8, 8), tmp_path)


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (nn.Linear(2, 4), r"bias has shape \[4\], this model has \[3\]; give the model flags of that run"),
        (nn.Linear(2, 3, bias=False), r"bias has shape none, this model has \[3\]"),
        (nn.Sequential(nn.Linear(2, 3)), r"0\.bias has shape \[3\], this model has none"),
    ],
)
def test_another_architecture_is_named(tmp_path, saved, message):
    model = nn.Linear(2, 3)
    before = model.weight.detach().clone()
    save_tensors(saved.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_weights(model, tmp_path)
    assert torch.equal(model.weight, before)


def test_weights_from_memory():
    with pytest.raises(CheckpointError, match="^the run: weight has shape .*; do that$"):
        put_weights(nn.Linear(2, 3), nn.Linear(5, 3).state_dict(), "the run", "do that")


def test_settings_of_an_earlier_version_have_their_names_of_today(tmp_path):
    """An old run that was stopped in pretraining used to be refused: its settings looked as if they had changed."""
    checkpoints = Checkpoints(tmp_path, 1)
    stored = {**STATE, "config": {"conv_width": 7, "seed": 1}}
    checkpoints.save(Checkpoint(stored, {"weight": torch.ones(1)}, {}, {}), 1)
    assert checkpoints.load_newest().state["config"] == {"conv_kernel_size": 7, "seed": 1}
    both = {**STATE, "config": {"conv_width": 7, "conv_kernel_size": 7}}
    checkpoints.save(Checkpoint(both, {"weight": torch.ones(1)}, {}, {}), 2)
    with pytest.raises(DamagedCheckpoint, match="conv_width and conv_kernel_size are names of one setting"):
        checkpoints.load(checkpoints.path_of(2))
