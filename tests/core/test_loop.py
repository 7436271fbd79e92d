"""The loops against a plain Python loop, whole and cut."""

import functools as ft
import itertools
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jaxlr.core import Experiment, loop, Solver, Status
from jaxlr.lab import grid, lane


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
    init_key, loop_key = loop.split_key(key)
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


SIZE, NUM_STEPS = 64, 6
MATRIX = jr.normal(jr.key(7), (SIZE, SIZE)) / SIZE**0.5


class State(NamedTuple):
    """Of the solver that is cut: rounding shows, and so would another noise."""

    x: jax.Array
    memory: jax.Array


def rounding():
    def step(key, state):
        noise = jr.normal(key, (SIZE,))
        x = jnp.tanh(MATRIX @ state.x + 0.1 * noise) * 1.01 + 0.3 * state.x
        info = metrics(state) | {"loss": jnp.sum(state.x**2) / 2}
        return State(x, 0.9 * state.memory + state.x @ state.x), info

    return Solver(lambda key: State(jr.normal(key, (SIZE,)), jnp.ones(())), step)


def initial():
    return rounding().init(loop.split_key(jr.key(1))[0])


def metrics(state):
    """Fused otherwise, they are rounded otherwise."""
    x, memory = state
    mixed = jnp.sum(jnp.tanh(MATRIX @ x) * memory + 0.37 * x)
    return {"mixed": mixed, "wave": jnp.sin(x) * memory + 0.7 * x}


def run_piece(every, watch_fn):
    @ft.partial(jax.jit, static_argnums=(0, 1) if every > 1 else 1)
    def piece(first, num, state):
        return loop.run(
            jr.key(1),
            rounding(),
            num,
            first_step=first,
            every=every,
            state=state,
            watch_fn=watch_fn,
        )

    return piece


def run_until_piece(every):
    @ft.partial(jax.jit, static_argnums=1)
    def piece(first, num, state):
        end = loop.run_until(
            jr.key(1),
            rounding(),
            num,
            tolerance=-1.0,
            value_fn=lambda info: info["loss"],
            first_step=first,
            state=state,
        )
        return end.state, end.info

    return piece


def segment_piece(every):
    experiment = Experiment(
        solver=lambda key, hparams: rounding(),
        num_steps=NUM_STEPS,
        every=every,
        hparams=HParams(),
    )
    (group,) = grid.groups(experiment.hparams, grid.dimensions(experiment.hparams, ()))
    traced = lane.trace(experiment, group)
    segment = jax.jit(traced.function)

    def piece(first, num, state):
        if state is None:
            state = [jnp.zeros(x.shape, x.dtype) for x in traced.state]
        zero = np.int32(0)
        times = np.int32(first), np.int32(first + num)
        state = segment(np.uint32(1), zero, zero, *state, *times)
        return state, []

    return piece


PIECES = {
    "run": lambda every: run_piece(every, None),
    "watched run": lambda every: run_piece(every, metrics),
    "run_until": run_until_piece,
    "segments": segment_piece,
}


def bits(x):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(x)]


@pytest.mark.parametrize(
    ("name", "every"),
    [
        *itertools.product(("run", "watched run", "segments"), (1, 2, 3)),
        ("run_until", 1),
    ],
)
def test_a_run_cut_anywhere_is_the_whole_run(name, every):
    """Every piece from the whole run's state leads to its state, and has its rows.

    So, by induction, has every partition.
    """
    piece = PIECES[name](every)
    start = None if name == "segments" else initial()
    states, rows = [start], []
    for stop in range(1, NUM_STEPS + 1):
        state, rows = piece(0, stop, start)
        states.append(state)
    times = range(0, NUM_STEPS, every)
    for first, stop in itertools.combinations(range(1, NUM_STEPS + 1), 2):
        state, found = piece(first, stop - first, states[first])
        assert bits(state) == bits(states[stop]), (first, stop)
        if name == "run_until" and stop == NUM_STEPS:
            assert bits(found) == bits(rows), first
        elif "run" in name.split():
            kept = [i for i, t in enumerate(times) if first <= t < stop]
            wanted = jax.tree.map(lambda x, kept=kept: x[np.array(kept, int)], rows)
            assert bits(found) == bits(wanted), (first, stop)


@pytest.mark.parametrize("watch_fn", [None, metrics])
@pytest.mark.parametrize("seed", range(3))
def test_a_run_cut_outside_of_jit_is_the_whole_run(watch_fn, seed):
    run = ft.partial(loop.run, jr.key(seed), rounding(), every=2, watch_fn=watch_fn)
    state, rows = run(6)
    for cut in (1, 5):
        middle, one = run(cut)
        end, two = run(6 - cut, first_step=cut, state=middle)
        assert bits(end) == bits(state)
        joined = jax.tree.map(lambda *x: jnp.concatenate(x), one, two)
        assert bits(joined) == bits(rows)


@pytest.mark.full
@pytest.mark.parametrize("name", ["run", "watched run"])
def test_a_run_cut_anywhere_is_the_whole_run_as_xla_optimizes(name):
    """Not with the flags of the other tests, under which hardly anything is fused."""
    test_a_run_cut_anywhere_is_the_whole_run(name, 2)


@pytest.mark.parametrize("watch_fn", [None, jnp.sum])
@pytest.mark.parametrize("every", [1, 2])
def test_a_loop_of_one_step_stays_a_loop(every, watch_fn):
    """Taken apart, and fused with what surrounds it, it would be rounded otherwise."""
    solver = Solver(lambda key: jnp.ones(3), lambda key, x: (2 * x, Info(x)))
    run = ft.partial(loop.run, solver=solver, every=every, watch_fn=watch_fn)
    lowered = jax.jit(lambda key: run(key, num_steps=1)).lower(jr.key(0))
    is_plain = every == 1 and watch_fn is None
    assert lowered.compile().as_text().count(" while(") == (1 if is_plain else 2)


def test_another_offset_is_another_run():
    """That the cuts above can fail: steps counted anew draw the first noises again."""
    piece = run_piece(1, None)
    state, _ = piece(0, 3, initial())
    assert bits(piece(0, 3, state)) != bits(piece(3, 3, state))


class Expensive(NamedTuple):
    """An info that would be seen in a program."""

    loss: jax.Array
    spectrum: jax.Array


def spectral():
    def step(key, x):
        del key
        spectrum = jnp.linalg.svd(x, compute_uv=False)
        return 0.9 * x, Expensive(jnp.sum(x), spectrum)

    return Solver(lambda key: jr.normal(key, (4, 4)), step)


@pytest.mark.parametrize("first", [0, 1, 3, 4])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 9])
def test_what_watches_is_called_once_a_block_and_sees_its_start(first, num_steps):
    seen = []

    def watch_fn(x):
        jax.debug.callback(lambda value: seen.append(float(value)), x)
        return {"x": x}

    solver = Solver(lambda key: jnp.zeros(()), lambda key, x: (x + 1, Info(x)))
    state, rows = loop.run(
        jr.key(0),
        solver,
        num_steps,
        first_step=first,
        every=3,
        state=jnp.asarray(float(first)),
        watch_fn=watch_fn,
    )
    jax.block_until_ready(state)
    jax.effects_barrier()
    wanted = [t for t in range(first, first + num_steps) if t % 3 == 0]
    assert sorted(seen) == wanted
    np.testing.assert_array_equal(rows["x"], np.array(wanted, float))
    assert state == first + num_steps


@pytest.mark.parametrize("every", [1, 3])
def test_infos_are_not_computed_where_something_else_watches(every):
    def program(watch_fn):
        run = ft.partial(loop.run, solver=spectral(), every=every, watch_fn=watch_fn)
        return jax.jit(lambda key: run(key, num_steps=7)).lower(jr.key(0)).compile()

    assert "lapack_sgesdd" in program(None).as_text()
    assert "lapack_sgesdd" not in program(jnp.sum).as_text()


def test_first_step_may_be_traced_if_every_step_is_kept():
    run = run_piece(1, None)
    state, _ = run(0, 2, initial())
    want, _ = run(2, 2, state)

    def from_step(first_step, every):
        return loop.run(
            jr.key(1), rounding(), 2, first_step=first_step, every=every, state=state
        )[0]

    got = jax.jit(lambda t: from_step(t, 1))(2)
    assert bits(got) == bits(want)
    lanes = jax.jit(jax.vmap(lambda t: from_step(t, 1)))(jnp.array([0, 2]))
    np.testing.assert_allclose(lanes.x[1], want.x, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match=r"`first_step` .* must not be traced"):
        jax.jit(lambda t: from_step(t, 2))(2)


def test_modules_with_functions_are_states():
    """A leaf that is no array stays, in both loops, and is differentiated past."""

    def step(key, model):
        del key
        model = eqx.tree_at(lambda m: m.layers[0].weight, model, replace_fn=jnp.tanh)
        return model, Info(jnp.sum(model(jnp.ones(2))))

    def init(key):
        return eqx.nn.MLP(2, 1, 3, 1, activation=jnp.sin, key=key)

    solver = Solver(init, step)
    model, infos = loop.run(jr.key(0), solver, 3, watch_fn=None)
    seen = loop.run(jr.key(0), solver, 3, watch_fn=lambda m: m(jnp.ones(2))[0])[1]
    np.testing.assert_allclose(seen[1:], infos.loss[:-1], rtol=1e-6)
    end = loop.run_until(jr.key(0), solver, 3, tolerance=-jnp.inf)
    assert model.activation is end.state.activation
    np.testing.assert_allclose(end.info.loss, infos.loss[-1], rtol=1e-6)


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

    def watched(key, solver):
        state = loop.run(key, solver, 2)[0]
        piece = {"first_step": 2, "every": 3, "state": state, "watch_fn": lambda x: x}
        return loop.run(key, solver, 5, **piece)[1][1]  # before step 6

    want = jax.grad(lambda eta: final(unrolled, eta))(0.2)
    for run in (scanned, watched, bounded):
        got = jax.grad(lambda eta, run=run: final(run, eta))(0.2)
        np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.misuse
def test_misuse_is_named():
    with pytest.raises(ValueError, match="`num_steps`"):
        loop.run(jr.key(0), noisy_descent(0.1), 0)
    with pytest.raises(ValueError, match="`every`"):
        loop.run(jr.key(0), noisy_descent(0.1), 3, every=0)
    with pytest.raises(ValueError, match="`max_steps`"):
        loop.run_until(jr.key(0), noisy_descent(0.1), 2.5, tolerance=0.1)
    for run in (loop.run, ft.partial(loop.run_until, tolerance=0.1)):
        with pytest.raises(ValueError, match=r"`first_step` must be an integer >= 0"):
            run(jr.key(0), noisy_descent(0.1), 3, first_step=-1, state=jnp.ones(3))
        with pytest.raises(ValueError, match=r"`first_step` .* `state`: give both"):
            run(jr.key(0), noisy_descent(0.1), 3, first_step=2)
    with pytest.raises(ValueError, match="`tolerance`"):
        loop.run_until(jr.key(0), noisy_descent(0.1), 3)
    experiment = Experiment(run=lambda key, h: {}, hparams=HParams())
    with pytest.raises(ValueError, match="`solver`"):
        loop.closed_form(experiment)(jr.key(0), HParams())
