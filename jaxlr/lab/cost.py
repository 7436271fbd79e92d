"""What a function costs by its compiler's figures, repeats of loops included."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend.core import jaxpr_as_fun


class Cost(NamedTuple):
    """Figures of a compiled function.

    Attributes:
        flops: Number of additions, products, comparisons and selections, one an
            element; exponentials and the like are not among them.
        temporary_bytes: Bytes of memory that it needs beside arguments and results.
    """

    flops: float
    temporary_bytes: int


def compiled_cost(fn: Callable[..., Any], *args: Any) -> Cost:
    """What XLA says that `fn(*args)` costs on the default backend; it is not run.

    XLA counts the body of a loop once. Here each body is compiled by itself as well,
    and counts as often as it runs.

    Args:
        fn: A function of pytrees of arrays.
        *args: Its arguments: arrays or `jax.ShapeDtypeStruct`s, of any size.

    Raises:
        ValueError: On a Pallas kernel, a loop whose number of repeats is not known
            while tracing, or a loop in one of several branches.
    """
    traced: Any = jax.jit(fn).trace(*args)
    repeated = _repeated(traced.jaxpr.jaxpr)
    compiled = _compiled(traced.lower())
    sizes: Any = compiled.memory_analysis()
    return Cost(_counted(compiled) + repeated, sizes.temp_size_in_bytes)


def _repeated(jaxpr: Any) -> float:
    """Flops of loops that XLA leaves out."""
    total = 0.0
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name in ("while", "pallas_call"):
            raise ValueError(f"Repeats of `{name}` are not known: its flops neither.")
        leaves = jax.tree.leaves(list(eqn.params.values()))
        inner = [getattr(leaf, "jaxpr", leaf) for leaf in leaves]
        inside = sum(_repeated(body) for body in inner if hasattr(body, "eqns"))
        if name == "cond" and inside:
            raise ValueError("A loop in a branch of `cond` may run or not.")
        if name != "scan":
            total += inside
            continue
        length, unroll = eqn.params["length"], eqn.params["unroll"]
        trips, rest = divmod(length, unroll)
        seen = rest + (unroll if trips else 0)
        total += length * inside
        if length > seen:
            body = eqn.params["jaxpr"]
            structs = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in body.in_avals]
            program = _compiled(jax.jit(jaxpr_as_fun(body)).lower(*structs))
            total += (length - seen) * _counted(program)
    return total


def _compiled(lowered: Any) -> jax.stages.Compiled:
    """The program, which is not run: on a CPU its machine code is not optimized."""
    is_cpu = jax.default_backend() == "cpu"
    return lowered.compile({"xla_backend_optimization_level": 0} if is_cpu else None)


def _counted(compiled: jax.stages.Compiled) -> float:
    analysis: Any = compiled.cost_analysis()
    return analysis.get("flops", 0.0)
