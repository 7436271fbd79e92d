"""Lanes one by one: values, derivatives, and how many steps the loops of each take."""

import functools as ft

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jaxlr.core import batching


def steps_counted(run, *args):
    """Results, and how often a loop's body in `run` counted."""
    counts = []

    def count(_):
        counts.append(1)

    results = jax.jit(lambda *args: run(count, *args))(*args)
    jax.block_until_ready(results)
    jax.effects_barrier()
    return results, len(counts)


def test_one_by_one_sees_what_it_closes_over_and_lanes_do_not_wait():
    def run(count, ends, steps, is_serial=True):
        def lane(end, step):
            def up(end):
                def body(x):
                    jax.debug.callback(count, x)
                    return x + step

                return jax.lax.while_loop(lambda x: x < end, body, 0.0)

            return (batching.one_by_one(up) if is_serial else up)(end)

        return jax.vmap(jax.vmap(lane, (0, None)), (None, 0))(ends, steps)

    ends, steps = jnp.array([1.0, 5.0]), jnp.array([1.0, 0.5])
    found, num = steps_counted(run, ends, steps)
    np.testing.assert_array_equal(found, [[1, 5], [1, 5]])
    _, in_lockstep = steps_counted(ft.partial(run, is_serial=False), ends, steps)
    assert (num, in_lockstep) == (1 + 5 + 2 + 10, 4 * 10)


SCALE, KEY = jnp.asarray(2.0), jr.key(0)


def _factor(matrix, count, key):
    noise = jr.normal(key, matrix.shape) * SCALE
    return jnp.linalg.cholesky(matrix) * noise, count + 1, key


def _loss(matrix, fn=_factor):
    matrix = matrix @ matrix.T + jnp.eye(3)
    low, count, key = fn(matrix, 2, KEY)
    return count * jnp.sum(low + jr.normal(key, low.shape))


def _serial(matrix):
    return _loss(matrix, batching.one_by_one(_factor))


WAYS = {
    "value": jax.vmap,
    "jvp": lambda f: lambda x: jax.jvp(jax.vmap(f), (x,), (x + 1,))[1],
    "vmap of grad": lambda f: jax.vmap(jax.grad(f)),
    "grad of vmap": lambda f: jax.jit(jax.grad(lambda x: jax.vmap(f)(x).sum())),
    "grad of vmap of vmap": lambda f: (
        lambda x: jax.grad(lambda x: jax.vmap(jax.vmap(f))(x).sum())(x[None])
    ),
    "forward over reverse": lambda f: jax.vmap(jax.hessian(f)),
    "reverse over reverse": lambda f: jax.vmap(jax.jacrev(jax.jacrev(f))),
}


@pytest.mark.parametrize("way", WAYS)
def test_serial_calls_have_all_derivatives(way):
    matrices = jr.normal(jr.key(1), (2, 3, 3))
    one, two = (WAYS[way](f)(matrices) for f in (_serial, _loss))
    np.testing.assert_allclose(one, two, rtol=2e-4, atol=2e-4)


def test_lanes_of_a_cpu_go_one_after_the_other():
    text = jax.jit(jax.vmap(jax.grad(_serial))).lower(jnp.ones((5, 3, 3))).as_text()
    assert "tensor<5x3x3xf32>" in text
    calls = [line for line in text.splitlines() if "custom_call" in line]
    factored = [line for line in calls if "potrf" in line]
    assert factored
    assert not any("tensor<5x" in line for line in factored)
