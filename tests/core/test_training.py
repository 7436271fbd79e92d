"""Training against loops by hand, with momentum, batches, modules, sweeps."""

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
        solver = core.train(
            sharpness.sam_value_and_grad(models.squares, rho, num_shards=num_shards),
            optax.sgd(0.2, momentum=0.9),
            lambda key: jax.tree.map(jnp.array, params),
            lambda step: tuple(part[batches[step]] for part in data),
        )
        state, info = jax.jit(lambda key: loop.run(key, solver, 7))(jr.key(0))
        assert state.step == 7
        for name, value in want.items():
            np.testing.assert_allclose(state.params[name], value, rtol=1e-12)
        # The info of step t is that of the state that came in.
        np.testing.assert_allclose(info.loss, losses, rtol=1e-12)
        np.testing.assert_allclose(info.grad_norm, norms, rtol=1e-12)


def test_step_is_not_random_and_the_key_draws_the_start():
    solver = core.train(
        jax.value_and_grad(lambda w: jnp.sum(w**2)),
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
    solver = core.train(
        jax.value_and_grad(lambda w: jnp.sum(w)),
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
    solver = core.train(
        value_and_grad, optimizer, lambda key: models.Net(), lambda step: (x, y)
    )
    start = solver.init(jr.key(0))
    step = eqx.filter_jit(solver.step)
    state, infos = start, []
    for _ in range(20):
        state, info = step(jr.key(0), state)
        infos.append(float(info.loss))
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
    after = step(jr.key(0), start)[0].params
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
        solver = core.train(
            sharpness.sam_value_and_grad(models.squares, rho),
            optax.sgd(lr, momentum=0.5),
            lambda key: jax.tree.map(jnp.asarray, params),
            lambda step: (jnp.asarray(x), jnp.asarray(y)),
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
