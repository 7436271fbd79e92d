"""The family's experiments: targets at other seeds and settings than the sweeps'."""

import dataclasses
import functools
import importlib

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jaxlr.core.compat import x64
from jaxlr.sharpness import theory


def module(name):
    return importlib.import_module(f"experiments.sharpness.{name}")


@functools.cache
def runner(name, **static):
    """One compilation for all cells that share their static settings."""
    hparams = dataclasses.replace(module(name).EXPERIMENT.hparams, **static)

    def run(key, moving):
        return module(name).run(key, dataclasses.replace(hparams, **moving))

    return jax.jit(run)


def cell(name, seed=7, **fields):
    """One run, as the sweep would trace it: numbers that are floats are traced."""
    with x64(module(name).EXPERIMENT.x64):
        moving = {k: jnp.asarray(v) for k, v in fields.items() if isinstance(v, float)}
        static = {k: v for k, v in fields.items() if k not in moving}
        return jax.tree.map(np.asarray, runner(name, **static)(jr.key(seed), moving))


@pytest.mark.parametrize(("eta", "rho"), [(0.4, 0.01), (1.2, 0.1)])
def test_target_two_cycle(eta, rho):
    out = cell("two_cycle", eta=eta, rho=rho, num_steps=1500)
    np.testing.assert_allclose(out.last_norm, eta * rho / (2 - eta), rtol=1e-9)
    np.testing.assert_allclose(out.radius, eta * rho / (2 - eta), rtol=1e-12)
    assert max(out.turn, out.astray) <= 1e-9
    assert out.norm[0] > 1


def test_target_unnormalized_leaves_the_cycle():
    out = cell("two_cycle", eta=0.5, rho=0.5, is_normalized=False, num_steps=800)
    assert out.last_norm <= 1e-9 * out.norm[0]


@pytest.mark.parametrize("problem", ["least_squares", "kernel"])
def test_target_iterates_are_the_closed_form(problem):
    sizes = {"num_steps": 60, "num_draws": 400}
    gd, sam = (
        cell("bias_variance", problem=problem, eta=0.4, rho=rho, **sizes)
        for rho in (0.0, 1.0)
    )
    for out in (gd, sam):
        assert out.iterate_gap <= 1e-12
        closed = out.squared_bias + out.variance
        np.testing.assert_allclose(out.risk[1:], closed[1:], rtol=0.1)
        # No draw has noise at w = 0.
        np.testing.assert_allclose(out.risk[0], closed[0], rtol=1e-12)
    assert (sam.squared_bias < gd.squared_bias)[1:].all()
    assert (sam.variance > gd.variance)[1:].all()


@pytest.mark.parametrize(("rho", "eta"), [(0.06, 0.1), (0.04, 0.2)])
def test_target_imbalance_decays_at_the_rate_of_the_drift(rho, eta):
    out = cell("matrix_sensing", n=8, rho=rho, eta=eta, num_steps=3000)
    distance = rho / (1 - eta)
    np.testing.assert_allclose(out.predicted_rate, 2 * eta * distance**2, rtol=1e-12)
    np.testing.assert_allclose(out.rate, out.predicted_rate, rtol=0.03)


@pytest.mark.parametrize("method", ["gd", "unnormalized"])
def test_target_others_keep_the_imbalance(method):
    out = cell("matrix_sensing", n=8, method=method, num_steps=2000)
    half = out.imbalance.size // 2
    np.testing.assert_allclose(out.imbalance[-1], out.imbalance[half], rtol=1e-3)
    assert out.predicted_rate == 0
    assert out.error[-1] <= 1e-6
    # At a minimum of the exact loss the curvature is that of the factors alone.
    least = 2 * np.sqrt(1 + out.imbalance[-1] ** 2 / 4)
    np.testing.assert_allclose(out.curvature, least, rtol=1e-3)


@pytest.mark.slow
def test_target_edge_of_stability():
    out = cell(
        "edge_of_stability", eta=0.4, rho=0.3, num_steps=1500, num_train=100, width=16
    )
    np.testing.assert_allclose(0.4 * out.edge * (1 + 0.3 * out.edge), 2, rtol=1e-5)
    np.testing.assert_allclose(np.median(out.curvature[-8:]), out.edge, rtol=0.1)
    assert out.curvature[0] < 0.9 * out.edge
    assert out.loss[-1] < 0.1 * out.loss[0]
    gd = theory.edge_of_stability(eta=0.4, rho=0.0)
    assert gd == pytest.approx(5)


def test_gradient_descent_of_small_steps_conserves_the_products():
    out = cell("diagonal_networks", num_shards=1, rho=0.0, eta=0.01, num_steps=2000)
    # d (u v) / dt = 0 of the flow; its steps shrink u v by terms of order eta^2.
    assert 0.99 < out.scale < 1
    assert out.loss[-1] < 0.05 * out.loss[0]
    assert out.error[0] == pytest.approx(3)


def test_digits_of_a_network_that_does_not_move():
    sizes = {"num_train": 100, "batch_size": 50, "width": 8, "num_epochs": 3}
    out = cell("digits", learning_rate=0.0, num_shards=5, label_noise=0.0, **sizes)
    assert out.test_accuracy.shape == out.loss.shape == (3,)
    np.testing.assert_allclose(out.test_accuracy, out.accuracy, atol=1e-6)
    assert out.memorized == 0
    assert 2 < out.loss[0] < 5
    assert out.curvature > 0


@pytest.mark.misuse
@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("bias_variance", {"problem": "kernels"}, "problem 'kernels'.*'kernel'"),
        ("diagonal_networks", {"num_shards": 3}, "size 20.*`num_shards` 3"),
        ("digits", {"num_shards": 3}, "size 128.*`num_shards` 3"),
        ("digits", {"num_train": 1500}, "`num_test` must be in 1..297, got 500"),
        ("digits", {"batch_size": 0}, "`batch_size` must be in 1..1280, got 0"),
        ("digits", {"batch_size": 1281}, "`batch_size` must be in 1..1280, got 1281"),
        ("edge_of_stability", {"rho": -0.1}, "`rho` must be >= 0"),
        ("matrix_sensing", {"method": "usam"}, "method 'usam'.*'sam'"),
        ("two_cycle", {"rho": -0.1}, "`rho` must be >= 0"),
        ("two_cycle", {"num_steps": 0}, "`num_steps` must be an integer >= 1, got 0"),
    ],
)
def test_misuse_is_named(name, fields, message):
    hparams = dataclasses.replace(module(name).HParams(), **fields)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: module(name).run(jr.key(0), hparams))
