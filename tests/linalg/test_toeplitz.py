"""Products by FFT against a dense Toeplitz matrix in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlr import linalg
from jaxlr.core.compat import x64


def dense(column, row):
    i, j = np.indices((len(column), len(row)))
    return np.where(i >= j, column[np.maximum(i - j, 0)], row[np.maximum(j - i, 0)])


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.slow
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (2, 2), (5, 3), (4, 9), (8, 8), (9, 9)])
def test_rectangular_ones_along_every_axis(m, n, axis):
    shape = [2, 3, 4]
    shape[axis] = n
    column, row, x = draw(m), draw(n, seed=1), draw(*shape, seed=2)
    want = np.moveaxis(np.tensordot(dense(column, row), x, (1, axis)), 0, axis)
    with x64(True):
        got = linalg.toeplitz_matvec(column, x, axis, row=row)
        np.testing.assert_allclose(got, want, atol=1e-13)
    args = (jnp.asarray(v, jnp.float32) for v in (column, x, row))
    column, x, row = args
    got = linalg.toeplitz_matvec(column, x, axis, row=row)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_symmetric_and_antisymmetric_ones():
    column, x = draw(7), draw(7, 2, seed=1)
    with x64(True):
        got = linalg.toeplitz_matvec(column, x, 0)
        np.testing.assert_allclose(got, dense(column, column) @ x, atol=1e-13)
        column[0] = 0
        got = linalg.toeplitz_matvec(column, x, 0, row=-column)
        np.testing.assert_allclose(got, dense(column, -column) @ x, atol=1e-13)


def test_gradient_and_vmap():
    column, row, x, c = draw(4), draw(6, seed=1), draw(3, 6, seed=2), draw(3, 4, seed=3)
    with x64(True):

        def total(column, row, x):
            return jnp.vdot(c, linalg.toeplitz_matvec(column, x, 1, row=row))

        got = jax.jit(jax.grad(total, (0, 1, 2)))(column, row, x)
        units = np.eye(4), np.eye(6)
        want = (
            [np.vdot(c, x @ dense(e, 0 * row).T) for e in units[0]],
            [0, *(np.vdot(c, x @ dense(0 * column, e).T) for e in units[1][1:])],
            c @ dense(column, row),
        )
        for g, w in zip(got, want, strict=True):
            np.testing.assert_allclose(g, w, atol=1e-13)
        columns = draw(3, 4, seed=4)
        lanes = jax.vmap(lambda c, x: linalg.toeplitz_matvec(c, x, 0, row=row))
        got = jax.jit(lanes)(columns, x)
        want = [dense(k, row) @ v for k, v in zip(columns, x, strict=True)]
        np.testing.assert_allclose(got, want, atol=1e-13)


@pytest.mark.misuse
def test_misuse_is_named():
    fn: Any = linalg.toeplitz_matvec
    x = np.ones((3, 4))
    with pytest.raises(ValueError, match=r"`axis` must be in -2\.\.1, got -3"):
        fn(np.ones(4), x, -3)
    with pytest.raises(
        ValueError, match=r"of 4 entries as axis 1 .* \(3,\) and \(3,\)"
    ):
        fn(np.ones(3), x, 1)
    with pytest.raises(
        ValueError, match=r"of 3 entries as axis 0 .* \(2,\) and \(4,\)"
    ):
        fn(np.ones(2), x, 0, row=np.ones(4))
    with pytest.raises(ValueError, match="`column` must be a vector"):
        fn(x, x, 0, row=np.ones(3))
    with pytest.raises(ValueError, match="`x` must be real, got complex64"):
        fn(np.ones(4), x * 1j, 1)
