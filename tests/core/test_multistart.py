"""L-BFGS from many starts: the best minimum, whatever becomes of the others."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlr import core, covariance, gp
from jaxlr.core.compat import x64
from jaxlr.core.loop import Status


def fit(loss_fn, starts, **bounds):
    return core.multistart(core.lbfgs(loss_fn, **bounds), starts)


def wells(x):
    """Two minima, at -1 and near 1, the second one the lower; none beyond 5."""
    value = (x**2 - 1) ** 2 - 0.1 * x
    return jnp.where(jnp.abs(x) < 5, value, jnp.nan)


def test_the_best_of_many_starts_wins():
    with x64(True):
        found = jax.jit(lambda x: fit(wells, x))(jnp.array([-1.3, 0.7, 9.0, -0.8]))
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


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def by_hand(start, max_search, goes_on):
    """Optax's L-BFGS in a Python loop: the end, the steps, the evaluations."""
    search = optax.scale_by_zoom_linesearch(max_search, initial_guess_strategy="one")
    optimizer = optax.lbfgs(linesearch=search)
    value_and_grad_fn = jax.jit(jax.value_and_grad(rosenbrock))
    update = jax.jit(
        lambda grad, state, x, value: optimizer.update(
            grad, state, x, value=value, grad=grad, value_fn=rosenbrock
        )
    )
    x, state, before = start, optimizer.init(start), np.inf
    num_steps, num_evaluations = 0, 1
    while True:
        value, grad = value_and_grad_fn(x)
        updates, state = update(grad, state, x, value)
        x = optax.apply_updates(x, updates)
        num_steps += 1
        num_evaluations += int(state[-1].info.num_linesearch_steps)
        norm = float(jnp.linalg.norm(grad) / (1 + jnp.abs(value)))
        if not goes_on(norm, before - float(value), num_evaluations):
            return x, num_steps, num_evaluations
        before = float(value)


@pytest.mark.parametrize("bound", [None, 11, 15, 10_000])
def test_ends_are_those_of_the_loop_by_hand(bound):
    """By the gradient, as processes on grids train; by gain and evaluations, as pde."""

    def goes_on(norm, gain, num):
        if bound is None:
            return norm > 1e-5
        return gain > 0.01 and num + 10 <= bound

    more = {} if bound is None else {"least_gain": 0.01, "tolerance": 0.0}
    search = 20 if bound is None else 10
    with x64(True):
        start = jnp.array([-1.2, 1.0, 0.7])
        want, num_steps, num_evaluations = by_hand(start, search, goes_on)
        solve = core.lbfgs(rosenbrock, max_search=search, max_evaluations=bound, **more)
        end = jax.jit(solve)(start)
        assert end.num_steps == num_steps
        np.testing.assert_allclose(end.params, want, rtol=1e-6)
        np.testing.assert_allclose(end.loss, rosenbrock(want), rtol=1e-5, atol=1e-12)
    is_spent = bound is not None and num_evaluations + 10 > bound
    assert is_spent == (bound in (11, 15))
    assert int(end.status) == (Status.MAX_STEPS if is_spent else Status.CONVERGED)


def test_the_search_is_a_constant_to_differentiation():
    """The loss at its end is not: what it closes over moves the least loss."""

    def least(tilt):
        solve = core.lbfgs(lambda x: (x**2 - 1) ** 2 - tilt * x)
        return solve(jnp.asarray(0.7)).loss

    with x64(True):
        slope = jax.jit(jax.grad(least))(0.1)
        change = (least(0.1 + 1e-4) - least(0.1 - 1e-4)) / 2e-4
        np.testing.assert_allclose(slope, change, rtol=1e-5)
        np.testing.assert_allclose(jax.jvp(least, (0.1,), (1.0,))[1], slope, rtol=1e-9)


def test_runs_do_not_wait_for_each_other():
    """On a CPU: as many evaluations as of each alone."""

    def evaluations(*starts):
        counts = []

        def loss(x):
            jax.debug.callback(lambda _: counts.append(1), x)
            return wells(x)

        with x64(True):
            found = jax.jit(lambda x: fit(loss, x))(jnp.array(starts))
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
        return fit(lambda x: wells(x) - tilt * x, starts)

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
        found = jax.jit(lambda x: fit(loss, x, max_steps=30))(starts)
        found, at_truth = jax.tree.map(np.asarray, (found, jax.jit(loss)(truth)))
    np.testing.assert_allclose(found.losses, found.loss, rtol=1e-4)
    assert found.loss < at_truth
    np.testing.assert_allclose(found.params, truth, atol=0.8)


@pytest.mark.misuse
def test_misuse_is_named():
    with pytest.raises(ValueError, match=r"`max_steps` must be .* >= 1, got 0"):
        core.lbfgs(wells, max_steps=0)
    with pytest.raises(ValueError, match=r"`max_evaluations` must be .* >= 6, got 5"):
        core.lbfgs(wells, max_search=5, max_evaluations=5)
    with pytest.raises(ValueError, match=r"`params_fn` gives no array to train"):
        core.lbfgs(wells)(0.5)
    unequal = {"a": jnp.ones(2), "b": jnp.ones((3, 1))}
    for starts in (3.0, jnp.ones((0, 2)), {}, unequal):
        with pytest.raises(ValueError, match=r"`starts` must have an axis of r >= 1"):
            fit(lambda _: jnp.ones(()), starts)


TRAINING = """
import jax, jax.numpy as jnp, jax.random as jr
from jaxlr import core, covariance, gp

x = jnp.linspace(0, 1, 60)
y = jr.normal(jr.key(2), (60, 60))

def loss(logs):
    kernels = tuple(map(covariance.Matern, jnp.exp(logs[:2])))
    return -gp.GridGP(kernels, (x, x), jnp.exp(logs[2])).log_marginal_likelihood(y)

starts = jr.uniform(jr.key(5), (4, 3), minval=-4.0, maxval=1.0)
solve = core.lbfgs(loss, max_steps=25)
print(jax.jit(lambda starts: core.multistart(solve, starts))(starts).losses)
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


def test_the_least_loss_has_derivatives_as_the_end_of_one_run_has():
    def least(a):
        return fit(lambda x: jnp.sum((x - a) ** 2) + a**2, jnp.zeros((2, 3))).loss

    with x64(True):
        found = jax.vmap(jax.grad(least))(jnp.array([1.0, 3.0]))
    np.testing.assert_allclose(found, [2, 6])
