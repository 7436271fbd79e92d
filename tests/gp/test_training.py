"""L-BFGS from many starts: the best minimum, whatever becomes of the others."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlr import covariance, gp
from jaxlr.core.compat import x64
from jaxlr.core.loop import Status


def wells(x):
    """Two minima, at -1 and near 1, the second one the lower; none beyond 5."""
    value = (x**2 - 1) ** 2 - 0.1 * x
    return jnp.where(jnp.abs(x) < 5, value, jnp.nan)


def test_the_best_of_many_starts_wins():
    with x64(True):
        found = jax.jit(lambda x: gp.fit(wells, x))(jnp.array([-1.3, 0.7, 9.0, -0.8]))
        found = jax.tree.map(np.asarray, found)
    roots = np.roots([4, 0, -4, -0.1])
    np.testing.assert_allclose(found.params, roots.max(), atol=1e-4)
    np.testing.assert_array_equal(
        found.status,
        [Status.CONVERGED, Status.CONVERGED, Status.DIVERGED, Status.CONVERGED],
    )
    np.testing.assert_allclose(found.losses[::3], 0.1, atol=5e-3)
    assert found.losses[2] == np.inf
    np.testing.assert_allclose(found.loss, found.losses[1])
    assert np.all(np.asarray(found.num_steps) < 30)


def test_runs_do_not_wait_for_each_other():
    """On a CPU: as many evaluations as of each alone."""

    def evaluations(*starts):
        counts = []

        def loss(x):
            jax.debug.callback(lambda _: counts.append(1), x)
            return wells(x)

        with x64(True):
            found = jax.jit(lambda x: gp.fit(loss, x))(jnp.array(starts))
            jax.block_until_ready(found)
        jax.effects_barrier()
        return len(counts)

    near, far = evaluations(1.01), evaluations(-4.0)
    assert near < far / 2
    assert evaluations(1.01, -4.0, 1.01) == near + far + near


def test_lanes_are_single_runs():
    """What the loss closes over may be batched, with the starts or without."""
    starts = jnp.array([[-1.3, 0.7], [0.2, -0.3]])
    tilts = jnp.array([0.1, -0.3])

    def best(tilt, starts):
        return gp.fit(lambda x: wells(x) - tilt * x, starts)

    with x64(True):
        for axes in ((0, 0), (0, None)):
            inits = starts if axes[1] == 0 else starts[0]
            lanes = jax.jit(jax.vmap(best, axes))(tilts, inits)
            for i, tilt in enumerate(tilts):
                single = jax.jit(best)(tilt, inits[i] if axes[1] == 0 else inits)
                for a, b in zip(lanes, single, strict=True):
                    np.testing.assert_allclose(a[i], b, rtol=1e-6)
    assert len(np.unique(np.round(lanes.params, 3))) > 1


@pytest.mark.slow
def test_hyper_parameters_of_a_grid_in_one_compile():
    """Lengthscales, variance and noise of a sample come back from bad starts."""
    rng = np.random.default_rng(0)
    grid = [np.linspace(0, 1, 16), np.linspace(0, 1, 12)]
    mask = rng.random((16, 12)) > 0.03
    with x64(True):

        def process(logs):
            variance, *lengths, noise = jnp.exp(logs)
            first, second = map(covariance.Matern, lengths)
            return gp.GridGP([variance * first, second], grid, noise, mask)

        truth = np.log([2.0, 0.2, 0.4, 0.05])
        halves = [
            np.linalg.cholesky(
                np.asarray(covariance.gram(k, x)) + 1e-12 * np.eye(len(x))
            )
            for k, x in zip(process(truth).kernels, grid, strict=True)
        ]
        y = halves[0] @ rng.normal(size=mask.shape) @ halves[1].T
        y += np.sqrt(0.05) * rng.normal(size=mask.shape)

        def loss(logs):
            return -process(logs).log_marginal_likelihood(y)

        starts = jnp.log(jnp.array([[1.0, 0.05, 0.05, 1.0], [0.3, 0.7, 0.7, 0.01]]))
        found = jax.jit(lambda x: gp.fit(loss, x, max_num_steps=30))(starts)
        found, at_truth = jax.tree.map(np.asarray, (found, jax.jit(loss)(truth)))
    np.testing.assert_allclose(found.losses, found.loss, rtol=1e-4)
    assert found.loss < at_truth
    np.testing.assert_allclose(found.params, truth, atol=0.8)


@pytest.mark.misuse
def test_misuse_is_named():
    with pytest.raises(ValueError, match=r"`max_num_steps` must be .* >= 1, got 0"):
        gp.fit(wells, jnp.ones(2), max_num_steps=0)
    unequal = {"a": jnp.ones(2), "b": jnp.ones((3, 1))}
    for starts in (3.0, jnp.ones((0, 2)), {}, unequal):
        with pytest.raises(ValueError, match=r"`starts` must have an axis of r >= 1"):
            gp.fit(lambda _: jnp.ones(()), starts)


TRAINING = """
import jax, jax.numpy as jnp, jax.random as jr
from jaxlr import gp

x = jnp.linspace(0, 1, 60)
y = jr.normal(jr.key(2), (60, 60))

def loss(logs):
    kernels = tuple(map(covariance.Matern, jnp.exp(logs[:2])))
    return -gp.GridGP(kernels, (x, x), jnp.exp(logs[2])).log_marginal_likelihood(y)

starts = jr.uniform(jr.key(5), (4, 3), minval=-4.0, maxval=1.0)
print(jax.jit(lambda starts: gp.fit(loss, starts, max_num_steps=25))(starts).losses)
"""


@pytest.mark.slow
def test_batches_of_decompositions_do_not_wait_for_each_other():
    """In a process of its own, with as many threads as there are cores."""
    ours = "NPROC", "XLA_FLAGS"
    done = subprocess.run(
        [sys.executable, "-c", TRAINING],
        env={name: value for name, value in os.environ.items() if name not in ours},
        capture_output=True,
        text=True,
        timeout=150,
        check=True,
    )
    assert "nan" not in done.stdout
