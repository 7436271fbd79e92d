"""The project keeps every rule, and every rule sees what breaks it."""

import ast
import inspect
from pathlib import Path

import pytest

from tests.conformance import docstrings, layers, newcomer, shape, source, vocabulary


MODULES = (layers, vocabulary, docstrings, shape, newcomer)
RULES = {
    name: rule
    for module in MODULES
    for name, rule in inspect.getmembers(module, inspect.isfunction)
    if rule.__module__ == module.__name__
    and not name.startswith("_")
    and list(inspect.signature(rule).parameters) == ["root"]
    and "Iterator[str]" in str(inspect.signature(rule).return_annotation)
}


@pytest.mark.parametrize("name", RULES)
def test_the_project_keeps_the_rule(name):
    found = list(RULES[name](source.ROOT))
    assert not found, "\n".join([f"{RULES[name].__doc__}", *found])


# A project as small as it can be that keeps every rule.
PROJECT = {
    "jaxlr/__init__.py": """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from jaxlr import core as core, ridge as ridge
__all__ = ["core", "ridge"]
""",
    "jaxlr/core/__init__.py": "from jaxlr.core import checks as checks",
    "jaxlr/core/checks.py": '''
def count(name, value):
    """What `name` is called, and its `value`."""
    if not isinstance(value, int):
        raise ValueError
    return value
''',
    "jaxlr/ridge/__init__.py": "from jaxlr.ridge.solver import ridge as ridge",
    "jaxlr/ridge/solver.py": '''
"""Solvers."""
from jaxlr.core.checks import count

def ridge(problem, num_steps: int = 3, *, is_dual: bool = False):
    """Least squares with a penalty.

    Args:
        problem: The instance to solve.
        num_steps: Number of steps to take. Static.
        is_dual: Whether the dual problem is solved.
    """
    return problem, count("num_steps", num_steps), is_dual
''',
    "experiments/ridge/path.py": "from jaxlr import ridge\nEXPERIMENT = ridge.ridge(1)",
    "tests/core/test_checks.py": "def test_count():\n    assert count('n', 1) == 1",
    "tests/ridge/test_solver.py": "def test_ridge():\n    assert ridge(1)",
    "tests/ridge/wrong.py": "WRONG = {'path': {}}",
    "README.md": "| `jaxlr.ridge` | least squares | `jaxlr run ridge.path` |",
    "docs/design.md": """
```
jaxlr/                    the library
  core/                   floor 0: shared
    checks.py             checks
  ridge/                  floor 3: a family
    solver.py             solvers
```

### Published exceptions

None but `problem`.
""",
    ".ci/run": """
typed_packages() {
  for file in jaxlr/*/__init__.py; do
    printf 'jaxlr.%s,' "$(basename "$(dirname "$file")")"
  done
}
typed_tests() {
  echo tests/*
}
""",
}


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_the_small_project_keeps_every_rule(tmp_path):
    write(tmp_path, PROJECT)
    for name, rule in RULES.items():
        assert list(rule(tmp_path)) == [], name


SOLVER = "jaxlr/ridge/solver.py"
CHECK = 'count("num_steps", num_steps)'


def edited_file(text: str, *changes: tuple[str, str]) -> str:
    """A text in which each old is replaced by its new."""
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text


def edited(name, *changes):
    return {name: edited_file(PROJECT[name], *changes)}


def appended(name, text):
    return {name: f"{PROJECT.get(name, '')}\n{text}\n"}


FIELD = 'class HParams:\n    size: int\n    """Of it [1]."""'
ARGUMENT = 'def f(x):\n    """F.\n\n    Args:\n        x: X.\n    """'
# (rule, files that break it)
PLANTED = [
    ("rooms_have_lines", {"jaxlr/ridge/theory.py": '"""Theory."""'}),
    ("rooms_have_lines", edited("docs/design.md", ("solver.py ", "solvers.py"))),
    ("rooms_have_lines", edited("docs/design.md", ("floor 3: ", ""))),
    ("rooms_have_lines", {"jaxlr/other/__init__.py": ""}),
    ("imports_go_down", {"jaxlr/core/tree.py": "from jaxlr import ridge"}),
    ("imports_go_down", {"jaxlr/other/__init__.py": "import jaxlr.ridge.solver"}),
    ("experiments_import_the_library", {"experiments/ridge/a.py": "import torch"}),
    ("experiments_import_the_library", {"experiments/a/b.py": "from ..ridge import c"}),
    ("experiments_import_the_library", {"experiments/a/b.py": "from . import c"}),
    (
        "no_circles",
        {
            "jaxlr/ridge/a.py": "from jaxlr.ridge import b",
            "jaxlr/ridge/b.py": "def f():\n    from jaxlr.ridge.c import g",
            "jaxlr/ridge/c.py": "import jaxlr.ridge.a",
        },
    ),
    ("private_names_stay", appended("experiments/ridge/path.py", "ridge._total()")),
    ("private_names_stay", {"jaxlr/core/a.py": "from jaxlr.ridge.solver import _x"}),
    ("private_names_stay", {"jaxlr/core/a.py": "from jaxlr.ridge._solver import x"}),
    (
        "private_names_stay",
        {
            "jaxlr/ridge/operator/a.py": "class A:\n    def _total(self): ...",
            "jaxlr/ridge/solver/b.py": "def f(operator): return operator._total()",
        },
    ),
    ("checks_are_in_one_place", {"jaxlr/ridge/a.py": "isinstance(x, jax.core.Tracer)"}),
    ("checks_are_in_one_place", {"jaxlr/ridge/a.py": "from jax.core import Tracer"}),
    (
        "checks_are_in_one_place",
        {"jaxlr/ridge/a.py": "if not isinstance(x, int | np.integer):\n    raise E"},
    ),
    (
        "checks_are_in_one_place",
        {"jaxlr/ridge/a.py": "is_valid = isinstance(x, int) and x >= 1"},
    ),
    ("words", edited(SOLVER, ("num_steps", "max_num_steps"))),
    ("words", {"jaxlr/ridge/a.py": "class A:\n    gradient_norm: float"}),
    ("words", {"jaxlr/ridge/a.py": "def f(x, *, ordered=True): ..."}),
    ("words", {"experiments/ridge/a.py": "tol = 1e-3"}),
    ("truths_and_functions", edited(SOLVER, ("is_dual", "dual"))),
    (
        "truths_and_functions",
        edited(SOLVER, ("is_dual: bool", "loss: Callable[..., X]")),
    ),
    ("truths_and_functions", edited(SOLVER, ("is_dual: bool", "f: Callable | None"))),
    ("exceptions_are_needed", edited("docs/design.md", ("`problem`", "`gone`"))),
    ("counts", edited(SOLVER, (CHECK, "num_steps"))),
    ("counts", edited(SOLVER, (CHECK, "other(num_steps)"))),
    ("counts", edited(SOLVER, (CHECK, 'count("num_steps", problem)'))),
    ("counts", edited(SOLVER, ("int = 3", "int | None = 3"), (CHECK, "num_steps"))),
    (
        "counts",
        edited("jaxlr/ridge/__init__.py", ("ridge as ridge", "Blocks as Blocks"))
        | {SOLVER: "class Blocks(Module):\n    size: int"},
    ),
    (
        "arguments_are_described",
        edited(SOLVER, ("        problem: The inst", "        inst")),
    ),
    ("no_telegrams", edited(SOLVER, ("Number of steps to take", "Of the loop"))),
    ("no_telegrams", edited(SOLVER, ("Number of steps to take. ", ""))),
    ("no_telegrams", edited(SOLVER, ("The instance to solve", "As `gd`"))),
    ("no_telegrams", edited(SOLVER, ("The instance to solve", "k. Static"))),
    ("experiments_are_described", {"experiments/ridge/a.py": FIELD}),
    ("experiments_are_described", {"experiments/ridge/a.py": ARGUMENT}),
    ("settings_are_listed", edited(SOLVER, ("= False)", "= False, **settings)"))),
    ("functions_are_short", {"jaxlr/a.py": "def f():\n" + "    x = 1\n" * 80}),
    (
        "functions_are_short",
        {"jaxlr/a.py": f"def f({', '.join(f'a{i}' for i in range(11))}): ..."},
    ),
    ("has_entry", edited("jaxlr/__init__.py", ('"core", "ridge"', '"core"'))),
    ("has_entry", edited("jaxlr/__init__.py", (", ridge as ridge", ""))),
    ("has_entry", edited("jaxlr/__init__.py", ('"core", ', '"core", "gone", '))),
    ("has_tests", {"tests/ridge/test_solver.py": "def test_it():\n    assert 1"}),
    ("has_row", {"README.md": "Least squares."}),
    ("has_row", edited("README.md", ("ridge.path", "ridge.gone"))),
    ("has_wrong", {"tests/ridge/wrong.py": "WRONG = {}"}),
    ("has_wrong", {"experiments/other/path.py": "EXPERIMENT = 1"}),
    ("has_an_experiment", {"experiments/ridge/path.py": "x = 1"}),
    ("is_typed", edited(".ci/run", ("jaxlr.%s,", "jaxlr.a%s,"))),
    ("is_typed", edited(".ci/run", ("tests/*", "tests/core"))),
    ("is_typed", {".ci/run": "pytest --jaxtyping-packages=jaxlr.core"}),
]
LOOPS = [
    "jax.lax.scan(lambda s, t: solver.step(key, s), 0, times)",
    "def body(s, t):\n    return solver.step(t, s)\nlax.scan(body, 0, times)",
    "def body(t, s):\n    return go(s)\ndef go(s):\n    return solver.step(key, s)[0]\n"
    "fori_loop(0, 3, body, 0)",
    "lax.scan(lambda s, t: loop.run(t, solver, 3, state=s), 0, keys)",
    "lax.while_loop(c, lambda s: loop.take_step(solver, key, 0, s), 0)",
    "step = solver.step\nlax.scan(lambda s, t: f(solver.step, s), 0, keys)",
    "for t in times:\n    state, info = solver.step(key, state)",
    "solver = solver._replace(step=step)",
    "def step(key, s):\n    return loop.run(key, solver, 3, state=s)\n"
    "Solver(solver.init, step)",
    "lax.scan(f=solver.step, init=0, xs=keys)",
    "params = optax.apply_updates(params, updates)",
]
PLANTED += [
    ("experiments_have_no_loop", {"experiments/ridge/a.py": text}) for text in LOOPS
]
VACUOUS = [
    "def test_x():\n    ridge(1)",
    "def test_x(a):\n    if a:\n        return\n    assert f(a)",
    "def test_x(a):\n    def f():\n        return g()\n    f()",
]
PLANTED += [
    ("tests_check_something", {"tests/ridge/test_a.py": text}) for text in VACUOUS
]


@pytest.mark.parametrize(("name", "files"), PLANTED)
def test_what_breaks_the_rule_is_seen(tmp_path, name, files):
    write(tmp_path, PROJECT | files)
    for file in files:
        if file.endswith(".py"):
            ast.parse((tmp_path / file).read_text())
    found = list(RULES[name](tmp_path))
    assert found
    assert all(": " in violation for violation in found)


def test_every_rule_has_been_broken():
    assert {name for name, _ in PLANTED} == set(RULES)


HANDED_ON = [
    "one(num_steps)",
    "two(problem, steps=num_steps)",
    "ft.partial(one, num_steps)",
    "[count(n, v) for n, v in ((1, num_steps), (2, problem))]",
    'choice("num_steps", num_steps, (1, 2))',
    "Box(num_steps)",
]


@pytest.mark.parametrize(
    "text",
    [
        "Solver(lambda key: 0, lambda key, w: (w - gradient(w), None))",
        "Solver(init, lambda key, s: (solver.step(key, s.state), best(s)))",
        "jax.lax.scan(lambda s, t: (s + t, s), 0, times)",
        "for solver in solvers:\n    loop.run(key, solver, 3)",
        "Solver(i, lambda k, s: loop.run(k, t, 3, state=s))\nExperiment(solver=f)",
    ],
)
def test_what_is_no_training_loop(tmp_path, text):
    write(tmp_path, PROJECT | {"experiments/ridge/a.py": text})
    assert not list(shape.experiments_have_no_loop(tmp_path))


@pytest.mark.parametrize("call", HANDED_ON)
def test_a_count_may_be_checked_by_what_it_is_handed_to(tmp_path, call):
    others = """
def one(n): return count("n", n)
def two(problem, steps): return one(steps)
class Box:
    size: int
    def __post_init__(self): one(self.size)
"""
    files = appended(SOLVER, others) | {}
    files[SOLVER] = files[SOLVER].replace(CHECK, call)
    write(tmp_path, PROJECT | files)
    assert not list(vocabulary.counts(tmp_path))


@pytest.mark.parametrize(
    "text",
    [
        "def test_x():\n    for x in xs:\n        assert x",
        "def test_x():\n    with raises(E):\n        f()\n    if a:\n        return",
        "def same(a):\n    assert a\ndef test_x():\n    same(1)",
        "def test_x():\n    jax.tree.map(np.testing.assert_array_equal, a, b)",
    ],
)
def test_tests_that_check_something_do(tmp_path, text):
    write(tmp_path, PROJECT | {"tests/ridge/test_a.py": text})
    assert not list(shape.tests_check_something(tmp_path))


@pytest.mark.parametrize(
    "text",
    [
        "Number of columns of the factors. Static.",
        "`loss_fn(params) -> loss`, differentiable.",
        "In years from the beginning.",
        "Step size.",
    ],
)
def test_phrases_are_no_telegrams(text):
    assert not docstrings.is_telegram(text)
