"""Every implementation against the definition in float64: value, gradient, vmap."""

import functools as ft

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jaxlr import kernels
from jaxlr.core.compat import x64
from jaxlr.kernels import loss_slope, loss_value, residual_adjoint
from jaxlr.lab import aot, compile_for


F32 = jnp.float32
SOURCES = {
    "stored": kernels.draw_normals,
    "normals": kernels.NormalRows,
    "signs": kernels.draw_signs,
    "bfloat16": ft.partial(kernels.draw_normals, dtype=jnp.bfloat16),
}
LOSSES = ("l2", "l1", "huber")
ALIGNED, RAGGED = (16, 4096), (13, 300)
EXACT = ("stored", "normals", "signs")
DELTA, SCALE = 0.7, 0.3


def oracle(dense, x, y, loss, delta=DELTA):
    """(residual, d) in NumPy."""
    residual = SCALE * dense @ x - y
    slope = {
        "l2": residual,
        "l1": np.sign(residual),
        "huber": np.clip(residual, -delta, delta),
    }[loss]
    return residual, SCALE * dense.T @ slope


def oracle_gradient(dense, x, y, loss, u, v, delta=DELTA):
    """Of <u, residual> + <v, d>, in dense, x, y and delta."""
    residual = SCALE * dense @ x - y
    is_out = np.abs(residual) > delta
    curvature = {"l2": 1.0, "l1": 0.0, "huber": 1.0 - is_out}[loss]
    slope = {"l2": residual, "l1": np.sign(residual)}.get(
        loss, np.clip(residual, -delta, delta)
    )
    back = u + curvature * (SCALE * dense @ v)
    in_delta = np.sum(np.sign(residual) * is_out * (SCALE * dense @ v))
    return (
        SCALE * (np.outer(back, x) + np.outer(slope, v)),
        SCALE * dense.T @ back,
        -back,
        in_delta if loss == "huber" else 0.0,
    )


@ft.cache
def _rows(source, m, size, dtype):
    del dtype  # of the cached entries
    rows = SOURCES[source](jr.key(0), m, size)
    return rows, np.asarray(jax.jit(lambda: rows.to_dense())(), np.float64)


def make(source, m, size, lead=(), dtype=F32):
    """Rows, their entries, x and y, u and v, all but the rows with axes in front."""
    rng = np.random.default_rng(1)
    vectors = [rng.normal(size=(*lead, n)) for n in (size, m, m, size)]
    vectors = [jnp.asarray(v, dtype) for v in vectors]
    return *_rows(source, m, size, dtype), *vectors


def f64(*arrays):
    return [np.asarray(a, np.float64) for a in arrays]


def close(got, want, tolerance):
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, atol=tolerance * np.abs(w).max(), rtol=0)


def call(implementation, loss="huber", **kwargs):
    return jax.jit(
        lambda rows, x, y, delta=DELTA: residual_adjoint(
            rows,
            x,
            y,
            loss=loss,
            huber_delta=delta,
            scale=SCALE,
            implementation=implementation,
            **kwargs,
        )
    )


def value_and_gradient(fn, rows, x, y, u, v):
    """Of <u, residual> + <v, d>, in the rows, x, y and delta; value is the outputs."""

    @jax.jit
    @ft.partial(jax.value_and_grad, argnums=(0, 1, 2, 3), has_aux=True, allow_int=True)
    def both(rows, x, y, delta):
        out = fn(rows, x, y, delta)
        return u @ out[0] + v @ out[1], out

    (_, out), gradient = both(rows, x, y, jnp.asarray(DELTA))
    return out, gradient


def check_value_and_gradient(fn, source, loss, dtype, tolerance):
    rows, dense, x, y, u, v = make(source, *RAGGED, dtype=dtype)
    out, got = value_and_gradient(fn, rows, x, y, u, v)
    close(out, oracle(dense, *f64(x, y), loss), tolerance)
    want = oracle_gradient(dense, *f64(x, y), loss, *f64(u, v))
    if source == "stored":
        close([got[0].raw], want[:1], tolerance)
    else:
        assert all(g.dtype == jax.dtypes.float0 for g in jax.tree.leaves(got[0]))
    close(got[1:], want[1:], tolerance)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("source", "block_rows"),
    [("stored", None), ("normals", 8), ("signs", 5)],
)
def test_xla_is_exact(source, loss, block_rows):
    with x64(True):
        fn = call("xla", loss, block_rows=block_rows)
        check_value_and_gradient(fn, source, loss, jnp.float64, 1e-12)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("source", EXACT)
def test_kernel_value_and_gradient(source, loss):
    fn = call("pallas_interpret", loss)
    check_value_and_gradient(fn, source, loss, F32, 2e-6)


@pytest.mark.parametrize(
    ("source", "block_rows"), [("stored", 16), ("normals", 16), ("signs", None)]
)
def test_kernel_on_aligned_sizes(source, block_rows):
    rows, dense, x, y, *_ = make(source, *ALIGNED)
    got = call("pallas_interpret", block_rows=block_rows)(rows, x, y)
    close(got, oracle(dense, *f64(x, y), "huber"), 2e-6)


@pytest.mark.parametrize("implementation", ["xla", "pallas_interpret"])
def test_bfloat16_rows_meet_rounded_vectors(implementation):
    rows, dense, x, y, *_ = make("bfloat16", *RAGGED)
    residual, d = call(implementation, "l2")(rows, x, y)
    half = jnp.bfloat16
    want = SCALE * dense @ f64(x.astype(half))[0] - f64(y)[0]
    close([residual], [want], 2e-6)
    close([d], [SCALE * dense.T @ f64(residual.astype(half))[0]], 2e-6)


def test_kernel_draws_the_entries_bit_for_bit():
    """With y = 0 and x a unit vector, the residual is one entry of every row."""
    size = 1100  # nine chunks, the last of them ragged
    rows = kernels.NormalRows(jr.key(5), 24, size)
    units = jnp.eye(size, dtype=F32)[:: size // 60]
    fn = ft.partial(residual_adjoint, implementation="pallas_interpret")
    got, _ = jax.jit(jax.vmap(fn, in_axes=(None, 0, None)))(rows, units, jnp.zeros(24))
    np.testing.assert_array_equal(got, rows.to_dense().T[:: size // 60])


def _batched_rows(source, num):
    rows = [SOURCES[source](jr.key(i), *RAGGED) for i in range(num)]
    return rows, jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)


@pytest.mark.parametrize("source", EXACT)
@pytest.mark.parametrize("implementation", ["xla", "pallas_interpret"])
def test_vmap(source, implementation):
    rows, dense, x, y, *_ = make(source, *RAGGED, lead=(2, 3))
    delta = jnp.asarray([0.5, 1.0], F32)
    # Nested; y in the inner lanes alone, delta in the outer alone.
    fn = jax.vmap(call(implementation), in_axes=(None, 0, 0, None))
    fn = jax.vmap(fn, in_axes=(None, 0, None, 0))
    residual, d = fn(rows, x, y[0], delta)
    for i, j in np.ndindex(2, 3):
        want = oracle(dense, *f64(x[i, j], y[0, j]), "huber", float(delta[i]))
        close((residual[i, j], d[i, j]), want, 2e-6)
    # Rows in the lanes too.
    each, stacked = _batched_rows(source, 3)
    residual, d = jax.vmap(call(implementation), in_axes=(0, None, 0))(
        stacked, x[0, 0], y[0]
    )
    for j in range(3):
        want = oracle(*f64(each[j].to_dense(), x[0, 0], y[0, j]), "huber")
        close((residual[j], d[j]), want, 2e-6)


@pytest.mark.parametrize("source", ["stored", "normals"])
def test_gradients_of_lanes(source):
    rows, dense, x, y, u, v = make(source, *RAGGED, lead=(3,))
    fn = call("pallas_interpret")

    def total(x, y):
        residual, d = jax.vmap(fn, in_axes=(None, 0, 0))(rows, x, y)
        return jnp.sum(u * residual) + jnp.sum(v * d)

    def one(x, y, u, v):
        residual, d = fn(rows, x, y)
        return u @ residual + v @ d

    want = [
        oracle_gradient(dense, *f64(x[i], y[i]), "huber", *f64(u[i], v[i]))[1:3]
        for i in range(3)
    ]
    want = [np.stack(w) for w in zip(*want, strict=True)]
    close(jax.jit(jax.grad(total, argnums=(0, 1)))(x, y), want, 2e-6)
    each = jax.jit(jax.vmap(jax.grad(one, argnums=(0, 1))))
    close(each(x, y, u, v), want, 2e-6)


def _launches(jaxpr):
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            yield equation
            continue
        for param in equation.params.values():
            inner = getattr(param, "jaxpr", param)
            if hasattr(inner, "eqns"):
                yield from _launches(inner)


def test_lanes_are_one_launch_that_reads_the_rows_once():
    rows, _, x, y, *_ = make("stored", *RAGGED, lead=(2, 9))
    fn = ft.partial(residual_adjoint, rows, implementation="pallas_interpret")
    (launch,) = _launches(jax.make_jaxpr(jax.vmap(jax.vmap(fn)))(x, y).jaxpr)
    assert launch.params["grid_mapping"].grid == (2,)  # blocks of 8 of 13 rows
    assert [v.aval.shape for v in launch.outvars] == [(2, 24, 8), (24, 384)]


def test_what_lies_beyond_the_rows_does_not_leak():
    """A last block of one row; NaN in the others, if anything were to read them."""
    rows, dense, x, y, *_ = make("stored", 9, 128)
    for implementation in ("xla", "pallas_interpret"):
        got = call(implementation, "l2", block_rows=8)(rows, x, y)
        close(got, oracle(dense, *f64(x, y), "l2"), 2e-6)


@pytest.mark.parametrize("implementation", ["xla", "pallas_interpret"])
def test_nan_in_one_lane_stays_there(implementation):
    rows, dense, x, y, *_ = make("stored", *RAGGED, lead=(2,))
    x = x.at[0, 0].set(jnp.nan)
    residual, d = jax.vmap(call(implementation, "l1"), in_axes=(None, 0, 0))(rows, x, y)
    assert np.isnan(residual[0]).all()
    assert np.isnan(d[0]).all()
    close((residual[1], d[1]), oracle(dense, *f64(x[1], y[1]), "l1"), 2e-6)


def test_losses_and_slopes():
    with x64(True):
        r = jnp.asarray([-3.0, -0.5, 0.0, 0.2, 0.7, 2.0])
        a = np.abs(np.asarray(r))
        huber = np.where(a <= DELTA, a**2 / 2, DELTA * (a - DELTA / 2))
        for loss, want in (("l2", a**2 / 2), ("l1", a), ("huber", huber)):
            np.testing.assert_allclose(loss_value(loss, r, DELTA), want.sum(), 1e-15)
            slope = loss_slope(loss, r, DELTA)
            gradient = jax.grad(lambda r, loss=loss: loss_value(loss, r, DELTA))(r)
            np.testing.assert_allclose(gradient, slope, atol=1e-15)
        np.testing.assert_array_equal(loss_slope("l1", r), np.sign(r))
        grad_delta = jax.grad(lambda delta: loss_value("huber", r, delta))(DELTA)
        np.testing.assert_allclose(grad_delta, np.maximum(a - DELTA, 0).sum(), 1e-15)
        curvature = jax.grad(lambda r: loss_slope("l1", r).sum())(r)
        np.testing.assert_array_equal(curvature, 0.0)
    assert np.isnan(loss_slope("l1", jnp.asarray(jnp.nan)))


def test_default_is_xla_and_memory_is_bounded():
    m, size = 5120, 512**2
    x, y = (jax.ShapeDtypeStruct((n,), F32) for n in (size, m))
    for source in ("normals", "signs"):
        rows = jax.eval_shape(lambda key, s=source: SOURCES[s](key, m, size), jr.key(0))
        sizes = jax.jit(residual_adjoint).lower(rows, x, y).compile().memory_analysis()
        assert sizes.temp_size_in_bytes + sizes.output_size_in_bytes <= 64 * 2**20


@pytest.mark.misuse
def test_misuse_is_named():
    rows, _, x, y, *_ = make("stored", *RAGGED)
    drawn = kernels.NormalRows(jr.key(0), *RAGGED)
    fn = residual_adjoint
    with pytest.raises(ValueError, match=r"Unknown loss 'l3'.*huber, l1, l2"):
        fn(rows, x, y, loss="l3")  # pyright: ignore
    with pytest.raises(ValueError, match="Unknown loss 'hubert'; did you mean 'huber'"):
        loss_value("hubert", y)  # pyright: ignore
    with pytest.raises(ValueError, match="Unknown implementation 'cuda'"):
        fn(rows, x, y, implementation="cuda")  # pyright: ignore
    with pytest.raises(ValueError, match=r"`y` must have shape \(13,\), got \(300,\)"):
        fn(rows, x, x)
    for source, number, what in (
        (rows, 0, "an integer >= 1"),
        (rows, 2.5, "an integer >= 1"),
        (drawn, 12, "a multiple of 8"),
    ):
        match = f"`block_rows` must be {what}, got {number}"
        with pytest.raises(ValueError, match=match):
            fn(source, x, y, block_rows=number)
    kernel = ft.partial(fn, implementation="pallas_interpret")
    with pytest.raises(ValueError, match="multiple of 8, got 4"):
        kernel(rows, x, y, block_rows=4)
    with pytest.raises(ValueError, match="multiple of 16, got 8"):
        kernel(make("bfloat16", *RAGGED)[0], x, y, block_rows=8)
    with pytest.raises(ValueError, match=r"`rows.key` must be of threefry"):
        kernel(kernels.NormalRows(jr.key(0, impl="rbg"), *RAGGED), x, y)
    with x64(True):
        with pytest.raises(ValueError, match="`x` must be float32, got float64"):
            kernel(rows, x.astype(float), y)
        with pytest.raises(ValueError, match=r"`rows` must be float32.*, got float64"):
            kernel(kernels.NormalRows(jr.key(0), *RAGGED), x, y)
    many = jax.ShapeDtypeStruct((48, 512**2), F32)
    wide = kernels.StoredRows(jax.ShapeDtypeStruct((64, 512**2), F32))
    with pytest.raises(ValueError, match=r"`size` 262144 in 48 lanes.* MiB of VMEM"):
        jax.eval_shape(jax.vmap(kernel, (None, 0, None)), wide, many, jnp.zeros(64))


@pytest.mark.misuse
def test_threefry_must_be_partitionable():
    drawn = kernels.NormalRows(jr.key(0), *RAGGED)
    if not hasattr(jax, "threefry_partitionable"):
        pytest.skip("this jax has no other threefry")
    with (
        jax.threefry_partitionable(False),
        pytest.raises(ValueError, match="jax_threefry_partitionable"),
    ):
        residual_adjoint(
            drawn, jnp.ones(300), jnp.ones(13), implementation="pallas_interpret"
        )


@pytest.mark.aot
@pytest.mark.parametrize("target", ["v5e", "v6e"])
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    ("m", "size", "lanes"), [(64, 512**2, 1), (64, 512**2, 32), (19, 300, 3)]
)
def test_kernels_compile_for_a_tpu(target, source, m, size, lanes):
    pytest.importorskip("libtpu", reason='needs pip install "jaxlr[aot]"')
    if reason := aot.why_not():
        pytest.skip(reason)
    rows = jax.eval_shape(lambda key: SOURCES[source](key, m, size), jr.key(0))
    x, y = (jax.ShapeDtypeStruct((lanes, n), F32) for n in (size, m))
    for loss in LOSSES if lanes == 3 else ("huber",):
        fn = ft.partial(residual_adjoint, loss=loss, implementation="pallas")
        made = compile_for(target, jax.vmap(fn, in_axes=(None, 0, 0)), rows, x, y)
        assert made.fits
        assert "tpu_custom_call" in made.compiled.as_text()
        if size % 4096 == 0 and lanes % 8 == 0:  # nothing had to be padded
            assert made.temporaries < 2**20


@pytest.mark.aot
def test_kernel_compiles_for_a_tpu_with_other_rows_in_every_lane():
    pytest.importorskip("libtpu", reason='needs pip install "jaxlr[aot]"')
    if reason := aot.why_not():
        pytest.skip(reason)
    for source in EXACT:
        rows = jax.eval_shape(lambda s=source: _batched_rows(s, 3)[1])
        x, y = (jax.ShapeDtypeStruct((3, n), F32) for n in (300, 13))
        fn = ft.partial(residual_adjoint, implementation="pallas")
        assert compile_for("v5e", jax.vmap(fn), rows, x, y).fits
