"""One position at a time against all at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlr import attention
from tests.attention._arrays import draw


@pytest.mark.parametrize("is_ordered", [False, True])
def test_one_position_at_a_time(x64, is_ordered):
    query, keys, values = draw((7, 7), heads=4)
    keys = tuple(x[:, :, :2] for x in keys)
    values = tuple(x[:, :, :2] for x in values)
    want = attention.tensor_attention(
        query,
        keys,
        values,
        is_causal=True,
        is_ordered=is_ordered,
        implementation="polynomial",
    )
    state = attention.init_state(2, 2, 4, 4, is_ordered=is_ordered, dtype=query.dtype)

    def step(state, row):
        query, keys, values = row
        state = attention.update(state, keys, values)
        return state, attention.query(state, query)

    rows = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (query, keys, values))
    np.testing.assert_array_equal(attention.query(state, query[:, 0]), 0)
    _, out = jax.lax.scan(step, state, rows)
    np.testing.assert_allclose(jnp.moveaxis(out, 0, 1), want, atol=1e-12)


@pytest.mark.parametrize("is_ordered", [False, True])
@pytest.mark.parametrize("size", [-1.0, -3.0])
def test_sums_of_shares_that_are_not_positive_are_nan(is_ordered, size):
    """1 + s is 0 at -1; where all is traced there is no error."""
    one = jnp.ones((1, 1, 1, 1))
    options = {"implementation": "polynomial", "degree": 1, "scale": 1.0}
    options |= {"is_ordered": is_ordered, "return_residual": True}
    call = jax.jit(
        lambda q: attention.tensor_attention(q, (one, one), (one, one), **options)
    )
    assert all(jnp.isnan(x).all() for x in call(size * one))
    assert jnp.isfinite(call(one)[1]).all()
    with pytest.raises(ValueError, match="not positive; use an even degree"):
        attention.tensor_attention(size * one, (one, one), (one, one), **options)
    state = attention.init_state(2, 1, 1, 1, degree=1, is_ordered=is_ordered)
    state = attention.update(state, (one[0], one[0]), (one[0], one[0]))
    assert jnp.isnan(attention.query(state, size * one[0], scale=1.0)).all()


@pytest.mark.misuse
def test_states_that_would_not_hold_are_refused():
    with pytest.raises(ValueError, match="`dtype` must be float32 or float64"):
        attention.init_state(2, 1, 1, 4, dtype=jnp.bfloat16)
    with pytest.raises(ValueError, match="`degree` 8 of 64 features a head makes"):
        attention.init_state(2, 1, 1, 64, degree=8)
    with pytest.raises(ValueError, match="`num_heads` must be an integer >= 1"):
        attention.init_state(2, 1, 1.0, 4)  # pyright: ignore
