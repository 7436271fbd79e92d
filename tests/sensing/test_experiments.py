"""The family's experiments: every target on its own."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import xarray as xr

from experiments.sensing import overparameterization, photograph, robust_photograph
from jaxlr import lab
from jaxlr.core.compat import x64


SETTINGS = {
    "symmetric": {"method": "symmetric", "num_steps": 4000},
    "exact": {
        "method": "symmetric",
        "measurements": "gaussian",
        "num_columns": 3,
        "num_steps": 2000,
    },
    "asymmetric": {"method": "asymmetric", "num_steps": 12_000},
    "modified": {"method": "modified", "num_steps": 2000},
}
SETTINGS["noisy"] = {
    "method": "modified",
    "measurements": "gaussian",
    "num_steps": 800,
    "trigger": 0.1,
}
SETTINGS["wide"] = SETTINGS["exact"] | {"num_columns": 5, "num_steps": 6000}


@functools.cache
def runner(**fixed):
    """One compilation for all cells that share their static settings."""
    hparams = dataclasses.replace(overparameterization.HParams(), **fixed)

    def run(key, moving):
        return overparameterization.run(key, dataclasses.replace(hparams, **moving))

    return jax.jit(run)


def cell(name, seed=1, alpha=0.5, beta=1.0, **changes):
    """One run at the settings of a target row, as the sweep would trace it."""
    with x64(True):
        moving = {"alpha": jnp.asarray(alpha), "beta": jnp.asarray(beta)}
        run = runner(**SETTINGS[name] | changes)
        return jax.tree.map(np.asarray, run(jr.fold_in(jr.key(0), seed), moving))


@pytest.mark.parametrize("alpha", [1.0, 0.5, 0.1, 0.01])
@pytest.mark.parametrize(
    "num_steps", [4000, pytest.param(20_000, marks=pytest.mark.slow)]
)
def test_target_symmetric_is_sublinear(alpha, num_steps):
    out = cell("symmetric", alpha=alpha, num_steps=num_steps)
    assert abs(out.final_error / out.final_prediction - 1) <= 0.01
    if alpha >= 0.5:
        assert abs(out.loss_exponent + 2) <= 0.05
    # The trap of the specification: from a small start, correct code has no slope -2.
    if alpha == 0.01:
        assert out.loss_exponent > -1


def test_target_exact_rank_is_linear():
    assert cell("exact").final_error <= 1e-12


@pytest.mark.parametrize(
    "num_steps", [1500, pytest.param(6000, marks=pytest.mark.slow)]
)
def test_target_too_many_columns_are_sublinear(num_steps):
    out = cell("wide", num_steps=num_steps)
    assert out.final_error >= 1e-3
    assert out.linearity <= 0.7


@pytest.mark.slow
def test_target_modified_step_is_linear_from_gaussian_measurements():
    out = cell("noisy", alpha=0.1)
    assert out.rebalanced_at > 0
    assert out.linearity >= 0.8


def test_slope_is_that_of_the_window_alone():
    x = jnp.arange(6.0)
    y = jnp.array([jnp.inf, 1.0, 3.0, 5.0, jnp.nan, -jnp.inf])
    where = (x >= 1) & (x <= 3)
    assert overparameterization._slope(x, y, where) == pytest.approx(2.0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("alpha", [0.2, 0.4])
def test_target_asymmetric_rate_is_that_of_every_seed(alpha, seed):
    out = cell("asymmetric", seed=seed, alpha=alpha)
    assert abs(out.rate / out.predicted_rate - 1) <= 0.03


def test_target_asymmetric_is_linear_at_a_rate_as_alpha_squared():
    alphas = (0.2, 0.4, 0.8)
    outs = [cell("asymmetric", alpha=alpha) for alpha in alphas]
    for out in outs:
        assert abs(out.rate / out.predicted_rate - 1) <= 0.03
    exponent = np.polyfit(np.log(alphas), np.log([out.rate for out in outs]), 1)[0]
    assert abs(exponent - 2) <= 0.1


@pytest.mark.parametrize("beta", [1.0, 0.5])
@pytest.mark.parametrize("alpha", [0.3, 0.1, 0.03, 0.01, 0.003])
def test_target_modified_step_removes_alpha(alpha, beta):
    out = cell("modified", alpha=alpha, beta=beta)
    assert out.rebalanced_at > 0
    assert abs(out.rate / (0.1 * beta**2) - 1) <= 0.1
    assert out.drift <= 1e-13


@pytest.mark.parametrize(
    ("shares", "missing"), [((0.1, 0.3), "= 0"), ((0.0,), "> 0"), ((), "= 0")]
)
def test_claims_refuse_results_without_shares(shares, missing):
    results = xr.Dataset(coords={"outlier_share": list(shares)})
    with pytest.raises(ValueError, match=f"No cell .* outlier_share {missing}"):
        robust_photograph.claims(results)


def test_claims_refuse_results_without_their_cells():
    with x64(True):
        experiment = overparameterization.EXPERIMENT
    axis = experiment.axes[0]
    few = experiment.replace(
        num_seeds=1,
        axes=(
            axis._replace(values=(("symmetric", "population", 5, 20, 0.5, 1.0, 0.1),)),
        ),
    )
    results = lab.sweep(few)
    assert lab.hparams(results)["eta"] == 0.1
    with pytest.raises(ValueError, match="No cell of these results"):
        overparameterization.claims(results)


@pytest.mark.misuse
def test_misuse_is_named():
    with pytest.raises(ValueError, match=r"'symetric'.*did you mean 'symmetric'"):
        overparameterization.run(
            jr.key(0), overparameterization.HParams(method="symetric")
        )
    with pytest.raises(ValueError, match=r"measurements 'pixel'.*'pixels'"):
        photograph.run(jr.key(0), photograph.HParams(measurements="pixel"))
    with pytest.raises(ValueError, match=r"`size` must be a multiple of 32, got 100"):
        photograph.run(jr.key(0), photograph.HParams(measurements="blocks", size=100))
