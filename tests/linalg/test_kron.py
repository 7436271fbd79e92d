"""Kronecker products and Gaussian terms against dense NumPy in float64."""

import functools as ft
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlr import linalg
from jaxlr.core.compat import x64


SHAPES = [(7,), (4, 5), (3, 4, 5), (2, 1, 3, 4)]


def dense(factors):
    return ft.reduce(np.kron, factors)


def spd(n, rng, least=0.0):
    """Symmetric, with eigenvalues from `least` on and one of them repeated."""
    q = np.linalg.qr(rng.normal(size=(n, n)))[0]
    values = least + np.repeat(rng.uniform(0.1, 2, n // 2 + 1), 2)[:n]
    return (q * values) @ q.T


def make(shape, seed=0):
    """Factors, shift, y, others; and a direction in each."""
    rng = np.random.default_rng(seed)

    def symmetric(n):
        a = rng.normal(size=(n, n))
        return a + a.T

    point = [spd(n, rng) for n in shape], 0.3, rng.normal(size=shape)
    point = *point, [spd(n, rng, 1.0) for n in shape]
    direction = [symmetric(n) for n in shape], 0.7, rng.normal(size=shape)
    return point, (*direction, [symmetric(n) for n in shape])


def oracle(point, direction):
    """(quadratic, logdet, solution) and their derivatives in the direction."""
    (factors, shift, y, others), (d_factors, d_shift, d_y, d_others) = point, direction

    def derivative(matrices, tangents):
        terms = [[*matrices[:d], t, *matrices[d + 1 :]] for d, t in enumerate(tangents)]
        return sum(map(dense, terms))

    eye = [np.eye(len(k)) for k in factors]
    others = eye if others is None else others
    a = dense(factors) + shift * dense(others)
    d_a = derivative(factors, d_factors) + d_shift * dense(others)
    if d_others is not None:
        d_a = d_a + shift * derivative(others, d_others)
    x = np.linalg.solve(a, y.ravel())
    d_x = np.linalg.solve(a, d_y.ravel() - d_a @ x)
    value = y.ravel() @ x, np.linalg.slogdet(a)[1], x.reshape(y.shape)
    slope = d_y.ravel() @ x + y.ravel() @ d_x, np.trace(np.linalg.solve(a, d_a))
    return value, (*slope, d_x.reshape(y.shape))


def ours(factors, shift, y, others=None):
    terms = linalg.kron_gaussian(factors, shift, y, others)
    return *terms, linalg.kron_solve(factors, shift, y, others)


def close(got, want, tolerance):
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.shape(g) == np.shape(w)
        np.testing.assert_allclose(
            g, w, rtol=0, atol=tolerance * max(np.abs(w).max(), 1)
        )


@hypothesis.settings(deadline=None, max_examples=15, derandomize=True)
@hypothesis.given(
    rows=st.lists(st.integers(1, 5), min_size=1, max_size=4), data=st.data()
)
def test_rectangular_factors_of_any_number(rows, data):
    columns = [data.draw(st.integers(1, 5)) for _ in rows]
    rng = np.random.default_rng(0)
    factors = [rng.normal(size=size) for size in zip(rows, columns, strict=True)]
    x = rng.normal(size=columns)
    want = (dense(factors) @ x.ravel()).reshape(rows)
    with x64(True):
        close(linalg.kron_matvec(factors, x), want, 1e-13)
    got = linalg.kron_matvec([jnp.float32(k) for k in factors], jnp.float32(x))
    assert got.dtype == jnp.float32
    close(got, want, 1e-5)


def test_mode_product_of_every_axis_and_its_transforms():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 4, 5))
    with x64(True):
        for axis in range(-3, 3):
            k = rng.normal(size=(6, x.shape[axis]))
            want = np.moveaxis(np.tensordot(k, x, (1, axis)), 0, axis)
            fn = ft.partial(linalg.mode_product, axis=axis)
            close(fn(k, x), want, 1e-13)
            lanes = jax.vmap(fn, (0, None))(np.stack([k, 2 * k]), x)
            close(lanes, np.stack([want, 2 * want]), 1e-13)
            got = jax.grad(lambda x, fn=fn, k=k: fn(k, x).sum())(x)  # K^T 1
            shape = [-1 if d == axis % 3 else 1 for d in range(3)]
            ones = np.broadcast_to(k.sum(0).reshape(shape), x.shape)
            close(got, ones, 1e-13)


@pytest.mark.parametrize("shape", SHAPES)
def test_filters(shape):
    (factors, _, y, _), _ = make(shape)
    values, vectors = np.linalg.eigh(dense(factors))
    with x64(True):
        eig = linalg.kron_eigh(factors)
        assert eig.spectrum.shape == shape
        close(np.sort(np.ravel(eig.spectrum)), values, 1e-13)
        for fn in (lambda s: s / (s + 0.1), lambda s: s**1.5):
            want = (vectors * fn(values)) @ vectors.T @ y.ravel()
            close(linalg.spectral_filter(eig, fn, y), want.reshape(shape), 1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_pencil_is_diagonal_in_one_basis(shape):
    (factors, _, y, others), _ = make(shape)
    with x64(True):
        eig = linalg.kron_pencil(factors, others)
        v = dense([np.asarray(v) for v in eig.vectors])
        close(v.T @ dense(others) @ v, np.eye(y.size), 1e-12)
        spectrum = np.ravel(eig.spectrum)
        close(v.T @ dense(factors) @ v, np.diag(spectrum), 1e-12)
        got = linalg.spectral_filter(eig, lambda s: 1 / (2 * s + 3), y)
    want = np.linalg.solve(2 * dense(factors) + 3 * dense(others), y.ravel())
    close(got, want.reshape(shape), 1e-12)


def everything(point, direction):
    """Values, derivatives in a direction, and that of a sum of all in reverse mode."""
    value, slope = jax.jvp(ours, point, direction)
    weights = np.random.default_rng(3).normal(size=np.shape(point[2]))

    def total(point):
        quadratic, logdet, x = ours(*point)
        return 2 * quadratic + 3 * logdet + jnp.sum(weights * x)

    products = jax.tree.map(jnp.vdot, jax.grad(total)(point), direction)
    return value, slope, sum(jax.tree.leaves(products))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "is_traced"), [*((shape, True) for shape in SHAPES), ((3, 4), False)]
)
@pytest.mark.parametrize("has_others", [False, True])
def test_value_and_derivatives_in_both_modes(shape, has_others, is_traced):
    point, direction = make(shape)
    if not has_others:
        point, direction = (*point[:3], None), (*direction[:3], None)
    want, slope = oracle(point, direction)
    weights = np.random.default_rng(3).normal(size=shape)
    total = 2 * slope[0] + 3 * slope[1] + np.sum(weights * slope[2])
    with x64(True):
        args = jax.tree.map(jnp.asarray, (point, direction))
        fn = jax.jit(everything) if is_traced else everything
        close(fn(*args), (want, slope, total), 1e-11)


def test_gradient_of_each_argument_alone():
    point, direction = make((3, 4))
    with x64(True):
        for i in range(4):
            still = [jax.tree.map(np.zeros_like, d) for d in direction]
            still[i] = direction[i]
            want = oracle(point, still)[1]

            def alone(x, i=i):
                return ours(*point[:i], x, *point[i + 1 :])

            args = jax.tree.map(jnp.asarray, ((point[i],), (direction[i],)))
            slope = jax.jit(lambda x, d, fn=alone: jax.jvp(fn, x, d)[1])
            close(slope(*args), want, 1e-12)


def test_hessian_of_what_is_not_a_factor():
    (factors, shift, y, _), _ = make((3, 4))
    a = dense(factors) + shift * np.eye(12)
    with x64(True):
        factors = [jnp.asarray(k) for k in factors]
        fn = ft.partial(linalg.kron_gaussian, factors)
        got = jax.jit(jax.hessian(lambda y: fn(shift, y)[0]))(y).reshape(12, 12)
        close(got, 2 * np.linalg.inv(a), 1e-12)
        got = jax.jit(jax.hessian(lambda shift: fn(shift, y)[1]))(shift)
        close(got, -np.trace(np.linalg.inv(a @ a)), 1e-12)


def test_vmap_over_factors_and_data():
    lanes = [make((3, 4), seed)[0] for seed in range(3)]
    with x64(True):
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *lanes)

        def total(*point):
            quadratic, logdet, x = ours(*point)
            return quadratic + logdet + jnp.sum(x**2), (quadratic, logdet, x)

        fn = jax.value_and_grad(total, (0, 1, 2, 3), has_aux=True)
        got = jax.jit(jax.vmap(fn))(*stacked)
        single = jax.jit(fn)
        for i, lane in enumerate(lanes):
            here = jax.tree.map(lambda x, i=i: x[i], got)
            close(here, single(*lane), 1e-11)
        # Data alone in lanes: known factors stay on the host.
        factors, shift, _, others = lanes[0]
        known = jax.jit(lambda y: ours(factors, shift, y, others))
        got = jax.vmap(known)(stacked[2])
        for i, lane in enumerate(lanes):
            want = known(lane[2])
            close([x[i] for x in got], want, 1e-12)


def matern(n, length):
    """Matern 3/2 on n points of [0, 1]."""
    x = np.linspace(0, 1, n)
    r = np.sqrt(3) * np.abs(x[:, None] - x) / length
    return (1 + r) * np.exp(-r)


def gaussian_kernel(n, length):
    """Of rank below n to rounding: its least eigenvalues are rounding errors."""
    x = np.linspace(0, 1, n)
    return np.exp(-(((x[:, None] - x) / length) ** 2))


def test_known_factors_in_float64_keep_float32_exact():
    """And traced ones, decomposed in float32, do not: what the docstring says."""
    shift, rng = 1e-4, np.random.default_rng(0)
    factors = [matern(n, length) for n, length in ((30, 2.0), (25, 1.5), (20, 3.0))]
    z = rng.normal(size=(30, 25, 20))
    y = linalg.kron_matvec([np.linalg.cholesky(k) for k in factors], z)
    y = np.asarray(y, np.float64) + 1e-2 * rng.normal(size=y.shape)
    inverse = [np.linalg.eigh(k) for k in factors]
    spectrum = ft.reduce(np.multiply.outer, [w for w, _ in inverse])
    rotated = np.einsum("abc,ai,bj,ck->ijk", y, *(v for _, v in inverse))
    mean = np.einsum(
        "ijk,ai,bj,ck->abc",
        rotated * spectrum / (spectrum + shift),
        *(v for _, v in inverse),
    )
    value = np.sum(rotated**2 / (spectrum + shift)) + np.sum(np.log(spectrum + shift))

    def found(factors, y):
        terms = linalg.kron_gaussian(factors, shift, y)
        eig = linalg.kron_eigh(factors)
        got = linalg.spectral_filter(eig, lambda s: s / (s + shift), y)
        assert got.dtype == terms[0].dtype == jnp.float32
        return sum(terms), got

    def errors(got):
        norm = np.linalg.norm(got[1] - mean) / np.linalg.norm(mean)
        return abs(float(got[0]) / value - 1), norm

    assert max(errors(found(factors, jnp.float32(y)))) < 1e-6
    assert max(errors(jax.jit(ft.partial(found, factors))(jnp.float32(y)))) < 1e-6
    rounded = [jnp.float32(k) for k in factors]
    assert 1e-5 < max(errors(jax.jit(found)(rounded, jnp.float32(y)))) < 1e-1


def test_float32_never_makes_nan():
    """Negative rounding errors of the eigenvalues reach -0.01 in the product here."""
    factors = [jnp.float32(gaussian_kernel(40, 0.5))] * 3
    y = jnp.ones((40, 40, 40))
    for shift in (1e-4, 1e-6):
        value, slope = jax.jit(
            jax.value_and_grad(lambda k, s: sum(linalg.kron_gaussian(k, s, y)), (0, 1))
        )(factors, shift)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((value, slope)))


def test_only_rounding_errors_are_set_to_zero():
    with x64(True):
        k = np.diag([-1e-3, -1e-17, 1.0])
        for fn in (linalg.kron_eigh, jax.jit(linalg.kron_eigh)):
            (values,), _ = fn([jnp.asarray(k)])
            np.testing.assert_array_equal(values, [-1e-3, 0.0, 1.0])


def test_types_follow_the_factors():
    k = np.eye(3, dtype=np.float32)
    with x64(True):
        assert linalg.kron_eigh([k]).spectrum.dtype == jnp.float32
        assert linalg.kron_eigh([np.float64(k)]).spectrum.dtype == jnp.float64
    assert linalg.kron_eigh([np.float64(k)]).spectrum.dtype == jnp.float32
    assert linalg.kron_eigh([np.eye(3, dtype=int)]).spectrum.dtype == jnp.float32


@pytest.mark.misuse
def test_outer_products_of_all_axes_or_of_all_but_one():
    a, b, c = np.arange(1.0, 3), np.arange(1.0, 4), np.arange(1.0, 5)
    want = np.einsum("i,j,k->ijk", a, b, c)
    np.testing.assert_array_equal(linalg.outer_product([a, b, c]), want)
    for without in (1, np.int64(-2)):
        found = linalg.outer_product([a, b, c], without=without)
        np.testing.assert_array_equal(found, want[:, :1])
    with pytest.raises(
        ValueError, match=r"`without` must be an .* in -3\.\.2, got 1\.0"
    ):
        linalg.outer_product([a, b, c], without=1.0)  # pyright: ignore


@pytest.mark.misuse
def test_misuse_is_named():
    fn: Any = linalg.kron_gaussian
    k, y = np.eye(3), np.ones((3, 3))
    with pytest.raises(ValueError, match=r"`axis` must be in -2\.\.1, got 2"):
        linalg.mode_product(k, y, 2)
    with pytest.raises(ValueError, match=r"`k` must have shape \(m, 3\) .* \(3, 4\)"):
        linalg.mode_product(np.ones((3, 4)), y, 0)
    with pytest.raises(ValueError, match=r"`x` must have shape \(3, 3\), got \(3,\)"):
        linalg.kron_matvec([k, k], y[0])
    with pytest.raises(ValueError, match=r"`factors` must be matrices, .*\[\]"):
        linalg.kron_matvec([], y)
    with pytest.raises(ValueError, match=r"`y` must have shape \(3,\), got \(3, 3\)"):
        fn([k], 1.0, y)
    with pytest.raises(ValueError, match=r"`shift` must be a number.*\(3,\)"):
        fn([k, k], np.ones(3), y)
    for bad in ([], [k[:2]], [k[0]], [1.0]):
        with pytest.raises(ValueError, match="`factors` must be square matrices"):
            linalg.kron_eigh(bad)
    for others in ([k], [k, k[:2, :2]]):
        with pytest.raises(ValueError, match="`others` must be square matrices"):
            linalg.kron_pencil([k, k], others)
    skewed = np.eye(3)
    skewed[0, 1] = 1e-6
    linalg.kron_eigh([k, skewed.astype(np.float32)])
    for bad in (k * np.nan, np.triu(np.ones((3, 3))), skewed):
        with pytest.raises(ValueError, match=r"`factors\[1\]` must be .* symmetric"):
            linalg.kron_eigh([k, bad])
    with pytest.raises(ValueError, match=r"`factors\[0\]` must be real"):
        linalg.kron_eigh([1j * k])
    with pytest.raises(ValueError, match=r"`others\[1\]` must be positive definite"):
        linalg.kron_pencil([k, k], [k, -k])
    for bad in (
        lambda k: linalg.kron_eigh([k]).spectrum.sum(),
        lambda k: jax.grad(lambda k: fn([k, k], 1.0, y)[0])(k).sum(),
        lambda k: jax.grad(lambda k: linalg.kron_solve([k, k], 1.0, y).sum())(k).sum(),
    ):
        for wrap in (jax.jit, lambda f: f):
            with pytest.raises(ValueError, match="are not differentiated"):
                wrap(jax.grad(bad))(jnp.asarray(k, float))
