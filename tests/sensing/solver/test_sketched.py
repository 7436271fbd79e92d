"""Sketched alternating minimization against exact alternating least squares."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jaxlr import sensing
from jaxlr.core import loop
from jaxlr.core.compat import x64
from jaxlr.sensing.solver._als import alternating_least_squares
from jaxlr.sensing.solver._sketched import alternating_sketched


def make(shape=(12, 10), num_measurements=70, rank=2, seed=0, is_shuffled=False):
    a, b = jr.split(jr.key(seed))
    operator = sensing.entry_sampling(a, shape, num_measurements)
    if is_shuffled:
        order = np.random.default_rng(0).permutation(num_measurements)
        order = np.append(order, order[:9])  # some entries twice
        operator = sensing.entries(operator.rows[order], operator.cols[order], shape)
    return sensing.measure(operator, sensing.low_rank(b, shape, rank))


def one_sweep(factory, problem, key=0, **settings):
    solver = factory(problem, num_columns=3, **settings)

    @jax.jit
    def step():
        return solver.step(jr.key(key), solver.init(jr.key(0)))

    return step()


@pytest.mark.slow
@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["entries", "shuffled", "identity"])
def test_a_sweep_is_exact_with_long_sketches_or_enough_iterations(kind, damping):
    # No row, and no column, has more entries than these.
    long = {"num_inner": 2, "sketch_size": 14 if kind == "shuffled" else 12}
    with x64(True):
        problem = make(is_shuffled=kind == "shuffled")
        if kind == "identity":
            problem = sensing.measure(sensing.identity((12, 10)), problem.truth)
        want, want_info = one_sweep(alternating_least_squares, problem, damping=damping)
        for settings in (long, {"num_inner": 6}):
            got, info = one_sweep(
                alternating_sketched, problem, damping=damping, **settings
            )
            np.testing.assert_allclose(got.f, want.f, atol=1e-8)
            np.testing.assert_allclose(got.g, want.g, atol=1e-8)
            for a, b in zip(info, want_info, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-12)


def test_each_sweep_draws_a_sketch_from_its_key():
    with x64(True):
        problem = make()
        states = [
            one_sweep(alternating_sketched, problem, key, num_inner=1, sketch_size=4)[0]
            for key in (0, 0, 1)
        ]
        np.testing.assert_array_equal(states[0].f, states[1].f)
        assert np.max(np.abs(states[0].f - states[2].f)) > 1e-4


@pytest.mark.parametrize(
    ("n", "num_seeds"), [(150, 1), pytest.param(500, 5, marks=pytest.mark.slow)]
)
def test_two_iterations_cost_at_most_fifteen_percent_more_sweeps(n, num_seeds):
    rank = 5
    num_measurements = int(2.5 * rank * (2 * n - rank))
    with x64(True):

        def num_sweeps(factory, key):
            a, b = jr.split(key)
            operator = sensing.entry_sampling(a, (n, n), num_measurements)
            problem = sensing.measure(operator, sensing.low_rank(b, (n, n), rank))
            solver = factory(problem, num_columns=rank)
            _, infos = loop.run(key, solver, 70)
            return jnp.argmax(infos.relative_error < 1e-6)

        exact_fn, sketched_fn = (
            jax.jit(lambda key, fn=fn: num_sweeps(fn, key))
            for fn in (alternating_least_squares, alternating_sketched)
        )
        for seed in range(num_seeds):
            exact, sketched = (
                int(exact_fn(jr.key(seed))),
                int(sketched_fn(jr.key(seed))),
            )
            assert 20 < exact < 70
            assert 0 < sketched <= 1.15 * exact


@pytest.mark.parametrize("is_x64", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_short_rows_and_superfluous_columns_make_no_nan(is_x64):
    shape, rng = (40, 30), np.random.default_rng(0)
    mask = rng.random(shape) < 0.1
    mask[3], mask[5] = False, np.arange(30) == 4
    with x64(is_x64):
        operator = sensing.entries(*np.nonzero(mask), shape)
        problem = sensing.measure(operator, sensing.low_rank(jr.key(0), shape, 2))
        for num_inner in (2, 20):
            solver = alternating_sketched(problem, num_columns=6, num_inner=num_inner)
            start = solver.init(jr.key(0))
            state, infos = jax.jit(
                lambda solver=solver, start=start: loop.run(
                    jr.key(0), solver, 60, state=start
                )
            )()
            assert np.all(np.isfinite(infos.loss))
            # Conjugate gradients never increase what they minimize.
            assert np.all(np.diff(infos.loss) <= 1e-9 * infos.loss[0])
            assert infos.residual[-1] < 1e-5 < infos.residual[0]
            assert infos.relative_error[-1] < 1e3  # open directions do not drift
            np.testing.assert_array_equal(state.f[3], start.f[3])
            assert state.f.dtype == jnp.asarray(0.0).dtype


def test_a_zero_column_stays_zero_and_lanes_equal_a_loop():
    num_traces = 0
    with x64(True):
        problem = make(num_measurements=90)

        def run(num_active, damping):
            nonlocal num_traces
            num_traces += 1
            solver = alternating_sketched(
                problem, num_columns=4, num_active=num_active, damping=damping
            )
            return loop.run(jr.key(0), solver, 10)

        ranks, dampings = jnp.array([1, 2, 4]), jnp.array([0.0, 0.1, 0.0])
        lanes = jax.jit(jax.vmap(run))
        state, infos = lanes(ranks, dampings)
        lanes(ranks - 1, dampings)
        assert num_traces == 1
        one = jax.jit(run)
        for i in range(3):
            k = int(ranks[i])
            for x in (state.f[i], state.g[i]):
                assert not np.any(x[:, k:])
                assert np.all(np.any(x[:, :k] != 0, axis=0))
            want = one(ranks[i], dampings[i])[1].loss
            np.testing.assert_allclose(infos.loss[i], want, rtol=1e-6, atol=1e-24)
        assert infos.relative_error[1, -1] < 0.2
        assert infos.relative_error[0, -1] > 0.5


@pytest.mark.slow
def test_it_has_a_gradient():
    with x64(True):
        problem = make(num_measurements=90)

        @jax.jit
        def final(damping):
            solver = alternating_sketched(problem, num_columns=2, damping=damping)
            return loop.run(jr.key(0), solver, 3)[1].loss[-1]

        slope = jax.grad(final)(0.1)
        want = (final(0.1 + 1e-5) - final(0.1 - 1e-5)) / 2e-5
        np.testing.assert_allclose(slope, want, rtol=1e-5)


@pytest.mark.misuse
def test_misuse_is_named():
    problem = make()
    for name, bad, valid in (
        ("num_columns", 11, r"1\.\.10"),
        ("num_inner", 0, ">= 1"),
        ("num_inner", 1.5, ">= 1"),
        ("sketch_size", 2, ">= 3"),
    ):
        with pytest.raises(ValueError, match=rf"`{name}`.*{valid}.*got {bad}"):
            alternating_sketched(problem, **{"num_columns": 3, name: bad})
    gaussian = sensing.measure(sensing.gaussian(jr.key(0), (12, 10), 20), problem.truth)
    with pytest.raises(ValueError, match=r"`alternating_sketched`.*EntrySampling or"):
        alternating_sketched(gaussian, num_columns=2)
