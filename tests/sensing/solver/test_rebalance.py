"""The modified step, by itself and in both of its loops."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jaxlr import sensing
from jaxlr.core import loop
from jaxlr.core.compat import x64


def make(shape=(12, 10)):
    truth = sensing.low_rank(jr.key(0), shape, 2)
    return sensing.measure(sensing.identity(shape), truth)


@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_rebalance_keeps_the_product_and_evens_the_left_factor(beta):
    rng = np.random.default_rng(0)
    f, g = rng.normal(size=(50, 5)) * [3, 1, 0.3, 1e-2, 1e-3], rng.normal(size=(40, 5))
    with x64(True):
        new_f, new_g = map(
            np.asarray, sensing.rebalance(jnp.asarray(f), jnp.asarray(g), beta)
        )
    change = np.linalg.norm(new_f @ new_g.T - f @ g.T) / np.linalg.norm(f @ g.T)
    assert change <= 1e-13
    np.testing.assert_allclose(new_f.T @ new_f, beta**2 * np.eye(5), atol=1e-13)
    # By the formula, up to the signs of singular vectors.
    u, s, vt = np.linalg.svd(f, full_matrices=False)
    np.testing.assert_allclose(np.abs(new_f), np.abs(beta * u), atol=1e-11)
    np.testing.assert_allclose(np.abs(new_g), np.abs(g @ vt.T * s / beta), atol=1e-11)


def test_run_rebalanced_is_two_runs_with_a_rebalancing_between():
    with x64(True):
        problem = make()
        settings = {"num_columns": 3, "eta": 0.2, "alpha": 0.3}
        out = sensing.run_rebalanced(
            jr.key(1), problem, num_steps=120, beta=0.8, trigger=0.05, **settings
        )
        solver = sensing.gd(problem, **settings)
        at = int(out.rebalanced_at)
        assert 0 < at < 60
        state, first = loop.run(jr.key(1), solver, at)
        assert solver.step(jr.key(0), state)[1].residual <= 0.05
        assert first.residual[-1] > 0.05
        state = sensing.FactorState(*sensing.rebalance(state.f, state.g, 0.8))
        state, second = loop.run(jr.key(1), solver, 120 - at, state=state)
        for field in ("loss", "residual", "relative_error"):
            want = np.concatenate([getattr(first, field), getattr(second, field)])
            np.testing.assert_allclose(
                getattr(out.infos, field), want, rtol=1e-6, atol=1e-20
            )
        np.testing.assert_allclose(matmul_of(out.state), matmul_of(state), atol=1e-12)
        thin = sensing.run_rebalanced(
            jr.key(1),
            problem,
            num_steps=120,
            beta=0.8,
            trigger=0.05,
            every=7,
            **settings,
        )
        np.testing.assert_array_equal(thin.infos.loss, out.infos.loss[::7])


def matmul_of(state):
    return np.asarray(state.f) @ np.asarray(state.g).T


def test_run_rebalanced_lanes_trigger_each_at_its_step():
    with x64(True):
        problem = make()

        def one(alpha, trigger):
            out = sensing.run_rebalanced(
                jr.key(1),
                problem,
                num_columns=3,
                num_steps=150,
                alpha=alpha,
                trigger=trigger,
            )
            return out.infos.loss, out.rebalanced_at

        alphas, triggers = jnp.array([0.5, 0.01, 0.3]), jnp.array([0.1, 0.1, 0.0])
        losses, at = jax.jit(jax.vmap(one))(alphas, triggers)
        assert at[0] != at[1]
        assert at[2] == -1  # no residual is small enough: plain gradient descent
        for i in range(3):
            np.testing.assert_allclose(
                losses[i], one(alphas[i], triggers[i])[0], rtol=1e-6, atol=1e-26
            )
        plain = sensing.gd(problem, num_columns=3, alpha=0.3)
        _, infos = loop.run(jr.key(1), plain, 150)
        np.testing.assert_allclose(losses[2], infos.loss, rtol=1e-9)


def test_a_lane_that_diverges_is_never_rebalanced():
    problem = make()
    out = sensing.run_rebalanced(
        jr.key(1), problem, num_columns=3, num_steps=200, eta=50.0
    )
    assert out.rebalanced_at == -1
    assert not jnp.isfinite(out.infos.loss[-1])


def test_the_solver_is_the_same_run_and_goes_on_from_any_state():
    with x64(True):
        settings = {"num_columns": 3, "eta": 0.2, "alpha": 0.3, "beta": 0.8}
        settings |= {"trigger": 0.05}
        want = sensing.run_rebalanced(jr.key(1), make(), num_steps=120, **settings)
        solver = sensing.gd_rebalanced(make(), **settings)
        state, infos = loop.run(jr.key(1), solver, 120)
        np.testing.assert_allclose(infos.loss, want.infos.loss, rtol=1e-6, atol=1e-26)
        np.testing.assert_allclose(matmul_of(state), matmul_of(want.state), atol=1e-12)
        assert state.memory[0]
        assert not loop.run(jr.key(1), solver, 3)[0].memory[0]


def test_widths_may_be_swept_in_both_loops():
    with x64(True):

        def curve(width):
            settings = {"num_columns": 5, "num_active": width, "trigger": 0.05}
            return sensing.run_rebalanced(
                jr.key(1), make(), num_steps=80, eta=0.2, alpha=0.3, **settings
            )

        out = jax.jit(jax.vmap(curve))(jnp.array([3, 5]))
        assert np.all(np.asarray(out.rebalanced_at) > 0)
        assert np.all(np.asarray(out.state.f)[0, :, 3:] == 0)
        want = curve(jnp.asarray(3)).infos.loss
        np.testing.assert_allclose(out.infos.loss[0], want, rtol=1e-6, atol=1e-26)


def test_rebalancing_keeps_masked_columns_at_zero():
    rng = np.random.default_rng(0)
    mask = np.array([1, 1, 0, 1, 0.0])
    f, g = rng.normal(size=(9, 5)) * mask, rng.normal(size=(7, 5)) * mask
    with x64(True):
        balanced = sensing.rebalance(jnp.asarray(f), jnp.asarray(g), 0.5)
        new_f, new_g = map(np.asarray, balanced)
    np.testing.assert_allclose(new_f @ new_g.T, f @ g.T, atol=1e-13)
    np.testing.assert_array_equal(new_f[:, 3:], 0)
    np.testing.assert_array_equal(new_g[:, 3:], 0)
    np.testing.assert_allclose(new_f[:, :3].T @ new_f[:, :3], np.eye(3) / 4, atol=1e-13)


@pytest.mark.misuse
def test_misuse_is_named():
    problem = make()
    with pytest.raises(ValueError, match=r"`f` must not have more columns.*\(2, 3\)"):
        sensing.rebalance(jnp.ones((2, 3)), jnp.ones((4, 3)), 1.0)
    with pytest.raises(ValueError, match=r"`f` and `g`.*\(3, 2\) and \(3, 1\)"):
        sensing.rebalance(jnp.ones((3, 2)), jnp.ones((3, 1)), 1.0)
    with pytest.raises(ValueError, match=r"`max_wait`.*1\.\.10.*got 11"):
        sensing.run_rebalanced(
            jr.key(0), problem, num_columns=2, num_steps=10, max_wait=11
        )
    with pytest.raises(ValueError, match=r"`num_steps`.*got 0"):
        sensing.run_rebalanced(jr.key(0), problem, num_columns=2, num_steps=0)
    with pytest.raises(TypeError, match="unexpected keyword argument 'is_symmetric'"):
        sensing.gd_rebalanced(problem, num_columns=2, is_symmetric=True)
