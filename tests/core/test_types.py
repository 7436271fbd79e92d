"""Claims that can be false, experiments that are complete, samplers that are fair."""

import equinox as eqx
import numpy as np
import pytest

from jaxlr.core import Claim, Experiment, LogUniform, Solver, Uniform


class HParams(eqx.Module):
    """Hyper-parameters."""

    eta: float = 0.1


def test_a_claim_holds_only_if_every_measurement_is_within():
    assert Claim("c", [1.0, 2.0], low=1.0, high=2.0).holds
    assert not Claim("c", [1.0, 2.1], high=2.0).holds
    assert not Claim("c", [0.9, 2.0], low=1.0).holds
    assert not Claim("c", [1.0, np.nan], low=0.0).holds


@pytest.mark.misuse
def test_a_claim_that_cannot_be_false_is_an_error():
    with pytest.raises(ValueError, match="nothing measured"):
        Claim("c", [], high=1.0)
    with pytest.raises(ValueError, match="finite bound"):
        Claim("c", 1.0)


def test_samplers_stay_in_range_and_depend_on_name_and_seed():
    draws = np.asarray(LogUniform(1e-4, 1e-1, 4000).draw("eta"))
    assert draws.min() >= 1e-4
    assert draws.max() < 1e-1
    # log-uniform: a third of the draws in each decade
    np.testing.assert_allclose(np.mean(draws < 1e-3), 1 / 3, atol=0.03)
    uniform = np.asarray(Uniform(-1.0, 3.0, 4000).draw("eta"))
    np.testing.assert_allclose(uniform.mean(), 1.0, atol=0.1)
    assert Uniform(0.0, 1.0, 3).draw("a") == Uniform(0.0, 1.0, 3).draw("a")
    assert Uniform(0.0, 1.0, 3).draw("a") != Uniform(0.0, 1.0, 3).draw("b")
    assert Uniform(0.0, 1.0, 3).draw("a") != Uniform(0.0, 1.0, 3, seed=1).draw("a")


@pytest.mark.misuse
def test_samplers_refuse_empty_ranges():
    with pytest.raises(ValueError, match="less than"):
        Uniform(1.0, 1.0, 3)
    with pytest.raises(ValueError, match="positive"):
        LogUniform(0.0, 1.0, 3)
    with pytest.raises(ValueError, match="`num` must be an integer >= 1"):
        Uniform(0.0, 1.0, 0)
    with pytest.raises(ValueError, match="finite"):
        Uniform(0.0, float("inf"), 2)


def run(key, hparams):
    return {"loss": hparams.eta}


def solver(key, hparams):
    return Solver(lambda key: 0.0, lambda key, state: (state, {"x": state}))


@pytest.mark.misuse
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "`run` or `solver`"),
        ({"run": run, "solver": solver, "num_steps": 3}, "not both"),
        ({"solver": solver}, "go together"),
        ({"run": run, "num_steps": 3}, "go together"),
        ({"run": run, "num_seeds": 0}, "`num_seeds`"),
        ({"run": run, "every": 1.5}, "`every`"),
        ({"run": run, "hparams": HParams}, "`hparams`"),
        ({"run": run, "hparams": {"eta": 1}}, "`hparams`"),
        ({"run": run, "checkpoint_seconds": -1}, "`checkpoint_seconds`"),
        ({"run": run, "smoke": {"sise": 1}}, "sise"),
    ],
)
def test_an_incomplete_experiment_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Experiment(**{"hparams": HParams()} | fields)
