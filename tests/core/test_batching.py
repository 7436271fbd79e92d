"""Lanes one by one: values, and how many steps the loops of each take."""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np

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
