"""Keywords that solvers pass on to `descend` are listed where they are accepted."""

import inspect

import jax.numpy as jnp
import pytest

from jaxlr import sensing


SETTINGS = {
    "start": "random",
    "alpha": 0.1,
    "imbalance": 1 / 3,
    "num_active": None,
    "loss": None,
    "huber_delta": 1.0,
    "implementation": None,
    "is_symmetric": False,
}
BALANCED = SETTINGS | {"imbalance": 1.0}
TWO_FACTORS = {k: v for k, v in SETTINGS.items() if k != "is_symmetric"}
PASSED = {
    "gd": SETTINGS,
    "scaled_gd": BALANCED | {"start": "spectral"},
    "prec_gd": BALANCED,
    "noisy_prec_gd": BALANCED,
    "gd_rebalanced": TWO_FACTORS,
    "run_rebalanced": TWO_FACTORS,
}


@pytest.mark.parametrize("name", PASSED)
def test_settings_are_listed_with_defaults_types_and_docs(name):
    solver = getattr(sensing, name)
    parameters = inspect.signature(solver).parameters
    whole = inspect.signature(sensing.descend).parameters
    assert not any(p.kind == p.VAR_KEYWORD for p in parameters.values())
    passed = {k: p for k, p in parameters.items() if k in SETTINGS}
    assert {k: p.default for k, p in passed.items()} == PASSED[name]
    assert all(p.annotation == whole[k].annotation for k, p in passed.items())
    doc = inspect.getdoc(solver)
    assert all(doc.count(f"\n    {argument}: ") == 1 for argument in parameters)
    assert "settings" not in doc


def test_an_unknown_setting_names_the_nearest():
    problem = sensing.measure(sensing.identity((3, 3)), jnp.eye(3))
    with pytest.raises(TypeError, match="'strat'; did you mean 'start'"):
        sensing.gd(problem, num_columns=2, strat="random")  # pyright: ignore
