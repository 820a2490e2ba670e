"""Who may import whom: main, scripts -> workflows -> tasks -> data, model, metrics -> the foundation.

The imports are parsed, not run: also those inside functions and behind TYPE_CHECKING.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
FOUNDATION = {
    "him.errors",
    "him.files",
    "him.interruption",
    "him.options",
    "him.bert",
    "him.config",
    "him.flags",
    "him.ragged",
    "him.compute",
    "him.tokenization",
    "him.tokenizer_training",
}
# Pictures of arrays know nothing of the rest of HIM: tasks fill an `AttentionExample` and workflows draw it.
PACKAGES = {"data": "data", "model": "model", "metrics": "metrics", "tasks": "tasks", "attention_maps": "drawing"}
ALLOWED = {
    "foundation": {"foundation"},
    "drawing": {"drawing"},
    "data": {"data", "foundation"},
    "model": {"model", "foundation"},
    "metrics": {"metrics", "foundation"},
    "tasks": {"tasks", "data", "model", "metrics", "foundation", "drawing"},
    "workflow": {"workflow", "tasks", "data", "model", "metrics", "foundation", "drawing"},
    "entry": {"package", "workflow", "tasks", "data", "model", "metrics", "foundation", "drawing"},
    "package": {"workflow", "foundation"},
}


def module_of(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = sorted((*(REPOSITORY / "him").rglob("*.py"), *(REPOSITORY / "scripts").glob("*.py"), REPOSITORY / "main.py"))
MODULES = {module_of(path) for path in FILES}


def group_of(module: str) -> str:
    """What is not named above, at the top of him/ or in a package of its own such as training, is a workflow."""
    parts = module.split(".")
    if parts[0] != "him":
        return "entry"
    if len(parts) == 1:
        return "package"
    return "foundation" if module in FOUNDATION else PACKAGES.get(parts[1], "workflow")


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
            # `from him.data import order` names a module, `from him.data.order import epoch_batches` does not.
            found |= {f"{node.module}.{alias.name}" for alias in node.names} & MODULES or {node.module}
        is_late = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        )
        if not (only_at_import and is_late):
            todo += ast.iter_child_nodes(node)
    return {name for name in found if name == "him" or name.startswith("him.")}


def violations(module: str, source: str) -> list[str]:
    allowed = ALLOWED[group_of(module)]
    return sorted(name for name in imports_of(source) if group_of(name) not in allowed)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_follow_the_arrows(path):
    module = module_of(path)
    assert violations(module, path.read_text(encoding="utf-8")) == []


def test_every_package_is_read():
    """An empty list of files would pass every test here."""
    assert {group_of(module) for module in MODULES} == set(ALLOWED)
    assert FOUNDATION <= MODULES


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("him.model.encoder", "from him.data.order import epoch_batches", ["him.data.order"]),
        ("him.model.encoder", "def f():\n    import him.tasks.squad", ["him.tasks.squad"]),
        ("him.model.encoder", "from him import training", ["him.training"]),
        ("him.metrics.squad", "if TYPE_CHECKING:\n    from him.model import encoder", ["him.model.encoder"]),
        ("him.data.order", "import him.tasks", ["him.tasks"]),
        ("him.data.order", "import him.metrics.squad", ["him.metrics.squad"]),
        ("him.tasks.squad", "from him.training.trainer import Trainer", ["him.training.trainer"]),
        ("him.tasks.squad", "import him.predict", ["him.predict"]),
        ("him.config", "from him.ragged import Ragged\nimport him.data", ["him.data"]),
        ("him.tasks.squad", "from him.model.encoder import Encoder\nimport numpy", []),
        ("him.training.trainer", "from him.tasks.base import Task", []),
    ],
)
def test_the_check_itself(module, source, expected):
    assert violations(module, source) == expected


def test_a_trainer_names_no_task():
    """Neither an import nor a string: a fourth task is one file and a line in TASKS."""
    sys.path.insert(0, str(REPOSITORY))
    from him.tasks import TASKS

    files = [path for path in FILES if module_of(path).startswith("him.training")]
    assert len(files) >= 5
    for path in files:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        named = {name for name in imports_of(ast.unparse(tree)) if group_of(name) == "tasks"}
        assert named <= {"him.tasks", "him.tasks.base"}, path
        strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        assert not strings & set(TASKS), path


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
