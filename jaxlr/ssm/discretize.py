"""From continuous to discrete time, once for every form of a model."""

from typing import get_args, Literal, TypeAlias

from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Complex, Float, Inexact
import numpy as np

from jaxlr.core import checks


Discretization: TypeAlias = Literal["zoh", "bilinear"]


def discretize(
    lam: Inexact[ArrayLike, "*#s"],
    b: Inexact[ArrayLike, "*#s"],
    dt: Float[ArrayLike, "*#s"],
    method: Discretization = "zoh",
    *,
    allow_unstable: bool = False,
) -> tuple[Complex[Array, "*s"], Complex[Array, "*s"]]:
    """Diagonal x' = lam x + b u as x_l = abar x_{l-1} + bbar u_l.

    Args:
        lam: Eigenvalues of the systems; all shapes broadcast.
        b: Input vectors of the systems.
        dt: Length of a step, in the unit of time of 1 / lam.
        method: How time is cut; with z = dt lam, `"zoh"`, the input held over a step:
            abar = e^z, bbar = (e^z - 1) / lam b, without cancellation; `"bilinear"`,
            the trapezoidal rule: abar = (1 + z/2) / (1 - z/2), bbar = dt b / (1 - z/2).
            Static.
        allow_unstable: Whether known eigenvalues may have a real part of 0 or more.
            Static.

    Returns:
        `(abar, bbar)`.

    Raises:
        ValueError: For an unknown method, or where they are known while tracing: a step
            that is not positive; eigenvalues with a real part of 0 or more, unless
            those are allowed.

    References:
        Gu, Goel, Re. "Efficiently Modeling Long Sequences with Structured State
        Spaces". 2021. arXiv:2111.00396.
    """
    check_system(lam, dt, method, allow_unstable=allow_unstable)
    exponent, bbar = log_discretize(lam, b, dt, method)
    return jnp.exp(exponent), bbar


def log_discretize(
    lam: Inexact[ArrayLike, "*#s"],
    b: Inexact[ArrayLike, "*#s"],
    dt: Float[ArrayLike, "*#s"],
    method: Discretization,
) -> tuple[Complex[Array, "*s"], Complex[Array, "*s"]]:
    """`(log abar, bbar)` of `discretize`, for powers of abar as exponentials."""
    lam, b, dt = jnp.asarray(lam), jnp.asarray(b), jnp.asarray(dt)
    z = dt * lam
    z, _ = jnp.broadcast_arrays(z.astype(jnp.result_type(z.dtype, jnp.complex64)), b)
    x, y = z.real, z.imag
    if method == "zoh":
        return z, dt * b * _phi(z)
    # |1 - z/2|^2, and |1 + z/2|^2 is that and 2 x: none of it at z = -2, where powers
    # are 0 but for the first, as are those of e^-300.
    below = (1 - x / 2) ** 2 + y**2 / 4
    is_zero = 2 * x / below <= -1
    log_abs = jnp.where(
        is_zero, -300, jnp.log1p(jnp.where(is_zero, 0, 2 * x / below)) / 2
    )
    above = jnp.where(is_zero, 1, 1 + x / 2)
    angle = jnp.arctan2(y / 2, above) + jnp.arctan2(y / 2, 1 - x / 2)
    return lax.complex(log_abs, angle), dt * b / (1 - z / 2)


def check_system(
    lam: Inexact[ArrayLike, "..."],
    dt: Float[ArrayLike, "..."],
    method: str,
    *,
    allow_unstable: bool,
) -> None:
    """Refuse what `discretize` does.

    Raises:
        ValueError: For what `discretize` refuses.
    """
    checks.choice("method", method, get_args(Discretization))
    checks.positive("dt", dt)
    if checks.known(lam) and not allow_unstable:
        abscissa = np.max(np.real(np.asarray(lam)), initial=-np.inf)
        if not abscissa < 0:
            raise ValueError(
                f"`lam` must have negative real parts, got {abscissa}; unstable "
                "systems need `allow_unstable=True`."
            )


def _phi(z):
    """(e^z - 1) / z."""
    is_small = jnp.abs(z.real) + jnp.abs(z.imag) < 1e-3
    series = 1 + z / 2 * (1 + z / 3 * (1 + z / 4))
    z = jnp.where(is_small, 1, z)
    x, y = z.real, z.imag
    real = jnp.expm1(x) * jnp.cos(y) - 2 * jnp.sin(y / 2) ** 2
    return jnp.where(is_small, series, lax.complex(real, jnp.exp(x) * jnp.sin(y)) / z)
