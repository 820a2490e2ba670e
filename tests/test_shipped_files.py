"""What is shipped beside the code: configurations, pins, the README's flags and commands."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from him.cli.parser import build_parser, parse_command_line
from him.config import Config
from him.config.names import NAMES
from him.config.yaml_file import read_yaml
from him.tasks import task_class

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("python main.py")
]


def test_no_source_is_ignored_by_git():
    """A pattern such as `runs/`, meant for what users make, would leave a package of HIM out of every commit."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a checkout of git")
    sources = [path for folder in ("him", "tests", "scripts") for path in (ROOT / folder).rglob("*.py")]
    assert ROOT / "him/runs/checkpoint.py" in sources
    names = "\n".join(path.relative_to(ROOT).as_posix() for path in sources)
    command = ["git", "check-ignore", "--stdin", "--no-index"]
    found = subprocess.run(command, cwd=ROOT, input=names, capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (1, ""), found.stderr


def test_all_configurations_are_found():
    assert [path.relative_to(ROOT / "configs").as_posix() for path in CONFIGS] == [
        "ablation/1_naive.yaml",
        "ablation/2_schedule.yaml",
        "ablation/3_features.yaml",
        "ablation/4_convolution.yaml",
        "ablation/5_pretraining.yaml",
        "ablation/6_variants.yaml",
        "ablation/7_data.yaml",
        "ablation/8_warm_start.yaml",
        "corpus.yaml",
        "quickstart.yaml",
        "scitldr.yaml",
        "shakespeare.yaml",
        "shakespeare_short.yaml",
        "squad.yaml",
        "squad_extra.yaml",
        "squad_guide.yaml",
        "squad_minilm.yaml",
        "squad_minilm_extra.yaml",
        "squad_no_lexical.yaml",
        "squad_post_ln.yaml",
        "squad_taught.yaml",
        "titles.yaml",
        "titles_no_copy.yaml",
    ]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_configuration_is_sound_and_explained(path):
    settings = read_yaml(str(path))
    config = Config(**settings)
    assert task_class(config.task_type).resolve(config).num_epochs >= 1
    header = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    text = " ".join(header)
    command = path.relative_to(ROOT).as_posix() if path.name != "quickstart.yaml" else "make quickstart"
    metric = {"squad": "F1", "summarization": "ROUGE-L", "lm": "bits per byte"}[config.task_type]
    for needed in (command, "cores", metric):
        assert needed in text


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_readme_are_understood(command):
    arguments = shlex.split(command)[2:]
    settings, run, _ = parse_command_line(build_parser(""), arguments)
    assert run is not None or Config(**settings)


def test_the_readme_has_commands():
    assert len(COMMANDS) >= 5


def test_flags_of_the_readme_are_current():
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        from write_flags import with_flags
    finally:
        sys.path.pop(0)
    assert with_flags(README) == README, "run python scripts/write_flags.py"
    assert all(f"`--{name}`" in README for name in NAMES)


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-models.txt", "requirements-dev.txt"])
def test_requirements_are_pinned(name):
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    assert lines
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+", line) for line in lines)


def test_pictures_of_the_readme_are_there():
    names = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    assert len(names) >= 2
    assert all((ROOT / name).is_file() for name in names)


# -- the code map and docs/architecture.md -----------------------------------------------------------------------------


def test_the_code_map_names_every_folder_and_nothing_that_is_gone():
    section = README.split("\n## The code\n")[1].split("\n## ")[0]
    shown = set(re.findall(r"[\w./]+", section))
    for folder in (each for each in (ROOT / "him").rglob("*") if (each / "__init__.py").is_file()):
        assert f"{folder.name}/" in shown, folder
    there = {"main.py"} | {
        path.name for folder in ("him", "scripts", "tests") for path in (ROOT / folder).rglob("*.py")
    }
    assert {name for name in shown if name.endswith(".py") and "*" not in name and "/" not in name} - {".py"} <= there


def test_every_room_is_in_the_architecture():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = [each.name for each in (ROOT / "him").iterdir() if each.is_dir() and any(each.glob("*.py"))]
    assert len(rooms) >= 14
    assert all(f"\n| `{room}/` |" in text for room in rooms)
