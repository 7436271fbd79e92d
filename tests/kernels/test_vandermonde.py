"""Sums of exponentials against the definition in float64: value, gradient, vmap."""

import functools as ft
import importlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import pytest

from jaxlr.core.compat import x64
from jaxlr.kernels import vandermonde
from jaxlr.lab import aot, compile_for


F32 = jnp.float32
IMPLEMENTATIONS = ("xla", "pallas_interpret")


def naive(weights, exponents, length, step=1.0):
    """The definition, in jax for its gradient."""
    x = step * (exponents[0] + 1j * exponents[1])
    powers = jnp.exp(x[..., None] * jnp.arange(length))
    return 2 * jnp.real(jnp.sum((weights[0] + 1j * weights[1])[..., None] * powers, -2))


def make(lead=(2,), num=5, dtype=jnp.float64):
    """Weights, exponents and a step, all of them with the axes in front."""
    rng = np.random.default_rng(1)
    shape = (*lead, num)
    weights = rng.normal(size=shape), rng.normal(size=shape)
    exponents = -rng.uniform(0.1, 1.0, shape), rng.normal(size=shape) * 30
    step = rng.uniform(0.01, 0.1, (*lead, 1))
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), (weights, exponents, step))


def doubled(tree):
    return jax.tree.map(lambda a: np.asarray(a, np.float64), tree)


def close(got, want, tolerance):
    got, want = jax.tree.leaves(got), jax.tree.leaves(want)
    for g, w in zip(got, want, strict=True):
        assert np.shape(g) == np.shape(w)
        np.testing.assert_allclose(g, w, atol=tolerance * np.abs(w).max(), rtol=0)


def value_and_gradient(fn: Any, *args):
    """Of <c, K>, with c known to both sides."""

    def total(args):
        out = fn(*args)
        c = np.random.default_rng(2).normal(size=out.shape).astype(np.float32)
        return jnp.vdot(jnp.asarray(c, out.dtype), out), out

    (_, out), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(args)
    return out, gradient


def check(args, length, tolerance, implementation, tile=None):
    def fn(weights, exponents, step):
        return vandermonde(
            weights,
            exponents,
            length,
            step=step,
            tile=tile,
            implementation=implementation,
        )

    got = value_and_gradient(fn, *args)
    assert got[0].dtype == args[2].dtype
    with x64(True):
        oracle = jax.tree.map(jnp.asarray, doubled(args))
        want = value_and_gradient(lambda w, x, dt: naive(w, x, length, dt), *oracle)
    close(got, want, tolerance)


@pytest.mark.parametrize(
    ("length", "tile"), [(1, None), (2, None), (7, 1), (100, 4), (300, None), (9, 16)]
)
def test_xla_is_exact(length, tile):
    with x64(True):
        check(make(), length, 1e-12, "xla", tile)


@pytest.mark.parametrize(
    ("implementation", "length", "tile"),
    [
        ("xla", 1500, None),
        ("pallas_interpret", 1, None),
        ("pallas_interpret", 1500, None),
        ("pallas_interpret", 1500, 256),
    ],
)
def test_float32_value_and_gradient(implementation, length, tile):
    check(make(dtype=F32), length, 2e-6, implementation, tile)


def test_kernel_in_blocks_of_tiles(monkeypatch):
    """Twenty tiles, eight at once, so that the last block is ragged."""
    module = importlib.import_module("jaxlr.kernels.vandermonde")
    monkeypatch.setattr(module, "_BLOCK", 1024)
    check(make(dtype=F32), 2500, 2e-6, "pallas_interpret")


def test_tiles_agree():
    with x64(True):
        weights, exponents, _ = make()
        want = naive(weights, exponents, 77)
        for tile in (1, 8, 64, 128):
            fn = ft.partial(vandermonde, length=77, tile=tile)
            close(jax.jit(fn)(weights, exponents), want, 1e-12)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_axes_in_front_broadcast(implementation):
    weights, exponents, step = make((3, 2), dtype=F32)
    exponents, step = (exponents[0][0], exponents[1][0]), step[:1, :, 0, None]
    check((weights, exponents, step), 150, 2e-6, implementation)
    one = jax.tree.map(lambda a: a[0, 0], weights), (exponents[0][0], exponents[1][0])
    got = vandermonde(one[0], one[1], 40, step=0.03, implementation=implementation)
    close(got, naive(*doubled(one), length=40, step=0.03), 2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_vmap(implementation):
    args = make((2, 3), dtype=F32)

    def total(args):
        weights, exponents, step = args
        out = vandermonde(
            weights, exponents, 150, step=step, implementation=implementation
        )
        return jnp.sum(jnp.cos(out)), out

    def at(tree, *index):
        return jax.tree.map(lambda a: a[index], tree)

    # All batched, twice; then each of the three alone. Sums in the gradient cancel.
    fn = jax.value_and_grad(total, has_aux=True)
    single = jax.jit(fn)
    nested = jax.jit(jax.vmap(jax.vmap(fn)))(args)
    for i, j in np.ndindex(2, 3):
        close(at(nested, i, j), single(at(args, i, j)), 1e-4)
    for k in range(3):
        axes = tuple(0 if k == other else None for other in range(3))
        mixed = [at(part, 0, 0) for part in args]
        mixed[k] = at(args[k], 0)
        got = jax.jit(jax.vmap(fn, in_axes=(axes,)))(tuple(mixed))
        for j in range(3):
            mixed[k] = at(args[k], 0, j)
            close(at(got, j), single(tuple(mixed)), 1e-4)


def test_finite_differences_and_second_derivatives():
    def fn(weights, exponents, step):
        return vandermonde(weights, exponents, 20, step=step)

    def definition(weights, exponents, step):
        return naive(weights, exponents, 20, step)

    def hessian_product(fn):
        gradient = jax.grad(lambda args: jnp.sum(fn(*args) ** 2))
        return jax.jit(lambda args: jax.jvp(gradient, (args,), (args,)))

    with x64(True):
        args = make((1,), 3)
        check_grads(jax.jit(fn), args, 1, ["rev"], 1e-6, 1e-6, eps=1e-6)
        close(hessian_product(fn)(args), hessian_product(definition)(args), 1e-12)
        oracle = jax.tree.map(jnp.asarray, doubled(make((1,), 3, F32)))
        want = hessian_product(definition)(oracle)
    close(hessian_product(fn)(make((1,), 3, F32)), want, 5e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_what_underflows_is_zero(implementation):
    ones = jnp.ones((1, 4), F32)
    exponents = -jnp.asarray([[1e-3, 1.0, 200.0, 1e6]], F32), 3e3 * ones
    got = value_and_gradient(
        lambda w, x: vandermonde(w, x, 1000, implementation=implementation),
        (ones, ones),
        exponents,
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(got))
    with x64(True):
        want = naive(doubled((ones, ones)), doubled(exponents), 1000)
    close(got[0], want, 2e-6)


def legs(n):
    """Eigenvalues of HiPPO-LegS's normal part, with the input vector halved."""
    root = np.sqrt(2.0 * np.arange(n) + 1)
    skew = np.tril(np.outer(root, root), -1) / 2
    values, vectors = np.linalg.eigh(1j * (skew - skew.T))
    return values[values > 0], (vectors.conj().T @ root / 2)[values > 0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "n", "bound"), [("lin", 64, 1e-5), ("legs", 64, 1e-5), ("legs", 256, 4e-5)]
)
def test_float32_is_accurate_at_full_length(kind, n, bound):
    """Against float64, from the same float32 time steps and rates."""
    length, rng = 16384, np.random.default_rng(3)
    freq, b = legs(n) if kind == "legs" else (np.pi * np.arange(n // 2), 1.0)
    rate = -0.5 + 1j * freq.astype(np.float32)
    steps = np.asarray([1e-4, 6e-4, 1e-1], np.float32)[:, None]
    x = steps.astype(float) * rate
    c = rng.normal(size=n // 2) + 1j * rng.normal(size=n // 2)
    weights = c * b * np.expm1(x) / rate
    large = np.exp(128 * np.arange(128)[:, None] * x[:, None])
    small = np.exp(np.arange(128)[:, None] * x[:, None])
    want = 2 * np.real((weights[:, None] * large) @ small.transpose(0, 2, 1))
    want = want.reshape(3, length)
    pair = jax.tree.map(lambda a: a.astype(np.float32), (weights.real, weights.imag))
    rates = jax.tree.map(lambda a: a.astype(np.float32), (rate.real, rate.imag))
    for implementation in IMPLEMENTATIONS[: 1 if n == 256 else 2]:
        fn = ft.partial(vandermonde, length=length, implementation=implementation)
        got = jax.jit(lambda w, x, dt, fn=fn: fn(w, x, step=dt))(pair, rates, steps)
        error = np.abs(got - want).max(1) / np.abs(want).max(1)
        assert error.max() < min(bound, 2e-6)


def big(num_channels=256, num=32, lead=()):
    part = jax.ShapeDtypeStruct((*lead, num_channels, num), F32)
    return (part, part), (part, part)


def both(fn: Any):
    """Value and gradient, of a sum of squares, in one program."""
    return lambda *args: jax.value_and_grad(lambda a: jnp.sum(fn(*a) ** 2))(args)


def test_memory_is_bounded():
    fn = ft.partial(vandermonde, length=16384)
    for program in (fn, both(fn)):
        sizes = jax.jit(program).lower(*big()).compile().memory_analysis()
        assert sizes is not None
        assert sizes.temp_size_in_bytes <= 64 * 2**20


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_products_are_at_full_precision(implementation):
    """Which the CPU has anyway: one product in the value, two in the gradient."""
    fn = ft.partial(vandermonde, length=300, implementation=implementation)
    text = str(jax.make_jaxpr(both(fn))(*big(2, 3)))
    assert text.count("dot_general[") == 3
    assert text.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == 3


@pytest.mark.misuse
def test_misuse_is_named():
    weights, exponents, step = make(dtype=F32)
    fn: Any = vandermonde
    z = weights[0] + 1j * weights[1]
    match = r"`weights` must be a pair \(re, im\).*complex64.*z.real, z.imag"
    with pytest.raises(ValueError, match=match):
        fn(z, exponents, 5)
    with pytest.raises(ValueError, match=r"`exponents` must be a pair .* got list"):
        fn(weights, [*exponents, *exponents], 5)
    with pytest.raises(ValueError, match=r"`weights` must be a pair .*complex64"):
        fn((z, z), exponents, 5)
    for length in (0, 2.0, -1):
        with pytest.raises(ValueError, match=f"`length` must be .* got {length}"):
            fn(weights, exponents, length)
    for tile in (0, 12, 2.0):
        with pytest.raises(ValueError, match=f"`tile` must be .*, got {tile}"):
            fn(weights, exponents, 5, tile=tile)
    kernel = ft.partial(fn, implementation="pallas_interpret")
    with pytest.raises(ValueError, match=r"`tile` must be an integer >= 128, got 64"):
        kernel(weights, exponents, 5, tile=64)
    with pytest.raises(ValueError, match="Unknown implementation 'palas'; did you"):
        fn(weights, exponents, 5, implementation="palas")
    with pytest.raises(ValueError, match="must broadcast, got"):
        fn(weights, (exponents[0][:, :4], exponents[1]), 5)
    with pytest.raises(ValueError, match="need an axis of states"):
        fn((1.0, 1.0), (-1.0, 1.0), 5)
    many = big(1, 20000)
    with pytest.raises(ValueError, match=r"20000 states by `tile` 128 .* VMEM"):
        jax.eval_shape(ft.partial(kernel, length=10), *many)
    with x64(True):
        wide = jax.tree.map(lambda a: a.astype(float), (weights, exponents, step))
        with pytest.raises(ValueError, match="`weights` must be float32, got float64"):
            kernel(*wide[:2], 5)
        with pytest.raises(ValueError, match="`step` must be float32, got float64"):
            kernel(weights, exponents, 5, step=wide[2])


@pytest.mark.aot
@pytest.mark.parametrize("target", ["v5e", "v6e"])
@pytest.mark.parametrize(
    ("channels", "num", "length", "tile"),
    [(256, 32, 16384, None), (3, 5, 300, None), (2, 128, 200000, 256), (8, 32, 1, 128)],
)
def test_kernels_compile_for_a_tpu(target, channels, num, length, tile):
    pytest.importorskip("libtpu", reason='needs pip install "jaxlr[aot]"')
    if reason := aot.why_not():
        pytest.skip(reason)
    fn = ft.partial(vandermonde, length=length, tile=tile, implementation="pallas")
    for program in (fn, both(fn)):
        made = compile_for(target, program, *big(channels, num))
        assert made.fits
        assert "tpu_custom_call" in str(made.compiled.as_text())


@pytest.mark.aot
def test_both_forms_compile_for_a_tpu_under_vmap():
    pytest.importorskip("libtpu", reason='needs pip install "jaxlr[aot]"')
    if reason := aot.why_not():
        pytest.skip(reason)
    for implementation in ("xla", "pallas"):
        fn = ft.partial(vandermonde, length=300, implementation=implementation)
        assert compile_for("v5e", jax.vmap(both(fn)), *big(4, 32, (3,))).fits
