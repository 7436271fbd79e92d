"""Gaps of every shape, judged by the residual of what was observed."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jaxlr import covariance, gp
from jaxlr.core.compat import x64
from jaxlr.core.loop import Status
from tests.gp.reference import dense_gp


SHAPE = (10, 9, 8)
GRID = [np.linspace(0, 1, n) for n in SHAPE]
LENGTHS = (0.2, 0.3, 0.4)
RNG = np.random.default_rng(0)
Y = RNG.normal(size=SHAPE)
SCATTERED = RNG.random(SHAPE) > 0.3
BLOCK = np.ones(SHAPE, bool)
BLOCK[2:8, 2:7, 1:7] = False
CORNER = np.ones(SHAPE, bool)
CORNER[4:, 4:, 2:] = False
MASKS = {"scattered": SCATTERED, "block": BLOCK, "corner": CORNER}


def process(mask, noise=1e-3, **settings):
    return gp.GridGP(
        list(map(covariance.Matern, LENGTHS)), GRID, noise, mask, **settings
    )


def factors():
    return [
        np.asarray(covariance.gram(covariance.Matern(l), x))
        for l, x in zip(LENGTHS, GRID, strict=True)
    ]


def host(tree):
    return jax.tree.map(np.asarray, tree)


@pytest.mark.parametrize("mask", MASKS)
def test_gaps_are_solved_and_the_residual_is_the_true_one(mask):
    mask = MASKS[mask]
    with x64(True):

        @jax.jit
        def run(y):
            return process(mask).solve(y), process(mask).evidence(y)

        (x, info), found = host(run(np.where(mask, Y, np.nan)))
        k = factors()
    want = dense_gp(k, np.full(SHAPE, 1e-3), mask, Y)
    image = np.einsum("ai,bj,ck,ijk->abc", *k, x) + 1e-3 * x
    true = np.linalg.norm((Y - image)[mask]) / np.linalg.norm(Y[mask])
    assert info.status == Status.CONVERGED
    assert true < 1e-10
    assert 0.1 < info.residual / true < 10
    error = np.linalg.norm(x - want.solution) / np.linalg.norm(want.solution)
    assert error < 1e-10
    likelihood = want.log_marginal_likelihood
    np.testing.assert_allclose(found.value, likelihood, rtol=1e-10)
    assert found.standard_error == 0


def test_a_looser_tolerance_ends_sooner_and_is_met():
    with x64(True):
        info = host(jax.jit(lambda y: process(SCATTERED, 1e-2).solve(y)[1])(Y))
        rough = host(
            jax.jit(lambda y: process(SCATTERED, 1e-2, tolerance=1e-3).solve(y)[1])(Y)
        )
    assert info.num_steps < 60
    assert rough.num_steps < info.num_steps - 10
    assert 1e-10 < rough.residual < 1e-3
    assert rough.status == Status.CONVERGED


@pytest.mark.slow
def test_what_has_not_converged_is_seen():
    key = jr.key(0)

    @jax.jit
    def run(y):
        found = process(BLOCK, max_steps=3)
        after = found.posterior(y)
        return (
            found.solve(y)[1],
            after.info,
            (
                found.log_marginal_likelihood(y),
                after.sample(key, 2),
                after.predict(np.full((1, 3), 0.5)).variance,
            ),
        )

    with x64(True):
        *infos, values = host(run(Y))
    for info in infos:
        assert info.status == Status.MAX_STEPS
        assert info.num_steps == 3
        assert 1e-10 < info.residual
    for value in values:
        assert np.all(np.isnan(value))


def test_what_has_not_converged_is_seen_in_float32():
    """Rounding of x alone makes a residual of 2e-5 here."""
    grid, rng = [np.linspace(0, 1, 20)] * 2, np.random.default_rng(0)
    y, mask = rng.normal(size=(20, 20)), rng.random((20, 20)) > 0.2

    def info(max_steps):
        kernels = [covariance.Matern(0.3, nu=0.5)] * 2
        return gp.GridGP(kernels, grid, 1e-4, mask, max_steps=max_steps).solve(y)[1]

    cut, whole = info(20), info(100)
    assert (cut.status, whole.status) == (Status.MAX_STEPS, Status.CONVERGED)
    assert whole.residual < 5e-5 < 5e-4 < cut.residual


@pytest.mark.parametrize("kernel", [covariance.SquaredExponential, covariance.Matern])
def test_float32_converges_whatever_the_data(kernel):
    """Noise, a draw from the process, and what is smooth, whose x is small."""
    axis, rng = np.linspace(0, 1, 24), np.random.default_rng(0)
    mask, white = rng.random((24, 24)) > 0.2, rng.normal(size=(24, 24))
    kernels = kernel(0.2), kernel(0.3)
    with x64(True):
        low = [
            np.linalg.cholesky(covariance.gram(k, axis) + 1e-9 * np.eye(24))
            for k in kernels
        ]
    draw = low[0] @ rng.normal(size=(24, 24)) @ low[1].T + 0.01 * white
    smooth = np.sin(5 * axis)[:, None] * np.ones(24)

    @jax.jit
    def run(y):
        found = gp.GridGP(kernels, [axis, axis], 1e-4, mask)
        return found.solve(y)[1], found.posterior(y).mean, found.evidence(y)

    @jax.jit
    def run_traced(y, lengths):
        pair = [kernel(length) for length in lengths]
        whole = gp.GridGP(pair, [axis, axis], 1e-4)
        partial = gp.GridGP(pair, [axis, axis], 1e-4, mask)
        return [found.log_marginal_likelihood(y) for found in (whole, partial)]

    for y in (white, draw, smooth):
        info, mean, evidence = host(run(np.float32(y)))
        likelihoods = run_traced(np.float32(y), np.array([0.2, 0.3], np.float32))
        assert np.all(np.isfinite(likelihoods))
        with x64(True):
            wanted = gp.GridGP(kernels, [axis, axis], 1e-4, mask).posterior(y).mean
        assert (info.status, evidence.info.status) == (Status.CONVERGED,) * 2
        np.testing.assert_allclose(mean, wanted, atol=2e-6 * np.abs(wanted).max())
        assert np.isfinite(evidence.value)


def test_what_is_not_a_number_is_seen():
    y = np.where(np.arange(10)[:, None, None] == 0, np.nan, Y)
    info = host(jax.jit(lambda y: process(BLOCK).solve(y)[1])(y))
    assert info.status == Status.DIVERGED


@pytest.mark.slow
def test_gradients_are_the_same_without_the_dense_matrix():
    """Hutchinson's probes of the trace: signs, enough of them, and all of the grid."""

    def loss(log_length, noise, max_dense):
        found = gp.GridGP(
            [covariance.Matern(jnp.exp(log_length)), covariance.Matern(0.3)],
            [GRID[0][:6], GRID[1][:4]],
            noise,
            SCATTERED[:6, :4, 0],
            max_dense=max_dense,
        )
        y = Y[:6, :4, 0]
        return found.evidence(y, key=jr.key(0), num_probes=2000, num_steps=4).value

    slope = jax.jit(jax.value_and_grad(loss, (0, 1)), static_argnums=2)
    with x64(True):
        noise = jnp.asarray(0.1 + RNG.random((6, 4)))
        exact, rough = (host(slope(-1.0, noise, size)) for size in (100, 0))
    np.testing.assert_allclose(rough[0], exact[0], atol=0.1)
    np.testing.assert_allclose(rough[1][0], exact[1][0], atol=0.05)
    np.testing.assert_allclose(rough[1][1], exact[1][1], atol=0.05)


def test_float32_gaps():
    y = np.sin(4 * GRID[0])[:, None, None] + np.cos(5 * GRID[1])[:, None] * GRID[2]
    means = []
    for wide in (True, False):
        with x64(wide):
            found = process(BLOCK, 1e-2)
            mean, info = jax.jit(
                lambda y, p=found: (p.posterior(y).mean, p.solve(y)[1])
            )(y + 0.1 * Y)
            assert host(info.status) == Status.CONVERGED
            means.append(host(mean))
    assert means[1].dtype == np.float32
    np.testing.assert_allclose(means[1], means[0], atol=3e-5)
