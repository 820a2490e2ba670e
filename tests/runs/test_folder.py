"""The folder of a run: its names stand in one module, and what it is asked for is there, or refused."""

import ast
import os
from pathlib import Path

import pytest

from him.config import Config
from him.core.errors import CheckpointError, ConfigError
from him.runs.folder import STAGES, CompressionFolder, ModelFolder, RunFolder

REPOSITORY = Path(__file__).parents[2]
NAMES = frozenset(
    "best checkpoints compressed config.json command.txt metrics.jsonl predictions.json pretraining sweep".split()
)
# The folders of Hugging Face have a config.json of their own.
OTHERS = {("him/config/bert.py", "config.json")}


def joined_names(source: str) -> set[str]:
    """The names of a run's parts that a source joins with a path: by `/`, or as an argument of a call about paths."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        texts: list[ast.expr] = []
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            texts = [node.left, node.right]
        elif isinstance(node, ast.Call):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in ("Path", "join", "joinpath", "with_name", "glob", "rglob"):
                texts = list(node.args)
        for text in texts:
            for part in ast.walk(text):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    found |= NAMES & set(part.value.split("/"))
    return found


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('run / "best"', {"best"}),
        ('run / "best" / "config.json"', {"best", "config.json"}),
        ('run / f"sweep/{amount:g}"', {"sweep"}),
        ('Path(run, "checkpoints")', {"checkpoints"}),
        ('os.path.join(run, "compressed/report.json")', {"compressed"}),
        ('run.glob("checkpoints/*.damaged")', {"checkpoints"}),
        ('print("best", folder / name)', set()),
        ('state["config"]', set()),
    ],
)
def test_the_check_itself(source, expected):
    assert joined_names(source) == expected


def test_nothing_else_knows_the_names():
    found = set()
    for path in sorted((*(REPOSITORY / "him").rglob("*.py"), *(REPOSITORY / "scripts").rglob("*.py"))):
        name = path.relative_to(REPOSITORY).as_posix()
        found |= {(name, each) for each in joined_names(path.read_text(encoding="utf-8"))}
    home = ast.parse((REPOSITORY / "him/runs/folder.py").read_text(encoding="utf-8"))
    assert {node.value for node in ast.walk(home) if isinstance(node, ast.Constant)} >= NAMES
    assert {each for each in found if each[0] != "him/runs/folder.py"} - OTHERS == set()


def write_model(folder: Path) -> None:
    folder.mkdir(parents=True)
    ModelFolder(folder).weights.write_bytes(b"")


@pytest.fixture
def run(tmp_path) -> RunFolder:
    """With a model of each stage."""
    run = RunFolder(tmp_path / "run")
    for below in ("best", "compressed/pruned", "compressed/fine_tuned/best", "compressed/int8"):
        write_model(run.path / below)
    run.config.write_text("{}")
    return run


def test_where_the_models_are(run):
    below = ("best", "compressed/pruned", "compressed/fine_tuned/best", "compressed/int8")
    assert [run.find_model(stage) for stage in STAGES] == [run.path / each for each in below]
    assert run.at_amount(0.25).model("int8") == run.path / "sweep" / "0.25" / "int8"
    assert run.at_amount(1e-5).path.name == "1e-05"


def test_models_are_found_while_they_are_replaced(run):
    """`write_folder` and the compression rename the old folder before they rename the new one."""
    for name in ("best", "compressed"):
        os.rename(run.path / name, run.path / f"{name}.old")
    run.check_trained()
    assert run.find_model("trained") == run.path / "best.old"
    assert run.find_model("fine_tuned") == run.path / "compressed.old" / "fine_tuned" / "best"


def test_which_models_compression_made(run):
    assert [ModelFolder(run.find_model(stage)).is_compressed for stage in STAGES] == [False, True, True, True]
    assert ModelFolder(run.at_amount(0.5).model("pruned")).is_compressed
    assert not ModelFolder(Path("compressed/best")).is_compressed, "the run's own name"


def test_a_finished_compression_takes_the_place_of_the_earlier_one(tmp_path):
    target = CompressionFolder(tmp_path / "compressed")
    for number in (1, 2):
        write_model(target.part.model("int8"))
        for path in (target.part.report, target.part.progress):
            path.write_text(str(number))
        target.put_in_place()
        assert [path.name for path in tmp_path.iterdir()] == ["compressed"]
        assert sorted(path.name for path in target.path.iterdir()) == ["int8", "report.json"]
        assert target.report.read_text() == str(number)


def test_an_earlier_compression_comes_back_where_there_is_no_new_one(tmp_path):
    target = CompressionFolder(tmp_path / "compressed")
    old = tmp_path / "compressed.old"
    write_model(old / "int8")
    target.remove_leftovers()
    assert ModelFolder(target.model("int8")).is_there and not old.exists()


@pytest.mark.parametrize(
    ("flag", "kind", "said"),
    [
        ("--resume ", "missing", r"^--resume \S+gone: no such folder; name a run, such as runs/NAME$"),
        (
            "--resume ",
            "empty",
            r"^--resume \S+gone: no run there \(it has no config.json\); name a run, such ",
        ),
        ("", "missing", r"^\S+gone: no run there \(it has no config.json\); name a run, such as runs/NAME$"),
    ],
)
def test_no_run(tmp_path, flag, kind, said):
    run = RunFolder(tmp_path / "gone")
    if kind == "empty":
        run.path.mkdir()
    with pytest.raises(CheckpointError, match=said):
        run.check_begun(flag)


def test_no_model(tmp_path, run):
    with pytest.raises(CheckpointError, match=r"gone: no such run; name its folder, such as runs/NAME$"):
        RunFolder(tmp_path / "gone").check_trained()
    with pytest.raises(ConfigError, match=r"--stage tuned is not known; use trained, pruned, fine_tuned or int8$"):
        run.find_model("tuned")
    ModelFolder(run.compressed.model("int8")).weights.unlink()
    said = r"run: no model of the stage int8 there, only trained, pruned, fine_tuned; make it with scripts/compress.py "
    with pytest.raises(CheckpointError, match=said):
        run.find_model("int8")
    ModelFolder(run.best).weights.unlink()
    with pytest.raises(CheckpointError, match=r"run: no finished model there; train the run first, or go on with"):
        run.check_trained()


def test_a_new_run(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["main.py", "--run_name", "a b"])
    config = Config(output_dir=str(tmp_path / "runs"), run_name="a b")
    run = RunFolder.for_new_run(config)
    assert not run.path.parent.exists(), "nothing is written yet"
    run.create(config)
    assert sorted(path.name for path in run.path.iterdir()) == ["command.txt", "config.json"]
    assert run.command.read_text() == "python main.py --run_name 'a b'\n"
    assert Config.load(run.config) == config
    with pytest.raises(ConfigError, match="exists; choose another --run_name, remove it, or go on with --resume"):
        RunFolder.for_new_run(config)
    with pytest.raises(ConfigError, match="exists; choose another --run_name, or go on with --resume"):
        run.create(config)
    assert [path.name for path in run.path.parent.iterdir()] == ["a b"]


def test_runs_without_a_name_are_numbered(tmp_path):
    config = Config(output_dir=str(tmp_path))
    names = []
    for _ in range(3):
        run = RunFolder.for_new_run(config)
        run.create(config)
        names.append(run.name)
    assert len(set(names)) == 3 and all(name.startswith("squad-2") for name in names)


def test_an_output_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--output_dir \S+file is a file; name a folder$"):
        RunFolder.for_new_run(Config(output_dir=str(tmp_path / "file")))


def test_only_one_process_writes(run):
    with run.locked(), pytest.raises(CheckpointError, match="another process writes to this run"), run.locked():
        pass
