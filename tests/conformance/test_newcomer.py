"""One more family in a copy of the project: the recipe is enough, and nothing less."""

import os
from pathlib import Path
import re
import shutil
import subprocess
import sys

import pytest

from tests.conformance import source
from tests.conformance.test_rules import edited_file, RULES, write


FAMILY = {
    "jaxlr/ridge/__init__.py": '''
"""Least squares with a penalty."""

from jaxlr.ridge.problem import draw as draw, RidgeProblem as RidgeProblem
from jaxlr.ridge.solver import gd as gd, RidgeInfo as RidgeInfo
''',
    "jaxlr/ridge/problem.py": '''
"""Instances of least squares."""

from typing import NamedTuple

import jax.random as jr
from jaxtyping import Array, Float, Key

from jaxlr.core import checks


class RidgeProblem(NamedTuple):
    """Observations of a linear function.

    Attributes:
        x: One point a row, (m, n).
        y: Value observed at each point, (m,).
    """

    x: Float[Array, "m n"]
    y: Float[Array, " m"]


def draw(key: Key[Array, ""], num_rows: int, num_columns: int) -> RidgeProblem:
    """Normal points, and the values of a normal linear function at them.

    Args:
        key: Key of the points and of the function.
        num_rows: Number m of points. Static.
        num_columns: Number n of coordinates of a point. Static.
    """
    num_rows = checks.count("num_rows", num_rows)
    num_columns = checks.count("num_columns", num_columns)
    point_key, weight_key = jr.split(key)
    x = jr.normal(point_key, (num_rows, num_columns))
    return RidgeProblem(x, x @ jr.normal(weight_key, (num_columns,)))
''',
    "jaxlr/ridge/solver.py": '''
"""Solvers of least squares with a penalty."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlr.core import checks, Hyper, Solver
from jaxlr.ridge.problem import RidgeProblem


class RidgeInfo(NamedTuple):
    """What is measured at the weights before the step."""

    loss: Float[Array, ""]
    """Mean square of the gaps, and the penalty [1]."""


def gd(problem: RidgeProblem, *, penalty: Hyper = 0.0, eta: Hyper = 0.1) -> Solver:
    """Gradient descent on the mean square of the gaps plus penalty ||w||^2.

    Args:
        problem: The instance to solve.
        penalty: Weight of ||w||^2, >= 0.
        eta: Step size.

    Returns:
        A `Solver` with the weights (n,) as its state, and `RidgeInfo`.

    References:
        Hoerl, Kennard. "Ridge Regression". 1970. See also arXiv:1509.09169.
    """
    checks.positive("penalty", penalty, or_zero=True)

    def loss_fn(w):
        return jnp.mean((problem.x @ w - problem.y) ** 2) + penalty * jnp.sum(w**2)

    def step(key, w):
        del key
        loss, grad = jax.value_and_grad(loss_fn)(w)
        return w - eta * grad, RidgeInfo(loss)

    return Solver(lambda key: jnp.zeros(problem.x.shape[1]), step)
''',
    "experiments/ridge/penalty.py": '''
"""Does a penalty keep gradient descent from fitting the data?

Claim: without one the loss falls below 1e-3, with one of 1 it does not. Falsified by a
loss on the other side.
"""

import equinox as eqx
import jax.random as jr
from matplotlib.figure import Figure

from jaxlr import ridge
from jaxlr.core import Claim, Experiment, Hyper, loop


class HParams(eqx.Module):
    """Hyper-parameters."""

    penalty: Hyper = 0.0
    """Weight of the penalty [1]."""
    num_rows: int = eqx.field(static=True, default=40)
    """Number of points."""


def run(key, hparams):
    """The curve of the loss."""
    problem = ridge.draw(jr.fold_in(key, 0), hparams.num_rows, 3)
    solver = ridge.gd(problem, penalty=hparams.penalty)
    return loop.run(jr.fold_in(key, 1), solver, 100)[1]


def claims(results):
    """What the docstring says."""
    loss = results.loss.isel(step=-1)
    return [
        Claim("without a penalty: loss", loss.sel(penalty=0), high=1e-3),
        Claim("with a penalty: loss", loss.sel(penalty=1), low=1e-3),
    ]


def figure(results):
    """Losses over steps."""
    figure = Figure()
    axis = figure.subplots()
    for penalty in results.penalty.values:
        curves = results.loss.sel(penalty=penalty).transpose("step", "seed")
        axis.semilogy(curves, label=f"penalty {penalty:g}")
    axis.set(xlabel="step", ylabel="loss", title="Least squares with a penalty")
    axis.legend()
    return figure


EXPERIMENT = Experiment(
    run=run,
    hparams=HParams(),
    axes={"penalty": [0.0, 1.0]},
    num_seeds=3,
    smoke={"num_seeds": 2},
    claims=claims,
    figure=figure,
)
''',
    "tests/ridge/test_problem.py": '''
"""Instances of least squares."""

import jax.random as jr
import numpy as np

from jaxlr import ridge


def test_draw_is_linear():
    problem = ridge.draw(jr.key(0), 5, 2)
    assert np.linalg.matrix_rank(np.column_stack([*problem.x.T, problem.y]), 1e-4) == 2
''',
    "tests/ridge/test_solver.py": '''
"""Solvers against the closed form."""

import jax.random as jr
import numpy as np

from jaxlr import ridge
from jaxlr.core import loop


def test_gd_goes_to_the_closed_form():
    problem = ridge.draw(jr.key(0), 30, 2)
    w, _ = loop.run(jr.key(1), ridge.gd(problem, penalty=0.5), 300)
    x, y = map(np.asarray, problem)
    want = np.linalg.solve(x.T @ x / 30 + 0.5 * np.eye(2), x.T @ y / 30)
    np.testing.assert_allclose(w, want, rtol=1e-4)
''',
    "tests/ridge/wrong.py": '''
"""Changes of smoke results that a claim must notice."""

from tests.changes import plus, times


WRONG = {
    "penalty": {
        "without": ("loss", ({"penalty": 0}, plus(1))),
        "with a": ("loss", ({"penalty": 1}, times(0))),
    },
}
''',
}
ROW = "| `jaxlr.ridge` | least squares | `ridge.gd(...)` | `jaxlr run ridge.penalty` |"
PAGE = """\
  ridge/                      floor 3: least squares with a penalty
    problem.py                instances
    solver.py                 gradient descent
experiments/"""
ONE_LINE = {  # file -> (what is there, what stands there then)
    "jaxlr/__init__.py": [
        ("from jaxlr import (\n", "from jaxlr import (\n        ridge as ridge,\n"),
        ("__all__ = [\n", '__all__ = [\n    "ridge",\n'),
    ],
    "docs/design.md": [("experiments/", PAGE)],
    "README.md": [("\n| `jaxlr.sensing`", f"\n{ROW}\n| `jaxlr.sensing`")],
}


def copy(root: Path) -> Path:
    """The project, and one more family by the recipe of the design page."""
    skip = shutil.ignore_patterns("__pycache__", "env-*", "*.ipynb", "results")
    for name in ("jaxlr", "experiments", "tests", "docs", ".ci"):
        shutil.copytree(source.ROOT / name, root / name, ignore=skip)
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(source.ROOT / name, root / name)
    write(root, {name: text.lstrip() for name, text in FAMILY.items()})
    for name, changes in ONE_LINE.items():
        edit(root / name, *changes)
    return root


def edit(path: Path, *changes: tuple[str, str]) -> None:
    path.write_text(edited_file(path.read_text(), *changes))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return copy(tmp_path_factory.mktemp("project"))


def test_the_recipe_is_enough(project):
    found = [violation for rule in RULES.values() for violation in rule(project)]
    assert [v for v in found if re.search(r"\bridge\b", v)] == []


@pytest.mark.slow
def test_its_tests_and_its_experiment_run(project):
    """Nothing but the copy is imported; the family needs no entry in any test."""
    own = [*"-m pytest -q -n0 -p no:cacheprovider -k".split(), "ridge"]
    done = subprocess.run(
        [sys.executable, *own, "tests/ridge", "tests/test_experiments.py"],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "8 passed" in done.stdout


def remove(name):
    return lambda root: (root / name).unlink()


def undo(name, index=0):
    """Takes the line back that the recipe puts into a file."""
    old, new = ONE_LINE[name][index]
    return lambda root: edit(root / name, (new, old))


def change(name, old, new=""):
    return lambda root: edit(root / name, (old, new))


FORGOTTEN = {  # what -> (rule that notices, how to forget it, what it says)
    "its entry": (
        "has_entry",
        undo("jaxlr/__init__.py", 1),
        "add 'ridge' to `__all__`",
    ),
    "its types": (
        "has_entry",
        undo("jaxlr/__init__.py"),
        "import `ridge as ridge` for type check",
    ),
    "its floor": (
        "rooms_have_lines",
        change("docs/design.md", "floor 3: least squares", "least squares"),
        "jaxlr/ridge/ has no floor",
    ),
    "a room": (
        "rooms_have_lines",
        change("docs/design.md", "    problem.py                instances\n"),
        "jaxlr/ridge/problem.py has no line",
    ),
    "the page": (
        "rooms_have_lines",
        undo("docs/design.md"),
        "jaxlr/ridge/ has no line",
    ),
    "its row": ("has_row", undo("README.md"), "jaxlr.ridge needs a row"),
    "an experiment": (
        "has_an_experiment",
        remove("experiments/ridge/penalty.py"),
        "needs an experiment",
    ),
    "a test": (
        "has_tests",
        change("tests/ridge/test_solver.py", "ridge.gd(", "ridge.other("),
        "no test in tests/ridge names `ridge.gd`",
    ),
    "wrong.py": (
        "has_wrong",
        remove("tests/ridge/wrong.py"),
        "tests/ridge/wrong.py: write it",
    ),
    "wrong results": (
        "has_wrong",
        change("tests/ridge/wrong.py", '"penalty": {\n', '"other": {\n'),
        "WRONG has no entry 'penalty'",
    ),
    "types": (
        "is_typed",
        lambda root: [
            (root / "tests/ridge" / f"test_{room}.py").rename(root / f"test_{room}.py")
            for room in ("problem", "solver")
        ],
        "the runtime type check runs no test of jaxlr.ridge",
    ),
    "a check": (
        "counts",
        change(
            "jaxlr/ridge/problem.py", 'checks.count("num_rows", num_rows)', "num_rows"
        ),
        "ridge.draw(num_rows: int) reaches no `checks.count`",
    ),
    "an argument": (
        "arguments_are_described",
        change("jaxlr/ridge/solver.py", "        eta: Step size.\n"),
        "ridge.gd(eta) is not described",
    ),
}


@pytest.mark.parametrize("what", FORGOTTEN)
def test_what_is_forgotten_is_noticed(project, tmp_path, what):
    root = tmp_path / "project"
    shutil.copytree(project, root)
    rule, forget, sentence = FORGOTTEN[what]
    forget(root)
    assert any(sentence in violation for violation in RULES[rule](root))
