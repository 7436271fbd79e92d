"""How `vmap` runs what batches badly."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp


def vmap(fn: Callable[..., Any], in_axes: tuple[int | None, ...]) -> Callable[..., Any]:
    """`jax.vmap`, but one lane alone is called as it is.

    Batching loops in loops is slow to trace, and makes both sides of a `cond` run.

    Args:
        fn: Of pytrees of arrays.
        in_axes: Of every argument 0, the axis of lanes in front of all of its arrays,
            or None, the same for all lanes; one at least is 0.
    """

    def call(*args):
        pairs = list(zip(args, in_axes, strict=True))
        mapped = jax.tree.leaves([x for x, axis in pairs if axis is not None])
        if any(len(x) != 1 for x in mapped):
            return jax.vmap(fn, in_axes)(*args)
        lane = [
            x if axis is None else jax.tree.map(lambda x: x[0], x) for x, axis in pairs
        ]
        return jax.tree.map(lambda x: jnp.asarray(x)[None], fn(*lane))

    return call


def one_by_one(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn`, which on a CPU `vmap` calls for one lane after the other.

    For decompositions: batches of them hold threads while they wait for others, so that
    two batches at once may wait for each other for ever (jaxlib 0.10, two cores). And
    for loops, of which all lanes would take as many steps as the longest.

    Args:
        fn: Of pytrees of arrays; may close over others.
    """

    def call(*args):
        closed, static = eqx.partition(
            eqx.filter_closure_convert(fn, *args), eqx.is_array
        )

        def run(closed, *args):
            return eqx.combine(closed, static)(*args)

        serial = jax.custom_batching.sequential_vmap(run)
        return jax.lax.platform_dependent(closed, *args, cpu=serial, default=run)

    return call
