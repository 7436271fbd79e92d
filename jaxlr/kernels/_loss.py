"""Losses of a residual: l2, l1 and Huber, and their slopes."""

from typing import get_args, Literal, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from jaxlr.core import checks
from jaxlr.core.types import Hyper


Loss: TypeAlias = Literal["l2", "l1", "huber"]


def loss_value(
    loss: Loss,
    residual: Float[Array, "..."],
    huber_delta: Hyper | Float[Array, "..."] = 1.0,
) -> Float[Array, ""]:
    """Sum of rho over the residual.

    Args:
        loss: "l2": rho(r) = r^2 / 2; "l1": |r|; "huber": r^2 / 2 where |r| is at most
            delta, else delta (|r| - delta / 2). Static.
        residual: The residual r, of any shape.
        huber_delta: Where the Huber loss turns, delta, in the units of r; a number, or
            an array that broadcasts against r. Other losses do not read it.

    Raises:
        ValueError: On an unknown `loss`; if delta is known while tracing and not > 0.
    """
    slope = loss_slope(loss, residual, huber_delta)
    if loss == "l1":  # not `abs`, whose derivative at 0 is not 0 in JAX
        return jnp.sum(slope * residual)
    # With c the slope, c (r - c / 2) is both branches of the Huber loss at once.
    return jnp.sum(slope * (residual - slope / 2))


def loss_slope(
    loss: Loss,
    residual: Float[Array, "..."],
    huber_delta: Hyper | Float[Array, "..."] = 1.0,
) -> Float[Array, "..."]:
    """psi, the derivative of rho, entry by entry.

    Args:
        loss: Names rho, as for `loss_value`. Static.
        residual: The residual r, of any shape.
        huber_delta: Where the Huber loss turns, in the units of r.

    Raises:
        ValueError: On an unknown `loss`; if delta is known while tracing and not > 0.
    """
    checks.choice("loss", loss, get_args(Loss))
    residual = jnp.asarray(residual)
    if loss == "l2":
        return residual
    if loss == "l1":
        # jnp.sign, NaN kept too; but its Mosaic form asks which TPU this machine has.
        below = jnp.where(residual < 0, -1.0, 0 * residual)
        return jnp.where(residual > 0, 1.0, below)
    checks.within("huber_delta", huber_delta, 0, np.inf, ends="(]")
    delta = jnp.asarray(huber_delta, residual.dtype)
    return jnp.minimum(jnp.maximum(residual, -delta), delta)
