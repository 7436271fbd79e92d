"""Lanczos and what is built on it, against NumPy's dense decompositions in float64."""

import functools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jaxlr import linalg
from jaxlr.core.compat import x64


def matrix(spectrum, seed=0):
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.normal(size=(len(spectrum),) * 2))[0]
    return (q * spectrum) @ q.T


def start(n, seed=1):
    return np.random.default_rng(seed).normal(size=n)


def decompose(a, v, num_steps):
    return linalg.lanczos(lambda x: linalg.matmul(a, x), v, num_steps)


lanczos = jax.jit(decompose, static_argnums=2)
ritz = jax.jit(lambda a, v, k: linalg.ritz(decompose(a, v, k)), static_argnums=2)


@pytest.mark.parametrize("num_steps", [1, 7, 30])
def test_the_basis_makes_the_matrix_tridiagonal(num_steps):
    a, v = matrix(np.linspace(-1, 3, 30) ** 3), start(30)
    with x64(True):
        alphas, betas, q = map(
            np.asarray, lanczos(jnp.asarray(a), jnp.asarray(v), num_steps)
        )
    t = np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1)
    np.testing.assert_allclose(q @ q.T, np.eye(num_steps), atol=1e-13)
    np.testing.assert_allclose(q @ a @ q.T, t, atol=1e-12)
    np.testing.assert_allclose(q[0], v / np.linalg.norm(v), atol=1e-15)
    rest = a @ q[-1] - q.T @ (q @ a @ q[-1])
    np.testing.assert_allclose(np.linalg.norm(rest), betas[-1], atol=1e-11)


def test_float32_stays_orthogonal_where_the_plain_recurrence_does_not():
    a, v = matrix(0.5 ** np.arange(60)), start(60)
    q = np.asarray(lanczos(jnp.float32(a), jnp.float32(v), 20).basis)
    assert q.dtype == np.float32
    np.testing.assert_allclose(q @ q.T, np.eye(20), atol=1e-5)


def test_ritz_values_and_their_bounds():
    a, v = matrix(np.concatenate([np.linspace(0, 1, 60), [1.5, 3.0]])), start(62)
    exact = np.linalg.eigvalsh(a)
    with x64(True):
        values, _, residuals = map(np.asarray, ritz(jnp.asarray(a), jnp.asarray(v), 12))
    assert np.all(np.diff(values) > 0)
    assert values[-1] <= exact[-1] + 1e-13
    distance = np.abs(values[:, None] - exact).min(1)
    assert np.all(distance <= residuals + 1e-13)
    assert 0 < residuals[-1] < 1e-4 < residuals[5]


def test_weights_are_a_gauss_rule():
    """Those of k nodes are exact to the degree 2 k - 1, and not beyond."""
    a, v = matrix(np.linspace(-1, 1, 30)), start(30)
    with x64(True):
        values, weights, _ = map(np.asarray, ritz(jnp.asarray(a), jnp.asarray(v), 4))
    u = v / np.linalg.norm(v)
    want = np.array([u @ np.linalg.matrix_power(a, p) @ u for p in range(9)])
    got = np.array([weights @ values**p for p in range(9)])
    np.testing.assert_allclose(got[:8], want[:8], atol=1e-14)
    assert abs(got[8] / want[8] - 1) > 0.01


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sign", [1, -1])
def test_an_invariant_subspace_ends_it_without_false_eigenvalues(dtype, sign):
    values = sign * np.array([2.0, 2, 2, 2, 5, 5, 5, 5])
    with x64(dtype == np.float64):
        a, v = jnp.asarray(matrix(values), dtype), jnp.asarray(start(8), dtype)
        alphas, betas, basis = map(np.asarray, lanczos(a, v, 6))
        found = linalg.ritz(linalg.Lanczos(*map(jnp.asarray, (alphas, betas, basis))))
    found = linalg.Ritz(*map(np.asarray, found))
    atol = 100 * np.finfo(dtype).eps
    np.testing.assert_array_equal(betas[1:], 0)
    np.testing.assert_array_equal(basis[2:], 0)
    low, high = found.values[0], found.values[-1]
    np.testing.assert_allclose([low, high], sorted({*values}), atol=atol)
    u = start(8) / np.linalg.norm(start(8))
    want = u @ np.linalg.inv(matrix(values)) @ u
    np.testing.assert_allclose(
        np.sum(found.weights / found.values), want, atol=atol
    )  # 1 / 0, were the padding zero


def test_an_eigenvector_and_the_zero_matrix():
    with x64(True):
        for a in (jnp.zeros((3, 3)), jnp.diag(jnp.array([3.0, 1.0, 0.0]))):
            found = ritz(a, jnp.array([1.0, 0, 0]), 3)
            np.testing.assert_array_equal(found.values, a[0, 0])
            np.testing.assert_allclose(jnp.sum(found.weights), 1)
            np.testing.assert_array_equal(found.residuals, 0)

        @jax.jit
        @jax.grad
        def slope(a):
            found = decompose(a, jnp.array([1.0, 0, 0]), 3)
            return jnp.sum(found.alphas) + jnp.sum(found.betas)

        # Three times the first entry; what is zero in them has no derivative.
        np.testing.assert_array_equal(slope(a), np.diag([3.0, 0, 0]))


def test_transforms():
    with x64(True):
        stack = jnp.stack([matrix(np.arange(1.0, 9), seed=i) for i in range(3)])
        v = jnp.asarray(start(8))
        batch = jax.jit(jax.vmap(lambda a: linalg.ritz(decompose(a, v, 4))))(stack)
        for i in range(3):
            np.testing.assert_allclose(
                batch.values[i], ritz(stack[i], v, 4).values, rtol=1e-11
            )

        def top(scale):
            return linalg.ritz(decompose(stack[0] + scale * stack[1], v, 4)).values[-1]

        slope, top = jax.jit(jax.grad(top))(0.5), jax.jit(top)
        want = (top(0.5 + 1e-5) - top(0.5 - 1e-5)) / 2e-5
        np.testing.assert_allclose(slope, want, rtol=1e-7)


def test_hutchinson_is_within_its_error_and_the_error_is_right():
    a = matrix(np.linspace(-1, 2, 40))
    off = 2 * np.sum((a - np.diag(np.diag(a))) ** 2)
    with x64(True):
        b = jnp.asarray(a)

        def trace(key):
            return linalg.stochastic_trace(key, lambda x: b @ x, 40, batch_size=30)

        value, error = jax.jit(jax.vmap(trace))(jr.split(jr.key(0), 50))
    value, error = np.asarray(value), np.asarray(error)
    z = (value - np.trace(a)) / error
    assert np.abs(z).max() < 4
    assert 0.7 < np.std(z) < 1.3
    np.testing.assert_allclose(np.mean(error), np.sqrt(off / 100), rtol=0.05)


def test_the_batch_size_changes_nothing():
    with x64(True):
        b = jnp.asarray(matrix(np.arange(1.0, 13)))

        @functools.partial(jax.jit, static_argnums=0)
        def density(batch_size):
            return linalg.stochastic_lanczos(
                jr.key(0),
                lambda x: b @ x,
                12,
                num_probes=5,
                num_steps=4,
                batch_size=batch_size,
            )

        one, two, many = map(density, (1, 2, 100))
        assert one.values.shape == (5, 4)
        for other in (two, many):
            np.testing.assert_allclose(one.values, other.values, rtol=1e-10)


def test_log_determinant_by_quadrature():
    a = matrix(np.geomspace(0.1, 10, 50))
    with x64(True):
        b = jnp.asarray(a)

        @jax.jit
        def density(key):
            return linalg.stochastic_lanczos(
                key, lambda x: b @ x, 50, num_probes=200, num_steps=25, batch_size=50
            )

        found = density(jr.key(0))
        logdet, error = map(float, linalg.quadrature_trace(jnp.log, found, 50))
        trace, _ = map(float, linalg.quadrature_trace(lambda x: x, found, 50))
        count, spread = map(float, linalg.quadrature_trace(jnp.ones_like, found, 50))
    want = np.linalg.slogdet(a)[1]
    assert abs(logdet - want) < 3 * error < 3
    np.testing.assert_allclose(trace, np.trace(a), rtol=0.05)
    np.testing.assert_allclose([count, spread], [50, 0], atol=1e-11)


@pytest.mark.misuse
def test_misuse_is_named():
    a, key = jnp.eye(4), jr.key(0)
    with pytest.raises(ValueError, match=r"`num_steps` must be in 1\.\.4, got 5"):
        decompose(a, jnp.ones(4), 5)
    with pytest.raises(ValueError, match=r"`start` must be a vector.*\(4, 4\)"):
        decompose(a, a, 2)
    with pytest.raises(
        ValueError, match=r"`num_steps` must be an .* in 1\.\.4, got 2.0"
    ):
        decompose(a, jnp.ones(4), 2.0)
    for settings, text in (
        ({"num_samples": 0}, r"`num_samples` must be an integer >= 1, got 0"),
        ({"num_samples": 2.5}, r"`num_samples` must be an integer >= 1, got 2.5"),
        ({"num_samples": 1}, r"2 draws or more, got 1"),
        ({"batch_size": 0}, r"`batch_size` must be an integer >= 1, got 0"),
        ({"batch_size": 2.0}, r"`batch_size` must be an integer >= 1, got 2.0"),
        ({"size": 4.0}, r"`size` must be an integer >= 1, got 4.0"),
    ):
        with pytest.raises(ValueError, match=text):
            linalg.stochastic_trace(key, lambda x: x, **{"size": 4, **settings})
    with pytest.raises(
        ValueError, match=r"`num_probes` must be an integer >= 1, got 0"
    ):
        linalg.stochastic_lanczos(key, lambda x: x, 4, num_probes=0, num_steps=2)


@pytest.mark.misuse
def test_integers_of_numpy_are_counts():
    key, two = jr.key(0), np.int64(2)
    settings = {"num_probes": two, "num_steps": two, "batch_size": two}
    density = linalg.stochastic_lanczos(key, lambda x: 3 * x, two, **settings)
    trace, _ = linalg.quadrature_trace(jnp.log, density, two)
    np.testing.assert_allclose(trace, 2 * np.log(3), rtol=1e-6)
    trace, _ = linalg.stochastic_trace(key, lambda x: 3 * x, two, num_samples=two)
    np.testing.assert_allclose(trace, 6)


@pytest.mark.parametrize("batch_size", [1, 3, 9])
def test_draws_are_those_of_the_split_keys(batch_size):
    key = jr.key(4)
    found = linalg.map_draws(lambda key: jr.normal(key, (2,)), key, 5, "n", batch_size)
    want = [jr.normal(k, (2,)) for k in jr.split(key, 5)]
    np.testing.assert_allclose(found, want, rtol=1e-6)
