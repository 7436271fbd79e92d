"""Gradient descent: formulas, recovery, divergence, widths, misuse."""

import dataclasses

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jaxlr import sensing
from jaxlr.core import loop
from jaxlr.core.compat import x64
from tests.sensing import reference


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


SOLVERS = {
    "gd": {"eta": 0.2},
    "gd_rebalanced": {"eta": 0.2, "trigger": 0.3},
    "scaled_gd": {"eta": 0.3, "damping": 0.01, "start": "random"},
    "scaled_gd_undamped": {"eta": 0.3, "start": "spectral"},
    "prec_gd": {"eta": 0.3},
    "noisy_prec_gd": {"eta": 0.3},
    "subgm": {"decay": 0.95, "alpha": 0.1, "start": "random"},
}


def solver_of(name, problem, **settings):
    make = getattr(sensing, name.removesuffix("_undamped"))
    return make(problem, **SOLVERS[name] | settings)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_width_may_be_traced_and_is_exact(name):
    """Columns masked at the start stay zero; the others are those of that width."""
    with x64(True):
        problem = make("gaussian", shape=(6, 6), is_psd=True)

        def final(num_active):
            solver = solver_of(name, problem, num_columns=5, num_active=num_active)
            return loop.run(jr.key(1), solver, 40)

        states, infos = jax.jit(jax.vmap(final))(jnp.array([2, 4, 5]))
        f, g = states.f, states.f if states.g is None else states.g
        for lane, width in enumerate((2, 4, 5)):
            for x in (f[lane], g[lane]):
                assert np.all(np.asarray(x)[:, width:] == 0)
                assert np.all(np.any(np.asarray(x)[:, :width] != 0, axis=0))
        assert np.isfinite(infos.loss).all()
        if name == "scaled_gd_undamped":  # its start does not depend on the width
            alone = solver_of(name, problem, num_columns=2)
            want = loop.run(jr.key(1), alone, 40)[1].loss
            np.testing.assert_allclose(infos.loss[0], want, rtol=1e-9, atol=1e-20)


@pytest.mark.slow
@pytest.mark.parametrize("name", SOLVERS)
def test_lanes_are_single_runs_and_float32_stays(name):
    problem = make("gaussian", shape=(6, 6), is_psd=True)

    def final(scale):
        scaled = dataclasses.replace(problem, y=scale * problem.y)
        solver = solver_of(name, scaled, num_columns=3)
        return loop.run(jr.key(1), solver, 10)

    scales = jnp.array([1.0, 2.0])
    many, infos = jax.vmap(final)(scales)
    for lane in range(2):
        state, info = final(scales[lane])
        np.testing.assert_allclose(many.f[lane], state.f, rtol=2e-3, atol=1e-4)
        np.testing.assert_allclose(infos.loss[lane], info.loss, rtol=2e-3, atol=1e-5)
    assert many.f.dtype == jnp.float32
    with x64(True):
        strong = {"alpha": jnp.float64(0.1)}
        state, _ = loop.run(
            jr.key(1), solver_of(name, problem, num_columns=3, **strong), 3
        )
        assert state.f.dtype == jnp.float32


@pytest.mark.parametrize("loss", ["l1", "huber"])
def test_robust_losses_go_down_and_outlast_outliers(loss):
    clean = make("gaussian", shape=(10, 10), seed=2)
    operator = sensing.gaussian(jr.key(3), (10, 10), 200)
    clean = sensing.measure(operator, clean.truth)
    spoilt = sensing.add_outliers(jr.key(4), clean, 0.1, 0.5)
    errors = {}
    for name in (loss, "l2"):
        settings = {"loss": name, "huber_delta": 0.02, "num_columns": 2}
        rate = {"l1": 0.005, "huber": 0.3, "l2": 0.3}[name]
        solver = sensing.gd(spoilt, eta=rate, alpha=0.3, **settings)
        errors[name] = loop.run(jr.key(1), solver, 800)[1].relative_error[-1]
    assert errors[loss] < 0.15 < 0.5 < errors["l2"]


@pytest.mark.slow
def test_quantized_measurements_are_fitted_by_their_likelihood():
    truth = sensing.low_rank(jr.key(0), (20, 20), 1)
    problem = sensing.measure(sensing.identity((20, 20)), 20 * truth)
    quantizer = sensing.Quantizer(np.linspace(-4, 4, 17), 0.5)
    levels = sensing.quantize(jr.key(1), problem, quantizer)
    solver = sensing.gd(levels, num_columns=1, eta=0.003, alpha=1.0)
    _, infos = loop.run(jr.key(2), solver, 300)
    assert infos.relative_error[-1] < 0.25 < 0.9 < infos.relative_error[0]
    assert infos.loss[-1] < infos.loss[0]
    np.testing.assert_allclose(infos.residual, infos.loss / infos.loss[0], rtol=0.05)

    def value(f):
        x = f[0] @ f[1].T
        return -jnp.sum(quantizer.log_likelihood(levels.y, x))

    state = solver.init(jr.key(2))
    grad = jax.grad(value)(state.factors)
    after, _ = solver.step(jr.key(2), state)
    np.testing.assert_allclose(after.f, state.f - 0.003 * grad[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("start", ["random", "spectral", "sign_spectral"])
def test_every_start(start):
    problem = make("gaussian", shape=(6, 6), is_psd=True)
    solver = sensing.gd(
        problem, num_columns=2, start=start, alpha=0.1, is_symmetric=True
    )
    state = solver.init(jr.key(1))
    want = {
        "random": sensing.init.small_random(
            jr.key(1), (6, 6), 2, alpha=0.1, is_symmetric=True
        )[0],
        "spectral": sensing.init.spectral(
            problem.operator, problem.y, 2, is_symmetric=True
        )[0],
        "sign_spectral": sensing.init.sign_spectral(
            problem.operator, problem.y, 2, alpha=0.1
        ),
    }
    np.testing.assert_allclose(state.f, want[start], rtol=1e-6)


def test_zero_measurements_are_no_divergence():
    problem = sensing.SensingProblem(
        sensing.identity((4, 3)), np.zeros((4, 3)).tolist()
    )
    for make in (sensing.gd, sensing.gauss_newton, sensing.alternating_least_squares):
        _, infos = loop.run(jr.key(0), make(problem, num_columns=2), 3)
        assert np.isfinite(infos.residual).all()


def test_the_operator_may_be_of_a_wider_type():
    with x64(True):
        operator = sensing.gaussian(jr.key(0), (5, 5), 30)
        truth = sensing.low_rank(jr.key(1), (5, 5), 1, is_psd=True)
        y = operator.apply(truth).astype(jnp.float32)
        problem = sensing.SensingProblem(operator, y)
        for solver in (
            sensing.gd(problem, num_columns=2),
            sensing.subgm(problem, num_columns=2, start="random", alpha=0.1),
            sensing.scaled_gd(problem, num_columns=2),
            sensing.gauss_newton(problem, num_columns=2),
            sensing.soft_impute(problem, penalty=0.1, eta=0.1),
        ):
            assert jnp.isfinite(loop.run(jr.key(0), solver, 3)[1].loss).all()


def test_nan_among_traced_measurements_is_divergence_at_the_first_step():
    operator = sensing.gaussian(jr.key(3), (6, 5), 20)

    @jax.jit
    def status(y):
        problem = sensing.SensingProblem(operator, y)
        solver = sensing.gd(problem, num_columns=2)
        out = loop.run_until(jr.key(0), solver, 50, tolerance=1e-3)
        return out.status, out.num_steps

    y = jnp.ones(20).at[3].set(jnp.nan)
    assert status(y) == (loop.Status.DIVERGED, 1)


def test_a_target_that_is_not_psd_and_not_known_is_never_reached():
    @jax.jit
    def status(truth):
        problem = sensing.measure(sensing.identity((5, 5)), truth)
        solver = sensing.gd(problem, num_columns=2, is_symmetric=True)
        return loop.run_until(
            jr.key(0), solver, 500, tolerance=1e-3, value_fn=lambda i: i.residual
        ).status

    truth = sensing.low_rank(jr.key(0), (5, 5), 2, is_psd=True)
    assert status(truth) == loop.Status.CONVERGED
    assert status(-truth) == loop.Status.MAX_STEPS


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
    truth = -sensing.low_rank(jr.key(0), (6, 6), 2, is_psd=True)
    negative = sensing.measure(sensing.identity((6, 6)), truth)
    with pytest.raises(ValueError, match=r"positive semi-definite `truth`.*from -1 to"):
        sensing.gd(negative, num_columns=2, is_symmetric=True)
    with pytest.raises(
        ValueError, match=r"`y` must be finite, got nan at \(1,\) and 0"
    ):
        sensing.SensingProblem(
            sensing.gaussian(jr.key(0), (6, 5), 2), jnp.array([0.0, jnp.nan])
        )
    with pytest.raises(ValueError, match=r"`y` must be real, got complex64"):
        sensing.SensingProblem(
            sensing.gaussian(jr.key(0), (6, 5), 2), jnp.ones(2, jnp.complex64)
        )
    with pytest.raises(ValueError, match=r"start 'specral'.*did you mean 'spectral'"):
        sensing.gd(problem, num_columns=2, start="specral")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"'sign_spectral' is for the symmetric"):
        sensing.gd(problem, num_columns=2, start="sign_spectral")
    levels = sensing.quantize(jr.key(0), problem, sensing.Quantizer([0.0], 1.0))
    with pytest.raises(ValueError, match=r"`loss` and `implementation` must be None"):
        sensing.gd(levels, num_columns=2, loss="l1")
    with pytest.raises(ValueError, match=r"`start` must be 'random' for quantized"):
        sensing.scaled_gd(levels, num_columns=2)
    with pytest.raises(ValueError, match=r"`num_active`.*integer in 1\.\.2, got 1\.5"):
        sensing.gd(problem, num_columns=2, num_active=1.5)
    with pytest.raises(ValueError, match=r"`num_active` must be in 1\.\.2.*got 3"):
        sensing.gd(problem, num_columns=2, num_active=3)
    with pytest.raises(ValueError, match=r"implementation 'palas'.*mean 'pallas'"):
        sensing.gd(problem, num_columns=2, implementation="palas")  # pyright: ignore[reportArgumentType]
