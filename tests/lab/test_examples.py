"""The examples in the docstrings of what picks and compares cells run."""

import inspect
import re
import textwrap

import equinox as eqx
import pytest

from jaxlr import lab
from jaxlr.core import Experiment, LogUniform, Solver


class HParams(eqx.Module):
    alpha: float = 0.1
    """Step size."""


def descent(key, hparams):
    def step(key, x):
        return x - hparams.alpha * x, {"loss": x**2}

    return Solver(lambda key: 1.0, step)


EXPERIMENT = Experiment(solver=descent, num_steps=100, hparams=HParams())


@pytest.mark.parametrize("function", [lab.best, lab.compare, lab.successive_halving])
def test_examples_run(function, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    axes = {"alpha": [0.1, 0.5]}
    scope = {"lab": lab, "EXPERIMENT": EXPERIMENT, "LogUniform": LogUniform}
    for name in ("first", "second"):
        results = lab.sweep(EXPERIMENT, axes, directory=f"runs/{name}")
        scope |= {"results": results, "plain": results, "scaled": results}
    doc = inspect.getdoc(function)
    assert doc is not None
    (example,) = re.findall(r"\n\n((?: {4}.*\n)+)\nArgs:", doc)
    exec(textwrap.dedent(example), scope)
    assert "alpha" in capsys.readouterr().out
