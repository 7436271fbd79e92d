"""How `vmap` runs what batches badly."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax


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
