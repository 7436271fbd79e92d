"""GP-HM's objective against its definition: dense Kronecker products in NumPy."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlr import core, pde
from jaxlr.core.compat import x64
from tests.covariance._oracle import derivative, spectral_mixture


def cubic(u):
    return u() * (u() ** 2 - 1)


# equation, points of every axis, component, faces
CASES = {
    "poisson_1d": (lambda u: u(2), [9], "gaussian", None),
    "allen_cahn_1d": (lambda u: u(2) + cubic(u), [9], "student", None),
    "high_orders": (lambda u: u(4) - 2 * u(3) + u(), [7], "gaussian", ()),
    "allen_cahn_2d": (
        lambda u: u(2, 0) + u(0, 2) + cubic(u),
        *([5, 7], "student", None),
    ),
    "advection": (
        lambda u: 20 * u(1, 0) + u(0, 1),
        *([6, 5], "gaussian", ((0, 0), (1, 0))),
    ),
    "mixed_3d": (
        lambda u: u(1, 0, 1) + u(0, 1, 2) * u(0, 2, 0),
        *([3, 4, 5], "gaussian", ((0, 0), (1, -1))),
    ),
}


def draw(name, num=None, seed=0):
    """Random parameters and a random problem on a box."""
    equation, sizes, component, faces = CASES[name]
    sizes = [num] if num else sizes
    rng = np.random.default_rng(seed)
    grid = [np.linspace(0.5, 1.5 + 0.1 * i, n) for i, n in enumerate(sizes)]
    problem = pde.Problem(
        equation, grid, 3 * rng.normal(size=sizes), rng.normal(size=sizes), None, faces
    )

    def logs():
        return tuple(jnp.asarray(rng.normal(size=3) / 2) for _ in sizes)

    params = pde.GPHM(
        jnp.asarray(rng.normal(size=sizes)),
        logs(),
        tuple(1 + log for log in logs()),
        tuple(jnp.asarray([0.1, 0.9, 2.1]) + log / 9 for log in logs()),
        jnp.asarray(0.3),
        jnp.asarray(-0.7),
        component,
    )
    return params, problem


def oracle(params, problem, weight, jitter):
    """Every matrix of N x N made and solved with."""
    functions = [
        spectral_mixture(w, np.exp(rho), mu, params.component)
        for w, rho, mu in zip(
            *(
                [np.asarray(x) for x in leaf]
                for leaf in (params.log_weights, params.log_rates, params.frequencies)
            ),
            strict=True,
        )
    ]
    differences = [np.asarray(x)[:, None] - np.asarray(x) for x in problem.grid]
    u = np.asarray(params.u)

    def kron(orders):
        """Of the covariance between derivatives and values, without jitter."""
        factors = [
            derivative(f, d, order, 0.1)
            for f, d, order in zip(functions, differences, orders, strict=True)
        ]
        return factors

    noisy = [c + jitter * np.eye(len(c)) for c in kron([0] * u.ndim)]
    full = functools.reduce(np.kron, noisy)

    def unknown(*orders):
        if not any(orders):
            return u
        factors = [
            c if order else full_axis
            for c, order, full_axis in zip(kron(orders), orders, noisy, strict=True)
        ]
        cross = functools.reduce(np.kron, factors)
        return (cross @ np.linalg.solve(full, u.ravel())).reshape(u.shape)

    def log_normal(gap, log_tau):
        return gap.size * log_tau / 2 - np.exp(log_tau) * np.sum(gap**2) / 2

    total = -np.linalg.slogdet(full)[1] / 2
    total -= u.ravel() @ np.linalg.solve(full, u.ravel()) / 2
    boundary = np.asarray(problem.boundary)
    for axis, side in problem.faces:
        gap = np.take(u, side, axis) - np.take(boundary, side, axis)
        total += weight * log_normal(gap, np.asarray(params.log_tau_boundary))
    residual = problem.equation(unknown) - np.asarray(problem.source)
    return total + log_normal(residual, np.asarray(params.log_tau_equation))


def log_joint(params, problem, weight=7.0, jitter=1e-2):
    return pde.gp_hm_log_joint(params, problem, boundary_weight=weight, jitter=jitter)


def move(params, direction, size):
    return jax.tree.map(lambda x, d: x + size * d, params, direction)


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient(name):
    with x64(True):
        params, problem = draw(name)
        value, gradient = jax.jit(jax.value_and_grad(log_joint))(params, problem)
        want = oracle(params, problem, 7.0, 1e-2)
        np.testing.assert_allclose(value, want, rtol=1e-10)
        # Every array of the parameters by itself, along a random direction.
        leaves, tree = jax.tree.flatten(params)
        rng = np.random.default_rng(1)
        for i, leaf in enumerate(leaves):
            direction = [np.zeros(x.shape) for x in leaves]
            direction[i] = rng.normal(size=leaf.shape)
            direction = jax.tree.unflatten(tree, direction)
            sides = [
                oracle(move(params, direction, step), problem, 7.0, 1e-2)
                for step in (1e-5, -1e-5)
            ]
            want = (sides[0] - sides[1]) / 2e-5
            got = optax.tree.vdot(gradient, direction)
            np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6 * abs(value))


def test_the_gradient_may_be_differentiated():
    with x64(True):
        params, problem = draw("allen_cahn_1d")
        slope = jax.jit(jax.grad(log_joint))
        direction = jax.tree.map(jnp.ones_like, params)

        @jax.jit
        @jax.grad
        def curvature(params):
            return optax.tree.vdot(jax.grad(log_joint)(params, problem), direction)

        high, low = (
            slope(move(params, direction, step), problem) for step in (1e-5, -1e-5)
        )
        for got, a, b in zip(
            *map(jax.tree.leaves, (curvature(params), high, low)), strict=True
        ):
            want = (a - b) / 2e-5
            np.testing.assert_allclose(
                got, want, rtol=1e-6, atol=1e-6 * np.max(np.abs(want))
            )


def test_at_the_jitter_of_training():
    """What is lost in solves with a matrix of condition 1e7 is not the objective."""
    with x64(True):
        params, problem = draw("poisson_1d", num=60)
        x = problem.grid[0]
        params = eqx.tree_at(lambda p: p.u, params, jnp.sin(4 * x))
        value, gradient = jax.jit(
            jax.value_and_grad(functools.partial(log_joint, jitter=1e-6))
        )(params, problem)
        np.testing.assert_allclose(value, oracle(params, problem, 7, 1e-6), rtol=1e-8)
        w, rest = params.log_weights[0], lambda p: p.log_weights[0]
        sides = [
            oracle(eqx.tree_at(rest, params, w + step), problem, 7, 1e-6)
            for step in (1e-4, -1e-4)
        ]
        want = (sides[0] - sides[1]) / 2e-4
        np.testing.assert_allclose(jnp.sum(rest(gradient)), want, rtol=1e-5)


def test_one_factorization_an_axis():
    with x64(True):
        params, problem = draw("mixed_3d")
        program = str(jax.make_jaxpr(jax.grad(log_joint))(params, problem))
    assert program.count("name=cholesky") == 3


def test_it_starts_as_the_original():
    with x64(True):
        _, problem = draw("advection")
        params = pde.gp_hm_init(problem, 20.0, num_components=5, component="student")
        assert params.u.shape == problem.shape
        assert not np.any(params.u)
        for kernel in params.kernels:
            assert kernel.component == "student"
            np.testing.assert_allclose(np.exp(kernel.log_weights), 0.2, rtol=1e-14)
            np.testing.assert_array_equal(kernel.rates, 1)
            np.testing.assert_allclose(kernel.frequencies, [0, 5, 10, 15, 20])
        assert params.log_tau_boundary == params.log_tau_equation == 0


@pytest.mark.parametrize("name", ["allen_cahn_1d", "mixed_3d"])
def test_prediction(name):
    with x64(True):
        params, problem = draw(name)
        points = [x[:2] + 0.03 for x in problem.grid]
        got = jax.jit(pde.gp_hm_predict)(params, problem, points, jitter=1e-2)
        want = params.u
        for axis, x in enumerate(problem.grid):
            f = spectral_mixture(
                *(np.asarray(leaf[axis]) for leaf in (params.log_weights,)),
                np.exp(np.asarray(params.log_rates[axis])),
                np.asarray(params.frequencies[axis]),
                params.component,
            )
            x, new = np.asarray(x), np.asarray(points[axis])
            c = derivative(f, x[:, None] - x) + 1e-2 * np.eye(len(x))
            weights = np.linalg.solve(c, derivative(f, x[:, None] - new))
            want = np.moveaxis(np.tensordot(want, weights, (axis, 0)), -1, axis)
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_training_descends():
    """Lanes of a vmap, one for each weight of the boundary, in one program."""
    with x64(True):
        grid = [jnp.linspace(0, 1, 40)]
        problem = pde.manufactured(lambda u: u(2), lambda x: jnp.sin(25 * x), grid)

        @jax.jit
        @jax.vmap
        def train(weight):
            solver = core.from_optax(
                lambda params: -log_joint(params, problem, weight, 1e-6),
                optax.adam(1e-2),
                lambda key: pde.gp_hm_init(problem, 8.0, num_components=9),
            )
            state, infos = core.loop.run(jax.random.key(0), solver, 400)
            return state.params, infos.loss

        params, losses = train(jnp.array([200.0, 50.0]))
        for lane in range(2):
            assert problem.error(params.u[lane]) < 0.5
            assert losses[lane, -1] < losses[lane, 0] / 100


@pytest.mark.misuse
def test_misuse_is_named():
    params, problem = draw("poisson_1d")
    wide = pde.Problem(lambda u: u(2), [np.arange(4.0)], 0.0, 0.0)
    bent = pde.Problem(lambda u: u(2), [np.arange(9.0) ** 2], 0.0, 0.0)
    steep = pde.Problem(lambda u: u(5), problem.grid, 0.0, 0.0)
    for other, text in (
        (wide, r"`params\.u` must be of the grid's shape \(4,\), got \(9,\)"),
        (bent, r"grid must be regular for Toeplitz matrices: steps go from 1"),
        (steep, r"`order` must be in 0\.\.4.* got 5"),
    ):
        with pytest.raises(ValueError, match=text):
            pde.gp_hm_log_joint(params, other)
    with pytest.raises(ValueError, match=r"`points` must be vectors for 1 axes, got 2"):
        pde.gp_hm_predict(params, problem, [jnp.ones(2)] * 2)
    with pytest.raises(ValueError, match=r"`num_components` must be .* got 0"):
        pde.gp_hm_init(problem, 1.0, num_components=0)


def test_a_traced_grid_that_is_not_regular_gives_nan():
    problem = pde.Problem(lambda u: u(2), [np.linspace(0, 1, 9)], 1.0, 0.0)
    params = pde.gp_hm_init(problem, 3.0, num_components=3)

    @jax.jit
    def value(grid):
        return pde.gp_hm_log_joint(
            params, pde.Problem(problem.equation, [grid], 1.0, 0.0), jitter=1e-2
        )

    assert np.isfinite(value(problem.grid[0]))
    assert np.isnan(value(problem.grid[0] ** 2))
