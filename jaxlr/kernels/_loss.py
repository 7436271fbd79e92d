"""Losses of a residual: l2, l1 and Huber, and their slopes."""

from typing import Literal, TypeAlias

from jax.core import Tracer
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from jaxlr.core import errors
from jaxlr.core.types import Hyper


Loss: TypeAlias = Literal["l2", "l1", "huber"]

_LOSSES = ("l2", "l1", "huber")


def loss_value(
    loss: Loss,
    residual: Float[Array, "..."],
    huber_delta: Hyper | Float[Array, "..."] = 1.0,
) -> Float[Array, ""]:
    """Sum of rho over the residual.

    Args:
        loss: "l2": rho(r) = r^2 / 2; "l1": |r|; "huber": r^2 / 2 where |r| is at most
            delta, else delta (|r| - delta / 2). Static.
        residual: r.
        huber_delta: delta, in the units of r.

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
    """psi, the derivative of rho, entry by entry; see `loss_value`.

    Raises:
        ValueError: As `loss_value`.
    """
    check_loss(loss)
    residual = jnp.asarray(residual)
    if loss == "l2":
        return residual
    if loss == "l1":
        # jnp.sign, NaN kept too; but its Mosaic form asks which TPU this machine has.
        below = jnp.where(residual < 0, -1.0, 0 * residual)
        return jnp.where(residual > 0, 1.0, below)
    if not isinstance(huber_delta, Tracer) and np.any(np.asarray(huber_delta) <= 0):
        raise ValueError(f"`huber_delta` must be > 0, got {huber_delta}.")
    delta = jnp.asarray(huber_delta, residual.dtype)
    return jnp.minimum(jnp.maximum(residual, -delta), delta)


def check_loss(loss: str) -> None:
    """Raises `ValueError` on an unknown `loss`."""
    if loss not in _LOSSES:
        raise ValueError(errors.unknown("loss", loss, _LOSSES))
