"""Products, decompositions and random bases against float64 NumPy."""

from hypothesis import given, settings, strategies as st
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jaxlr import linalg
from jaxlr.core.compat import x64


def factors(seed, p, q, k):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(p, k)), rng.normal(size=(q, k))


@settings(max_examples=15, deadline=None)
@given(p=st.integers(1, 7), q=st.integers(1, 7), k=st.integers(1, 7))
def test_product_svd_is_that_of_the_product(p, q, k):
    f, g = factors(0, p, q, k)
    with x64(True):
        u, s, vt = map(np.asarray, linalg.product_svd(jnp.asarray(f), jnp.asarray(g)))
    want = np.linalg.svd(f @ g.T, compute_uv=False)
    few = min(len(s), len(want))
    np.testing.assert_allclose(s[:few], want[:few], atol=1e-12)
    np.testing.assert_allclose((u * s) @ vt, f @ g.T, atol=1e-12)
    np.testing.assert_allclose(u.T @ u, np.eye(len(s)), atol=1e-12)
    np.testing.assert_allclose(vt @ vt.T, np.eye(len(s)), atol=1e-12)
    assert np.all(np.diff(s) <= 0)


@pytest.mark.parametrize("shape", [(100, 100, 100), (37, 41), (1,), (), (0, 3)])
def test_the_total_of_equal_numbers_is_exact_to_rounding(shape):
    x = np.full(shape, np.log(1e-3), np.float32)
    total = jax.jit(linalg.total)(x)
    assert total.shape == ()
    np.testing.assert_allclose(total, np.sum(x.astype(np.float64)), rtol=1.2e-7)
    slope = jax.grad(linalg.total)(x)
    np.testing.assert_array_equal(slope, np.ones(shape))


def test_product_svd_never_forms_the_product():
    n = 4096
    f = jax.ShapeDtypeStruct((n, 2), jnp.float32)
    memory = jax.jit(linalg.product_svd).lower(f, f).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 4 * n * n / 16


def test_product_svd_has_a_gradient():
    f, g = factors(1, 6, 5, 3)
    with x64(True):
        f, g = jnp.asarray(f), jnp.asarray(g)
        nuclear = jax.grad(lambda f: jnp.sum(linalg.product_svd(f, g)[1]))(f)
        # The nuclear norm's gradient is U V^T, so in F it is U V^T G.
        u, _, vt = np.linalg.svd(f @ g.T, full_matrices=False)
        want = u[:, :3] @ vt[:3] @ g
    np.testing.assert_allclose(nuclear, want, atol=1e-10)


def test_product_svd_under_vmap_equals_a_loop():
    with x64(True):
        f, g = (jnp.stack([factors(i, 6, 5, 3)[j] for i in range(3)]) for j in (0, 1))
        batched = jax.vmap(linalg.product_svd)(f, g)
        for i in range(3):
            one = linalg.product_svd(f[i], g[i])
            for got, want in zip(batched, one, strict=True):
                np.testing.assert_allclose(got[i], want, atol=1e-12)


def test_random_orthonormal_is_haar():
    with x64(True):
        keys = jr.split(jr.key(0), 4000)
        q = np.asarray(jax.vmap(lambda k: linalg.random_orthonormal(k, 3, 2))(keys))
    np.testing.assert_allclose(
        q.mT @ q, np.broadcast_to(np.eye(2), (4000, 2, 2)), atol=1e-12
    )
    # Invariance under rotations: every entry has mean 0 and variance 1/3. The raw Q of
    # a QR decomposition fails the first.
    np.testing.assert_allclose(q.mean(0), 0, atol=5 / np.sqrt(3 * 4000))
    np.testing.assert_allclose((q**2).mean(0), 1 / 3, atol=0.03)


def test_matmul_asks_for_full_precision():
    text = str(jax.make_jaxpr(linalg.matmul)(jnp.ones((2, 2)), jnp.ones((2, 2))))
    assert "HIGHEST" in text


@pytest.mark.misuse
def test_misuse_is_named():
    with pytest.raises(ValueError, match=r"`f` and `g`.*\(3, 2\) and \(3, 1\)"):
        linalg.product_svd(jnp.ones((3, 2)), jnp.ones((3, 1)))
    with pytest.raises(ValueError, match=r"`num_rows` must be an .* >= 1, got 3\.0"):
        linalg.random_orthonormal(jr.key(0), 3.0, 2)  # pyright: ignore
    with pytest.raises(ValueError, match=r"`num_columns` must be in 1\.\.3.*got 4"):
        linalg.random_orthonormal(jr.key(0), 3, 4)
