"""Iterative solvers against NumPy's direct ones in float64."""

import functools as ft
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlr import linalg
from jaxlr.core.compat import x64
from jaxlr.core.loop import Status


N, SHAPE = 24, (4, 6)


def matrix(is_symmetric, seed=0):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(N, N)) / np.sqrt(N)
    return a @ a.T + 0.1 * np.eye(N) if is_symmetric else a + 1.5 * np.eye(N)


def draw(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape)


def times(a):
    return lambda x: linalg.matmul(a, x.ravel()).reshape(x.shape)


def solve(method, a, b, scale=None, **settings):
    """With a diagonal preconditioner, if scale is given."""
    fn = None if scale is None else lambda x: scale * x
    options = {"tolerance": 1e-12, "max_steps": 3 * N} | settings
    return method(times(a), b, preconditioner_fn=fn, **options)


def residual(a, x, b):
    return np.linalg.norm(a @ np.ravel(x) - np.ravel(b)) / np.linalg.norm(b)


SCALE = np.linspace(0.5, 2, N).reshape(SHAPE)
CASES = [
    (linalg.cg, None, {}),
    (linalg.cg, SCALE, {}),
    (linalg.gmres, None, {"restart": 1000}),
    (linalg.gmres, SCALE, {"restart": 10}),
]


@pytest.mark.parametrize(("method", "scale", "settings"), CASES)
def test_value_derivatives_and_info(method, scale, settings):
    is_symmetric = method is linalg.cg
    a, b = matrix(is_symmetric), draw(*SHAPE)
    d_a, d_b, c = matrix(is_symmetric, 5), draw(*SHAPE, seed=6), draw(*SHAPE, seed=7)
    x = np.linalg.solve(a, b.ravel())
    d_x = np.linalg.solve(a, d_b.ravel() - d_a @ x)
    adjoint = np.linalg.solve(a.T, c.ravel())

    def everything(a, b, c, d_a, d_b):
        fn = ft.partial(solve, method, scale=scale, **settings)
        x, info = fn(a, b)
        (_, d_x) = jax.jvp(lambda a, b: fn(a, b)[0], (a, b), (d_a, d_b))
        back = jax.grad(lambda a, b: jnp.vdot(c, fn(a, b)[0]), (0, 1))(a, b)
        return x, info, d_x, back

    with x64(True):
        args = map(jnp.asarray, (a, b, c, d_a, d_b))
        found = jax.tree.map(np.asarray, jax.jit(everything)(*args))
    got, info, slope, back = found
    np.testing.assert_allclose(got, x.reshape(SHAPE), atol=1e-10)
    np.testing.assert_allclose(slope, d_x.reshape(SHAPE), atol=1e-9)
    np.testing.assert_allclose(back[0], -np.outer(adjoint, x), atol=1e-9)
    np.testing.assert_allclose(back[1], adjoint.reshape(SHAPE), atol=1e-10)
    assert info.status == Status.CONVERGED
    assert 0 < info.residual <= 1e-12
    np.testing.assert_allclose(info.residual, residual(a, got, b), rtol=0.3)


def test_second_derivatives():
    a, b = matrix(True), draw(*SHAPE)

    def total(shift):
        x, _ = solve(linalg.cg, a + shift * jnp.eye(N), jnp.asarray(b))
        return jnp.sum(x**2)

    with x64(True):
        got = jax.jit(jax.hessian(total))(0.2)
    inverse = np.linalg.inv(a + 0.2 * np.eye(N))
    x = inverse @ b.ravel()
    first, second = -inverse @ x, 2 * inverse @ inverse @ x
    np.testing.assert_allclose(got, 2 * (first @ first + x @ second), rtol=1e-9)


def test_gmres_is_optimal_at_every_step():
    a, b = matrix(False), draw(N)
    krylov = np.stack([np.linalg.matrix_power(a, k + 1) @ b for k in range(6)], 1)
    with x64(True):
        for k in (1, 3, 6):
            one = jax.jit(ft.partial(solve, linalg.gmres, max_steps=k))
            _, info = one(jnp.asarray(a), jnp.asarray(b))
            y = np.linalg.lstsq(krylov[:, :k], b, rcond=None)[0]
            want = np.linalg.norm(b - krylov[:, :k] @ y) / np.linalg.norm(b)
            np.testing.assert_allclose(info.residual, want, rtol=1e-9)
            assert (info.num_steps, info.status) == (k, Status.MAX_STEPS)


def test_cg_is_optimal_in_the_norm_of_the_matrix():
    a, b = matrix(True), draw(N)
    basis = np.stack([np.linalg.matrix_power(a, k) @ b for k in range(4)], 1)
    with x64(True):
        got, info = solve(linalg.cg, jnp.asarray(a), jnp.asarray(b), max_steps=4)
        assert (info.num_steps, info.status) == (4, Status.MAX_STEPS)
    want = basis @ np.linalg.solve(basis.T @ a @ basis, basis.T @ b)
    np.testing.assert_allclose(got, want, atol=1e-9 * np.abs(want).max())


def test_a_good_preconditioner_saves_steps():
    scales = np.geomspace(1, 1e4, N)
    a = scales[:, None] * matrix(True) * scales
    b = draw(N)
    with x64(True):
        _, plain = solve(linalg.cg, jnp.asarray(a), jnp.asarray(b), max_steps=1000)
        scale = jnp.asarray(1 / np.diagonal(a))
        for method in (linalg.cg, linalg.gmres):
            x, info = solve(method, jnp.asarray(a), jnp.asarray(b), scale=scale)
            assert info.status == Status.CONVERGED
            assert residual(a, x, b) <= 2e-12
            assert info.num_steps < plain.num_steps / 2


def test_lanes_end_by_themselves():
    """Converged at once, late, never (budget), zero and NaN: none spoils another."""
    a, b = matrix(True), draw(N)
    stack = [np.eye(N), a, np.diag(np.linspace(1, 1e6, N)), a, a]
    sides = [b, b, b, 0 * b, np.nan * b]
    with x64(True):
        for method in (linalg.cg, linalg.gmres):
            single = ft.partial(solve, method, max_steps=16, tolerance=1e-6)
            lanes = jax.vmap(single)
            got, info = jax.jit(lanes)(jnp.asarray(stack), jnp.asarray(sides))
            single = jax.jit(single)
            for i, (matrix_, side) in enumerate(zip(stack, sides, strict=True)):
                want, alone = single(jnp.asarray(matrix_), jnp.asarray(side))
                np.testing.assert_allclose(got[i], want, rtol=1e-6, atol=1e-9)
                assert info.num_steps[i] == alone.num_steps
                assert info.status[i] == alone.status
            assert info.num_steps[0] == 1
            assert info.status[0] == Status.CONVERGED
            assert info.status[2] == Status.MAX_STEPS
            assert (info.residual[3], info.num_steps[3]) == (0, 0)
            assert info.status[3] == Status.CONVERGED
            assert info.status[4] == Status.DIVERGED
            np.testing.assert_array_equal(got[3], 0)


def test_breakdowns():
    with x64(True):
        b = jnp.asarray(draw(N))
        shift = jnp.asarray(np.roll(np.eye(N), 1, 0))  # no progress before step N
        x, info = solve(linalg.gmres, shift, jnp.eye(N)[0], max_steps=N)
        np.testing.assert_allclose(x, np.eye(N)[-1], atol=1e-14)
        assert info.num_steps == N
        for method in (linalg.cg, linalg.gmres):
            x, info = solve(method, 3 * jnp.eye(N), b)
            np.testing.assert_allclose(x, b / 3, rtol=1e-14)
            assert (info.num_steps, info.status) == (1, Status.CONVERGED)
            _, info = solve(method, jnp.zeros((N, N)), b)
            assert info.status == Status.DIVERGED
        skew = jnp.asarray(np.kron(np.eye(N // 2), [[0, 1], [-1, 0]]))  # b A b = 0
        _, info = solve(linalg.cg, skew, b)
        assert info.status == Status.DIVERGED
        _, info = solve(linalg.gmres, skew, b)
        assert info.status == Status.CONVERGED


def test_float32_says_what_it_has_not_reached():
    """The recurrence's residual goes to 1e-12; the true one, in float32, does not."""
    a, b = jnp.asarray(matrix(True), jnp.float32), jnp.asarray(draw(N), jnp.float32)
    for method in (linalg.cg, linalg.gmres):
        x, info = solve(method, a, b, max_steps=60)
        assert x.dtype == info.residual.dtype == jnp.float32
        assert (info.num_steps, info.status) == (60, Status.MAX_STEPS)
        assert 1e-9 < info.residual < 1e-5
        _, info = solve(method, a, b, tolerance=jnp.float32(1e-5))
        assert info.status == Status.CONVERGED


def test_steps_of_many_systems_end_by_themselves():
    """Converged at once, late, at its floor, and singular; unrolled or not."""
    rng = np.random.default_rng(3)
    stack = np.stack([np.eye(N), matrix(True), matrix(True, 2), np.diag(np.arange(N))])
    sides = rng.normal(size=(4, N)) * np.array([[1], [1e-3], [1], [1]])
    sides[3, 0] = 0  # in the range
    with x64(True):
        a, b = map(jnp.asarray, (stack, sides))
        scale = jnp.linspace(0.5, 2, N)

        def run(b, is_unrolled):
            return linalg.cg_steps(
                lambda x: jnp.einsum("hij,hj->hi", a, x),
                b,
                max_steps=3 * N,
                tolerance=1e-9,
                floor=jnp.asarray([[0.0], [0.0], [0.5], [0.0]]),
                preconditioner_fn=lambda r: scale * r,
                num_batch_axes=1,
                is_unrolled=is_unrolled,
            )

        found = [jax.jit(run, static_argnums=1)(b, way) for way in (False, True)]
        slope = jax.grad(lambda b: jnp.sum(run(b, True)[0][1]))(b)
        slope, (x, info), (other, twin) = jax.tree.map(np.asarray, (slope, *found))
    np.testing.assert_allclose(x, other, rtol=1e-10, atol=1e-12)
    assert info.num_steps == twin.num_steps < 3 * N
    assert info.residual.shape == (4, 1)
    assert np.all(info.status == Status.CONVERGED)
    rest = np.linalg.norm(np.einsum("hij,hj->hi", stack, x) - sides, axis=1)
    assert np.all(rest[[0, 1, 3]] <= 2e-9 * np.linalg.norm(sides, axis=1)[[0, 1, 3]])
    assert 1e-3 < rest[2] <= 0.5
    assert x[3, 0] == 0
    np.testing.assert_allclose(slope[1], np.linalg.solve(stack[1], np.ones(N)), 1e-6)
    np.testing.assert_array_equal(slope[[0, 2, 3]], 0)


def test_steps_end_by_a_norm_of_what_the_product_makes_anyway():
    half, b = draw(N, N), draw(N)
    seen = []
    with x64(True):

        def first(x):
            seen.append(x)
            return half.T @ x

        x, info = linalg.cg_steps(
            lambda x, s: half @ s + x,
            jnp.asarray(b),
            max_steps=10 * N,
            floor=1e-5,
            seen_fn=first,
            norm_fn=lambda r, z, s: jnp.sqrt(jnp.sum(s**2)),
        )
        x, info = jax.tree.map(np.asarray, (x, info))
    r = b - half @ (half.T @ x) - x
    assert info.status == Status.CONVERGED
    np.testing.assert_allclose(info.residual, np.linalg.norm(half.T @ r), rtol=1e-3)
    assert 1e-8 < info.residual <= 1e-5
    assert len(seen) == 2  # of b, and in the loop: one a step


def test_a_direction_without_curvature_ends_the_steps():
    for is_unrolled in (False, True):
        x, info = linalg.cg_steps(
            lambda x: 0 * x, jnp.ones(3), max_steps=5, is_unrolled=is_unrolled
        )
        np.testing.assert_array_equal(x, 0)
        assert (info.status, info.num_steps) == (Status.DIVERGED, 1)


def test_a_solve_is_judged_by_what_it_leaves():
    sizes = jnp.asarray([0.0, 1.0, 1.5, np.inf, np.nan])
    found = linalg.judge(sizes, jnp.asarray(1.0)).tolist()
    done, cut, lost = Status.CONVERGED, Status.MAX_STEPS, Status.DIVERGED
    assert found == [done, done, cut, lost, lost]


def test_refinement_keeps_the_best():
    a, b = matrix(True), draw(N)
    rough = np.linalg.inv(a + 0.05 * np.eye(N))
    with x64(True):

        def run(scale, **settings):
            return linalg.refine(
                lambda x: a @ x,
                lambda r: (scale * rough @ r, 2),
                jnp.asarray(b),
                **settings,
            )

        found = (
            run(1.0, max_steps=60),
            run(1.0, max_steps=60, target=1e-3),
            run(1.0, max_steps=2),
            run(-1.0, max_steps=60),
        )
        found = jax.tree.map(np.asarray, found)
    (x, num_steps), (few, num_few), (cut, num_cut), (worse, num_worse) = found
    assert residual(a, x, b) < 1e-13
    assert 1e-13 < residual(a, few, b) * np.linalg.norm(b) <= 1e-3
    assert num_cut == 4 < num_few < num_steps < 120
    assert residual(a, cut, b) > residual(a, few, b)
    np.testing.assert_array_equal(worse, 0)
    assert num_worse == 2


@pytest.mark.misuse
def test_misuse_is_named():
    b = jnp.ones(N)
    for method in (linalg.cg, linalg.gmres):
        fn: Any = ft.partial(method, lambda x: x, tolerance=1e-5, max_steps=3)
        with pytest.raises(ValueError, match="`b` must be real and floating, got int"):
            fn(jnp.ones(N, int))
        with pytest.raises(ValueError, match=r"`preconditioner_fn` .*\(24,\).*\(23,\)"):
            fn(b, preconditioner_fn=lambda x: x[1:])
        with pytest.raises(ValueError, match=r"`matvec_fn` must return float32.*int32"):
            method(lambda x: x.astype(int), b, tolerance=1e-5, max_steps=3)
        with pytest.raises(ValueError, match=r"`tolerance` must be >= 0 .*, got -1"):
            fn(b, tolerance=-1)
        for bad in (0, 2.0):
            with pytest.raises(ValueError, match=f"`max_steps` must .*, got {bad}"):
                fn(b, max_steps=bad)
    with pytest.raises(ValueError, match="`restart` must be an integer >= 1, got 0"):
        fn(b, restart=0)
    with pytest.raises(ValueError, match=r"`max_steps` must .*, got 2\.5"):
        linalg.cg_steps(lambda x: x, b, max_steps=2.5)  # pyright: ignore
    with pytest.raises(ValueError, match=r"`num_batch_axes` must be in 0\.\.1, got 2"):
        linalg.cg_steps(lambda x: x, b, max_steps=2, num_batch_axes=2)
    with pytest.raises(ValueError, match=r"`max_steps` must .*, got True"):
        linalg.refine(lambda x: x, lambda r: (r, 1), b, max_steps=True)


@pytest.mark.parametrize("method", [linalg.cg, linalg.gmres])
@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_numbers_whose_squares_are_none(method, size):
    b = jnp.full(4, size, jnp.float32)
    x, info = method(lambda x: 2 * x, b, tolerance=1e-5, max_steps=10)
    assert info.status == Status.CONVERGED
    np.testing.assert_allclose(x, b / 2)


def test_refinement_of_what_is_not_a_number_is_none():
    b = jnp.array([jnp.nan, 1.0])
    x, _ = linalg.refine(lambda x: x, lambda r: (r, 1), b, max_steps=3)
    assert np.isnan(x).all()
