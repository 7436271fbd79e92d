"""Gauss-Newton steps against NumPy's least squares; quadratic convergence."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jaxlr import sensing
from jaxlr.core import loop
from jaxlr.core.compat import x64
from jaxlr.sensing.solver._gauss_newton import gauss_newton
from tests.sensing import reference


OPERATORS = {
    "gaussian": lambda key, shape: sensing.gaussian(key, shape, 40),
    "identity": lambda key, shape: sensing.identity(shape),
    "entries": lambda key, shape: sensing.entry_sampling(key, shape, 35),
}


def make(name, shape=(8, 7), rank=2, **settings):
    operator = OPERATORS[name](jr.key(0), shape)
    return sensing.measure(
        operator, sensing.low_rank(jr.key(1), shape, rank, **settings)
    )


@pytest.mark.parametrize("damping", [0.0, 0.2])
@pytest.mark.parametrize("name", OPERATORS)
def test_a_step_solves_the_linearized_problem(name, damping):
    with x64(True):
        problem = make(name)
        solver = gauss_newton(problem, num_columns=2, damping=damping, num_cg_steps=200)
        start = solver.init(jr.key(0))
        # Away from the start: there the entries observed twice over are few.
        start = start._replace(f=start.f + 0.1, g=start.g - 0.1)
        after, info = solver.step(jr.key(0), start)
        a = reference.matrices(problem.operator)
    (f, g), y = map(np.asarray, start.factors), np.asarray(problem.y).ravel()
    columns = []  # of the Jacobian: the image of each unit change
    for x, turn in ((f, lambda d: d @ g.T), (g, lambda d: f @ d.T)):
        for i in range(x.size):
            unit = np.eye(x.size)[i].reshape(x.shape)
            columns.append(reference.apply(a, turn(unit)))
    jacobian = np.stack(columns, axis=1)
    gap = reference.apply(a, f @ g.T) - y
    np.testing.assert_allclose(info.loss, gap @ gap / 2, rtol=1e-12)
    left = np.concatenate([jacobian, np.sqrt(damping) * np.eye(jacobian.shape[1])])
    right = np.concatenate([-gap, np.zeros(jacobian.shape[1])])
    # Undamped the kernel has k^2 dimensions: the solution of least norm is taken.
    want = np.linalg.lstsq(left, right, rcond=1e-10)[0]
    assert np.linalg.matrix_rank(jacobian, tol=1e-10) <= f.size + g.size - 4
    change = [np.ravel(np.asarray(x) - x0) for x, x0 in ((after.f, f), (after.g, g))]
    change = np.concatenate(change)
    np.testing.assert_allclose(change, want, atol=1e-8)


@pytest.mark.parametrize("condition", [1.0, 3.0])
def test_converges_quadratically_from_the_spectral_start(condition):
    n, rank = 30, 3
    with x64(True):
        operator = sensing.gaussian(jr.key(0), (n, n), 5 * n * rank)
        truth = sensing.low_rank(jr.key(1), (n, n), rank, condition=condition)
        problem = sensing.measure(operator, truth)
        solver = gauss_newton(problem, num_columns=rank, num_cg_steps=100)
        _, infos = jax.jit(lambda: loop.run(jr.key(0), solver, 14))()
    errors = np.asarray(infos.relative_error)
    assert errors[0] > 0.3
    assert errors[-1] < 3e-15
    (near,) = np.nonzero((errors < 0.05) & (errors > 1e-7))
    assert len(near) >= 2  # else there is nothing to see
    # e' <= C e^2 / s_r: the constant does not grow as the error falls.
    assert np.all(errors[near + 1] <= 3 * condition * errors[near] ** 2)


def test_a_mask_of_columns_is_the_smaller_rank_and_lanes_equal_a_loop():
    num_traces = 0
    with x64(True):
        problem = make("gaussian")

        def run(num_active, damping, num_columns=4):
            nonlocal num_traces
            num_traces += 1
            solver = gauss_newton(
                problem,
                num_columns=num_columns,
                num_active=num_active,
                damping=damping,
                num_cg_steps=30,
            )
            return loop.run(jr.key(0), solver, 4)

        lanes = jax.jit(jax.vmap(run))
        ranks, dampings = jnp.array([1, 2, 4]), jnp.array([0.1, 0.1, 0.3])
        state, infos = lanes(ranks, dampings)
        lanes(ranks, dampings * 2)
        assert num_traces == 1
        for i in range(3):
            k = int(ranks[i])
            for x in (state.f[i], state.g[i]):
                assert not np.any(x[:, k:])
                assert np.all(np.any(x[:, :k] != 0, axis=0))
            want = run(None, dampings[i], num_columns=k)[1].loss
            np.testing.assert_allclose(infos.loss[i], want, rtol=1e-8)


def test_at_the_solution_it_stays_in_single_precision():
    problem = make("gaussian")
    solver = gauss_newton(problem, num_columns=2, num_cg_steps=50)
    state, infos = jax.jit(lambda: loop.run(jr.key(0), solver, 40))()
    assert np.all(infos.relative_error[-20:] < 1e-5)
    assert state.f.dtype == jnp.float32
    nothing = sensing.SensingProblem(problem.operator, 0 * problem.y)
    state, _ = loop.run(jr.key(0), gauss_newton(nothing, num_columns=2), 2)
    assert not np.any(state.f)


def test_it_has_a_gradient():
    with x64(True):
        problem = make("gaussian")

        @jax.jit
        def final(damping):
            solver = gauss_newton(
                problem, num_columns=2, damping=damping, num_cg_steps=40
            )
            return loop.run(jr.key(0), solver, 3)[1].loss[-1]

        slope = jax.grad(final)(0.1)
        want = (final(0.1 + 1e-5) - final(0.1 - 1e-5)) / 2e-5
        np.testing.assert_allclose(slope, want, rtol=1e-4)


@pytest.mark.misuse
def test_misuse_is_named():
    problem = make("gaussian")
    for name, bad, valid in (
        ("num_columns", 8, r"1\.\.7"),
        ("num_columns", 0, r"1\.\.7"),
        ("num_cg_steps", 0, ">= 1"),
    ):
        with pytest.raises(ValueError, match=rf"`{name}`.*{valid}.*got {bad}"):
            gauss_newton(problem, **{"num_columns": 2, name: bad})


@pytest.mark.parametrize("is_double", [False, True])
@pytest.mark.parametrize("noise", [1e-6, 1e-2])
def test_noise_that_stays_is_not_amplified(is_double, noise):
    with x64(is_double):
        truth = sensing.low_rank(jr.key(0), (12, 12), 2)
        clean = sensing.measure(sensing.gaussian(jr.key(1), (12, 12), 220), truth)
        noisy = sensing.add_noise(jr.key(2), clean, noise)
        solver = sensing.gauss_newton(noisy, num_columns=2)
        errors = loop.run(jr.key(3), solver, 40)[1].relative_error
        assert np.all(np.asarray(errors)[8:] < 20 * noise + 1e-5)


def test_a_matrix_of_full_rank_is_approximated():
    truth = jr.normal(jr.key(0), (10, 8))
    problem = sensing.measure(sensing.identity((10, 8)), truth)
    solver = sensing.gauss_newton(problem, num_columns=3)
    errors = loop.run(jr.key(3), solver, 30)[1].relative_error
    s = jnp.linalg.svd(truth, compute_uv=False)
    best = jnp.linalg.norm(s[3:]) / jnp.linalg.norm(s)
    np.testing.assert_allclose(errors[-1], best, rtol=1e-3)
