"""The recipes of `docs/hooks.md` run, on small fakes of what they log to."""

import contextlib
from pathlib import Path
import re
import sys
import types

import numpy as np
import pytest

from jaxlr import lab
from jaxlr.lab import chunks


PAGE = (Path(__file__).parents[2] / "docs" / "hooks.md").read_text()
SHARED, *RECIPES = re.findall(r"```python\n(.*?)```", PAGE, re.S)
WANDB, TENSORBOARD, MLFLOW, OPTUNA = RECIPES


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a recipe with its library's fake; gives its names."""

    def run(recipe, **modules):
        monkeypatch.chdir(tmp_path)
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name.replace("_of_", "."), module)
        space = {"__name__": "recipe"}
        exec(compile(SHARED + recipe, "recipe.py", "exec"), space)
        return space

    return run


def assert_logged(space, found):
    """Rate -> its losses by step: the median of the results, every step once."""
    wanted = lab.sweep(space["EXPERIMENT"], space["AXES"])["loss"].median("seed")
    assert sorted(found) == space["AXES"]["rate"]
    for rate, losses in found.items():
        assert [step for step, _ in losses] == [*range(100)]
        values = wanted.sel(rate=rate).values.tolist()
        assert [loss for _, loss in losses] == values


def test_wandb(run):
    found = {}

    @contextlib.contextmanager
    def init(*, project, config):
        assert project == "jaxlr"
        losses = found.setdefault(config["rate"], [])

        def log(data, *, step):
            losses.append((step, data["loss"]))

        yield types.SimpleNamespace(log=log)

    assert_logged(run(WANDB, wandb=types.SimpleNamespace(init=init)), found)


def test_tensorboard(run):
    found = {}

    class SummaryWriter:
        def __init__(self, log_dir):
            self.losses = found.setdefault(float(log_dir.partition("=")[2]), [])

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def add_scalar(self, tag, scalar_value, global_step):
            assert tag == "loss"
            self.losses.append((global_step, scalar_value))

    fake = types.SimpleNamespace(SummaryWriter=SummaryWriter)
    modules = {"torch": types.ModuleType("torch"), "torch_of_utils": fake}
    space = run(TENSORBOARD, **modules, torch_of_utils_of_tensorboard=fake)
    assert_logged(space, found)


def test_mlflow(run):
    found, active = {}, []

    @contextlib.contextmanager
    def start_run():
        active.append({})
        yield
        params = active.pop()
        found[params["rate"]] = params["losses"]

    def log_metric(key, value, *, step):
        assert key == "loss"
        active[-1].setdefault("losses", []).append((step, value))

    fake = types.SimpleNamespace(
        start_run=start_run,
        log_params=lambda params: active[-1].update(params),
        log_metric=log_metric,
    )
    assert_logged(run(MLFLOW, mlflow=fake), found)


def test_optuna(run, monkeypatch):
    """The second of two trials is pruned at its third step."""
    monkeypatch.setattr(chunks, "SEGMENT_SECONDS", 0)

    class TrialPruned(Exception):
        pass

    class Trial:
        def __init__(self, number):
            self.number, self.reports = number, {}

        def suggest_float(self, name, low, high, *, log):
            assert (name, log) == ("rate", True)
            return [0.01, 0.1][self.number]

        def report(self, value, step):
            self.reports[step] = value

        def should_prune(self):
            return self.number == 1 and max(self.reports) >= 3

    class Study:
        def optimize(self, func, n_trials):
            assert n_trials == 20
            self.trials, self.values = [Trial(0), Trial(1)], []
            self.values.append(func(self.trials[0]))
            with pytest.raises(TrialPruned):
                func(self.trials[1])

    fake = types.SimpleNamespace(TrialPruned=TrialPruned, create_study=Study)
    space = run(OPTUNA, optuna=fake)
    whole, pruned = space["study"].trials
    losses = lab.sweep(space["EXPERIMENT"], {"rate": [0.01, 0.1]})["loss"]
    for i, trial in enumerate((whole, pruned)):
        curve = losses.isel(rate=i).median("seed").values
        for step, value in trial.reports.items():
            np.testing.assert_allclose(value, curve[step - 1], rtol=1e-6)
    assert max(whole.reports) == 100
    assert max(pruned.reports) < 100
    np.testing.assert_allclose(
        space["study"].values, losses.isel(rate=0, step=-1).median(), rtol=1e-6
    )
