"""The import rule, checked on the syntax tree: down a floor, never sideways or up."""

import ast
import graphlib
from pathlib import Path
import subprocess
import sys

import pytest


ROOT = Path(__file__).parents[1]
FLOOR = {"core": 0, "kernels": 1, "lab": 1}
FLOOR |= {"covariance": 2, "data": 2, "linalg": 2}  # a family is on floor 3
LIBRARY = sorted((ROOT / "jaxlr").rglob("*.py"))
EXPERIMENTS = sorted((ROOT / "experiments").rglob("*.py"))
ALLOWED_IN_EXPERIMENTS = {
    *("jaxlr", "jax", "equinox", "optax", "numpy", "jaxtyping", "matplotlib"),
    "scipy",  # which jax needs too
}


def floor(package):
    """Families need no entry here: whatever is not listed is one."""
    return FLOOR.get(package, 3)


def imported(path):
    """(line, dotted name) of every import; relative ones have a leading dot."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            if base == "jaxlr":  # `from jaxlr import core`
                yield from ((node.lineno, f"jaxlr.{a.name}") for a in node.names)
            else:
                yield node.lineno, base


def violations(path, own):
    """Imports of `path`, a file of the package `own` (None: jaxlr's own files)."""
    for line, name in imported(path):
        if name.startswith("."):
            yield f"{path}:{line} relative import"
        if name == "jaxlr" and own not in (None, "lab"):  # hides what it then reaches
            yield f"{path}:{line} imports all of jaxlr"
        if name.split(".")[0] == "experiments":
            yield f"{path}:{line} imports {name}"
        other = name.split(".")[1] if name.startswith("jaxlr.") else own
        if own is not None and other != own and floor(other) >= floor(own):
            yield f"{path}:{line} {own} imports {name}"


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    own = parts[1] if len(parts) > 2 else None
    assert not list(violations(path, own))


@pytest.mark.parametrize(
    ("own", "source"),
    [
        ("core", "from jaxlr.lab import store"),
        ("lab", "from jaxlr import sensing"),
        ("lab", "import jaxlr.linalg.svd"),
        ("sensing", "def f():\n    from jaxlr.sharpness import sam"),
        ("sensing", "from . import problem"),
        ("sensing", "import jaxlr"),
        ("core", "import experiments.sensing"),
    ],
)
def test_a_violation_is_seen(tmp_path, own, source):
    path = tmp_path / "module.py"
    path.write_text(source)
    assert list(violations(path, own))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_experiments_import_jaxlr_and_its_core_dependencies(path):
    if "benchmarks" in path.parts:
        return  # scripts, which may measure against other libraries
    names = {
        name if name.startswith(".") else name.split(".")[0]
        for _, name in imported(path)
    }
    shared = "." if path.parent.name == "common" else "..common"
    assert names <= ALLOWED_IN_EXPERIMENTS | set(sys.stdlib_module_names) | {shared}


def import_circle(root):
    """Modules of `root / "jaxlr"` that import each other, also within functions."""
    paths = {
        ".".join(path.relative_to(root).with_suffix("").parts): path
        for path in (root / "jaxlr").rglob("*.py")
    }
    paths = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    graph = {}
    for name, path in paths.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                full = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= {x if x in paths else node.module for x in full}
        # Everybody may ask jaxlr for its version.
        graph[name] = (found & paths.keys()) - {name, "jaxlr"}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_no_module_imports_in_a_circle():
    assert import_circle(ROOT) == []


def test_a_circle_through_a_function_is_seen(tmp_path):
    package = tmp_path / "jaxlr/lab"
    package.mkdir(parents=True)
    (package / "one.py").write_text("from jaxlr.lab import two")
    (package / "two.py").write_text("def f():\n    from jaxlr.lab.one import g")
    assert set(import_circle(tmp_path)) == {"jaxlr.lab.one", "jaxlr.lab.two"}


def test_import_jaxlr_is_light():
    """`import jaxlr` loads none of its dependencies."""
    code = (
        "import sys, jaxlr; "
        "print([m for m in ('jax', 'numpy', 'xarray') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
