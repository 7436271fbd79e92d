"""How hyper-parameters are trained: what the fields of a kernel say of themselves.

A field of a kernel is trained as it is. One declared with
`eqx.field(metadata=LOG_SCALE)` is trained by its logarithm, which keeps it positive,
one with `eqx.field(metadata=HELD)` not at all, whatever it is called:

    class Wave(Kernel):
        lengthscale: Parameter = eqx.field(metadata=LOG_SCALE)
        phase: Parameter
        order: Parameter = eqx.field(metadata=HELD)
"""

from collections.abc import Mapping
import dataclasses
from types import MappingProxyType
from typing import Any, TypeVar

import equinox as eqx
import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import DTypeLike, PyTree


_T = TypeVar("_T", bound=PyTree)
_KEY = "jaxlr.training"

FREE, LOG, FIXED = "free", "log", "held"
LOG_SCALE: Mapping[str, Any] = MappingProxyType({_KEY: LOG})
"""Metadata of a field of positive hyper-parameters, trained by their logarithms."""
HELD: Mapping[str, Any] = MappingProxyType({_KEY: FIXED})
"""Metadata of a field that is not trained; a kernel in it is held as a whole."""


def ways(tree: PyTree, way: str = FREE) -> Any:
    """`FREE`, `LOG` or `FIXED` in place of every hyper-parameter.

    Args:
        tree: A kernel, or a pytree of kernels.
        way: What holds for hyper-parameters that are no field of a module.
    """

    def is_module(x):
        return isinstance(x, eqx.Module)

    if way == FIXED:
        return jax.tree.map(lambda _: FIXED, tree)
    if not is_module(tree):
        return jax.tree.map(
            lambda x: ways(x) if is_module(x) else way, tree, is_leaf=is_module
        )
    fields = {field.name: field.metadata for field in dataclasses.fields(tree)}
    return jax.tree_util.tree_map_with_path(
        lambda path, x: ways(x, fields[path[0].name].get(_KEY, FREE)),
        tree,
        is_leaf=lambda x: x is not tree,
    )


def unconstrain(kernel: _T, dtype: DTypeLike | None = None) -> _T:
    """Hyper-parameters as they are trained: logarithms of those on a log scale.

    Args:
        kernel: A kernel, or a pytree of kernels.
        dtype: Type of the arrays that all hyper-parameters become; None for the default
            floating type.

    Returns:
        A pytree of the same structure, which `constrain` takes back.
    """

    def of(way, x):
        x = jnp.asarray(x, float if dtype is None else dtype)
        return jnp.log(x) if way == LOG else x

    return jax.tree.map(of, ways(kernel), kernel)


def constrain(params: _T) -> _T:
    """The kernel that `unconstrain` was given.

    Args:
        params: What `unconstrain` has made of a kernel, or of a pytree of them.
    """

    def of(way, x):
        return jnp.exp(x) if way == LOG else x

    return jax.tree.map(of, ways(params), params)


def hold(params: _T) -> _T:
    """The same, whose held hyper-parameters have no derivative: no step moves them.

    Args:
        params: A kernel, a pytree of kernels, or what `unconstrain` has made of them.
    """

    def of(way, x):
        return lax.stop_gradient(x) if way == FIXED else x

    return jax.tree.map(of, ways(params), params)
