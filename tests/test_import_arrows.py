"""Who may import whom: an arrow goes from a room to the rooms before it, never back.

The imports are parsed, not run: also those inside functions and behind TYPE_CHECKING.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
BEFORE_TASKS = ("core", "config", "text", "data", "model", "metrics", "attention_maps")
# Each room and the rooms that it may import from, beside itself.
ALLOWED = {
    "core": (),
    "config": ("core",),
    "text": ("core", "config"),
    "data": ("core", "config", "text"),
    "model": ("core", "config"),
    "metrics": ("core", "config"),
    "attention_maps": ("core", "config"),
    "tasks": BEFORE_TASKS,
    "runs": (*BEFORE_TASKS, "tasks"),
    "training": (*BEFORE_TASKS, "tasks", "runs"),
    "compression": (*BEFORE_TASKS, "tasks", "runs", "training"),
    "workflows": (*BEFORE_TASKS, "tasks", "runs", "training", "compression"),
    "export": (*BEFORE_TASKS, "tasks", "runs", "training", "compression", "workflows"),
    "cli": (*BEFORE_TASKS, "tasks", "runs", "training", "compression", "workflows", "export"),
}
ALLOWED["entry"] = ("him", *ALLOWED, "scripts")
ALLOWED["scripts"] = ALLOWED["entry"]
ALLOWED["him"] = tuple(room for room in ALLOWED if room not in ("entry", "scripts"))


def module_of(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = sorted((*(REPOSITORY / "him").rglob("*.py"), *(REPOSITORY / "scripts").rglob("*.py"), REPOSITORY / "main.py"))
MODULES = {module_of(path) for path in FILES}


def group_of(module: str) -> str:
    """The room of a module: a folder of him/, `him` itself, the entries beside it, or the packages below scripts/."""
    parts = module.split(".")
    if parts[0] != "him":
        return "scripts" if len(parts) > 2 else "entry"
    if len(parts) == 1:
        return "him"
    return "entry" if parts[1] == "__main__" else parts[1]


def imports_of(source: str, only_at_import: bool = False) -> set[str]:
    """HIM's modules that a source imports.

    Args:
        source: Python text.
        only_at_import: leave out what runs later or never: function bodies and TYPE_CHECKING.
    """
    found = set()
    todo: list[ast.AST] = [ast.parse(source)]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports in HIM are absolute"
            # `from him.data import order` names a module, `from him.data.batching import epoch_batches` does not.
            found |= {f"{node.module}.{alias.name}" for alias in node.names} & MODULES or {node.module}
        is_late = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        )
        if not (only_at_import and is_late):
            todo += ast.iter_child_nodes(node)
    return {name for name in found if name.split(".")[0] in ("him", "scripts")}


def violations(module: str, source: str) -> list[str]:
    """What a module imports and may not: from a room that is not before its own, or from another task."""
    own = group_of(module)
    allowed = {own, *ALLOWED[own]}
    found = {name for name in imports_of(source) if group_of(name) not in allowed}
    if own == "tasks":
        task = task_of(module)
        found |= {name for name in imports_of(source) if group_of(name) == "tasks" and task_of(name) not in ("", task)}
    return sorted(found)


def task_of(module: str) -> str:
    """The task whose folder a module of him/tasks is in, or ""."""
    parts = module.split(".")
    return parts[2] if len(parts) > 2 and (REPOSITORY / "him" / "tasks" / parts[2]).is_dir() else ""


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_follow_the_arrows(path):
    module = module_of(path)
    assert violations(module, path.read_text(encoding="utf-8")) == []


def test_every_room_is_read():
    """An empty list of files would pass every test here."""
    assert {group_of(module) for module in MODULES} >= set(ALLOWED) - {"entry"}
    assert {task_of(module) for module in MODULES} >= {"squad", "summarization", "lm"}


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("him.model.encoder", "from him.data.batching import epoch_batches", ["him.data.batching"]),
        ("him.model.encoder", "def f():\n    import him.tasks.squad.task", ["him.tasks.squad.task"]),
        ("him.model.encoder", "from him import training", ["him.training"]),
        ("him.metrics.rouge", "if TYPE_CHECKING:\n    from him.model import encoder", ["him.model.encoder"]),
        ("him.data.batching", "import him.tasks", ["him.tasks"]),
        ("him.tasks.squad.task", "from him.tasks.lm.windows import RandomWindows", ["him.tasks.lm.windows"]),
        ("him.tasks.base", "from him.tasks.lm.windows import RandomWindows", ["him.tasks.lm.windows"]),
        ("him.tasks.squad.task", "from him.tasks.base import Task", []),
        ("him.training.trainer", "from him.compression.pipeline import compress", ["him.compression.pipeline"]),
        ("him.runs.folder", "import him.workflows.predict", ["him.workflows.predict"]),
        ("him.config.config", "from him.core.ragged import Ragged\nimport him.data", ["him.data"]),
        ("him.tasks.squad.task", "from him.model.encoder import Encoder\nimport numpy", []),
        ("him.training.trainer", "from him.tasks.base import Task", []),
        ("him.cli.main", "from scripts.benchmarks.train import Plan", ["scripts.benchmarks.train"]),
    ],
)
def test_the_check_itself(module, source, expected):
    assert violations(module, source) == expected


def test_a_trainer_names_no_task():
    """Neither an import nor a string: a fourth task is one file and a line in TASKS."""
    sys.path.insert(0, str(REPOSITORY))
    from him.config.options import TASKS

    files = [path for path in FILES if module_of(path).startswith("him.training")]
    assert len(files) >= 5
    for path in files:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        named = {name for name in imports_of(ast.unparse(tree)) if group_of(name) == "tasks"}
        assert named <= {"him.tasks", "him.tasks.base"}, path
        strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        assert not strings & set(TASKS), path


@pytest.mark.parametrize("room", ["runs", "compression", "workflows", "export"])
def test_what_is_built_on_tasks_names_none(room):
    """Neither an import nor a comparison: each asks the task (see him/tasks/base.py)."""
    shared = {"him.tasks", *(f"him.tasks.{name}" for name in ("base", "building", "exporting"))}
    for path in (path for path in FILES if group_of(module_of(path)) == room):
        source = path.read_text(encoding="utf-8")
        assert {name for name in imports_of(source) if group_of(name) == "tasks"} <= shared, path
        compared = {
            each.value
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Compare)
            for each in ast.walk(node)
            if isinstance(each, ast.Constant)
        }
        assert not compared & {"squad", "summarization", "lm"}, path


def test_no_circle_of_imports():
    """Of imports that run when a module is loaded; importing a package's module runs the package first."""
    graph = {}
    for path in FILES:
        found = imports_of(path.read_text(encoding="utf-8"), only_at_import=True)
        graph[module_of(path)] = {name for name in found if name in MODULES} - {module_of(path)}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for other in graph[module]:
                visit(other, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())
    assert done == MODULES


HEAVY = ("torch", "transformers", "datasets", "evaluate", "pyarrow", "matplotlib", "tensorboard")
RUN_MAIN = """
import runpy, sys
sys.argv = ["main.py", *{arguments!r}]
try:
    runpy.run_path("main.py", run_name="__main__")
except SystemExit as stop:
    status = stop.code
"""


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("import him; him.Config; status = 0", 0),
        (RUN_MAIN.format(arguments=["--help"]), 0),
        (RUN_MAIN.format(arguments=["--lerning_rate", "0.1"]), 2),
        (RUN_MAIN.format(arguments=["--embed_dim", "250"]), 2),
    ],
    ids=["import him", "--help", "unknown flag", "bad value"],
)
def test_nothing_heavy_is_loaded_for(code, status):
    check = f"import sys\nprint(status, [name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\n{check}"], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert run.stderr.splitlines()[-1] == f"{status} []", run.stderr
