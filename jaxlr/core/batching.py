"""How `vmap` runs what batches badly."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp


def one_by_one(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn`, which on a CPU `vmap` calls for one lane after the other.

    For decompositions: batches of them hold threads while they wait for others, so that
    two batches at once may wait for each other for ever (jaxlib 0.10, two cores). And
    for loops, of which all lanes would take as many steps as the longest.

    Differentiable as `fn` is, in any order with `vmap`; what is linear in the tangents
    is one batch again.

    Args:
        fn: Of pytrees of arrays; may close over others.
    """

    def call(*args):
        closed = eqx.filter_closure_convert(fn, *args)
        arrays, static = eqx.partition((closed, args), eqx.is_array)

        def run(moving, fixed):
            closed, args = eqx.combine(moving, fixed, static)
            return eqx.partition(closed(*args), eqx.is_inexact_array)

        @eqx.filter_custom_jvp  # for `sequential_vmap` has no derivatives in reverse
        def choose(moving, fixed):
            serial = jax.custom_batching.sequential_vmap(run)
            return jax.lax.platform_dependent(moving, fixed, cpu=serial, default=run)

        @choose.def_jvp
        def _(primals, tangents):
            traced = []

            def linearized(moving, fixed):
                out, push, rest = jax.linearize(
                    lambda x: run(x, fixed), moving, has_aux=True
                )
                push = eqx.filter_closure_convert(push, moving)
                arrays, static = eqx.partition(push, eqx.is_array)
                traced.append(static)
                return out, rest, arrays

            out, rest, arrays = one_by_one(linearized)(*primals)
            moves = jax.tree.map(
                lambda x, t: jnp.zeros_like(x) if t is None else t,
                primals[0],
                tangents[0],
            )
            still = jax.tree.map(lambda _: None, rest)
            return (out, rest), (eqx.combine(arrays, traced[0])(moves), still)

        moving, fixed = eqx.partition(arrays, eqx.is_inexact_array)
        return eqx.combine(*choose(moving, fixed))

    return call
