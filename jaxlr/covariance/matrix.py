"""Matrices of covariances, whole or by their first column."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Num
import numpy as np

from jaxlr.core import checks
from jaxlr.covariance.kernel import Kernel, Parameter


def gram(
    kernel: Kernel,
    x: Num[ArrayLike, " n"],
    y: Num[ArrayLike, " m"] | None = None,
    orders: tuple[int, int] = (0, 0),
) -> Float[Array, "n m"]:
    """Covariances d^a/dx^a d^b/dy^b k(x_i - y_j) of a-th and b-th derivatives.

    Args:
        kernel: Kernel k, whose hyper-parameters are numbers.
        x: Points of the rows.
        y: Points of the columns; None stands for x.
        orders: Orders (a, b) of the derivatives along rows and columns; the kernel's
            `max_order` bounds their sum. Static.

    Returns:
        (-1)^b k^(a+b)(x_i - y_j).

    Raises:
        ValueError: Unless points are vectors, hyper-parameters numbers, and orders such
            as the kernel has.
    """
    y = x if y is None else y
    for name, points in (("x", x), ("y", y)):
        if jnp.ndim(points) != 1:
            raise ValueError(
                f"`{name}` must be a vector of points, got shape {jnp.shape(points)}."
            )
    a, b = (checks.count(f"orders[{i}]", orders[i], least=0) for i in (0, 1))
    check_scalar(kernel)
    return (-1) ** b * kernel(jnp.asarray(x)[:, None] - jnp.asarray(y), a + b)


def toeplitz_column(
    kernel: Kernel, spacing: Parameter, num: int, order: int = 0
) -> Float[Array, " num"]:
    """The first column k^(order)(i spacing) of a `gram` matrix on a regular grid.

    It is the whole matrix, which is symmetric for even orders and antisymmetric for odd
    ones: `gram(kernel, grid, orders=(order, 0))[i, j]` is entry i - j.

    Args:
        kernel: Kernel k, whose hyper-parameters are numbers.
        spacing: Distance of neighbors, in the units of x.
        num: Number of points on the grid. Static.
        order: Order of the derivative. Static.

    Raises:
        ValueError: Unless hyper-parameters are numbers, `num` an integer >= 1, and the
            order one that the kernel has.
    """
    num = checks.count("num", num)
    order = checks.count("order", order, least=0, most=kernel.max_order)
    check_scalar(kernel)
    return kernel(spacing * jnp.arange(num), order)


def regular_spacing(x: Num[ArrayLike, " n"]) -> Float[Array, ""]:
    """The distance between neighbors of a regular grid.

    Args:
        x: Points of the grid.

    Raises:
        ValueError: Unless `x` is a vector of two points or more that, where they are
            known, ascend by equal steps, to a millionth of them or, where that is more,
            four rounding errors. Where they are traced, NaN instead.
    """
    if jnp.ndim(x) != 1 or jnp.size(x) < 2:
        raise ValueError(
            f"A grid must be a vector of 2 points or more, got shape {jnp.shape(x)}."
        )
    if checks.known(x):
        points = np.asarray(x)
        wide = points.astype(np.float64)
        step = (wide[-1] - wide[0]) / (len(wide) - 1)
        error = np.max(np.abs(wide - wide[0] - step * np.arange(len(wide))))
        eps = np.finfo(np.result_type(points, np.float32)).eps
        rounding = 4 * eps * np.max(np.abs(wide))
        if not (step > 0 and error <= max(1e-6 * step, rounding)):
            raise ValueError(
                "The grid must be regular for Toeplitz matrices: steps go from "
                f"{np.min(np.diff(wide))} to {np.max(np.diff(wide))}."
            )
    x = jnp.asarray(x, float)
    step = (x[-1] - x[0]) / (len(x) - 1)
    error = jnp.max(jnp.abs(x - x[0] - step * jnp.arange(len(x))))
    rounding = 8 * jnp.finfo(x.dtype).eps * jnp.max(jnp.abs(x))
    is_regular = (step > 0) & (error <= jnp.maximum(1e-6 * step, rounding))
    return jnp.where(is_regular, step, jnp.nan)


def check_scalar(kernel: Kernel) -> None:
    """Matrices need a kernel of one number at one difference.

    Args:
        kernel: Kernel to be checked; its hyper-parameters may be traced.

    Raises:
        ValueError: If hyper-parameters are arrays that give several.
    """
    shape = jax.eval_shape(kernel, jnp.zeros(())).shape
    if shape:
        raise ValueError(
            "`kernel` must have numbers as hyper-parameters, unless `vmap` maps them: "
            f"these give values of shape {shape} instead of one."
        )
