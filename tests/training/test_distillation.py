"""A student that learns from another run's predictions; the loss itself is in tests/compression/test_fine_tuning.py."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from him.config import Config
from him.core.compute import Compute
from him.core.errors import ConfigError
from him.data.cache import content_digest
from him.runs.checkpoint import Checkpoints
from him.tasks.base import DistillableTask, LossSums
from him.training.objective import Distillation, Objective, WeightMasks, objective_with_teacher
from him.workflows.prepare import build_objective
from him.workflows.resume import resume
from him.workflows.train import train
from tests.small_runs import (
    assert_one_line,
    assert_same_run,
    call_main,
    exact_records,
    flags,
    in_child,
    kill_at,
    trained_run,
    trained_writer,
    tree,
)

CPU = Compute(torch.device("cpu"), bf16=False)
STUDENT = {"embed_dim": 16, "batch_size": 16, "num_epochs": 2, "vocab_size": 300, "save_every_steps": 4}


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> dict:
    of_teacher, run = trained_run()
    output = {"output_dir": str(tmp_path_factory.mktemp("runs")), "teacher": str(run)}
    return {**of_teacher, **STUDENT, **output}


def tokenizer_of(run: Path) -> dict:
    return json.loads((run / "best" / "tokenizer.json").read_text())


def test_the_student_has_its_own_size_and_the_tokenizer_of_its_teacher(settings):
    taught = Path(train(Config(**settings, run_name="taught"))["run"])
    assert tokenizer_of(taught) == tokenizer_of(Path(settings["teacher"]))
    assert Config.load(taught / "best" / "config.json").embed_dim == 16
    # The teacher counts: without its word, and with nothing else, the same seed gives other losses.
    series = [exact_records(taught)]
    for weight in (0.0, 1.0):
        run = train(Config(**{**settings, "distillation_weight": weight, "run_name": f"weight {weight}"}))["run"]
        series.append(exact_records(Path(run)))
    assert len({str(each) for each in series}) == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_student_goes_on_the_same(settings):
    straight = Path(train(Config(**settings, run_name="straight"))["run"])
    config = Config(**settings, run_name="killed")
    run = Path(config.output_dir) / "killed"

    def work() -> None:
        kill_at(40)
        train(config)

    assert in_child(work) == -signal.SIGKILL
    resume(run, {})
    assert_same_run(run, straight)


def test_a_student_is_compressed_as_others(settings):
    finished = call_main(*flags({**settings, "compress": True, "dry_run": True, "run_name": "compressed"}))
    assert (finished.status, finished.err) == (0, "")


def test_a_finished_compression_of_a_student_is_not_made_again(settings):
    """Its report names the data alone; it used to be looked up under the data and the teacher, and never found."""
    finished = call_main(*flags({**settings, "compress": True, "dry_run": True, "run_name": "finished"}))
    assert (finished.status, finished.err) == (0, "")
    run = Path(settings["output_dir"]) / "finished"
    before = tree(run / "compressed")
    amount = json.loads(before["report.json"])["settings"]["pruning_amount"]
    finished = call_main("--resume", run, "--pruning_amount", amount)
    assert (finished.status, finished.err) == (0, "")
    assert tree(run / "compressed") == before
    finished = call_main("--resume", run, "--pruning_amount", "0.6")
    assert (finished.status, finished.err) == (0, "")
    assert json.loads(tree(run / "compressed")["report.json"])["settings"]["pruning_amount"] == 0.6


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"teacher": "no/such/run"}, "--teacher no/such/run: no finished model there (no folder best); name a run"),
        ({"lexical_features": False}, "--no-lexical_features: the teacher reads them; leave the flag out"),
        ({"distillation_weight": 1.5}, "--distillation_weight 1.5 is out of range; use at least 0 and at most 1"),
    ],
)
def test_teachers_that_cannot_be_followed(settings, change, part):
    assert_one_line(call_main(*flags({**settings, **change, "run_name": "no"})), part)
    assert not (Path(settings["output_dir"]) / "no").exists()


def test_a_teacher_of_another_task(settings):
    _, writer = trained_writer("lm")
    finished = call_main(*flags({**settings, "teacher": writer, "run_name": "no"}))
    assert_one_line(finished, "a lm model, and --task_type is squad; name a run of squad")


def test_an_int8_model_is_no_teacher(settings, tmp_path):
    folder = tmp_path / "int8"
    shutil.copytree(Path(settings["teacher"]) / "best", folder)
    (folder / "quantization.json").write_text("{}")
    finished = call_main(*flags({**settings, "teacher": folder, "run_name": "no"}))
    assert_one_line(finished, f"--teacher {folder}: an int8 model cannot be trained, nor teach; name another stage")


def test_a_teacher_of_another_tokenizer_than_the_beginning(settings, tmp_path):
    first = tmp_path / "first"
    shutil.copytree(settings["teacher"], first)
    path = first / "best" / "tokenizer.json"
    content = json.loads(path.read_text())
    words = sorted(content["model"]["vocab"], key=content["model"]["vocab"].get)
    content["model"]["vocab"][words[-1]], content["model"]["vocab"][words[-2]] = len(words) - 2, len(words) - 1
    path.write_text(json.dumps(content))
    arguments = {name: value for name, value in settings.items() if name not in STUDENT}
    finished = call_main(*flags({**arguments, "init_from": first, "run_name": "no"}))
    assert_one_line(finished, "has another tokenizer than --init_from", "use models with the same one")


# -- the objective -----------------------------------------------------------------------------------------------------


class LabelTask:
    """Its loss is the sum of the weights; it knows no teacher."""

    name, train_digest = "labels", "data"

    def loss(self, model, batch):
        return LossSums(model.weight.sum(), 1, torch.tensor(0))


@DistillableTask.register
class TaughtByHand(LabelTask):
    def distillation_loss(self, model, teacher, batch, share):
        return LossSums((1 - share) * model.weight.sum() + share * teacher.weight.sum(), 1, torch.tensor(0))


def linear(weights) -> nn.Linear:
    model = nn.Linear(len(weights), 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([weights]))
    return model


def test_a_task_without_distillation_learns_from_its_labels_alone():
    assert not isinstance(LabelTask(), DistillableTask)
    objective = objective_with_teacher(LabelTask(), linear([1.0, 2.0]), 0.5, WeightMasks({}))
    assert type(objective) is Objective
    assert objective(linear([3.0, 5.0]), {}).loss.item() == 8.0
    assert (objective.digest, objective.data_digest()) == ("", "data")


def test_the_teacher_s_weight_and_its_digest():
    """The digest of what is learned from names the teacher also where it has no weight."""
    teacher, student = linear([1.0, 2.0]), linear([3.0, 5.0])
    digest = content_digest(teacher.weight.detach().numpy())
    for weight, loss in ((0.0, 8.0), (0.25, 0.75 * 8 + 0.25 * 3), (1.0, 3.0)):
        objective = objective_with_teacher(TaughtByHand(), teacher, weight)
        assert type(objective) is Distillation
        assert objective(student, {}).loss.item() == loss
        assert objective.data_digest() == f"data-{digest}"


def test_a_teacher_for_a_task_that_cannot_learn_from_one_is_refused(settings):
    with pytest.raises(ConfigError, match="labels has no distillation loss; leave the flag out"):
        build_objective(LabelTask(), Config(**settings), CPU)


def test_a_student_s_checkpoint_names_data_and_teacher(settings):
    """As it always did: an old run goes on with its teacher."""
    run = Path(train(Config(**settings, run_name="named"))["run"])
    data, teacher = Checkpoints(run / "checkpoints", 1).load_newest().state["data"].split("-")
    of_teacher = trained_run()[1]
    assert data == Checkpoints(of_teacher / "checkpoints", 1).load_newest().state["data"]
    assert teacher
