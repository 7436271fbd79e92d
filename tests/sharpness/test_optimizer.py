"""SAM as an optax transformation, against `optax.contrib.sam`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from jaxlr.core.compat import x64
from jaxlr.sharpness import as_optax, sam_value_and_grad
from tests.sharpness import _models as models


BASES = {
    "adam": lambda: optax.adam(0.01),
    "momentum": lambda: optax.sgd(0.05, momentum=0.9),
}


def run(optimizer, num_steps, params=None):
    """Parameters at every step; full-batch gradients of least squares."""
    start, x, y = jax.tree.map(jnp.asarray, models.problem())

    def step(carry, _):
        params, state = carry
        grad_fn = jax.grad(lambda params, _: models.squares(params, x, y))
        updates, state = optimizer.update(
            grad_fn(params, 0), state, params, grad_fn=grad_fn
        )
        params = optax.apply_updates(params, updates)
        return (params, state), params

    params = start if params is None else params
    carry = params, optimizer.init(params)
    return jax.jit(lambda carry: jax.lax.scan(step, carry, None, num_steps)[1])(carry)


def of_optax(base, rho):
    ascent = optax.chain(optax.contrib.normalize(), optax.sgd(rho))
    return optax.contrib.sam(base, ascent, sync_period=2, opaque_mode=True)


@pytest.mark.parametrize("name", BASES)
def test_steps_are_those_of_optax(name):
    with x64(True):
        got = run(as_optax(BASES[name](), 0.1), 100)
        want = run(of_optax(BASES[name](), 0.1), 100)
        plain = run(optax.with_extra_args_support(BASES[name]()), 100)
        got, want, plain = jax.device_get((got, want, plain))
    for k in want:
        np.testing.assert_allclose(got[k], want[k], rtol=1e-9)
        assert np.abs(plain[k] - want[k]).max() > 1e-3


@pytest.mark.parametrize(
    "rule",
    [{}, {"is_normalized": False}, {"is_adaptive": True}],
    ids=["sam", "usam", "asam"],
)
def test_steps_are_those_of_the_transform(rule):
    with x64(True):
        got = run(as_optax(optax.adam(0.01), 0.2, **rule), 20)
        params, x, y = jax.tree.map(jnp.asarray, models.problem())
        base = optax.adam(0.01)
        state = base.init(params)
        for i in range(20):
            _, g = sam_value_and_grad(models.squares, 0.2, **rule)(params, x, y)
            updates, state = base.update(g, state)
            params: Any = optax.apply_updates(params, updates)
            for k in got:
                np.testing.assert_allclose(got[k][i], params[k], rtol=1e-10)


def test_a_schedule_of_rho_is_realized_step_by_step():
    def schedule(step):
        return 0.1 + 0.2 * step

    with x64(True):
        got = jax.device_get(run(as_optax(optax.sgd(0.1), schedule), 5))
        frozen = jax.device_get(run(of_optax(optax.sgd(0.1), schedule), 5))
    params, x, y = models.problem()
    for i in range(5):
        g = models.numpy_sam(params, x, y, 0.1 + 0.2 * i)[1]
        params = {k: params[k] - 0.1 * g[k] for k in g}
        for k in params:
            np.testing.assert_allclose(got[k][i], params[k], rtol=1e-10)
    assert np.abs(frozen["w"][-1] - params["w"]).max() > 1e-3


def test_a_zero_gradient_stays_one():
    zeros = {"w": jnp.zeros((3, 1)), "b": jnp.zeros(1)}
    optimizer = as_optax(optax.sgd(0.1), 0.1)
    updates, _ = optimizer.update(
        zeros, optimizer.init(zeros), zeros, grad_fn=lambda params, _: params
    )
    for leaf in jax.tree.leaves(updates):
        np.testing.assert_array_equal(leaf, 0)


def test_other_arguments_reach_the_base():
    """A plateau needs the loss."""
    base = optax.chain(
        optax.sgd(0.1), optax.contrib.reduce_on_plateau(0.5, patience=1, rtol=0.1)
    )
    optimizer = as_optax(base, 0.1)
    params = jnp.ones(2)
    state, sizes = optimizer.init(params), []
    for _ in range(4):
        updates, state = optimizer.update(
            params, state, params, grad_fn=lambda p, _: p, value=1.0
        )
        sizes.append(float(optax.tree.norm(updates)))
    assert sizes[-1] < 0.6 * sizes[0]


@pytest.mark.misuse
def test_misuse_is_named():
    with pytest.raises(ValueError, match=r"`rho` must be >= 0 and finite, got -1"):
        as_optax(optax.sgd(0.1), -1)
    optimizer = as_optax(optax.sgd(0.1), 0.1)
    w = jnp.ones(2)
    with pytest.raises(ValueError, match=r"`grad_fn` must be given"):
        optimizer.update(w, optimizer.init(w), w)
    with pytest.raises(ValueError, match=r"`params` must be given"):
        optimizer.update(w, optimizer.init(w), grad_fn=lambda p, _: p)
