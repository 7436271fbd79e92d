"""Where little or nothing is seen, and where numbers are large."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlr import attention
from tests.attention._arrays import draw


@pytest.mark.parametrize(
    "implementation", ["reference", "xla", "pallas_interpret", "polynomial"]
)
def test_queries_that_see_nothing_find_0_and_have_no_gradient(implementation):
    """Nor does their log-sum-exp, -inf, at which functions have no derivatives."""
    arrays = draw((5, 6))
    lengths = jnp.array([5, 0])

    def loss(arrays):
        out, lse = attention.tensor_attention(
            *arrays,
            key_lengths=(lengths, None),
            implementation=implementation,
            return_residual=True,
        )
        squares = jnp.where(jnp.isfinite(lse), lse**2, 0)
        return jnp.sum(jnp.cos(out)) + jnp.sum(squares), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(arrays)
    np.testing.assert_array_equal(out[1], 0)
    for grad in jax.tree.leaves(grads):
        assert np.abs(grad[0]).max() > 0
        np.testing.assert_array_equal(grad[1], 0)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["reference", "xla", "polynomial"])
def test_what_lies_beyond_the_lengths_may_be_nan(implementation):
    """Known and traced lengths, some beyond the positions there are."""
    query, keys, values = draw((5, 300), size=0.4)
    lengths = jnp.array([4, 300])
    beyond = jnp.arange(300)[:, None, None] >= lengths[:, None, None, None]
    spoilt = [(x[0], jnp.where(beyond, jnp.nan, x[1])) for x in (keys, values)]

    def loss(keys, values, lengths):
        out = attention.tensor_attention(
            query, keys, values, key_lengths=lengths, implementation=implementation
        )
        return jnp.sum(jnp.sin(out))

    slopes = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    found = slopes(*spoilt, lengths)
    want = jax.value_and_grad(loss, argnums=(0, 1))(
        keys, values, (jnp.minimum(lengths, 5), lengths)
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("implementation", ["xla", "polynomial"])
def test_lengths_may_be_of_any_integer_type(implementation):
    arrays = draw((300,), size=0.4)
    found = [
        attention.tensor_attention(
            *arrays,
            key_lengths=jnp.array([3, 100], dtype),
            implementation=implementation,
        )
        for dtype in (jnp.uint8, jnp.int8, jnp.int32)
    ]
    for other in found[:2]:
        np.testing.assert_array_equal(other, found[2])


def test_small_scores_of_large_keys_are_finite_and_certain():
    """Of float32; powers of the keys alone would overflow, of the query underflow."""
    query, keys, values = draw((5, 6), size=0.3)
    arrays = 1e-6 * query, tuple(1e12 * key for key in keys), values
    options = {"scale": 1e-18, "return_residual": True}
    out, lse = attention.tensor_attention(*arrays, error_bound=1e-4, **options)
    want, want_lse = attention.tensor_attention(*arrays, **options)
    assert jnp.abs(want_lse - want_lse.mean()).max() > 0.01
    np.testing.assert_allclose(out, want, atol=1e-5)
    np.testing.assert_allclose(lse, want_lse, atol=1e-5)


@pytest.mark.parametrize("implementation", ["reference", "xla", "polynomial"])
def test_windows_wider_than_any_sequence_are_none(implementation):
    arrays = draw((5, 6), size=0.3)
    found, want = (
        attention.tensor_attention(
            *arrays, local_window_size=window, implementation=implementation
        )
        for window in (2**31 - 1, None)
    )
    np.testing.assert_allclose(found, want, atol=1e-6)


@pytest.mark.parametrize("is_ordered", [False, True])
def test_a_mask_of_queries_stays_linear(x64, is_ordered):
    arrays = draw((7, 7), size=0.3)
    seen = jnp.arange(7) % 3 > 0
    options = {"mask": seen[None, None, :, None, None], "is_ordered": is_ordered}
    options["return_residual"] = True
    found = attention.tensor_attention(
        *arrays, implementation="polynomial", degree=10, **options
    )
    want = attention.tensor_attention(*arrays, **options)
    np.testing.assert_allclose(found[0], want[0], atol=1e-7)
    np.testing.assert_allclose(found[1], want[1], atol=1e-7)
    np.testing.assert_array_equal(found[0][:, ~seen], 0)


def test_order_means_nothing_for_one_mode(x64):
    arrays = draw((7,), size=0.3)
    options = {"local_window_size": (2,), "implementation": "polynomial"}
    found, want = (
        attention.tensor_attention(*arrays, is_ordered=is_ordered, **options)
        for is_ordered in (False, True)
    )
    np.testing.assert_array_equal(found, want)
