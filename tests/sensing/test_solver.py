"""Gradient descent and the modified step: formulas, recovery, divergence, misuse."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jaxlr import sensing
from jaxlr.core import loop
from jaxlr.core.compat import x64
from jaxlr.sensing import reference


OPERATORS = {
    "gaussian": lambda key, shape: sensing.gaussian(key, shape, 40),
    "identity": lambda key, shape: sensing.identity(shape),
    "entry_sampling": lambda key, shape: sensing.entry_sampling(key, shape, 25),
}


def make(name, shape=(7, 6), seed=0, **settings):
    a, b = jr.split(jr.key(seed))
    truth = sensing.low_rank(a, shape, 2, **settings)
    return sensing.measure(OPERATORS[name](b, shape), truth)


@pytest.mark.parametrize("name", OPERATORS)
def test_an_asymmetric_step_is_the_formula(name):
    with x64(True):
        problem = make(name)
        solver = sensing.gd(problem, num_columns=3, eta=0.2, alpha=0.7)
        before = solver.init(jr.key(1))
        after, info = solver.step(jr.key(2), before)
        f, g, y = map(np.asarray, (*before.factors, problem.y.ravel()))
        truth = np.asarray(problem.truth)
        a = reference.matrices(problem.operator)
        # For entries, E A*A = p I: 1/p enters the step, p = 25/42.
        size = 0.2 * (42 / 25 if name == "entry_sampling" else 1)
        want_f, want_g, loss = reference.asymmetric_step(a, y, f, g, size)
        np.testing.assert_allclose(after.f, want_f, atol=1e-13)
        np.testing.assert_allclose(after.g, want_g, atol=1e-13)
        np.testing.assert_allclose(info.loss, loss, rtol=1e-12)
        np.testing.assert_allclose(
            info.residual, np.sqrt(2 * loss) / np.linalg.norm(y), rtol=1e-12
        )
        error = np.linalg.norm(f @ g.T - truth) / np.linalg.norm(truth)
        np.testing.assert_allclose(info.relative_error, error, rtol=1e-12)


@pytest.mark.parametrize("name", OPERATORS)
def test_a_symmetric_step_is_the_formula(name):
    with x64(True):
        problem = make(name, shape=(6, 6), is_psd=True)
        solver = sensing.gd(problem, num_columns=3, eta=0.2, is_symmetric=True)
        before = solver.init(jr.key(1))
        after, info = solver.step(jr.key(2), before)
        a = reference.matrices(problem.operator)
        size = 0.2 * (36 / 25 if name == "entry_sampling" else 1)
        want, loss = reference.symmetric_step(
            a, np.asarray(problem.y).ravel(), np.asarray(before.f), size
        )
        np.testing.assert_allclose(after.f, want, atol=1e-13)
        np.testing.assert_allclose(info.loss, loss, rtol=1e-12)
        assert before.g is None
        np.testing.assert_array_equal(after.factors[1], after.f)


@pytest.mark.parametrize("is_symmetric", [False, True])
def test_a_step_follows_the_gradient_of_the_loss(is_symmetric):
    with x64(True):
        problem = make("gaussian", shape=(6, 6), is_psd=True)
        solver = sensing.gd(problem, num_columns=3, eta=0.2, is_symmetric=is_symmetric)
        state = solver.init(jr.key(1))
        after, _ = solver.step(jr.key(2), state)
        grads = jax.grad(lambda s: solver.step(jr.key(2), s)[1].loss)(state)
        want = jax.tree.map(lambda x, dx: x - 0.2 * dx, state, grads)
        for got, value in zip(
            jax.tree.leaves(after), jax.tree.leaves(want), strict=True
        ):
            np.testing.assert_allclose(got, value, atol=1e-13)


def test_the_start_has_the_scale_that_was_asked_for():
    with x64(True):
        problem = make("identity", shape=(300, 400))
        state = sensing.gd(problem, num_columns=50, alpha=0.6).init(jr.key(0))
        np.testing.assert_allclose(jnp.std(state.f), 0.6 / np.sqrt(300), rtol=0.05)
        np.testing.assert_allclose(jnp.std(state.g), 0.2 / np.sqrt(400), rtol=0.05)
        assert abs(jnp.corrcoef(state.f[:, :1].T, state.g[:300, :1].T)[0, 1]) < 0.3


@pytest.mark.parametrize("name", ["gaussian", "identity", "entry_sampling"])
def test_recovers_with_more_columns_than_the_rank(name):
    operators = {
        "gaussian": lambda: sensing.gaussian(jr.key(5), (20, 16), 260),
        "identity": lambda: sensing.identity((20, 16)),
        "entry_sampling": lambda: sensing.entry_sampling(jr.key(5), (20, 16), 260),
    }
    problem = sensing.measure(
        operators[name](), sensing.low_rank(jr.key(0), (20, 16), 2)
    )
    solver = sensing.gd(problem, num_columns=4, eta=0.3, alpha=0.05)
    _, infos = loop.run(jr.key(1), solver, 600)
    assert infos.relative_error[-1] < 0.02
    assert infos.relative_error[0] > 0.9


def test_without_a_truth_the_measurements_alone_are_used():
    known = make("gaussian")
    blind = sensing.SensingProblem(known.operator, known.y)
    runs = [
        loop.run(jr.key(0), sensing.gd(p, num_columns=3), 20) for p in (known, blind)
    ]
    np.testing.assert_allclose(runs[0][0].f, runs[1][0].f, rtol=1e-6)
    assert runs[1][1].relative_error is None


@pytest.mark.parametrize("scale", [0.1, np.float64(0.1)])
def test_factors_are_of_the_type_of_the_measurements(scale):
    with x64(True):
        truth = jnp.asarray(np.random.default_rng(0).normal(size=(7, 6)), jnp.float32)
        problem = sensing.measure(sensing.identity((7, 6)), truth)
        scale = jnp.asarray(scale) if isinstance(scale, np.float64) else scale
        settings = {"num_columns": 3, "alpha": scale, "eta": scale}
        state, _ = loop.run(jr.key(0), sensing.gd(problem, **settings), 5)
        out = sensing.run_rebalanced(
            jr.key(0), problem, num_steps=5, beta=scale, trigger=2.0, **settings
        )
        for x in (*state.factors, *out.state.factors):
            assert x.dtype == jnp.float32


def test_divergence_is_data_and_stays_in_its_lane():
    problem = make("gaussian")

    def final(eta):
        solver = sensing.gd(problem, num_columns=3, eta=eta)
        return loop.run(jr.key(2), solver, 300)[1].loss[-1]

    losses = jax.vmap(final)(jnp.array([0.1, 100.0]))
    assert jnp.isfinite(losses[0])
    assert not jnp.isfinite(losses[1])
    np.testing.assert_allclose(losses[0], final(jnp.asarray(0.1)), rtol=1e-3)


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
        problem = make("identity", shape=(12, 10))
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
        state = sensing.GDState(*sensing.rebalance(state.f, state.g, 0.8))
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
        problem = make("identity", shape=(12, 10))

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
    problem = make("identity", shape=(12, 10))
    out = sensing.run_rebalanced(
        jr.key(1), problem, num_columns=3, num_steps=200, eta=50.0
    )
    assert out.rebalanced_at == -1
    assert not jnp.isfinite(out.infos.loss[-1])


@pytest.mark.misuse
def test_misuse_is_named():
    problem = make("gaussian")
    with pytest.raises(
        ValueError, match=r"`num_columns` must be an integer >= 1, got 0"
    ):
        sensing.gd(problem, num_columns=0)
    with pytest.raises(ValueError, match=r"`num_columns`.*an integer >= 1, got 2\.5"):
        sensing.gd(problem, num_columns=2.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"`is_symmetric` needs a square.*\(7, 6\)"):
        sensing.gd(problem, num_columns=2, is_symmetric=True)
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
