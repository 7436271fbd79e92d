"""The subgradient method: the formula, its schedules, outliers."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from jaxlr import sensing
from jaxlr.core import loop
from jaxlr.core.compat import x64
from tests.sensing import reference


def make(share=0.0, n=8, rank=2, m=160, seed=0):
    truth_key, key, outlier_key = jr.split(jr.key(seed), 3)
    truth = sensing.low_rank(truth_key, (n, n), rank, is_psd=True)
    problem = sensing.measure(sensing.gaussian(key, (n, n), m), truth)
    return sensing.add_outliers(outlier_key, problem, share, 10 / m**0.5)


SIZES = {
    "geometric": lambda t: 0.1 * 0.9**t,
    "constant": lambda t: 0.1,
    "inverse_time": lambda t: 0.1 / (1 + t),
}


@pytest.mark.parametrize("schedule", [*SIZES, "polyak"])
def test_a_step_is_the_formula(schedule):
    with x64(True):
        problem = make()
        a, y = reference.matrices(problem.operator), np.asarray(problem.y)
        settings = {"schedule": schedule, "eta": 0.1, "decay": 0.9, "minimum": 0.05}
        solver = sensing.subgm(problem, num_columns=3, alpha=0.3, **settings)
        state = solver.init(jr.key(1))
        for t in range(3):
            u = np.asarray(state.f)
            gap = reference.apply(a, u @ u.T) - y
            d = reference.adjoint(a, np.sign(gap))
            d = (d + d.T) / 2
            loss, norm = np.abs(gap).sum(), np.abs(y).sum()
            if schedule == "polyak":
                size = (loss - 0.05 * norm) / np.sum((2 * d @ u) ** 2)
            else:
                size = SIZES[schedule](t) / np.linalg.norm(d)
            state, info = solver.step(jr.key(2), state)
            np.testing.assert_allclose(state.f, u - size * 2 * d @ u, atol=1e-12)
            np.testing.assert_allclose(info.loss, loss, rtol=1e-12)
            np.testing.assert_allclose(info.residual, loss / norm, rtol=1e-12)


def test_a_schedule_of_optax_will_do():
    problem = make()
    named = sensing.subgm(problem, num_columns=3, eta=0.1, decay=0.9)
    other = sensing.subgm(
        problem, num_columns=3, schedule=optax.exponential_decay(0.1, 1, 0.9)
    )
    want, got = (loop.run(jr.key(0), s, 5)[1].loss for s in (named, other))
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_outliers_are_ignored_where_squares_follow_them():
    with x64(True):
        problem = make(share=0.2, m=300)
        solver = sensing.subgm(problem, num_columns=6, alpha=1e-6, decay=0.994)
        assert loop.run(jr.key(0), solver, 2500)[1].relative_error[-1] < 1e-6
        squares = sensing.gd(problem, num_columns=6, is_symmetric=True)
        assert loop.run(jr.key(0), squares, 900)[1].relative_error[-1] > 0.3


def test_polyak_converges_without_a_rate_to_choose():
    with x64(True):
        problem = make(m=300)
        solver = sensing.subgm(problem, num_columns=2, schedule="polyak", alpha=0.3)
        assert loop.run(jr.key(0), solver, 400)[1].relative_error[-1] < 1e-8


def test_a_solution_is_left_alone():
    problem = sensing.measure(
        sensing.identity((3, 3)), jnp.diag(jnp.array([1.0, 0, 0]))
    )
    for schedule in ("geometric", "polyak"):
        solver = sensing.subgm(problem, num_columns=1, schedule=schedule)
        state = solver.init(jr.key(0))._replace(f=jnp.eye(3)[:, :1])
        after, info = solver.step(jr.key(0), state)
        np.testing.assert_array_equal(after.f, state.f)
        assert info.loss == 0


@pytest.mark.misuse
def test_misuse_is_named():
    with pytest.raises(ValueError, match=r"schedule 'geometic'.*'geometric'"):
        sensing.subgm(make(), num_columns=2, schedule="geometic")  # pyright: ignore[reportArgumentType]
    levels = sensing.quantize(jr.key(0), make(), sensing.Quantizer([0.0], 1.0))
    with pytest.raises(ValueError, match="`subgm` needs measurements that are numbers"):
        sensing.subgm(levels, num_columns=2)
    wide = sensing.measure(sensing.identity((3, 4)), jnp.ones((3, 4)))
    with pytest.raises(ValueError, match=r"needs a square matrix, got \(3, 4\)"):
        sensing.subgm(wide, num_columns=2)
