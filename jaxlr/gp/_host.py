"""Small matrices of kernels, in float64 on the host where nothing is traced."""

from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer
import jax.numpy as jnp
from jaxtyping import Array, Float, Num
import numpy as np

from jaxlr.core import compat
from jaxlr.covariance import gram, Kernel
from jaxlr.gp.coregionalization import Coregionalization


def on_host(fun: Callable[..., Any], *args: Any) -> Any:
    """`fun(*args)` as NumPy arrays, in float64, unless something in args is traced."""
    if any(isinstance(x, Tracer) for x in jax.tree.leaves(args)):
        return fun(*jax.tree.map(jnp.asarray, args))
    with compat.x64(True), jax.ensure_compile_time_eval():
        return jax.tree.map(np.asarray, fun(*jax.tree.map(_wide, args)))


def _wide(x):
    is_real = np.issubdtype(np.asarray(x).dtype, np.floating)
    return jnp.asarray(x, float if is_real else None)


def known(x: Any) -> Any:
    """A NumPy array, or what is traced."""
    return x if isinstance(x, Tracer) else np.asarray(x)


def covariance(
    kernel: Kernel | Coregionalization, x: Num[Array, " n"], y: Num[Array, " m"]
) -> Float[Array, "n m"]:
    """Covariances of points of one axis."""
    if isinstance(kernel, Coregionalization):
        return kernel.gram(_outputs(x), _outputs(y))
    return gram(kernel, x, y)


def _outputs(x):
    """Whole numbers as they are; others are no output: -1."""
    return jnp.where(x == jnp.round(x), x, -1).astype(int)


def variance(
    kernel: Kernel | Coregionalization, x: Num[Array, " n"]
) -> Float[Array, " n"]:
    """Variances at points of one axis."""
    if isinstance(kernel, Coregionalization):
        return kernel.variance(_outputs(x))
    return kernel(jnp.zeros(jnp.shape(x)))
