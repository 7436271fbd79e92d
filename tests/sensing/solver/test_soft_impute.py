"""Nuclear-norm least squares against closed forms and optimality conditions."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jaxlr import sensing
from jaxlr.core import loop
from jaxlr.core.compat import x64
from jaxlr.sensing.solver._soft_impute import soft_impute
from tests.sensing import reference


def shrink(x, amount):
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    return (u * np.maximum(s - amount, 0)) @ vt


def make(num_measurements=80, shape=(12, 10), rank=2):
    operator = sensing.entry_sampling(jr.key(0), shape, num_measurements)
    return sensing.measure(operator, sensing.low_rank(jr.key(1), shape, rank))


def test_a_step_fills_in_and_shrinks():
    with x64(True):
        problem = make()
        solver = soft_impute(problem, penalty=0.03)
        state = solver.init(jr.key(0))
        mask = np.asarray(problem.operator.adjoint(jnp.ones(80)))
        x, truth = np.zeros((12, 10)), np.asarray(problem.truth)
        for _ in range(4):
            gap = mask * (x - truth)
            singular_values = np.linalg.svd(x, compute_uv=False)
            loss = np.sum(gap**2) / 2 + 0.03 * singular_values.sum()
            x = shrink(np.where(mask, truth, x), 0.03)
            state, info = solver.step(jr.key(0), state)
            np.testing.assert_allclose(state.x, x, atol=1e-13)
            np.testing.assert_allclose(info.loss, loss, rtol=1e-12)
            np.testing.assert_allclose(
                info.residual,
                np.linalg.norm(gap) / np.linalg.norm(mask * truth),
                rtol=1e-12,
            )
            assert info.rank == np.sum(singular_values > 1e-12)
        np.testing.assert_allclose(
            solver.step(jr.key(0), state)[1].relative_error,
            np.linalg.norm(x - truth) / np.linalg.norm(truth),
            rtol=1e-12,
        )


def test_a_step_of_any_size_on_gaussian_measurements():
    with x64(True):
        operator = sensing.gaussian(jr.key(0), (6, 5), 20)
        problem = sensing.measure(operator, sensing.low_rank(jr.key(1), (6, 5), 2))
        a = reference.matrices(operator).reshape(20, 30)
        solver = soft_impute(problem, penalty=0.1, eta=0.3)
        (state, _), x = loop.run(jr.key(0), solver, 3), np.zeros(30)
    for _ in range(3):
        x = x - 0.3 * a.T @ (a @ x - np.asarray(problem.y))
        x = shrink(x.reshape(6, 5), 0.03).ravel()
    np.testing.assert_allclose(state.x, x.reshape(6, 5), atol=1e-13)


@pytest.mark.parametrize("is_accelerated", [False, True])
def test_the_limit_is_the_minimizer(is_accelerated):
    with x64(True):
        problem = make()
        solver = soft_impute(problem, penalty=0.1, is_accelerated=is_accelerated)
        state, infos = jax.jit(lambda: loop.run(jr.key(0), solver, 600))()
        back = problem.operator.adjoint(problem.y - problem.operator.apply(state.x))
        x, back = np.asarray(state.x), np.asarray(back)
    # 0 is in the subdifferential: A*(y - A(X)) = penalty (U V^T + W), ||W|| <= 1.
    u, s, vt = np.linalg.svd(x)
    rank = int(infos.rank[-1])
    assert 0 < rank < 10
    u, v = u[:, :rank], vt[:rank].T
    np.testing.assert_allclose(u.T @ back, 0.1 * v.T, atol=1e-8)
    np.testing.assert_allclose(back @ v, 0.1 * u, atol=1e-8)
    assert np.linalg.norm(back, 2) <= 0.1 * (1 + 1e-8)
    np.testing.assert_allclose(state.singular_values, s, atol=1e-12)
    if not is_accelerated:
        assert np.all(np.diff(infos.loss) <= 1e-14)


def test_momentum_is_faster_on_few_entries_and_a_small_penalty():
    problem = make(600, (40, 30), 2)
    losses = [
        loop.run(
            jr.key(0), soft_impute(problem, penalty=1e-3, is_accelerated=fast), 100
        )[1].loss[-1]
        for fast in (False, True)
    ]
    assert losses[1] < 0.8 * losses[0]


def test_all_entries_take_one_step_and_a_large_penalty_gives_zero():
    with x64(True):
        truth = sensing.low_rank(jr.key(0), (7, 6), 3, spectrum=[1.0, 0.5, 0.1])
        problem = sensing.measure(sensing.identity((7, 6)), truth)

        @jax.jit
        @jax.vmap
        def run(penalty):
            return loop.run(jr.key(0), soft_impute(problem, penalty=penalty), 3)

        state, infos = run(jnp.array([0.2, 0.999, 1.001]))
        np.testing.assert_allclose(
            state.x[0], shrink(np.asarray(truth), 0.2), atol=1e-13
        )
        np.testing.assert_array_equal(infos.rank[:, -1], [2, 1, 0])
        assert not np.any(state.x[2])


@pytest.mark.parametrize("is_accelerated", [False, True])
def test_x_is_of_the_type_of_the_measurements(is_accelerated):
    with x64(True):
        truth = jnp.asarray(np.random.default_rng(0).normal(size=(7, 6)), jnp.float32)
        problem = sensing.measure(sensing.identity((7, 6)), truth)
        solver = soft_impute(
            sensing.SensingProblem(problem.operator, problem.y),
            penalty=jnp.asarray(0.1),
            is_accelerated=is_accelerated,
        )
        state, infos = loop.run(jr.key(0), solver, 3)
        assert state.x.dtype == state.singular_values.dtype == jnp.float32
        assert infos.relative_error is None


@pytest.mark.misuse
def test_misuse_is_named():
    with pytest.raises(
        ValueError, match=r"`penalty` must be >= 0 and finite, got -0\.1"
    ):
        soft_impute(make(), penalty=-0.1)
