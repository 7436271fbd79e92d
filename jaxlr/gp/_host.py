"""Small matrices of kernels, in float64 on the host where nothing is traced."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num
import numpy as np

from jaxlr.core import checks, compat
from jaxlr.covariance import gram, Kernel
from jaxlr.gp.coregionalization import Coregionalization


def on_host(fun: Callable[..., Any], *args: Any) -> Any:
    """`fun(*args)` as NumPy arrays, in float64, unless something in args is traced."""
    if not checks.known(args):
        return fun(*jax.tree.map(jnp.asarray, args))
    with compat.x64(True), jax.ensure_compile_time_eval():
        return jax.tree.map(np.asarray, fun(*jax.tree.map(_wide, args)))


def _wide(x):
    is_real = np.issubdtype(np.asarray(x).dtype, np.floating)
    return jnp.asarray(x, float if is_real else None)


def as_known(x: Any) -> Any:
    """A NumPy array, or what is traced as it is."""
    return np.asarray(x) if checks.known(x) else x


def covariance(
    kernel: Kernel | Coregionalization, x: Num[Array, " n"], y: Num[Array, " m"]
) -> Float[Array, "n m"]:
    """Covariances of points of one axis, which may be one of outputs."""
    if isinstance(kernel, Coregionalization):
        return kernel.gram(_outputs(x), _outputs(y))
    return gram(kernel, x, y)


def _outputs(x):
    """Whole numbers as they are; others are no output: -1."""
    return jnp.where(x == jnp.round(x), x, -1).astype(int)


def variance(
    kernel: Kernel | Coregionalization, x: Num[Array, " n"]
) -> Float[Array, " n"]:
    """Variances at points of one axis, which may be one of outputs."""
    if isinstance(kernel, Coregionalization):
        return kernel.variance(_outputs(x))
    return kernel(jnp.zeros(jnp.shape(x)))
