"""What differs between jax 0.7.2 and the newest, and between machines. Only here."""

from collections.abc import Sequence
import contextlib
from typing import Any

import jax
from jaxtyping import PyTree
import numpy as np


if "enable_x64" in vars(jax):
    _enable_x64 = jax.enable_x64
else:
    from jax.experimental import enable_x64 as _enable_x64  # pyright: ignore


def x64(enabled: bool) -> contextlib.AbstractContextManager:
    """A context in which 64-bit types are on or off."""
    return _enable_x64(enabled)


def line_mesh(devices: Sequence[jax.Device], axis_name: str) -> jax.sharding.Mesh:
    """A one-dimensional mesh over the given devices."""
    kind = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh(
        (len(devices),), (axis_name,), axis_types=kind, devices=devices
    )


def varying_axes(x: Any) -> frozenset[str]:
    """Mesh axes over which shard_map's types let an array, or the type of one, vary."""
    aval: Any = jax.typeof(x) if isinstance(x, jax.Array | np.ndarray) else x
    if hasattr(aval, "manual_axis_type"):
        return getattr(aval.manual_axis_type, "varying", frozenset())
    return aval.vma or frozenset()


def vary(tree: PyTree, axis_names: Sequence[str] | frozenset[str]) -> PyTree:
    """Cast replicated arrays to device-varying ones over some axes of `shard_map`.

    Their gradients then stay on each device. Where nothing tracks what varies, as under
    `pmap` and `vmap`, gradients stay on each device as it is, and arrays pass through.
    """
    manual = jax.sharding.get_abstract_mesh().manual_axes
    names = [name for name in manual if name in axis_names]

    def cast(x):
        axes = tuple(name for name in names if name not in varying_axes(x))
        if hasattr(jax.lax, "pcast"):
            return jax.lax.pcast(x, axes, to="varying") if axes else x
        return jax.lax.pvary(x, axes)  # pyright: ignore

    return jax.tree.map(cast, tree)


def bind(eqn: Any, values: Sequence[Any]) -> Sequence[Any]:
    """The results of one equation of a jaxpr, as jax's own interpreter has them."""
    params = eqn.primitive.get_bind_params(eqn.params)
    functions = ()
    if isinstance(params, tuple):
        functions, params = params
    with eqn.ctx.manager:
        out = eqn.primitive.bind(*functions, *values, **params)
    return out if eqn.primitive.multiple_results else [out]
