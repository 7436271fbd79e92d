"""The randomized decomposition against NumPy's full one, in float64."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jaxlr import linalg
from jaxlr.core.compat import x64


def matrix(spectrum, shape=(40, 30), seed=0):
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.normal(size=(n, len(spectrum))))[0] for n in shape)
    return (u * spectrum) @ v.T


def decompose(a, rank, key=0, **settings):
    a = jnp.asarray(a)
    return linalg.randomized_svd(
        jr.key(key), lambda x: a @ x, lambda x: a.T @ x, a.shape, rank, **settings
    )


@pytest.mark.parametrize("shape", [(30, 40), (5, 4)])
def test_a_matrix_of_low_rank_is_exact_without_iterations(shape):
    spectrum = np.array([3.0, 1.0, 1.0, 1e-3])
    a = matrix(spectrum, shape)
    with x64(True):
        u, s, vt = map(np.asarray, decompose(a, 4, num_iterations=0))
    np.testing.assert_allclose(s, spectrum, atol=1e-13)
    np.testing.assert_allclose((u * s) @ vt, a, atol=1e-13)
    np.testing.assert_allclose(u.T @ u, np.eye(4), atol=1e-13)
    np.testing.assert_allclose(vt @ vt.T, np.eye(4), atol=1e-13)


def test_iterations_damp_what_is_not_sought():
    spectrum = 0.7 ** np.arange(30)
    a = matrix(spectrum)
    u, s, vt = np.linalg.svd(a)
    best = (u[:, :3] * s[:3]) @ vt[:3]
    errors = []
    with x64(True):
        for num_iterations in (0, 2, 6):
            u, s, vt = map(
                np.asarray, decompose(a, 3, num_iterations=num_iterations, num_extra=2)
            )
            errors.append(np.linalg.norm((u * s) @ vt - best))
    assert errors[0] > 1e-2
    # By (s_6 / s_3)^(2 q) and more: .343^4, and .343^12 = 2.6e-6.
    assert errors[1] < 0.02 * errors[0]
    assert errors[2] < 1e-5 * errors[0]


def test_under_vmap_it_equals_a_loop():
    with x64(True):
        stack = jnp.stack([matrix(0.5 ** np.arange(6), seed=i) for i in range(3)])
        batched = jax.vmap(lambda a: decompose(a, 2, num_iterations=1))(stack)
        for i in range(3):
            one = decompose(stack[i], 2, num_iterations=1)
            for got, want in zip(batched, one, strict=True):
                np.testing.assert_allclose(got[i], want, atol=1e-12)


def test_the_type_is_that_asked_for():
    with x64(True):
        a = jnp.asarray(matrix(np.ones(2)), jnp.float32)
        for x in decompose(a, 2, dtype=jnp.float32):
            assert x.dtype == jnp.float32


@pytest.mark.misuse
def test_misuse_is_named():
    with pytest.raises(ValueError, match=r"`rank` must be in 1\.\.30, got 31"):
        decompose(np.ones((40, 30)), 31)
    with pytest.raises(ValueError, match=r"`num_iterations`.*got -1"):
        decompose(np.ones((40, 30)), 3, num_iterations=-1)
    for name in ("num_iterations", "num_extra"):
        with pytest.raises(ValueError, match=f"`{name}` must be .* >= 0, got 2.5"):
            decompose(np.ones((40, 30)), 3, **{name: 2.5})
    with pytest.raises(ValueError, match=r"`rank` must be an .* in 1\.\.30, got 3.0"):
        decompose(np.ones((40, 30)), 3.0)
