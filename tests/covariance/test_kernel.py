"""Kernels and their derivatives against Cauchy's integrals of NumPy's values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlr import covariance
from jaxlr.core.compat import x64
from tests.covariance import _oracle
from tests.covariance._oracle import derivative


TAU = np.array([-1.9, -0.6, -1e-3, 0, 2e-4, 0.05, 0.4, 1.1, 2.3])
MIXTURE = [np.array([0.1, -0.7, 0.4]), np.array([0.8, 2.4, 0.3]), np.array([0, 0.4, 1])]


def mixture(component):
    return (
        functools.partial(covariance.SpectralMixture, component=component),
        functools.partial(_oracle.spectral_mixture, component=component),
        MIXTURE,
    )


def matern(nu):
    return (
        functools.partial(covariance.Matern, nu=nu),
        functools.partial(_oracle.matern, nu=nu),
        [0.7],
    )


def sum_of_products(ell, period, smooth, variance):
    k = covariance.SquaredExponential(ell) * covariance.Periodic(period, smooth)
    return k + variance * covariance.Matern(ell)


def sum_of_products_oracle(ell, period, smooth, variance):
    def fun(z):
        k = _oracle.squared_exponential(ell)(z) * _oracle.periodic(period, smooth)(z)
        return k + variance * _oracle.matern(ell, 2.5)(z)

    return fun


# kernel of hyper-parameters, NumPy's, their values
CASES = {
    "squared_exponential": (
        covariance.SquaredExponential,
        _oracle.squared_exponential,
        [0.7],
    ),
    "rational_quadratic": (
        covariance.RationalQuadratic,
        _oracle.rational_quadratic,
        [0.6, 2],
    ),
    "matern_1": matern(0.5),
    "matern_3": matern(1.5),
    "matern_5": matern(2.5),
    "periodic": (covariance.Periodic, _oracle.periodic, [1.7, 0.8]),
    "gaussian": mixture("gaussian"),
    "student": mixture("student"),
    "composite": (sum_of_products, sum_of_products_oracle, [0.9, 1.7, 0.8, 1.6]),
}
ORDERS = {"matern_1": 0, "matern_3": 2}


def close(got, want, tolerance):
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.max(np.abs(want)))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_and_gradients(name, dtype):
    make, oracle, values = CASES[name]
    orders = range(ORDERS.get(name, 4) + 1)

    def expected(values):
        return [derivative(oracle(*values), TAU, order) for order in orders]

    @jax.jit
    def evaluate(tau, args):
        def fun(args):
            kernel = make(*args)
            return [kernel(tau, order) for order in orders]

        return fun(args), jax.jacfwd(fun)(args)

    with x64(dtype == np.float64):
        args = [jnp.asarray(v, dtype) for v in values]
        got, jacobian = evaluate(jnp.asarray(TAU, dtype), args)
    tolerance = 1e-10 if dtype == np.float64 else 3e-6
    for order, want in zip(orders, expected(values), strict=True):
        assert got[order].dtype == dtype
        close(got[order], want, tolerance)
    for i, value in enumerate(values):
        for j in range(np.size(value)):
            sides = []
            for step in (1e-5, -1e-5):
                moved = [np.array(v, float) for v in values]
                moved[i].flat[j] += step
                sides.append(expected(moved))
            for order, high, low in zip(orders, *sides, strict=True):
                column = np.asarray(jacobian[order][i]).reshape(len(TAU), -1)[:, j]
                close(column, (high - low) / 2e-5, max(10 * tolerance, 1e-8))


@pytest.mark.parametrize("name", CASES)
def test_the_highest_order_is_known(name):
    make, _, values = CASES[name]
    with x64(True):
        assert make(*map(jnp.asarray, values)).max_order == ORDERS.get(name, 4)


def test_one_compiled_function_for_all_hyper_parameters():
    traces = []

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    def column(kernel, spacing):
        traces.append(kernel)
        return covariance.toeplitz_column(kernel, spacing, 5, order=2)

    with x64(True):
        for lengthscales in (jnp.array([0.3, 1.0, 4.0]), jnp.array([1.0, 2.0, 3.0])):
            got = column(covariance.Matern(lengthscales), 0.1)
            for ell, row in zip(lengthscales, got, strict=True):
                want = derivative(
                    _oracle.matern(float(ell), 2.5), 0.1 * np.arange(5), 2
                )
                np.testing.assert_allclose(row, want, atol=1e-11 * abs(want[0]))
    assert len(traces) == 1


def test_numbers_scale_from_either_side():
    k = covariance.Matern(0.5)
    for scaled in (2 * k, k * 2.0, np.float64(2) * k, jnp.float32(2) * k):
        np.testing.assert_array_equal(scaled(TAU), 2 * k(TAU))
    assert (covariance.Matern(1.0, 1.5) * k + k).max_order == 2


def test_integers_are_points():
    np.testing.assert_allclose(
        covariance.Matern(2, 0.5)(np.arange(3)), np.exp([0, -0.5, -1])
    )


@pytest.mark.parametrize("orders", [(0, 0), (1, 0), (0, 1), (1, 2), (2, 2)])
def test_gram(orders):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=4), rng.normal(size=6)
    oracle = _oracle.squared_exponential(0.7)
    want = derivative(oracle, x[:, None] - y, sum(orders)) * (-1) ** orders[1]
    with x64(True):
        k = covariance.SquaredExponential(0.7)
        got = jax.jit(covariance.gram, static_argnums=3)(k, x, y, orders)
        np.testing.assert_allclose(got, want, atol=1e-10)
        np.testing.assert_array_equal(covariance.gram(k, x), covariance.gram(k, x, x))


def test_values_and_slopes_have_a_joint_covariance():
    """Symmetric and positive definite, as only the right signs make it."""
    x = np.linspace(0, 1, 5)
    with x64(True):
        k = covariance.RationalQuadratic(0.3, 1.0)
        joint = np.block(
            [
                [covariance.gram(k, x, None, (a, b)) for b in (0, 1, 2)]
                for a in (0, 1, 2)
            ]
        )
    np.testing.assert_allclose(joint, joint.T, atol=1e-12)
    assert np.linalg.eigvalsh(joint)[0] > 0


def test_a_toeplitz_column_is_the_whole_matrix():
    i = np.arange(7)[:, None] - np.arange(7)
    with x64(True):
        k = covariance.Periodic(1.3, 0.5)
        for order in (0, 1, 4):
            column = np.asarray(covariance.toeplitz_column(k, 0.1, 7, order))
            dense = np.asarray(
                covariance.gram(k, 3 + 0.1 * np.arange(7), orders=(order, 0))
            )
            close(dense, np.where(i < 0, (-1) ** order, 1) * column[abs(i)], 1e-10)


def test_spacing():
    for dtype in (np.float32, np.float64):
        grid = np.linspace(1000, 1001, 300, dtype=dtype)  # float32 has 14 bits left
        with x64(dtype == np.float64):
            np.testing.assert_allclose(
                covariance.regular_spacing(grid), 1 / 299, rtol=1e-6
            )
            np.testing.assert_allclose(
                jax.jit(covariance.regular_spacing)(grid), 1 / 299, rtol=1e-6
            )


def test_a_kernel_of_one_number_can_make_matrices():
    covariance.check_scalar(2.0 * covariance.Matern(0.3))
    jax.vmap(lambda l: covariance.check_scalar(covariance.Matern(l)) or l)(jnp.ones(2))
    with pytest.raises(ValueError, match=r"these give values of shape \(2,\)"):
        covariance.check_scalar(covariance.Matern(jnp.ones(2)))


@pytest.mark.misuse
def test_misuse_is_named():
    k, x = covariance.Matern(1.0, 1.5), jnp.arange(3.0)
    for make, text in (
        (lambda: k(x, 3), r"`order` must be in 0\.\.2, got 3"),
        (lambda: k(x, -1), r"`order` must be .* got -1"),
        (lambda: (k * k)(x, 3), r"`order` must be in 0\.\.2, got 3"),
        (lambda: k(x, 1.0), r"`order` must be .* got 1\.0"),
        (
            lambda: covariance.Matern(1.0, 2.0),
            r"Unknown nu 2\.0;.* valid: 0\.5, 1\.5, 2\.5",
        ),
        (
            lambda: covariance.Matern(0.0),
            r"`lengthscale` must be in \(0, inf\], got 0\.0",
        ),
        (
            lambda: covariance.SquaredExponential(jnp.nan),
            r"`lengthscale` must be in \(0, inf\], got nan",
        ),
        (
            lambda: covariance.Periodic(-1.0, 1.0),
            r"`period` must be in \(0, inf\], got -1",
        ),
        (
            lambda: covariance.RationalQuadratic(1.0, 0),
            r"`alpha` must be positive and finite, got 0",
        ),
        (lambda: -1.0 * k, r"`variance` must be >= 0 and finite, got -1"),
        (lambda: x * k, r"`variance` must be a number, got shape \(3,\)"),
        (lambda: covariance.SpectralMixture(x, x, x), r"`rates` must be positive"),
        (
            lambda: covariance.SpectralMixture(x, x[1:], x),
            r"one length, .* \(3,\), \(2,\)",
        ),
        (
            lambda: covariance.SpectralMixture(x, x + 1, x, "gausian"),
            r"'gausian'; did you mean 'gaussian'",
        ),
        (lambda: covariance.gram(k, x[:, None]), r"`x` must be a vector .* \(3, 1\)"),
        (lambda: covariance.gram(k, x, jnp.ones(())), r"`y` must be a vector .* \(\)"),
        (
            lambda: covariance.gram(covariance.Matern(x + 1), x),
            r"numbers .* of shape \(3,\) instead",
        ),
        (
            lambda: covariance.gram(k, x, None, (3, -1)),
            r"`orders\[1\]` must be an integer >= 0, got -1",
        ),
        (
            lambda: covariance.regular_spacing(x**2),
            r"regular .* steps go from 1\.0 to 3\.0",
        ),
        (lambda: covariance.regular_spacing(-x), r"must be regular"),
        (
            lambda: covariance.regular_spacing(x[:1]),
            r"2 points or more, got shape \(1,\)",
        ),
    ):
        with pytest.raises(ValueError, match=text):
            make()
    with pytest.raises(TypeError, match=r"unsupported operand"):
        _ = k + 1.0


def test_an_infinite_lengthscale_makes_a_constant():
    kernels = (
        covariance.SquaredExponential(np.inf),
        covariance.RationalQuadratic(np.inf, 1.0),
        covariance.Matern(np.inf),
        covariance.Periodic(1.0, np.inf),
        covariance.Periodic(np.inf, 1.0),
    )
    tau = jnp.linspace(-1, 1, 5)
    for kernel in kernels:
        np.testing.assert_array_equal(kernel(tau), 1)
        np.testing.assert_array_equal(kernel(tau, 1), 0)
