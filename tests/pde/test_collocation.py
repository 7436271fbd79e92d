"""Collocation against dense systems solved by NumPy in float64, and known solutions."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlr import covariance, pde
from jaxlr.core import Status
from jaxlr.core.compat import x64
from jaxlr.pde import likelihood as likelihoods
from tests.pde._collocation import (
    BOX,
    cubic,
    dense_1d,
    dense_2d,
    elliptic,
    error,
    IRREGULAR,
    matern,
    matern_2d,
    problem_1d,
    problem_2d,
    REGULAR,
    solve,
    train,
)


@pytest.mark.parametrize("x", [REGULAR, IRREGULAR])
@pytest.mark.parametrize("faces", [((0, 0), (0, -1)), ((0, 0),)])
def test_one_axis_is_the_posterior_mean(x, faces):
    want, likelihood = dense_1d(x, 0.7, faces)
    with x64(True):
        found = solve(problem_1d(x, faces), covariance.Matern(0.7))
        scaled = solve(problem_1d(x, faces), 9.0 * covariance.Matern(0.7))
    np.testing.assert_allclose(found.solution, want, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(found.log_marginal_likelihood, likelihood, rtol=1e-7)
    np.testing.assert_allclose(scaled.log_marginal_likelihood, likelihood, rtol=1e-7)
    np.testing.assert_allclose(scaled.solution, want, rtol=1e-8, atol=1e-8)
    assert found.residual < 1e-10
    assert (found.num_steps, found.status) == (1, Status.CONVERGED)


@pytest.mark.slow
def test_refinement_undoes_jitter():
    want, _ = dense_1d(REGULAR, 0.7, ((0, 0), (0, -1)))
    with x64(True):
        found = solve(
            problem_1d(), covariance.Matern(0.7), is_jitted=False, jitter=1e-6
        )
    np.testing.assert_allclose(found.solution, want, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found.jitter, [1e-6])


def test_float32():
    want, _ = dense_1d(REGULAR, 0.7, ((0, 0), (0, -1)))
    found = solve(problem_1d(), covariance.Matern(0.7))
    assert found.solution.dtype == jnp.float32
    assert float(found.jitter[0]) == pytest.approx(1e-6)
    np.testing.assert_allclose(found.solution, want, atol=1e-5 * np.abs(want).max())
    grid = [np.linspace(0, 1, 30)] * 2
    plane = pde.manufactured(
        lambda u: u(2, 0) + u(0, 2), lambda x, y: jnp.sin(8 * x) * jnp.sin(y), grid
    )
    other = solve(plane, covariance.Matern(0.3))
    assert error(plane, other.solution) < 3e-3
    assert (found.status, other.status) == (Status.CONVERGED, Status.CONVERGED)
    assert 1e-6 < other.residual < 5e-5  # within the tolerance of float32 alone


@pytest.mark.parametrize("faces", [BOX, ((0, 0), (1, 0), (1, -1))])
def test_two_axes_are_the_dense_system(faces):
    want = dense_2d(faces)
    with x64(True):
        found = solve(problem_2d(faces=faces), matern_2d())
    np.testing.assert_allclose(found.solution, want, rtol=1e-8, atol=1e-8)
    assert found.residual < 1e-11
    assert (found.num_steps, found.status) == (1, Status.CONVERGED)


@pytest.mark.slow
def test_the_preconditioner_inverts_what_is_separable():
    """GMRES then ends at once; and its products are counted."""

    def equation(u):
        return u(2, 0) + 3 * u(0, 2) - u(1, 0) - 2 * u()

    with x64(True):
        found = solve(problem_2d(equation), matern_2d())
        other = solve(problem_2d(), matern_2d())
    assert found.num_products <= 3 < other.num_products < 45


def test_three_axes_one_of_them_time():
    def heat(u):
        return u(0, 0, 1) - u(2, 0, 0) - u(0, 2, 0)

    def wave(x, y, t):
        return jnp.exp(-2 * t) * jnp.sin(x) * jnp.cos(y) + x * y

    faces = (*((a, s) for a in (0, 1) for s in (0, -1)), (2, 0))
    with x64(True):
        grid = tuple(jnp.linspace(0, 1, n) for n in (9, 8, 10))
        problem = pde.manufactured(heat, wave, grid, faces)
        found = solve(problem, covariance.SquaredExponential(1.0))
    assert error(problem, found.solution) < 1e-5
    assert found.residual < 1e-10
    assert found.status == Status.CONVERGED


def test_a_prior_holds_what_the_likelihood_does_not():
    """0.1 log l - (log l - log start)^2 / 50 is largest at start e^2.5."""
    with x64(True):
        kernel, likelihood = likelihoods.maximize(
            lambda kernel, _: 0.1 * jnp.log(kernel.lengthscale),
            lambda _: jnp.eye(2),
            [covariance.Matern(3.0)],
            40,
            jnp.asarray(1e-12),
        )
        np.testing.assert_allclose(kernel.lengthscale, 3 * np.exp(2.5), rtol=0.02)
        np.testing.assert_allclose(likelihood, 0.1 * jnp.log(kernel.lengthscale))


class Turned(covariance.Kernel):
    """Two lengthscales, weighed by a phase that may be of any sign."""

    lengthscale: covariance.Parameter = eqx.field(metadata=covariance.LOG_SCALE)
    phase: covariance.Parameter
    ratio: covariance.Parameter = eqx.field(metadata=covariance.HELD)

    def _derivative(self, tau, order):
        wide, narrow = (
            covariance.SquaredExponential(self.lengthscale / ratio)(tau, order)
            for ratio in (1, self.ratio)
        )
        return jnp.cos(self.phase) ** 2 * wide + jnp.sin(self.phase) ** 2 * narrow


def test_training_follows_what_fields_say_whatever_they_are_called():
    start = Turned(0.5, -0.5, 3.0)
    with x64(True):
        before, after = (train(wavy(20), start, max_evaluations=num) for num in (0, 15))
        (kernel,) = after.kernels
    assert after.log_marginal_likelihood > before.log_marginal_likelihood + 1
    assert np.isfinite(after.solution).all()
    assert kernel.lengthscale > 0
    assert abs(kernel.phase + 0.5) > 1e-3
    assert kernel.ratio == 3.0


def test_held_hyper_parameters_have_derivatives_where_nothing_is_trained():
    def total(frequencies):
        kernel = eqx.tree_at(lambda k: k.frequencies, mixture(30.0), frequencies)
        found = pde.collocation_solve(wavy(12), kernel, max_evaluations=0)
        return jnp.sum(found.solution**2)

    with x64(True):
        at = jnp.linspace(0, 6, 4)
        slope = jax.jit(jax.grad(total))(at)
        step = 1e-5 * jnp.eye(4)[3]
        want = float(total(at + step) - total(at - step)) / 2e-5
    np.testing.assert_allclose(slope[3], want, rtol=1e-3)
    assert abs(want) > 1e-6


def mixture(rate):
    return covariance.SpectralMixture(
        jnp.log(jnp.full(4, 0.25)), jnp.full(4, rate), jnp.linspace(0, 6, 4)
    )


def wavy(num=30):
    x = jnp.linspace(0.0, 1.0, num)
    return pde.manufactured(lambda u: u(2), lambda x: jnp.sin(25 * x), (x,))


@pytest.mark.slow
def test_training_raises_the_likelihood_and_the_best_start_wins():
    with x64(True):
        problem, starts = wavy(), [mixture(30.0), mixture(3.0)]
        untrained = [solve(problem, start) for start in starts]
        each = [train(problem, start, max_evaluations=15) for start in starts]
        both = train(problem, [starts], max_evaluations=15)
        short = train(problem, starts[1], max_evaluations=5)
        (kernel,) = both.kernels
    before, after = (
        [float(r.log_marginal_likelihood) for r in rs] for rs in (untrained, each)
    )
    assert after[0] > before[0] + 20
    assert after[1] > before[1] + 20
    assert abs(after[0] - after[1]) > 20
    # Ends of the same start differ by rounding, which 15 evaluations magnify.
    assert abs(both.log_marginal_likelihood - max(after)) < 1
    assert before[1] < short.log_marginal_likelihood < after[1]
    np.testing.assert_array_equal(kernel.frequencies, mixture(1.0).frequencies)
    assert error(problem, both.solution) < 1e-5
    assert error(problem, both.solution) < error(problem, untrained[0].solution) / 10


@pytest.mark.slow
@pytest.mark.parametrize("has_source", [True, False])
def test_training_by_lines_of_the_source_or_of_the_boundary(has_source):
    """Each axis finds its own lengthscale."""

    def equation(u):
        return u(2, 0) + u(0, 2) if has_source else u(1, 0) - u(0, 1)

    def solution(x, y):
        return jnp.sin(8 * x) * jnp.sin(y) if has_source else jnp.sin(5 * (x + y))

    with x64(True):
        grid = jnp.linspace(0.0, 1.0, 16), jnp.linspace(0.0, 1.0, 15)
        faces = BOX if has_source else ((0, 0), (1, -1))
        problem = pde.manufactured(equation, solution, grid, faces)
        found = train(
            problem,
            covariance.SquaredExponential(0.1),
            max_evaluations=50,
            jitter=1e-10,
        )
        untrained = solve(problem, covariance.SquaredExponential(0.1))
    assert error(problem, found.solution) < 1e-4
    assert error(problem, found.solution) < error(problem, untrained.solution) / 10
    first, second = (k.lengthscale for k in found.kernels)
    assert first > 0.15
    assert second > 1.5 * first if has_source else second > 0.15


def numerical(fun, step=1e-4):
    return (fun(step) - fun(-step)) / (2 * step)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fn", "num_axes"),
    [
        (pde.collocation_solve, 1),
        (pde.collocation_solve, 2),
        (pde.newton_collocation, 2),
    ],
)
def test_gradients(fn, num_axes):
    """By source, boundary and lengthscale, all at once along a line."""
    nonlinear = fn is pde.newton_collocation
    with x64(True):
        if num_axes == 1:
            problem = problem_1d()
        else:
            problem = problem_2d(cubic if nonlinear else elliptic)
        weights = jnp.asarray(np.random.default_rng(2).normal(size=problem.shape))

        def value(t):
            moved = eqx.tree_at(
                lambda p: (p.source, p.boundary),
                problem,
                (problem.source + t * weights, problem.boundary * (1 + t)),
            )
            found = fn(
                moved, covariance.Matern(0.8 + t), max_evaluations=0, jitter=1e-10
            )
            return jnp.sum(weights * found.solution)

        value = jax.jit(value)
        slope = jax.jit(jax.grad(value))(0.0)
        np.testing.assert_allclose(slope, numerical(value), rtol=1e-5)


class Indefinite(covariance.Kernel):
    """No covariance at all."""

    def _derivative(self, tau, order):
        return 1 + 3 * tau**2 if order == 0 else tau


@pytest.mark.misuse
def test_misuse_is_named():
    kernel = covariance.Matern(0.7)
    with pytest.raises(ValueError, match=r"an integer >= 0, got -1"):
        pde.collocation_solve(problem_1d(), kernel, max_evaluations=-1)
    with pytest.raises(ValueError, match=r"`max_steps` must be an integer >= 1, got 0"):
        pde.newton_collocation(problem_1d(), kernel, max_steps=0)
    with pytest.raises(ValueError, match=r"each of 2 axes, a kernel or several, got 1"):
        solve(problem_2d(), [kernel])
    with pytest.raises(ValueError, match=r"`kernels\[0\]` must be of one structure"):
        solve(problem_1d(), [[kernel, covariance.SquaredExponential(1.0)]])
    with pytest.raises(
        ValueError, match=r"`kernels\[0\]` must be .* structure and size"
    ):
        solve(
            problem_1d(),
            [[mixture(30.0), covariance.SpectralMixture(*jnp.ones((3, 2)))]],
        )
    with pytest.raises(ValueError, match=r"`kernels\[0\]`, a Matern.* 2; .* needs 4"):
        solve(problem_1d(), covariance.Matern(0.7, nu=1.5))
    with pytest.raises(ValueError, match=r"not linear in u: use `newton_collocation`"):
        solve(problem_2d(cubic), kernel)
    with pytest.raises(ValueError, match="not positive definite, nor with a jitter of"):
        solve(problem_2d(), Indefinite(), is_jitted=False)
    four = pde.Problem(lambda u: u(2, 0, 0, 0), [np.linspace(0, 1, 3)] * 4, 0.0, 0.0)
    with pytest.raises(ValueError, match=r"`problem` must have 1 to 3 axes, got 4"):
        solve(four, kernel)
    for jitter in (0.0, -1e-6):
        with pytest.raises(
            ValueError, match=r"`jitter` must be positive and finite, got"
        ):
            solve(problem_1d(), kernel, jitter=jitter)


def test_the_likelihood_of_two_axes_is_that_of_their_lines():
    """Shape (7, 5): as draws, 5 lines of 7 points and 7 of 5, each axis for itself."""
    x, y = np.linspace(0, 1, 7), np.linspace(0, 2, 5)
    source = np.random.default_rng(4).normal(size=(7, 5))

    def of(points, ell, lines):
        k = matern(ell, points, points, 0, 0) + 1e-12 * np.eye(len(points))
        variance = np.sum(lines * np.linalg.solve(k, lines)) / lines.size
        logdet = np.linalg.slogdet(2 * np.pi * variance * k)[1]
        return -(logdet + len(points)) / 2

    with x64(True):
        problem = pde.Problem(lambda u: u(2, 0) + u(0, 2), (x, y), source, 0.0)
        found = solve(problem, [covariance.Matern(0.5), covariance.Matern(0.6)])
    want = of(x, 0.5, source) + of(y, 0.6, source.T)
    np.testing.assert_allclose(found.log_marginal_likelihood, want, rtol=1e-8)


def test_no_data_train_nothing():
    """A source of 0, and a boundary of 0 on all faces that axis 0's lines have."""
    points = np.linspace(0, 1, 9)
    with x64(True):
        problem = pde.Problem(
            lambda u: u(2, 0) + u(0, 2) - u(),
            (points, points),
            *(0.0, 1.0),
            faces=((0, 0), (0, -1)),
        )
        found = train(problem, covariance.SquaredExponential(0.3), max_evaluations=10)
    np.testing.assert_allclose(found.kernels[0].lengthscale, 0.3)


@pytest.mark.slow
def test_with_several_starts_the_source_has_derivatives_too():
    x = np.linspace(0, 1, 12)

    def total(scale):
        problem = pde.manufactured(
            lambda u: u(2), lambda x: scale * jnp.sin(3 * x), (x,)
        )
        starts = [covariance.Matern(0.3), covariance.Matern(0.6)]
        found = pde.collocation_solve(problem, [starts], max_evaluations=12)
        return jnp.sum(found.solution)

    with x64(True):
        np.testing.assert_allclose(jax.grad(total)(1.5), total(1.0), rtol=1e-3)
