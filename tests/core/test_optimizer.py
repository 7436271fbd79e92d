"""Training by optax against loops by hand: batches, modules, line searches, sweeps."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from jaxlr import core, sharpness
from jaxlr.core import loop
from jaxlr.core.compat import x64
from tests.sharpness import _models as models


def by_hand(params, x, y, batches, *, lr, momentum, **sam):
    """SGD with momentum in NumPy: parameters, losses, norms of the gradient."""
    w = params
    velocity = {name: np.zeros_like(v) for name, v in w.items()}
    losses, norms = [], []
    for index in batches:
        loss, grads, *_ = models.numpy_sam(w, x[index], y[index], **sam)
        losses.append(loss)
        norms.append(np.sqrt(sum((g**2).sum() for g in grads.values())))
        velocity = {name: momentum * velocity[name] + grads[name] for name in w}
        w = {name: w[name] - lr * velocity[name] for name in w}
    return w, losses, norms


@pytest.mark.parametrize(("rho", "num_shards"), [(0.0, 1), (0.3, 1), (0.3, 2)])
def test_training_is_the_loop_by_hand(rho, num_shards):
    params, x, y = models.problem()
    index = [np.asarray(core.epoch_batch(jr.key(1), t, 8, 4)) for t in range(7)]
    want, losses, norms = by_hand(
        params, x, y, index, lr=0.2, momentum=0.9, rho=rho, num_shards=num_shards
    )
    with x64(True):
        batches, data = jnp.array(index), (jnp.array(x), jnp.array(y))
        solver = core.from_optax(
            models.squares,
            optax.sgd(0.2, momentum=0.9),
            lambda key: jax.tree.map(jnp.array, params),
            lambda key, step: tuple(part[batches[step]] for part in data),
            value_and_grad_fn=sharpness.sam_value_and_grad(
                models.squares, rho, num_shards=num_shards
            ),
        )
        state, info = jax.jit(lambda key: loop.run(key, solver, 7))(jr.key(0))
        assert state.step == 7
        for name, value in want.items():
            np.testing.assert_allclose(state.params[name], value, rtol=1e-12)
        # The info of step t is that of the state that came in.
        np.testing.assert_allclose(info.loss, losses, rtol=1e-12)
        np.testing.assert_allclose(info.grad_norm, norms, rtol=1e-12)


def test_step_is_not_random_and_the_key_draws_the_start():
    solver = core.from_optax(
        lambda w: jnp.sum(w**2),
        optax.sgd(0.1),
        lambda key: jr.normal(key, (3,)),
    )
    state = solver.init(jr.key(5))
    np.testing.assert_array_equal(state.params, jr.normal(jr.key(5), (3,)))
    assert state.step == 0
    (one, _), (other, _) = (solver.step(jr.key(seed), state) for seed in (0, 1))
    np.testing.assert_array_equal(one.params, other.params)
    np.testing.assert_allclose(one.params, 0.8 * state.params, rtol=1e-6)
    assert one.step == 1


def test_schedule_and_weight_decay_are_those_of_the_optimizer():
    solver = core.from_optax(
        jnp.sum,
        optax.chain(
            optax.add_decayed_weights(0.5), optax.sgd(lambda t: 0.1 / (t + 1.0))
        ),
        lambda key: jnp.ones(2),
    )
    state, _ = loop.run(jr.key(0), solver, 3)
    w = 1.0
    for t in range(3):
        w -= 0.1 / (t + 1) * (1 + 0.5 * w)
    np.testing.assert_allclose(state.params, [w, w], rtol=1e-6)


def test_module_with_leaves_that_are_no_arrays():
    x, y = models.data()
    optimizer = optax.adam(0.01)
    value_and_grad = sharpness.sam_value_and_grad(models.net_loss, 0.05)
    solver = core.from_optax(
        models.net_loss,
        optimizer,
        lambda key: models.Net(),
        lambda key, step: (x, y),
        value_and_grad_fn=value_and_grad,
    )
    start = solver.init(jr.key(0))
    state, infos = loop.run(jr.key(0), solver, 20)
    infos = np.asarray(infos.loss)
    assert infos[-1] < 0.8 * infos[0]
    assert infos[0] == pytest.approx(float(models.net_loss(start.params, x, y)))
    # Leaves that have no gradient stay: the function, the integer.
    assert state.params.activation is start.params.activation
    assert state.params.num_calls.dtype == start.params.num_calls.dtype
    assert state.params.num_calls == 0
    assert jax.tree.structure(state) == jax.tree.structure(start)
    # The first step, with optax alone.
    _, grads = value_and_grad(start.params, x, y)
    arrays = eqx.filter(start.params, eqx.is_inexact_array)
    updates, _ = optimizer.update(grads, optimizer.init(arrays), arrays)
    want = eqx.apply_updates(start.params, updates)
    after = solver.step(jr.key(0), start)[0].params
    for a, b in zip(
        *(jax.tree.leaves(eqx.filter(m, eqx.is_array)) for m in (after, want)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_learning_rates_and_radii_are_one_compilation():
    params, x, y = models.problem()
    num_traces = 0

    @jax.jit
    @jax.vmap
    def final(lr, rho):
        nonlocal num_traces
        num_traces += 1
        solver = core.from_optax(
            models.squares,
            optax.sgd(lr, momentum=0.5),
            lambda key: jax.tree.map(jnp.asarray, params),
            lambda key, step: (jnp.asarray(x), jnp.asarray(y)),
            value_and_grad_fn=sharpness.sam_value_and_grad(models.squares, rho),
        )
        state, info = loop.run(jr.key(0), solver, 5)
        return state.params, info.loss

    with x64(True):
        rates, radii = np.array([0.1, 0.3, 0.1]), np.array([0.0, 0.2, 0.5])
        got, losses = final(rates, radii)
        final(rates / 2, radii * 2)
        assert num_traces == 1
        for i in range(3):
            want, curve, _ = by_hand(
                params, x, y, [slice(None)] * 5, lr=rates[i], momentum=0.5, rho=radii[i]
            )
            np.testing.assert_allclose(losses[i], curve, rtol=1e-12)
            for name, value in want.items():
                np.testing.assert_allclose(got[name][i], value, rtol=1e-12)


def quadratic(params):
    return jnp.sum((params["w"] - 2.0) ** 2)


def test_adam_is_that_of_optax():
    optimizer = optax.adam(0.1)
    start = {"w": jnp.zeros(2)}
    solver = core.from_optax(quadratic, optimizer, lambda key: start)
    state, info = loop.run(jr.key(0), solver, 5)
    params, opt_state = start, optimizer.init(start)
    for t in range(5):
        loss, grad = jax.value_and_grad(quadratic)(params)
        np.testing.assert_allclose(info.loss[t], loss, rtol=1e-5)
        np.testing.assert_allclose(info.grad_norm[t], optax.tree.norm(grad), 1e-5)
        updates, opt_state = optimizer.update(grad, opt_state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(state.params["w"], params["w"], rtol=1e-5)


@pytest.mark.parametrize("is_sam", [False, True])
@pytest.mark.parametrize(
    "optimizer",
    [
        optax.sgd(0.2),
        optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(20)),
        optax.lbfgs(),
    ],
    ids=["sgd", "backtracking", "lbfgs"],
)
def test_complex_parameters_go_downhill(optimizer, is_sam):
    """The gradient that jax gives is conjugate to the way uphill."""
    goal, weight = jnp.array([1 + 2j, 0.5j - 1]), jnp.array([1.0, 2.0])

    def loss(z):
        return jnp.sum(weight * jnp.abs(z - goal) ** 2)

    sam = sharpness.sam_value_and_grad(loss, 1e-4) if is_sam else None
    solver = core.from_optax(
        loss, optimizer, lambda key: jnp.zeros(2, complex), value_and_grad_fn=sam
    )
    state, info = loop.run(jr.key(0), solver, 40)
    np.testing.assert_allclose(state.params, goal, atol=1e-3)
    np.testing.assert_allclose(info.grad_norm[0], 2 * np.sqrt(10), rtol=1e-3)


def rosenbrock(params):
    x, y = params["w"]
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


@pytest.mark.parametrize("is_batched", [False, True])
def test_line_searches_find_the_minimum_and_save_evaluations(is_batched):
    """Without a batch the last evaluation of a line search is the next step's first."""
    evaluations = []

    def loss_fn(params, *batch):
        jax.debug.callback(lambda _: evaluations.append(1), params["w"])
        return rosenbrock(params)

    solver = core.from_optax(
        loss_fn,
        optax.lbfgs(),
        lambda key: {"w": jnp.array([-1.2, 1.0])},
        (lambda key, step: (step,)) if is_batched else None,
    )
    run = jax.jit(lambda key: loop.run(key, solver, 40))
    state, info = jax.block_until_ready(run(jr.key(0)))
    jax.effects_barrier()
    np.testing.assert_allclose(state.params["w"], [1.0, 1.0], atol=1e-3)
    np.testing.assert_allclose(info.loss[0], 24.2, rtol=1e-5)
    # One at the start, and none at each later step.
    others = len(evaluations) - np.asarray(searches(run)).sum()
    assert others == (40 if is_batched else 1)


def searches(run):
    """Evaluations of the line searches of every step."""
    solver = core.from_optax(
        rosenbrock, optax.lbfgs(), lambda key: {"w": jnp.array([-1.2, 1.0])}
    )
    _, counts = loop.run(
        jr.key(0),
        solver,
        41,
        watch_fn=lambda state: state.opt_state[-1].info.num_linesearch_steps,
    )
    return counts[1:]


def test_a_line_search_inside_of_a_chain_is_not_trusted():
    """Its value is not the loss where the step ends, if something follows it."""
    optimizer = optax.chain(optax.lbfgs(), optax.scale(0.5))
    start = {"w": jnp.array([0.3, 0.5])}
    solver = core.from_optax(rosenbrock, optimizer, lambda key: start)
    state, _ = loop.run(jr.key(0), solver, 3)
    _, info = solver.step(jr.key(0), state)
    np.testing.assert_allclose(info.loss, rosenbrock(state.params), rtol=1e-6)


def test_batches_see_the_key_of_the_step_and_the_steps_before():
    def batch_fn(key, step):
        return jr.normal(key, (2,)), step

    def loss_fn(params, noise, step):
        return jnp.sum(params * noise) + 100 * step

    key, start = jr.key(3), jnp.ones(2)
    solver = core.from_optax(loss_fn, optax.sgd(1.0), lambda key: start, batch_fn)
    state, first = loop.run(key, solver, 2)
    _, second = loop.run(key, solver, 2, first_step=2, state=state)
    loop_key = loop.split_key(key)[1]
    noises = [jr.normal(jr.fold_in(loop_key, t), (2,)) for t in range(4)]
    norms = [float(jnp.linalg.norm(noise)) for noise in noises]
    found = np.concatenate([first.grad_norm, second.grad_norm])
    np.testing.assert_allclose(found, norms, rtol=1e-6)
    w = np.ones(2)
    for t, loss in enumerate(np.concatenate([first.loss, second.loss])):
        np.testing.assert_allclose(loss, w @ noises[t] + 100 * t, rtol=1e-5)
        w = w - np.asarray(noises[t])
