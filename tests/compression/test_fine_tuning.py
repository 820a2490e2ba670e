"""Fine-tuning: its budget and rates by hand, the teacher's part in the loss, and zeros that stay zeros."""

import json
import math
from pathlib import Path

import pytest
import torch

from him.compression import stages
from him.compression.pruning import magnitude_masks
from him.config import Config
from him.tasks import task_class
from him.training.objective import Distillation, Objective, WeightMasks, objective_with_teacher
from him.workflows.compress import compress_run
from tests.compression.tiny import IN_FP32, TASKS, compressed_run, loaded, new_model, random_batch, stage_of, tensors_of
from tests.small_runs import records

EVERY_TASK = pytest.mark.parametrize("task_type", TASKS)


# -- loss --------------------------------------------------------------------------------------------------------------


@EVERY_TASK
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_teacher_has_its_share(task_type, share):
    """A weighted mean of the loss without it and of the loss that knows nothing else."""
    task, student = new_model(task_type)
    teacher = loaded(task_type, "trained")[1]
    batch = random_batch(task)

    def loss(of_teacher):
        return Distillation(task, teacher, of_teacher)(student, batch)

    alone, taught, mixed = task.loss(student, batch), loss(1.0), loss(share)
    values = [each.loss.item() for each in (alone, taught, mixed)]
    assert abs(values[0] - values[1]) > 0.1
    assert values[2] == pytest.approx((1 - share) * values[0] + share * values[1], rel=1e-5)
    assert (mixed.num_targets, float(mixed.num_correct)) == (alone.num_targets, float(alone.num_correct))
    mixed.loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in student.parameters())


@EVERY_TASK
def test_a_perfect_student_has_nothing_to_learn(task_type):
    task, model = new_model(task_type)
    loss = Distillation(task, model, 1.0)(model, random_batch(task)).loss
    assert abs(loss.item()) < 1e-3
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-3


@EVERY_TASK
def test_learning_from_the_teacher_alone_brings_the_student_near(task_type):
    """30 steps on one batch: the divergence falls to a half at most."""
    task, student = new_model(task_type)
    objective = Distillation(task, loaded(task_type, "trained")[1], 1.0)
    batch, optimizer = random_batch(task), torch.optim.AdamW(student.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        loss = objective(student, batch).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


# -- zeros -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Objective, lambda task, masks: Distillation(task, new_model("lm")[1], 0.5, masks)])
def test_masks_are_applied_before_each_loss(make):
    """Also before one that a teacher has a part in."""
    task, model = new_model("lm")
    masks = magnitude_masks(model, 0.4)
    make(task, WeightMasks(masks))(model, random_batch(task))
    weights = dict(model.named_parameters())
    for name, mask in masks.items():
        assert (weights[name][~mask] == 0).all() and (weights[name][mask] != 0).all()
    others = [weight for name, weight in weights.items() if name not in masks]
    assert others and all((weight != 0).any() for weight in others)


@pytest.mark.parametrize(
    "more",
    [
        {},
        pytest.param({"optimizer": "muon"}, marks=pytest.mark.slow),
        pytest.param({"ema_decay": 0.9}, marks=pytest.mark.slow),
        {"optimizer": "muon", "ema_decay": 0.9},
    ],
    ids=["AdamW", "Muon", "EMA", "Muon, EMA"],
)
def test_what_was_zeroed_stays_zero(copied, more):
    """Through steps, averages, evaluations and checkpoints; the others move on."""
    run = copied("lm", compressed=False)
    changes = {**more, "pruning_method": "magnitude", "pruning_amount": 0.4, "fine_tune_epochs": 1}
    report = compress_run(run, changes)
    pruned, tuned = (tensors_of(stage_of(run, stage)) for stage in ("pruned", "fine_tuned"))
    matrices = [name for name, tensor in pruned.items() if ".blocks." in name and tensor.dim() == 2]
    zeros = {name: pruned[name] == 0 for name in matrices}
    share = sum(int(each.sum()) for each in zeros.values()) / sum(each.numel() for each in zeros.values())
    assert share == pytest.approx(0.4, abs=1e-3)
    assert json.loads((stage_of(run, "fine_tuned") / "metrics.json").read_text())["step"] > 0, "it was trained"
    for name in matrices:
        assert torch.equal(tuned[name] == 0, zeros[name]), name
        assert not torch.equal(tuned[name], pruned[name])
    trained, zeroed = report["stages"][:2]
    assert zeroed["parameters"] == trained["parameters"]
    assert zeroed["verdict"].startswith("not smaller, ")


# -- the run of it -----------------------------------------------------------------------------------------------------


@EVERY_TASK
def test_the_best_epoch_is_kept_and_the_pruned_model_counts_as_epoch_0(task_type):
    run = compressed_run(task_type).run
    folder = run / "compressed" / "fine_tuned"
    metric = loaded(task_type, "trained")[0].best_metric
    series = [(r["step"], r["value"]) for r in records(folder) if r["tag"] == f"{metric}/val"]
    assert series[0][0] == 0 and len(series) >= 2
    best = (max if task_type != "lm" else min)(value for _, value in series)
    saved = json.loads((folder / "best" / "metrics.json").read_text())
    assert saved["step"] == next(step for step, value in series if value == best)


def test_its_curves_have_the_same_tags_in_a_folder_of_their_own():
    """The run's own records are as they were without it: the steps of its training and no others."""
    run = compressed_run("squad").run
    (own, other) = ({r["tag"] for r in records(folder)} for folder in (run, run / "compressed" / "fine_tuned"))
    assert own == other
    assert {"Loss/train", "Loss/val", "F1/val", "Learning_Rate"} < own
    config = Config.load(run / "best" / "config.json")
    task = task_class("squad").prepare(config, tokenizer_folder=run / "best")
    assert max(r["step"] for r in records(run)) == math.ceil(len(task.train_lengths) / config.batch_size)


def test_its_attention_is_drawn():
    """With as many heads as pruning left, in a folder below that of the run."""
    settings, run, _ = compressed_run("squad")
    drawn = Path(settings["attention_dir"]) / run.name
    names = {str(path.relative_to(drawn)) for path in drawn.rglob("*.png")}
    assert {name for name in names if "/" not in name} == {"epoch1_1_layer1.png", "epoch1_1_layer2.png"}
    assert {name for name in names if "/" in name} == {
        "fine_tuned/epoch1_1_layer1.png",
        "fine_tuned/epoch1_1_layer2.png",
    }


def test_the_teacher_is_the_unpruned_model(copied, monkeypatch):
    given = []

    def watched(task, teacher, weight, masks):
        given.append((teacher, weight, masks))
        return objective_with_teacher(task, teacher, weight, masks)

    monkeypatch.setattr(stages, "objective_with_teacher", watched)
    run = copied("lm", compressed=False)
    compress_run(run, {"fine_tune_distillation_weight": 0.8})
    ((teacher, weight, masks),) = given
    assert (weight, masks.masks, teacher.training) == (0.8, {}, False)
    task, trained = loaded("lm", "trained", IN_FP32)
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, trained.state_dict()[name]), name
