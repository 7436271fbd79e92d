"""Fused mode products against NumPy in float64: value, gradient, vmap, compilation."""

import functools as ft
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlr.core.compat import x64
from jaxlr.kernels import mode_product, mode_products, ModeBlocks
from jaxlr.lab import aot, compile_for


F32 = jnp.float32
SIZES = [((3, 4), (5, 6)), ((3, 4, 5), (6, 2, 7)), ((1, 9, 2), (3, 1, 1))]
interpreted = ft.partial(mode_products, implementation="pallas_interpret")


def oracle(factors, x):
    for axis, k in enumerate(factors):
        x = np.moveaxis(np.tensordot(k, x, (1, axis + 1)), 0, axis + 1)
    return x


@pytest.mark.parametrize(
    "axis", [0, 1, -1, pytest.param(np.int64(1), marks=pytest.mark.misuse)]
)
def test_one_axis(axis):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 3, 4)).astype(np.float32)
    k = rng.normal(size=(5, x.shape[axis])).astype(np.float32)
    want = np.moveaxis(np.tensordot(k, x, (1, axis)), 0, axis)
    np.testing.assert_allclose(mode_product(k, x, axis), want, rtol=1e-5, atol=1e-6)


def make(rows, columns, batch=5, lanes=(), seed=0):
    rng = np.random.default_rng(seed)
    factors = [rng.normal(size=(*lanes, *s)) for s in zip(rows, columns, strict=True)]
    return factors, rng.normal(size=(*lanes, batch, *columns))


def single(*args):
    return jax.tree.map(F32, args)


def close(got, want, tolerance):
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.shape(g) == np.shape(w)
        np.testing.assert_allclose(g, w, rtol=0, atol=tolerance * np.abs(w).max())


@pytest.mark.parametrize(("rows", "columns"), [*SIZES, ((4,), (3,)), ((2,) * 4,) * 2])
def test_xla_takes_any_number_of_axes(rows, columns):
    factors, x = make(rows, columns)
    with x64(True):
        got = mode_products(list(map(jnp.asarray, factors)), jnp.asarray(x))
        close(got, oracle(factors, x), 1e-14)


@pytest.mark.parametrize("batch", [None, 1, 2, 7])
@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_the_kernel_for_all_tiles(rows, columns, batch):
    """5 grids: the last tile is ragged at 2, the only one at 7."""
    factors, x = make(rows, columns)
    blocks = None if batch is None else ModeBlocks(batch)
    got = jax.jit(ft.partial(interpreted, blocks=blocks))(*single(factors, x))
    assert got.dtype == F32
    close(got, oracle(factors, x), 2e-6)


@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_gradients(rows, columns):
    """<c, out> is linear in each argument: its derivative is read off at unit ones."""
    factors, x = make(rows, columns)
    c = np.random.default_rng(1).normal(size=(5, *rows))

    def total(factors, x):
        return jnp.vdot(F32(c), interpreted(factors, x), precision="highest")

    got = jax.jit(jax.grad(total, (0, 1)))(*single(factors, x))
    wants = []
    for d, k in enumerate(factors):
        want = np.zeros_like(k)
        for i in np.ndindex(k.shape):
            unit = np.zeros_like(k)
            unit[i] = 1
            want[i] = np.vdot(c, oracle([*factors[:d], unit, *factors[d + 1 :]], x))
        wants.append(want)
    close(got, (wants, oracle([k.T for k in factors], c)), 3e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "columns"), SIZES[:2])
def test_vmap_of_grids_of_factors_and_of_both(rows, columns):
    factors, x = make(rows, columns, batch=2, lanes=(3,))
    all_axes = (0, 0), (None, 0), (0, None)
    for axes in all_axes:
        ks = factors if axes[0] == 0 else [k[0] for k in factors]
        xs = x if axes[1] == 0 else x[0]
        want = [
            oracle(
                [k[i] if axes[0] == 0 else k for k in ks], x[i if axes[1] == 0 else 0]
            )
            for i in range(3)
        ]

        def total(factors, x):
            out = interpreted(factors, x)
            return jnp.sum(out**2), out

        lanes = jax.vmap(jax.value_and_grad(total, has_aux=True), axes)
        (_, out), slope = jax.jit(lanes)(*single(ks, xs))
        close(out, np.stack(want), 2e-6)
        first = [k[0] for k in factors]
        alone = jax.grad(lambda k, x: total(k, x)[0])(*single(first, x[0]))
        close([g[0] for g in slope], alone, 1e-5)


def test_lanes_join_the_batch():
    """One launch over all of them, not a step of the grid for each."""
    factors, x = single(*make((3, 4), (5, 6), batch=1, lanes=(8,)))
    fn = jax.vmap(interpreted, (None, 0))
    text = str(jax.make_jaxpr(fn)([k[0] for k in factors], x))
    assert "grid=(1,)" in text


@pytest.mark.misuse
def test_misuse_is_named():
    fn: Any = interpreted
    factors, x = single(*make((3, 4), (5, 6)))
    with pytest.raises(ValueError, match=r"Shapes must be .*\[\] and \(5, 5, 6\)"):
        fn([], x)
    with pytest.raises(ValueError, match=r"Shapes must be .*and \(5, 6\)"):
        fn(factors, x[0])
    with pytest.raises(ValueError, match="Unknown implementation 'cuda'"):
        mode_products(factors, x, implementation=fn and "cuda")  # pyright: ignore
    with pytest.raises(ValueError, match="takes grids of 2 or 3 axes, got 1"):
        fn(factors[1:], x[:, 0])
    with pytest.raises(ValueError, match=r"`x` must be float32, got bfloat16"):
        fn(factors, x.astype(jnp.bfloat16))
    with pytest.raises(ValueError, match=r"`x` is empty: \(0, 5, 6\)"):
        fn(factors, x[:0])
    for bad in (0, 1.5):
        with pytest.raises(ValueError, match=f"`batch` must be .* got {bad}"):
            ModeBlocks(bad)  # pyright: ignore
    big = jax.ShapeDtypeStruct((512, 512), F32)
    grids = jax.ShapeDtypeStruct((64, 512, 512), F32)
    with pytest.raises(ValueError, match=r"`batch` 64 needs \d+ MiB of VMEM"):
        jax.eval_shape(ft.partial(fn, blocks=ModeBlocks(64)), [big] * 2, grids)


@pytest.mark.aot
@pytest.mark.parametrize("target", ["v5e", "v6e"])
def test_kernels_compile_for_a_tpu(target):
    pytest.importorskip("libtpu", reason='needs pip install "jaxlr[aot]"')
    if reason := aot.why_not():
        pytest.skip(reason)
    fn = ft.partial(mode_products, implementation="pallas")

    def both(factors, x):
        return jax.value_and_grad(lambda x: jnp.sum(fn(factors, x) ** 2))(x)

    def compiles(fn, *args):
        made = compile_for(target, fn, *args)
        assert made.fits
        assert "tpu_custom_call" in str(made.compiled.as_text())

    def shapes(rows, columns, batch, lanes=()):
        pairs = zip(rows, columns, strict=True)
        factors = [jax.ShapeDtypeStruct((*lanes, *pair), F32) for pair in pairs]
        return factors, jax.ShapeDtypeStruct((*lanes, batch, *columns), F32)

    for n in (8, 32, 100):
        for num in (2, 3):
            compiles(both, *shapes((n,) * num, (n,) * num, 20))
    for rows, columns in SIZES:
        compiles(both, *shapes(rows, columns, 5))
        compiles(jax.vmap(fn), *shapes(rows, columns, 5, (3,)))
    # Gradients in the factors are XLA's.
    compiles(jax.grad(lambda k, x: jnp.sum(fn(k, x) ** 2)), *shapes((8, 8), (8, 8), 5))
