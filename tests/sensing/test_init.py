"""Starts against the formulas in NumPy."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jaxlr import sensing
from jaxlr.core.compat import x64
from jaxlr.sensing import init


def block():
    """Observes the upper left 30-by-20 block of 100 by 80: a share of .075."""
    rows, cols = np.indices((30, 20))
    return sensing.entries(rows.ravel(), cols.ravel(), (100, 80))


@pytest.mark.parametrize("name", ["gaussian", "entries", "sparse", "identity"])
def test_spectral_is_the_best_approximation_in_balance(name):
    with x64(True):
        operator = {
            "gaussian": lambda: sensing.gaussian(jr.key(0), (12, 10), 60),
            "entries": lambda: sensing.entry_sampling(jr.key(0), (12, 10), 60),
            "sparse": block,
            "identity": lambda: sensing.identity((12, 10)),
        }[name]()
        # For the block, A*(y) has rank 3, so that the subspace iteration is exact.
        truth = sensing.low_rank(jr.key(1), operator.shape, 3, condition=4.0)
        y = operator.apply(truth)
        f, g = map(np.asarray, init.spectral(operator, y, 2))
        back = np.asarray(operator.adjoint(y)) / operator.isotropy
    u, s, vt = np.linalg.svd(back)
    np.testing.assert_allclose(f @ g.T, (u[:, :2] * s[:2]) @ vt[:2], atol=1e-11)
    for x in (f, g):
        np.testing.assert_allclose(x.T @ x, np.diag(s[:2]), atol=1e-11)


def test_spectral_of_few_entries_never_forms_the_matrix():
    n, m = 4096, 40_000
    index = np.random.default_rng(0).integers(0, n, (2, m))

    def start(y, rows, cols):
        return init.spectral(sensing.entries(rows, cols, (n, n)), y, 3)

    memory = jax.jit(start).lower(jnp.ones(m), *index).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 4 * n * n / 3


def test_spectral_symmetric_is_the_positive_part():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(6, 6))
    values, vectors = np.linalg.eigh((y + y.T) / 2)
    num_positive = int((values > 0).sum())
    assert 1 < num_positive < 6
    with x64(True):
        operator = sensing.identity((6, 6))
        for k in (1, 6):
            f, g = init.spectral(operator, jnp.asarray(y), k, is_symmetric=True)
            np.testing.assert_array_equal(f, g)
            top = np.maximum(values[-k:], 0)
            want = (vectors[:, -k:] * top) @ vectors[:, -k:].T
            np.testing.assert_allclose(f @ f.T, want, atol=1e-12)
        assert not np.any(f[:, num_positive:])


def test_sign_spectral_ignores_the_size_of_outliers():
    with x64(True):
        operator = sensing.gaussian(jr.key(0), (8, 8), 50)
        y = np.random.default_rng(0).normal(size=50)
        f = init.sign_spectral(operator, jnp.asarray(y), 3, alpha=0.1)
        # The entries N(0, 1) of the raw ensemble, of which operator.adjoint has
        # 1/sqrt(m) already.
        back = np.asarray(operator.adjoint(jnp.asarray(np.sign(y)))) / np.sqrt(50)
        values, vectors = np.linalg.eigh((back + back.T) / 2)
        want = (vectors[:, -3:] * np.maximum(values[-3:], 0)) @ vectors[:, -3:].T
        np.testing.assert_allclose(f @ f.T, 0.01 * want, atol=1e-14)
        y[3] *= 1e6
        far = init.sign_spectral(operator, jnp.asarray(y), 3, alpha=0.1)
        np.testing.assert_array_equal(f, far)


@pytest.mark.parametrize("alpha", [0.1, 0.7, 1.3])
@pytest.mark.parametrize("is_x64", [False, True])
def test_small_random_draws_alpha_and_a_third_of_it(alpha, is_x64):
    with x64(is_x64):
        f_key, g_key = jr.split(jr.key(4))
        f, g = init.small_random(jr.key(4), (7, 5), 9, alpha=alpha)
        want_f = jr.normal(f_key, (7, 9)) * jnp.asarray(alpha / 7**0.5, float)
        want_g = jr.normal(g_key, (5, 9)) * jnp.asarray(alpha / 3 / 5**0.5, float)
        np.testing.assert_array_equal(f, want_f)
        np.testing.assert_array_equal(g, want_g)
        even = init.small_random(jr.key(4), (7, 5), 9, alpha=alpha, imbalance=1.0)
        np.testing.assert_allclose(even[1], 3 * g, rtol=1e-6)
        x, same = init.small_random(
            jr.key(4), (7, 7), 9, alpha=alpha, is_symmetric=True
        )
        np.testing.assert_array_equal(x, f)
        np.testing.assert_array_equal(x, same)


def test_starts_are_of_the_type_of_the_measurements():
    with x64(True):
        for operator in (sensing.identity((30, 20)), block()):
            y = jnp.ones(operator.measurement_shape, jnp.float32)
            for x in init.spectral(operator, y, 2):
                assert x.dtype == jnp.float32


@pytest.mark.misuse
def test_misuse_is_named():
    operator = sensing.identity((5, 4))
    y = jnp.ones((5, 4))
    for bad in (0, 5, 2.5):
        with pytest.raises(ValueError, match=rf"`num_columns`.*1\.\.4.*got {bad}"):
            init.spectral(operator, y, bad)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"square matrix, got \(5, 4\)"):
        init.spectral(operator, y, 2, is_symmetric=True)
    with pytest.raises(ValueError, match=r"square matrix, got \(5, 4\)"):
        init.sign_spectral(operator, y, 2, alpha=0.1)
    with pytest.raises(ValueError, match=r"`num_columns`.*>= 1, got 0"):
        init.small_random(jr.key(0), (5, 4), 0, alpha=1.0)
    with pytest.raises(
        ValueError, match=r"`imbalance` must be positive and finite, got 0"
    ):
        init.small_random(jr.key(0), (5, 4), 2, alpha=1.0, imbalance=0.0)
