"""Alternating least squares against NumPy's least squares, row by row."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jaxlr import sensing
from jaxlr.core import loop
from jaxlr.core.compat import x64
from jaxlr.sensing.solver._als import alternating_least_squares


def repeated(key, shape):
    rows, cols = np.random.default_rng(0).integers(0, min(shape), (2, 90))
    return sensing.entries(rows, cols, shape)


OPERATORS = {
    "most": lambda key, shape: sensing.entry_sampling(key, shape, 110),
    "identity": lambda key, shape: sensing.identity(shape),
    "many": lambda key, shape: sensing.entry_sampling(key, shape, 70),
    "few": lambda key, shape: sensing.entry_sampling(key, shape, 130),
    "repeated": repeated,
}


def make(name, rank=2, seed=0):
    shape = (40, 30) if name == "few" else (12, 10)
    a, b = jr.split(jr.key(seed))
    operator = OPERATORS[name](a, shape)
    problem = sensing.measure(operator, sensing.low_rank(b, shape, rank))
    noise = np.random.default_rng(seed).normal(size=problem.y.shape)
    return sensing.SensingProblem(operator, problem.y + noise / 50, problem.truth)


def observed(problem):
    operator = problem.operator
    if isinstance(operator, sensing.operator.EntrySampling):
        return np.asarray(operator.rows), np.asarray(operator.cols)
    return tuple(x.ravel() for x in np.indices(operator.shape))


def check_rows(got, y, rows, cols, f, g, damping):
    """Each row against its least squares; where it is not unique, the fit alone."""
    num_unique, scale = 0, np.sqrt(damping) * np.eye(g.shape[1])
    for i, row in enumerate(np.asarray(got)):
        a = np.concatenate([g[cols[rows == i]], scale])
        target = np.concatenate([y[rows == i], np.zeros(len(scale))])
        want = np.linalg.lstsq(a, target)[0]
        np.testing.assert_allclose(a @ row, a @ want, atol=1e-9)
        singular_values = np.linalg.svd(a, compute_uv=False)
        if singular_values[-1] > 1e-2 * singular_values[0]:
            np.testing.assert_allclose(row, want, atol=1e-9)
            num_unique += 1
    assert num_unique >= len(f) / 2


@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.parametrize("name", ["identity", "many", "few", "repeated"])
def test_a_sweep_is_two_least_squares(name, damping):
    with x64(True):
        problem = make(name)
        solver = alternating_least_squares(problem, num_columns=3, damping=damping)
        before = jax.jit(solver.init)(jr.key(0))
        after, info = jax.jit(solver.step)(jr.key(0), before)
    f, g = map(np.asarray, before.factors)
    y, (rows, cols) = np.asarray(problem.y).ravel(), observed(problem)
    gap = np.sum(f[rows] * g[cols], axis=1) - y
    penalty = damping / 2 * (np.sum(f**2) + np.sum(g**2))
    np.testing.assert_allclose(info.loss, gap @ gap / 2 + penalty, rtol=1e-12)
    np.testing.assert_allclose(
        info.residual, np.linalg.norm(gap) / np.linalg.norm(y), rtol=1e-12
    )
    truth = np.asarray(problem.truth)
    np.testing.assert_allclose(
        info.relative_error,
        np.linalg.norm(f @ g.T - truth) / np.linalg.norm(truth),
        rtol=1e-12,
    )
    check_rows(after.f, y, rows, cols, f, g, damping)
    check_rows(after.g, y, cols, rows, g, np.asarray(after.f), damping)


def test_an_unobserved_row_stays_and_a_short_one_fits():
    shape, rng = (12, 10), np.random.default_rng(0)
    mask = rng.random(shape) < 0.7
    mask[3], mask[5] = False, np.arange(10) == 4
    with x64(True):
        operator = sensing.entries(*np.nonzero(mask), shape)
        problem = sensing.measure(operator, sensing.low_rank(jr.key(0), shape, 2))
        solver = alternating_least_squares(problem, num_columns=3)
        start = sensing.solver.FactorState(
            jnp.asarray(rng.normal(size=(12, 3))), jnp.asarray(rng.normal(size=(10, 3)))
        )
        state, _ = solver.step(jr.key(0), start)
        np.testing.assert_array_equal(state.f[3], start.f[3])
        fit = state.f[5] @ start.g[4]
        np.testing.assert_allclose(fit, problem.truth[5, 4], atol=1e-10)
        state, infos = loop.run(jr.key(0), solver, 50, state=start)
        assert np.all(np.isfinite(infos.loss))


def test_completes_at_two_and_a_half_times_the_degrees_of_freedom():
    n, rank = 200, 5
    with x64(True):
        operator = sensing.entry_sampling(
            jr.key(1), (n, n), int(2.5 * rank * (2 * n - rank))
        )
        assert operator.is_sparse
        problem = sensing.measure(operator, sensing.low_rank(jr.key(0), (n, n), rank))
        solver = alternating_least_squares(problem, num_columns=rank)
        _, infos = jax.jit(lambda: loop.run(jr.key(0), solver, 120))()
        assert infos.relative_error[0] > 0.3
        assert infos.relative_error[-1] < 1e-9
        assert np.all(np.diff(infos.loss) <= 1e-12)


@pytest.mark.parametrize("name", ["few", "many"])
def test_superfluous_columns_in_single_precision_make_no_nan(name):
    problem = make(name)
    solver = alternating_least_squares(problem, num_columns=8)
    state, infos = jax.jit(lambda: loop.run(jr.key(0), solver, 200))()
    assert np.all(np.isfinite(infos.loss))
    assert infos.loss[-1] <= infos.loss[1]
    assert state.f.dtype == jnp.float32


def test_a_mask_of_columns_is_the_smaller_rank():
    with x64(True):
        # No row with fewer than k entries: those are determined to a percent only.
        problem = make("most")

        def run(num_active, num_columns):
            solver = alternating_least_squares(
                problem, num_columns=num_columns, num_active=num_active
            )
            return loop.run(jr.key(0), solver, 10)

        state, infos = jax.jit(jax.vmap(lambda k: run(k, 4)))(jnp.arange(1, 5))
        for i, k in enumerate(range(1, 5)):
            want = jax.jit(run, static_argnums=(0, 1))(None, k)[1]
            np.testing.assert_allclose(infos.loss[i], want.loss, rtol=1e-8)
            for x in (state.f[i], state.g[i]):
                assert not np.any(x[:, k:])
                assert np.all(np.any(x[:, :k] != 0, axis=0))


def test_lanes_equal_a_loop_in_one_compilation():
    num_traces = 0
    with x64(True):
        problem = make("many")

        @jax.jit
        @jax.vmap
        def losses(damping):
            nonlocal num_traces
            num_traces += 1
            solver = alternating_least_squares(problem, num_columns=2, damping=damping)
            return loop.run(jr.key(0), solver, 5)[1].loss

        dampings = jnp.array([0.0, 0.1, 1.0])
        got = losses(dampings)
        losses(dampings + 1)
        assert num_traces == 1
        for i in range(3):
            want = losses(dampings[i : i + 1])[0]  # one lane: compiled anew
            np.testing.assert_allclose(got[i], want, rtol=1e-10)
        slope = jax.grad(lambda damping: losses(damping[None])[0, -1])(jnp.asarray(0.1))
        ends = losses(jnp.array([0.1 + 1e-5, 0.1 - 1e-5]))[:, -1]
        np.testing.assert_allclose(slope, (ends[0] - ends[1]) / 2e-5, rtol=1e-5)


@pytest.mark.parametrize("damping", [0.1, np.float64(0.1)])
def test_factors_are_of_the_type_of_the_measurements(damping):
    with x64(True):
        truth = jnp.asarray(np.random.default_rng(0).normal(size=(7, 6)), jnp.float32)
        problem = sensing.measure(sensing.identity((7, 6)), truth)
        solver = alternating_least_squares(
            problem, num_columns=2, damping=jnp.asarray(damping)
        )
        state, _ = loop.run(jr.key(0), solver, 3)
        assert state.f.dtype == state.g.dtype == jnp.float32


@pytest.mark.misuse
def test_misuse_is_named():
    truth = sensing.low_rank(jr.key(0), (7, 6), 2)
    gaussian = sensing.measure(sensing.gaussian(jr.key(0), (7, 6), 20), truth)
    with pytest.raises(ValueError, match=r"EntrySampling or an Identity, got"):
        alternating_least_squares(gaussian, num_columns=2)
    problem = sensing.measure(sensing.identity((7, 6)), truth)
    for bad in (0, 7, 2.5):
        with pytest.raises(ValueError, match=rf"`num_columns`.*1\.\.6.*got {bad}"):
            alternating_least_squares(problem, num_columns=bad)  # pyright: ignore
    levels = sensing.SensingProblem(
        problem.operator,
        jnp.ones((7, 6)),
        quantizer=sensing.problem.Quantizer(jnp.zeros(1), 1.0),
    )
    with pytest.raises(
        ValueError, match=r"`alternating_least_squares` needs measurements"
    ):
        alternating_least_squares(levels, num_columns=2)
