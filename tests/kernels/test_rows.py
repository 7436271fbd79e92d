"""Rows of every source against their entries in float64."""

from typing import Any

import chex
import jax
from jax import lax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jaxlr import kernels
from jaxlr.core import compat
from jaxlr.kernels import _rows as rows_lib


SOURCES = {
    "stored": kernels.draw_normals,
    "normals": kernels.NormalRows,
    "signs": kernels.draw_signs,
}
SHAPES = ((16, 128), (29, 70))  # whole blocks of 8; ragged


def equations(jaxpr):
    """All equations, those of inner jaxprs included."""
    for equation in jaxpr.eqns:
        yield equation
        for param in equation.params.values():
            for inner in param if isinstance(param, tuple | list) else (param,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


@pytest.fixture(name="small_blocks")
def _small_blocks(monkeypatch):
    monkeypatch.setattr(rows_lib, "_BLOCK_BYTES", 1)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(("m", "size"), SHAPES)
def test_products_are_those_of_the_entries(source, m, size):
    rng = np.random.default_rng(0)
    x, z = rng.normal(size=size), rng.normal(size=m)
    with compat.x64(True):
        rows = SOURCES[source](jr.key(0), m, size)
        chex.assert_equal((rows.num_rows, rows.size), (m, size))
        dense = np.asarray(rows.to_dense())
        assert dense.shape == (m, size)
        assert dense.dtype == rows.dtype == np.float64
        both = jax.jit(lambda rows, x, z: (rows.dot(x), rows.transpose_dot(z)))
        out, back = both(rows, x, z)
        np.testing.assert_allclose(out, dense @ x, atol=1e-12)
        np.testing.assert_allclose(back, dense.T @ z, atol=1e-12)


@pytest.mark.parametrize("block_bytes", [1, 2**23])
def test_normals_are_drawn_by_tile_stored_or_not(monkeypatch, block_bytes):
    m, size = SHAPES[1]
    monkeypatch.setattr(rows_lib, "_BLOCK_BYTES", block_bytes)

    @jax.jit
    def draw():
        keys = [jr.fold_in(jr.key(1), t) for t in range(4)]
        return jnp.concatenate([jr.normal(key, (8, size)) for key in keys])[:m]

    want = draw()
    drawn = kernels.NormalRows(jr.key(1), m, size)
    np.testing.assert_array_equal(jax.jit(lambda rows: rows.to_dense())(drawn), want)
    np.testing.assert_array_equal(kernels.draw_normals(jr.key(1), m, size).raw, want)


def test_signs_are_bits_by_plane():
    rows = kernels.draw_signs(jr.key(2), 29, 70)
    words = np.asarray(rows.words)
    assert words.shape == (29, 3)

    @jax.jit
    def draw():
        keys = [jr.fold_in(jr.key(2), t) for t in range(4)]
        return jnp.concatenate([jr.bits(key, (8, 3), jnp.uint32) for key in keys])[:29]

    np.testing.assert_array_equal(words, draw())
    bits = np.stack([words >> b & 1 for b in range(32)], axis=1).reshape(29, -1)
    np.testing.assert_array_equal(rows.to_dense(), 1.0 - 2.0 * bits[:, :70])
    assert abs(np.mean(bits) - 0.5) < 2 / bits.size**0.5


def test_results_have_the_type_of_the_vector():
    signs = kernels.draw_signs(jr.key(0), 9, 40)
    half = kernels.StoredRows(signs.to_dense().astype(jnp.bfloat16))
    with compat.x64(True):
        for dtype in (jnp.float32, jnp.float64):
            for rows in (signs, half):
                out = jax.eval_shape(rows.dot, jnp.ones(40, dtype))
                back = jax.eval_shape(rows.transpose_dot, jnp.ones(9, dtype))
                assert out.dtype == back.dtype == dtype
    counts = jnp.ones(40, jnp.int32)
    assert jax.eval_shape(signs.dot, counts).dtype == jnp.float32


def test_bfloat16_rounds_operands_and_sums_in_float32():
    rows = kernels.draw_normals(jr.key(0), 9, 4096, jnp.bfloat16)
    x, z = jr.normal(jr.key(1), (4096,)), jr.normal(jr.key(2), (9,))
    dense, x16, z16 = (
        np.asarray(v.astype(jnp.bfloat16), np.float64) for v in (rows.raw, x, z)
    )
    np.testing.assert_allclose(rows.dot(x), dense @ x16, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(rows.transpose_dot(z), dense.T @ z16, rtol=1e-5)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("source", SOURCES)
def test_derivatives_of_products(source):
    @jax.jit
    def derivatives(rows, x, z):
        out, back = jax.vjp(rows.dot, x)
        tangent = jax.jvp(rows.dot, (x,), (x,))[1]
        back_again = jax.vjp(rows.transpose_dot, z)[1]
        return (out, tangent, back_again(x)[0]), (rows.transpose_dot(z), back(z)[0])

    with compat.x64(True):
        rows = SOURCES[source](jr.key(0), 13, 40)
        for same in derivatives(rows, jnp.arange(40.0), jnp.arange(13.0)):
            for other in same[1:]:
                np.testing.assert_allclose(other, same[0], rtol=1e-12, atol=1e-10)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("method", ["dot", "transpose_dot"])
@pytest.mark.parametrize("source", ["normals", "signs"])
def test_lanes_share_the_rows(source, method):
    rows = SOURCES[source](jr.key(0), 24, 48)
    vectors = jr.normal(jr.key(1), (5, 48 if method == "dot" else 24))
    fn = jax.vmap(getattr(rows, method))
    dense = np.asarray(rows.to_dense(), np.float64)
    want = np.asarray(vectors) @ (dense.T if method == "dot" else dense)
    np.testing.assert_allclose(fn(vectors), want, atol=1e-4)
    found = list(equations(jax.make_jaxpr(fn)(vectors).jaxpr))
    name = "erf_inv" if source == "normals" else "shift_right_logical"
    made = [e.outvars[0].aval.size for e in found if e.primitive.name == name]
    assert made
    assert max(made) <= 8 * 64  # a block of 8 rows, not five of them
    dots = [e for e in found if e.primitive is lax.dot_general_p]
    assert {tuple(v.aval.ndim for v in e.invars) for e in dots} == {(2, 2)}
    assert not any(e.params["dimension_numbers"][1][0] for e in dots)


@pytest.mark.usefixtures("small_blocks")
def test_rows_may_be_this_devices_share():
    mesh = compat.line_mesh(jax.devices()[:1], "rows")
    rows, spec = kernels.draw_signs(jr.key(0), 24, 48), jax.sharding.PartitionSpec
    total = jax.jit(
        jax.shard_map(
            lambda rows, z: lax.psum(rows.transpose_dot(z), "rows"),
            mesh=mesh,
            in_specs=(spec("rows"), spec("rows")),
            out_specs=spec(),
        )
    )
    want = rows.to_dense().sum(axis=0)
    np.testing.assert_array_equal(total(rows, jnp.ones(24)), want)


def _memory(fn, *args):
    sizes = jax.jit(fn).lower(*args).compile().memory_analysis()
    return sizes.temp_size_in_bytes + sizes.output_size_in_bytes


@pytest.mark.parametrize("source", ["normals", "signs"])
def test_memory_does_not_grow_with_m_size(source):
    m, size = 5120, 512**2
    rows = jax.eval_shape(lambda key: SOURCES[source](key, m, size), jr.key(0))
    x, z = (jax.ShapeDtypeStruct((n,), jnp.float32) for n in (size, m))

    def loss(rows, x):
        return jnp.sum(rows.dot(x) ** 2)

    for fn, vector in (
        (lambda rows, x: rows.dot(x), x),
        (lambda rows, z: rows.transpose_dot(z), z),
        (jax.grad(loss, argnums=1), x),
    ):
        assert _memory(fn, rows, vector) <= 64 * 2**20


@pytest.mark.misuse
def test_misuse_is_named():
    rows = kernels.NormalRows(jr.key(0), 9, 40)
    with pytest.raises(ValueError, match=r"`x` must have shape \(40,\), got \(9,\)"):
        rows.dot(jnp.ones(9))
    with pytest.raises(ValueError, match=r"`z` must have shape \(9,\), got \(9, 1\)"):
        rows.transpose_dot(jnp.ones((9, 1)))
    with pytest.raises(ValueError, match=r"`num_rows` must be in 1\.\.9, got 10"):
        rows.block(0, 10, rows.dtype)
    for bad in ({"num_rows": 9.0}, {"size": 0}):
        ((name, value),) = bad.items()
        sizes: Any = {"num_rows": 9, "size": 40, **bad}
        for draw in (kernels.NormalRows, kernels.draw_normals, kernels.draw_signs):
            match = f"`{name}` must be an integer >= 1, got {value}"
            with pytest.raises(ValueError, match=match):
                draw(jr.key(0), **sizes)


@pytest.mark.misuse
def test_integers_of_numpy_are_counts():
    sizes = np.int64(9), np.int64(40)
    with compat.x64(True):
        for draw in (kernels.draw_normals, kernels.draw_signs):
            want = draw(jr.key(0), 9, 40).to_dense()
            got = draw(jr.key(0), *sizes).to_dense()
            np.testing.assert_array_equal(got, want)
    assert type(kernels.NormalRows(jr.key(0), *sizes).size) is int


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("source", SOURCES)
def test_blocks_of_a_traced_key_leave_no_tracer_behind(source):
    def product(key):
        rows = SOURCES[source](key, 16, 128)
        return rows.transpose_dot(rows.dot(jnp.ones(128)))

    with jax.checking_leaks():
        assert np.all(np.isfinite(jax.jit(product)(jr.key(0))))
