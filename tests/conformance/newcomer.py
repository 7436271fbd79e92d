"""Rules of what a new family must not forget, each with a sentence of its own."""

import ast
from collections.abc import Iterator
import functools as ft
from pathlib import Path
import re
import subprocess

from tests.conformance import layers, source


def families(root: Path) -> list[str]:
    """Packages on the floor below the experiments, and those with no floor yet."""
    floor = layers.floors(root)
    top = max(floor.get(name, 0) for name in source.packages(root))
    return [name for name in source.packages(root) if floor.get(name, top) == top]


def has_entry(root: Path) -> Iterator[str]:
    """`jaxlr/__init__.py` has every package in `__all__`, and imports it for types."""
    tree = source.File(root, "", (root / "jaxlr/__init__.py").read_text()).tree
    listed: set[str] = set()
    typed: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Assign(targets=[ast.Name(id="__all__")], value=value):
                listed = set(ast.literal_eval(value))
            case ast.ImportFrom(module="jaxlr", names=names):
                typed = {alias.name for alias in names}
    for name in source.packages(root):
        if name not in listed:
            yield f"jaxlr/__init__.py:1: add {name!r} to `__all__`"
        if name not in typed:
            yield f"jaxlr/__init__.py:1: import `{name} as {name}` for type checkers"
    for name in sorted((listed | typed) - set(source.packages(root))):
        yield f"jaxlr/__init__.py:1: there is no package {name!r}"


def has_tests(root: Path) -> Iterator[str]:
    """A test of its folder names every public function."""
    named = ft.cache(lambda folder: _named_in(root, folder))
    for item in source.public(root):
        if isinstance(item.node, ast.ClassDef):
            continue  # most are what a function returns
        folder = item.file.folder.replace("jaxlr", "tests", 1)
        if item.node.name not in named(folder):
            at = item.file.at(item.node)
            yield f"{at}: no test in {folder} names `{item.name}`"


def _named_in(root: Path, folder: str) -> set[str]:
    return set().union(*(_names(file.text) for file in source.files(root, folder)))


@ft.lru_cache(None)
def _names(text: str) -> frozenset[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name):
                found.add(name)
            case ast.alias(name=name) | ast.Constant(value=str(name)):
                found.add(name)
    return frozenset(found)


_ROW = re.compile(r"^\| `jaxlr\.(\w+)` \|.*`jaxlr run (\w+\.\w+)`", re.M)


def rows(root: Path) -> dict[str, str]:
    """Family -> the experiment that its row of the README shows."""
    return dict(_ROW.findall((root / "README.md").read_text()))


def has_row(root: Path) -> Iterator[str]:
    """Every family has a row in the README, with an experiment that exists."""
    shown = rows(root)
    for name in families(root):
        if name not in shown:
            yield f"README.md: jaxlr.{name} needs a row: | `jaxlr.{name}` | ... " + (
                f"`jaxlr run {name}.<question>` |"
            )
    for name, experiment in shown.items():
        if not (root / "experiments" / f"{experiment.replace('.', '/')}.py").exists():
            yield f"README.md: the row of jaxlr.{name} shows {experiment}, not there"


def has_wrong(root: Path) -> Iterator[str]:
    """`tests/<family>/wrong.py` lists changes that each experiment's claims notice."""
    for family, questions in _questions(root).items():
        path = root / "tests" / family / "wrong.py"
        if not path.exists():
            yield (
                f"tests/{family}/wrong.py: write it: WRONG lists, for every claim of "
                f"{', '.join(questions)}, changes of the results that it must notice"
            )
            continue
        written = _keys(ast.parse(path.read_text()))
        for question in questions:
            if question not in written:
                yield f"tests/{family}/wrong.py: WRONG has no entry {question!r}"


def _questions(root: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for file in source.files(root, "experiments"):
        targets = [t for n in file.tree.body for t in getattr(n, "targets", ())]
        if any(isinstance(t, ast.Name) and t.id == "EXPERIMENT" for t in targets):
            family, question = file.name.removesuffix(".py").split("/")[1:]
            found.setdefault(family, []).append(question)
    return found


def _keys(tree: ast.Module) -> set[str]:
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id="WRONG")], value=ast.Dict(keys=keys)):
                return {k.value for k in keys if isinstance(k, ast.Constant)}
    return set()


def has_an_experiment(root: Path) -> Iterator[str]:
    """Every family answers a question."""
    for name in families(root):
        if name not in _questions(root):
            yield f"experiments/{name}: jaxlr.{name} needs an experiment"


def is_typed(root: Path) -> Iterator[str]:
    """The runtime type check of `.ci/run` takes in every package, and tests of it."""
    packages, tests = _shell(root, "typed_packages"), _shell(root, "typed_tests")
    for name in source.packages(root):
        if name == "lab":
            continue  # which has no arrays' shapes to check
        if f"jaxlr.{name}" not in packages.split(","):
            yield f".ci/run: jaxlr.{name} is left out of the runtime type check"
        if not re.search(rf"\btests/{name}\b", tests):
            yield (
                f".ci/run: the runtime type check runs no test of jaxlr.{name}: name a "
                "file after its room, such as test_problem.py"
            )


def _shell(root: Path, function: str) -> str:
    """What a function of `.ci/run` prints."""
    script = (root / ".ci" / "run").read_text()
    functions = re.findall(r"^\w+\(\) \{.*?^\}", script, re.M | re.S)
    done = subprocess.run(
        ["bash", "-c", "\n".join([*functions, f"declare -F {function} && {function}"])],
        cwd=root,
        capture_output=True,
        text=True,
    )
    return done.stdout.removeprefix(f"{function}\n").strip()
