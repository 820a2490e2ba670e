"""Ablation in steps, from a model that does not learn to one that does: trains each, and says what each one brought.

A step is a config of its own, which differs from the one before it in one thing. What it takes beside the config, such
as more training files, is in `ADDITIONS`.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from him.config.bert import FILES, is_bert
from him.config.config import Config
from him.config.options import only_roles, with_role
from him.config.resolve import resolve
from him.config.yaml_file import read_yaml
from him.core.errors import ConfigError
from him.runs.folder import RunFolder, read_earlier
from him.tasks.squad.sources import load_squad
from him.workflows.prepare import initial_folder
from him.workflows.resume import resume
from him.workflows.train import train
from scripts.experiments.ablation_report import TrainedStep, write_report

NOT_MEASURED = {"compress": False, "bertscore_samples": 0, "attention_examples": 0}
# Of a run, what says where things are or how fast it is.
MAY_DIFFER = only_roles("path", "cache", "machine")


@dataclass(frozen=True)
class Addition:
    """What a step has that the one before it has not.

    Attributes:
        what: the same in words.
        flags: the flags of the ablation that its runs take, where they are given.
        needs: the flags without which it is left out.
    """

    what: str
    flags: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


ADDITIONS = {
    "1_naive": Addition("a plain encoder, one learning rate"),
    "2_schedule": Addition("+ pre-LN, rotary positions, warm-up and cosine"),
    "3_features": Addition("+ word matches, shapes and IDF as inputs"),
    "4_convolution": Addition("+ a convolution before each attention"),
    "5_pretraining": Addition("+ synthetic questions and masked tokens of the same texts, before"),
    "6_variants": Addition("+ augmented copies of each question, one more epoch, EMA weights"),
    "7_data": Addition("+ more training files", flags=("extra_files",), needs=("extra_files",)),
    "8_warm_start": Addition(
        "a pretrained encoder instead, on the first files alone", flags=("init_from",), needs=("init_from",)
    ),
}


@dataclass(frozen=True)
class Step:
    """A config of the ablation: its file name without `.yaml`, its settings, and what it adds."""

    name: str
    settings: dict[str, Any]
    addition: Addition


@dataclass(frozen=True)
class Ablation:
    """What is to be trained, and on what: the flags of `scripts/ablation.py`."""

    train_file: Sequence[str]
    validation_file: str
    output_dir: Path = Path("runs/ablation")
    configs: Path = Path("configs/ablation")
    extra_files: Sequence[str] = ()
    init_from: str | None = None
    seeds: Sequence[int] = (0,)
    only: Sequence[str] = ()
    num_threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("seeds", "only"):
            if twice := [each for each in getattr(self, name) if getattr(self, name).count(each) > 1]:
                raise ConfigError(f"--{name} names {twice[0]} twice; name each once")
        if self.init_from is not None and not is_bert(Path(self.init_from)):
            raise ConfigError(
                f"--init_from {self.init_from}: no pretrained BERT encoder there; name a folder with {', '.join(FILES)}"
            )


@dataclass(frozen=True)
class Run:
    """One training of a step."""

    step: Step
    seed: int
    config: Config

    @property
    def folder(self) -> Path:
        return Path(self.config.output_dir, self.config.run_name)


def run_ablation(ablation: Ablation) -> dict[str, Any]:
    """Trains what is not trained yet, a run after the other, and writes the report anew after each.

    All settings and all data are read before the first run. A run that was stopped goes on.

    Returns:
        See `write_report`.

    Raises:
        HimError: a setting, the data or a run does not allow it.
        Interrupted: a signal ended it; the same call goes on.
    """
    runs = planned_runs(ablation)
    files = (*ablation.train_file, *ablation.extra_files)
    validation = load_squad(Config(train_file=files, validation_file=ablation.validation_file)).validation
    report = None
    for number, run in enumerate(runs, start=1):
        name = run.folder.name
        if is_finished(run.folder):
            print(f"{name}: finished before", flush=True)
            continue
        print(f"{name}: run {number} of {len(runs)}", flush=True)
        if run.folder.exists():
            resume(run.folder, {})
        else:
            train(run.config)
        report = write_report(trained_steps(runs), validation, ablation.output_dir)
    return report or write_report(trained_steps(runs), validation, ablation.output_dir)


def is_finished(folder: Path) -> bool:
    """Whether a run's best model was measured, which is the last thing that a run does here."""
    return RunFolder(folder).predictions.is_file()


def trained_steps(runs: Sequence[Run]) -> list[TrainedStep]:
    """The steps with a finished run, in their order."""
    folders: dict[str, dict[int, Path]] = {}
    for run in runs:
        if is_finished(run.folder):
            folders.setdefault(run.step.name, {})[run.seed] = run.folder
    steps = {run.step.name: run.step for run in runs}
    return [TrainedStep(name, steps[name].addition.what, steps[name].settings, folders[name]) for name in folders]


# -- what is trained ---------------------------------------------------------------------------------------------------


def planned_runs(ablation: Ablation) -> list[Run]:
    """All runs in their order, with sound settings; says which steps are left out.

    Raises:
        HimError: a config is not sound, or a run that is there was trained otherwise.
    """
    runs = []
    for step in read_steps(ablation.configs, ablation.only):
        if missing := [f"--{name}" for name in step.addition.needs if not getattr(ablation, name)]:
            print(f"{step.name}: left out, it needs {' and '.join(missing)}", flush=True)
            continue
        runs += [Run(step, seed, config_of(step, seed, ablation)) for seed in ablation.seeds]
    if not runs:
        raise ConfigError("no step has what it needs; give the flags that it needs, or name other steps with --only")
    for run in runs:
        initial_folder(run.config)  # refused now, not after the hours of the steps before
        if run.folder.exists():
            check_same(run)
    return runs


def read_steps(folder: Path, only: Sequence[str] = ()) -> list[Step]:
    """The configs of a folder by name.

    Args:
        only: names of those that are wanted; none: all.

    Raises:
        ConfigError: there are none, or not that one.
    """
    paths = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    if not paths:
        raise ConfigError(f"--configs {folder}: no .yaml file there; name a folder with a config for each step")
    if unknown := [name for name in only if name not in paths]:
        raise ConfigError(f"--only {unknown[0]}: no such step; use {', '.join(paths)}")
    steps: list[Step] = []
    for name, path in paths.items():
        settings = read_yaml(str(path))
        before = steps[-1].settings if steps else settings
        steps.append(Step(name, settings, ADDITIONS.get(name) or Addition(differences(settings, before))))
    return [step for step in steps if not only or step.name in only]


def differences(settings: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """What is not as before, in words."""
    names = [name for name in {**before, **settings} if settings.get(name) != before.get(name)]
    return ", ".join(f"{name} {settings.get(name, 'as by default')}" for name in names)


def config_of(step: Step, seed: int, ablation: Ablation) -> Config:
    """All settings of a run.

    Raises:
        ConfigError: they are not sound, or of another task.
    """
    flags = step.addition.flags
    given = {
        "train_file": (*ablation.train_file, *(ablation.extra_files if "extra_files" in flags else ())),
        "validation_file": ablation.validation_file,
        "output_dir": str(ablation.output_dir),
        "run_name": f"{step.name}-{seed}",
        "seed": seed,
        "num_threads": ablation.num_threads,
    }
    if "init_from" in flags:
        given["init_from"] = ablation.init_from
    config = Config(**{**step.settings, **given, **NOT_MEASURED})
    config = resolve(config, read_earlier(config.init_from))
    if config.task_type != "squad":
        raise ConfigError(f"{step.name}.yaml: task_type {config.task_type}; the ablation is of squad")
    return config


def check_same(run: Run) -> None:
    """Raises ConfigError if a run that is there already was, or is to be, trained with other settings."""
    before = resolve(Config.load(RunFolder(run.folder).config))
    for name in (each.name for each in fields(Config) if each.name not in MAY_DIFFER):
        then, now = getattr(before, name), getattr(run.config, name)
        if name in with_role("path"):
            then, now = _absolute(then), _absolute(now)
        if then != now:
            raise ConfigError(
                f"{run.folder}: trained with --{name} {_typed(then)}, and now it is {_typed(now)}; remove it, or name "
                "another --output_dir"
            )


def _absolute(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_absolute, value))
    return os.path.abspath(value) if isinstance(value, str) else value


def _typed(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
