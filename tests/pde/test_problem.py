"""Problems: the literature's, whose sources Cauchy's integrals give, and one's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlr import pde
from jaxlr.core.compat import x64
from tests.covariance._oracle import slope


def sin(x):
    return np.sin(100 * x)


def sin_cos(x):
    return np.sin(6 * x) * np.cos(100 * x)


def slow(x):
    return np.sin(6 * x) * np.cos(20 * x)


def scales(x):
    return np.sin(x) + 0.1 * np.sin(20 * x) + np.cos(100 * x)


def cubic(u):
    return u * (u**2 - 1)


# solution, source of (u, orders -> derivative), length, num, F, lambda_b
TABLE = {
    "poisson_1d_sin": (sin, lambda u: u(2), 2 * np.pi, 400, 20, 200),
    "poisson_1d_sin_cos": (sin_cos, lambda u: u(2), 2 * np.pi, 400, 20, 200),
    "poisson_1d_growing": (
        lambda x: x * np.sin(200 * x),
        lambda u: u(2),
        *(2 * np.pi, 900, 50, 200),
    ),
    "poisson_1d_scales": (
        lambda x: np.sin(x) + 0.1 * np.sin(20 * x) + 0.05 * np.sin(100 * x),
        lambda u: u(2),
        *(1, 900, 30, 200),
    ),
    "poisson_1d_parabola": (
        lambda x: np.sin(500 * x) - 2 * (x - 0.5) ** 2,
        lambda u: u(2),
        *(1, 400, 100, 200),
    ),
    "allen_cahn_1d_sin": (
        sin,
        lambda u: u(2) + cubic(u(0)),
        *(2 * np.pi, 400, 20, 200),
    ),
    "allen_cahn_1d_sin_cos": (
        sin_cos,
        lambda u: u(2) + cubic(u(0)),
        *(2 * np.pi, 400, 20, 200),
    ),
    "poisson_2d_sin": (
        lambda x, y: sin(x) * sin(y),
        lambda u: u(2, 0) + u(0, 2),
        *(2 * np.pi, 400, 20, 200),
    ),
    "poisson_2d_sin_cos": (
        lambda x, y: slow(x) + slow(y),
        lambda u: u(2, 0) + u(0, 2),
        *(2 * np.pi, 200, 20, 200),
    ),
    "allen_cahn_2d": (
        lambda x, y: scales(x) * scales(y),
        lambda u: u(2, 0) + u(0, 2) + cubic(u(0, 0)),
        *(1, 400, 30, 200),
    ),
    "advection": (
        lambda x, t: np.sin(x - 200 * t),
        lambda u: 0 * u(0, 0),
        *(1, 200, 40, 500),
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_the_literatures(name):
    solution, source, length, num, max_frequency, weight = TABLE[name]
    benchmark = pde.BENCHMARKS[name]
    assert benchmark.length == pytest.approx(length)
    assert (benchmark.num, benchmark.max_frequency) == (num, max_frequency)
    assert benchmark.boundary_weight == weight
    with x64(True):
        problem = benchmark.problem(12)
    points = np.linspace(0, length, 12)
    mesh = np.meshgrid(*(points,) * benchmark.num_axes, indexing="ij")
    for axis in problem.grid:
        np.testing.assert_allclose(axis, points, rtol=1e-15)
    for values in (problem.solution, problem.boundary):
        np.testing.assert_allclose(values, solution(*mesh), atol=1e-13)

    def unknown(*orders):
        if not any(orders):
            return solution(*mesh)
        axis = np.argmax(orders)

        def along(x):
            shifted = [m[..., None] for m in mesh]
            shifted[axis] = x
            return solution(*shifted)

        return slope(along, mesh[axis], orders[axis], 0.005)

    want = source(unknown)
    atol = 1e-9 * np.max(np.abs(want)) or 1e-12
    np.testing.assert_allclose(problem.source, want, atol=atol)


def test_they_are_all_there_and_elliptic_ones_have_all_faces():
    assert set(pde.BENCHMARKS) == set(TABLE)
    assert pde.BENCHMARKS["poisson_2d_sin"].problem(3).faces == (
        *((0, 0), (0, -1), (1, 0), (1, -1)),
    )
    assert pde.BENCHMARKS["advection"].problem(3).faces == ((0, 0), (1, 0))
    assert pde.BENCHMARKS["poisson_1d_sin"].problem().shape == (400,)


def test_a_shorter_problem_has_the_same_points_as_far_as_it_goes():
    whole = pde.BENCHMARKS["poisson_1d_sin"]
    part = whole.shorten(0.1).problem()
    np.testing.assert_allclose(part.grid[0], whole.problem().grid[0][:41], rtol=1e-6)
    assert whole.shorten(1.0) == whole
    for share in (0.0, -0.1, 1.1, 0.001):
        with pytest.raises(ValueError, match=rf"`share` .* of 400, got {share}"):
            whole.shorten(share)


def test_an_equation_of_ones_own_with_time():
    def equation(u):
        """Of heat, with a mixed derivative."""
        return u(0, 0, 1) - u(2, 0, 0) - 3 * u(1, 1, 0) + u(0, 0, 1)

    grid = [np.linspace(0, 1, n) for n in (3, 4, 5)]
    x, y, t = np.meshgrid(*grid, indexing="ij")
    with x64(True):
        problem = pde.manufactured(
            equation,
            lambda x, y, t: jnp.exp(2 * x + 3 * y) * t**2,
            grid,
            faces=((0, 0), (2, 0)),
        )
        error = problem.error(1.1 * problem.solution)
    assert problem.orders == ((0, 0, 1), (2, 0, 0), (1, 1, 0))
    want = np.exp(2 * x + 3 * y) * (4 * t - 4 * t**2 - 18 * t**2)
    np.testing.assert_allclose(problem.source, want, atol=1e-11)
    np.testing.assert_allclose(error, 0.1, rtol=1e-12)


def test_it_is_a_pytree():
    """Sources and boundaries may be mapped; the equation is static."""
    grid = [np.arange(3.0), np.arange(4.0)]

    def total(source):
        problem = pde.Problem(lambda u: u(0, 1), grid, source, 0)
        return jnp.sum(problem.source) + jnp.sum(problem.boundary)

    np.testing.assert_array_equal(jax.vmap(total)(jnp.arange(2.0)), [0, 12])
    problem = pde.Problem(lambda u: u(), grid, 1, np.zeros((3, 4)))
    assert problem.orders == ((0, 0),)
    out = jax.jit(lambda p: p)(problem)
    assert out.equation is problem.equation
    assert out.source.dtype == jnp.float32
    assert out.faces == ((0, 0), (0, -1), (1, 0), (1, -1))


@pytest.mark.misuse
def test_misuse_is_named():
    x = np.arange(3.0)

    def laplace(u):
        return u(2)

    for equation, grid, settings, text in (
        (lambda u: jnp.ones(3), [x], {}, "does not involve u"),
        (lambda u: u(2, 0), [x], {}, r"asks for u\(2, 0\).* each of 1 axes"),
        (lambda u: u(2), [x, x], {}, r"asks for u\(2,\).* each of 2 axes"),
        (lambda u: u(-1), [x], {}, r"order in u\(-1,\). must be an integer >= 0"),
        (lambda u: u(1.0), [x], {}, r"order in u\(1\.0,\). must be an integer >= 0"),
        (lambda u: jnp.sum(u()), [x], {}, r"pointwise .* shape \(3,\), got shape \(\)"),
        (laplace, [x[::-1]], {}, r"`grid` must ascend.* axis 0"),
        (lambda u: u(0, 1), [x, [0, 1, 1]], {}, r"no point twice, which axis 1"),
        (laplace, [x[:, None]], {}, r"`grid` must have vectors.*\(3, 1\)"),
        (laplace, [x[:1]], {}, r"2 points or more, got shape \(1,\)"),
        (laplace, [x], {"source": x[1:]}, r"`source` must .* \(3,\), got shape \(2,\)"),
        (laplace, [x], {"boundary": [1]}, r"`boundary` must be .* got shape \(1,\)"),
        (laplace, [x], {"solution": [1]}, r"`solution` must be .* got shape \(1,\)"),
        (laplace, [x], {"faces": ((0, 1),)}, r"face \(0, 1\).* valid: \(0, -1\)"),
    ):
        arguments = {"source": 0.0, "boundary": 0.0, **settings}
        with pytest.raises(ValueError, match=text):
            pde.Problem(equation, grid, **arguments)
    with pytest.raises(ValueError, match="no `solution`"):
        pde.Problem(laplace, [x], 0.0, 0.0).error(x)


def test_axes_stay_known_under_jit():
    """So that regular ones need one row of a kernel's matrix."""

    @jax.jit
    def run():
        grid = pde.Problem(lambda u: u(2), [np.linspace(0, 1, 5)], 0.0, 0.0).grid
        assert not isinstance(grid[0], jax.core.Tracer)
        return grid

    run()
