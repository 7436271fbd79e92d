"""Newton's method in collocation: against dense systems, known solutions and itself."""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlr import covariance, pde
from jaxlr.core import Status
from jaxlr.core.compat import x64
from tests.pde._collocation import (
    BOUNDARY,
    BOX,
    cubic,
    dense_2d,
    error,
    GRID_SOURCE,
    matern,
    matern_2d,
    problem_2d,
    REGULAR,
    slopes,
    SOURCE,
    train,
    WEIGHTS,
    X,
    Y,
)


solve = ft.partial(train, fn=pde.newton_collocation, max_evaluations=0)


@pytest.mark.slow
def test_newton_is_that_of_the_dense_system():
    want = dense_2d(BOX, is_cubic=True)
    with x64(True):
        found = solve(problem_2d(cubic), matern_2d(), is_jitted=False)
        cut = solve(problem_2d(cubic), matern_2d(), max_steps=1)
        linear = solve(problem_2d(), matern_2d())
    np.testing.assert_allclose(found.solution, want, rtol=1e-8, atol=1e-8)
    assert (found.status, cut.status) == (Status.CONVERGED, Status.MAX_STEPS)
    assert cut.num_steps == 1 < found.num_steps <= 8
    assert found.residual < 1e-11 < 1e-6 < cut.residual
    np.testing.assert_allclose(linear.solution, dense_2d(BOX), rtol=1e-8, atol=1e-8)


def test_newton_on_one_axis_meets_the_equation_at_every_point():
    def equation(u):
        return u(2) + u() * (u() ** 2 - 1) + u(1) ** 2

    with x64(True):
        x = jnp.linspace(0, 1, 25)
        problem = pde.manufactured(equation, lambda x: jnp.sin(3 * x), (x,))
        kernel = covariance.SquaredExponential(0.4)
        found = solve(problem, kernel)
    assert error(problem, found.solution) < 1e-6
    assert found.residual < 1e-7
    assert 3 <= found.num_steps <= 12
    assert found.status == Status.CONVERGED


def test_the_residual_of_one_axis_is_in_deviations_of_the_prior():
    """After a step from 0, that leaves u^3; of u'' the deviation is 5 / ell^2."""
    ell, ends = 0.7, REGULAR[[0, -1]]
    points = [(REGULAR, 2), (ends, 0)]
    k = np.block([[matern(ell, x, y, a, b) for y, b in points] for x, a in points])
    cross = np.hstack([matern(ell, REGULAR, y, 0, b) for y, b in points])
    known = BOUNDARY[[0, -1]]
    u = cross @ np.linalg.solve(k, np.r_[SOURCE, known])
    weight = ell**2 / 5
    data = np.r_[weight * SOURCE, known]
    want = np.linalg.norm(weight * u**3) / np.linalg.norm(data)
    with x64(True):
        problem = pde.Problem(
            lambda u: u(2) - u() ** 3,
            (REGULAR,),
            SOURCE,
            BOUNDARY,
            faces=((0, 0), (0, -1)),
        )
        found = solve(problem, covariance.Matern(ell), max_steps=1)
    np.testing.assert_allclose(found.solution, u, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(found.residual, want, rtol=1e-7)


def test_the_residual_of_two_axes_is_over_the_terms_magnitudes():
    """After one step, at the points that are free."""
    with x64(True):
        found = solve(problem_2d(cubic), matern_2d(), max_steps=1)
    u = found.solution
    dx, dy = slopes(X, 0.8, 1), slopes(Y, 1.1, 1)
    dxx, dyy = slopes(X, 0.8, 2), slopes(Y, 1.1, 2)
    terms = WEIGHTS * (dxx @ u), u @ dyy.T, 0.3 * dx @ u @ dy.T, -u @ dy.T, -2 * u
    gap = GRID_SOURCE - sum(terms) + u**3
    size = sum(map(np.abs, (*terms[:4], 2 * u + 3 * u**3, GRID_SOURCE)))
    free = np.s_[1:-1, 1:-1]
    want = np.linalg.norm(gap[free]) / np.linalg.norm(size[free])
    np.testing.assert_allclose(found.residual, want, rtol=1e-6)


def test_newton_goes_on_through_residuals_that_do_not_halve():
    def solution(x):
        return 12 * jnp.sin(3 * x)

    with x64(True):
        x = jnp.linspace(0, 1, 25)
        problem = pde.manufactured(lambda u: u(2) - u() ** 3, solution, (x,))
        kernel = covariance.SquaredExponential(0.3)
        third, fourth, last = (
            solve(problem, kernel, max_steps=num) for num in (3, 4, 20)
        )
    assert third.residual > fourth.residual > third.residual / 2 > 1
    assert (fourth.status, fourth.num_steps) == (Status.MAX_STEPS, 4)
    assert last.status == Status.CONVERGED
    assert error(problem, last.solution) < 1e-8


def test_the_step_of_the_least_residual_counts():
    """Of steps 6 and 7 the second is worse, of 7 and 8 better."""
    with x64(True):
        x = jnp.linspace(0, 1, 25)
        problem = pde.manufactured(
            lambda u: u(2) + 10 * u() ** 3, lambda x: 3 * jnp.sin(3 * x), (x,)
        )
        sixth, seventh, eighth = (
            solve(
                problem,
                covariance.SquaredExponential(0.3),
                max_steps=num,
            )
            for num in (6, 7, 8)
        )
    np.testing.assert_allclose(seventh.solution, sixth.solution, rtol=1e-8)
    assert [int(s.num_steps) for s in (sixth, seventh, eighth)] == [6, 7, 8]
    assert eighth.residual < seventh.residual / 2


@pytest.mark.slow
@pytest.mark.parametrize("num_axes", [1, 2])
def test_lanes_are_single_solutions(num_axes):
    def equation(u):
        return (u(2) if num_axes == 1 else u(2, 0) + u(0, 2)) - u() ** 3

    with x64(True):
        grid = (np.linspace(0, 1, 8),) * num_axes
        sources = jnp.asarray(
            np.random.default_rng(3).normal(size=(3, *[8] * num_axes))
        )
        sources = sources * jnp.asarray([0.1, 30.0, 1e3]).reshape(-1, *[1] * num_axes)

        def one(source):
            problem = pde.Problem(equation, grid, source, 0.5)
            return pde.newton_collocation(
                problem, covariance.Matern(0.7), max_evaluations=0
            )

        lanes = jax.jit(jax.vmap(one))(sources)
        one = jax.jit(one)
        for i, source in enumerate(sources):
            single = one(source)
            np.testing.assert_allclose(
                lanes.solution[i], single.solution, rtol=1e-8, atol=1e-10
            )
            assert lanes.num_steps[i] == single.num_steps
    assert len({*np.asarray(lanes.num_steps).tolist()}) > 1
