"""Ensembles of single entries: which are drawn, and that no matrix is formed."""

from hypothesis import given, settings, strategies as st
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jaxlr import sensing
from jaxlr.core.compat import x64
from jaxlr.sensing import operator as ops


SPARSE = (40, 50)


@settings(max_examples=10, deadline=None)
@given(n1=st.integers(1, 6), n2=st.integers(1, 6), data=st.data())
def test_entry_sampling_is_without_replacement(n1, n2, data):
    m = data.draw(st.integers(1, n1 * n2))
    operator = ops.entry_sampling(jr.key(m), (n1, n2), m)
    rows, cols = np.asarray(operator.rows), np.asarray(operator.cols)
    flat = rows * n2 + cols
    assert rows.min() >= 0
    assert rows.max() < n1
    assert cols.min() >= 0
    assert cols.max() < n2
    assert len(np.unique(flat)) == m
    assert np.all(np.diff(flat) > 0)


def test_sparse_sampling_never_forms_the_matrix():
    n, k, m = 4096, 2, 1000
    with x64(False):
        operator = ops.entries(np.arange(m), np.arange(m), (n, n))
        f = jax.ShapeDtypeStruct((n, k), jnp.float32)
        z = jax.ShapeDtypeStruct((m,), jnp.float32)
        for name, args in (
            ("apply_factors", (f, f)),
            ("adjoint_matmul", (z, f)),
            ("adjoint_factors", (z, f, f)),
        ):
            fn = jax.jit(lambda *args, name=name: getattr(operator, name)(*args))
            memory = fn.lower(*args).compile().memory_analysis()
            assert memory is not None
            assert memory.temp_size_in_bytes < 4 * n * n / 16


def test_the_product_is_formed_from_an_eighth_of_the_entries_on():
    shape, k = (64, 50), 2
    f, g = jnp.ones((shape[0], k)), jnp.ones((shape[1], k))
    for m, is_formed in ((399, False), (400, True)):  # of 3200
        operator = ops.entry_sampling(jr.key(0), shape, m)
        z = jnp.ones(m)
        for fn, args in (
            (operator.apply_factors, (f, g)),
            (operator.adjoint_matmul, (z, g)),
            (operator.adjoint_factors, (z, f, g)),
        ):
            assert ("[64,50]" in str(jax.make_jaxpr(fn)(*args))) == is_formed


@pytest.mark.misuse
def test_numpy_input_may_meet_traced_indices():
    rng = np.random.default_rng(0)
    x, f, g = (rng.normal(size=s) for s in (SPARSE, (40, 2), (50, 2)))
    rows, cols = np.array([3, 7, 7]), np.array([1, 0, 49])

    @jax.jit
    def measurements(rows):
        operator = ops.entries(rows, cols, SPARSE)
        y = sensing.measure(operator, x).y
        back = operator.adjoint_factors(np.ones(3), f, g)  # pyright: ignore[reportArgumentType]
        return y, operator.apply(x), operator.apply_factors(f, g), back  # pyright: ignore[reportArgumentType]

    y, values, products, back = measurements(rows)
    np.testing.assert_allclose(y, x[rows, cols], rtol=1e-5)
    np.testing.assert_allclose(values, x[rows, cols], rtol=1e-5)
    np.testing.assert_allclose(products, (f @ g.T)[rows, cols], rtol=1e-5)
    assert back[0].shape == f.shape


def test_small_indices_become_integers_that_can_be_counted_with():
    rows, cols = np.array([3, 200], np.uint8), np.array([1, 90], np.int16)
    operator = ops.entries(rows, cols, (201, 91))
    assert operator.rows.dtype == operator.cols.dtype == jnp.int32
    flipped = operator.transpose()
    np.testing.assert_array_equal(flipped.rows, cols)
    assert flipped.shape == (91, 201)
