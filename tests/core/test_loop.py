"""The loops against a plain Python loop, and from_optax against optax by hand."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from jaxlr.core import Experiment, from_optax, loop, Solver, Status


class Info(NamedTuple):
    """What a step reports."""

    loss: jax.Array


class HParams(eqx.Module):
    """Hyper-parameters."""

    eta: float = 0.1


def noisy_descent(eta, decay=1.0):
    """X <- x - eta x + noise, loss x^2 / 2 before the step."""

    def step(key, x):
        noise = 1e-3 * jr.normal(key, x.shape)
        return decay * (x - eta * x + noise), Info(0.5 * jnp.sum(x**2))

    return Solver(lambda key: jr.normal(key, (3,)), step)


def by_hand(key, solver, num_steps):
    init_key, loop_key = jr.split(key)
    state, infos = solver.init(init_key), []
    for t in range(num_steps):
        state, info = solver.step(jr.fold_in(loop_key, t), state)
        infos.append(info)
    return state, jax.tree.map(lambda *x: jnp.stack(x), *infos)


def test_run_equals_a_python_loop():
    key, solver = jr.key(0), noisy_descent(0.1)
    state, infos = loop.run(key, solver, 7)
    want_state, want = by_hand(key, solver, 7)
    np.testing.assert_allclose(state, want_state, rtol=1e-6)
    np.testing.assert_allclose(infos.loss, want.loss, rtol=1e-6)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 6, 8])
def test_thinned_curves_are_rows_of_the_full_ones(num_steps):
    key, solver = jr.key(0), noisy_descent(0.1)
    full_state, full = loop.run(key, solver, num_steps)
    state, infos = loop.run(key, solver, num_steps, every=3)
    np.testing.assert_allclose(infos.loss, full.loss[::3], rtol=1e-6)
    np.testing.assert_allclose(state, full_state, rtol=1e-6)


def test_a_run_goes_on_from_a_state():
    key, solver = jr.key(0), noisy_descent(0.1)
    start = jnp.arange(3.0)
    _, infos = loop.run(key, solver, 4, state=start)
    np.testing.assert_allclose(infos.loss[0], 2.5)


def test_run_until_stops_at_the_tolerance():
    key, solver = jr.key(1), noisy_descent(0.3)
    _, infos = loop.run(key, solver, 100)
    out = loop.run_until(key, solver, 100, tolerance=1e-3)
    first = int(np.argmax(np.asarray(infos.loss) <= 1e-3))
    assert out.num_steps == first + 1
    assert out.status == Status.CONVERGED
    assert Status(int(out.status)).sentence == "The tolerance was met."
    np.testing.assert_allclose(out.info.loss, infos.loss[first], rtol=1e-5)


def test_run_until_says_when_the_budget_ends_or_values_diverge():
    key = jr.key(1)
    out = loop.run_until(key, noisy_descent(0.01), 5, tolerance=1e-9)
    assert (int(out.num_steps), int(out.status)) == (5, Status.MAX_STEPS)
    out = loop.run_until(key, noisy_descent(0.0, decay=1e20), 9, tolerance=1e-9)
    assert out.status == Status.DIVERGED
    assert out.num_steps < 9


def test_an_infinity_may_belong_to_the_state():
    def step(key, state):
        x, best = state
        return (0.5 * x, jnp.minimum(best, x)), Info(x)

    solver = Solver(lambda key: (jnp.asarray(1.0), jnp.asarray(jnp.inf)), step)
    out = loop.run_until(jr.key(0), solver, 9, tolerance=0.3)
    assert (int(out.num_steps), int(out.status)) == (3, Status.CONVERGED)


def test_run_until_asks_the_solver():
    solver = noisy_descent(0.3)._replace(has_ended=lambda x: jnp.abs(x).max() < 0.1)
    out = loop.run_until(jr.key(0), solver, 100)
    assert out.status == Status.CONVERGED
    assert jnp.abs(out.state).max() < 0.1


def test_run_until_under_vmap_equals_each_alone():
    def steps(tolerance):
        out = loop.run_until(jr.key(1), noisy_descent(0.3), 60, tolerance=tolerance)
        return out.num_steps, out.state

    tolerances = jnp.array([1e-1, 1e-3, 1e-12])
    together = jax.jit(jax.vmap(steps))(tolerances)
    for i, tolerance in enumerate(tolerances):
        num_steps, state = steps(tolerance)
        assert together[0][i] == num_steps
        np.testing.assert_allclose(together[1][i], state, rtol=1e-5)


def test_both_loops_have_the_gradient_of_the_unrolled_one():
    def final(run, eta):
        return jnp.sum(run(jr.key(0), noisy_descent(eta)) ** 2)

    def unrolled(key, solver):
        return by_hand(key, solver, 6)[0]

    def scanned(key, solver):
        return loop.run(key, solver, 6)[0]

    def bounded(key, solver):
        return loop.run_until(key, solver, 6, tolerance=0.0).state

    want = jax.grad(lambda eta: final(unrolled, eta))(0.2)
    for run in (scanned, bounded):
        got = jax.grad(lambda eta, run=run: final(run, eta))(0.2)
        np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.misuse
def test_misuse_is_named():
    with pytest.raises(ValueError, match="`num_steps`"):
        loop.run(jr.key(0), noisy_descent(0.1), 0)
    with pytest.raises(ValueError, match="`every`"):
        loop.run(jr.key(0), noisy_descent(0.1), 3, every=0)
    with pytest.raises(ValueError, match="`tolerance`"):
        loop.run_until(jr.key(0), noisy_descent(0.1), 3)
    with pytest.raises(ValueError, match="`solver`"):
        loop.closed_form(Experiment(run=lambda key, h: {}, hparams=HParams()))


def quadratic(params):
    return jnp.sum((params["w"] - 2.0) ** 2)


def test_from_optax_is_optax_by_hand():
    transformation = optax.adam(0.1)
    solver = from_optax(quadratic, transformation)
    start = {"w": jnp.zeros(2)}
    state, info = loop.run(jr.key(0), solver, 5, state=solver.init(start))
    params, opt_state = start, transformation.init(start)
    for t in range(5):
        loss, grad = jax.value_and_grad(quadratic)(params)
        np.testing.assert_allclose(info.loss[t], loss, rtol=1e-5)
        np.testing.assert_allclose(info.gradient_norm[t], optax.tree.norm(grad), 1e-5)
        updates, opt_state = transformation.update(grad, opt_state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(state.params["w"], params["w"], rtol=1e-5)


def test_from_optax_feeds_line_searches_and_initializers():
    solver = from_optax(quadratic, optax.lbfgs(), lambda key: {"w": jr.normal(key, 2)})
    out = loop.run_until(jr.key(0), solver, 20, tolerance=1e-10)
    assert out.status == Status.CONVERGED


def test_from_optax_gives_stochastic_losses_the_step_key():
    def loss_fn(key, params):
        return jnp.sum(params * jr.normal(key, (2,)))

    solver = from_optax(loss_fn, optax.sgd(1.0), is_stochastic=True)
    _, info = loop.run(jr.key(3), solver, 4, state=solver.init(jnp.ones(2)))
    assert len(set(np.asarray(info.gradient_norm).tolist())) == 4
