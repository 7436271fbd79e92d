"""Closed forms for gradient descent on factors, in the population case.

M = Q Q^T (or Q V^T) with r orthonormal columns, so its condition number is 1; k > r
columns in the factors; the matrix is fully observed. The k - r superfluous directions
of a factor X live in the null space: with N an orthonormal basis of ker(Q^T X), they
are (I - Q Q^T) X N, and their singular values decide how fast the error falls.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlr.core import Hyper
from jaxlr.linalg import matmul


def null_space_singular_values(
    x: Float[Array, "n k"], basis: Float[Array, "n r"]
) -> Float[Array, " k-r"]:
    """Singular values of (I - Q Q^T) X N, N an orthonormal basis of ker(Q^T X).

    Args:
        x: A factor X.
        basis: Q, orthonormal columns that span the truth's columns.

    Returns:
        k - r values, descending, in the units of X; none if k = r. O(n k^2) flops.

    Raises:
        ValueError: Unless `x` and `basis` have one number of rows, and k >= r.
    """
    if x.ndim != 2 or basis.ndim != 2 or x.shape[0] != basis.shape[0]:
        raise ValueError(
            "`x` and `basis` must be matrices with one number of rows, got shapes "
            f"{x.shape} and {basis.shape}."
        )
    rank = basis.shape[1]
    if x.shape[1] < rank:
        raise ValueError(
            f"`x` must have at least r = {rank} columns, got {x.shape[1]}."
        )
    inside = matmul(basis.T, x)
    # N N^T, the projector on the kernel: a basis N itself has no derivative.
    rows = jnp.linalg.qr(inside.T)[0]
    kernel = jnp.eye(x.shape[1], dtype=x.dtype) - matmul(rows, rows.T)
    outside = matmul(x - matmul(basis, inside), kernel)
    return jnp.linalg.svd(outside, compute_uv=False)[: x.shape[1] - rank]


def symmetric_error(
    singular_values: Float[Array, " s"],
    *,
    eta: Hyper,
    num_steps: Int[Array, "..."] | Float[Array, "..."] | int,
) -> Float[Array, "..."]:
    """||X X^T - M||_F after T steps of symmetric gradient descent, k > r.

    Each null-space singular value obeys s^2(T) = 1 / (2 eta T + 1 / s^2(0)): the error
    is sqrt(sum_i s_i^4(T)), hence sqrt(k - r) / (2 eta T) in the end. What is left of
    the signal's error by then is exponentially smaller, and not counted.

    Args:
        singular_values: s_i(0), from `null_space_singular_values` of X(0).
        eta: Step size [1/||M||].
        num_steps: T, one or many.

    Returns:
        The error, in units of ||M||; zero if k = r.

    References:
        Xiong, Ding, Du. "How Over-Parameterization Slows Down Gradient Descent in
        Matrix Sensing: The Curses of Symmetry and Initialization". 2023.
        arXiv:2310.01769.
    """
    times = jnp.asarray(num_steps)[..., None]
    squares = 1 / (2 * eta * times + singular_values**-2)
    return jnp.linalg.norm(squares, axis=-1)


def asymmetric_rate(
    singular_values: Float[Array, " s"], *, eta: Hyper
) -> Float[Array, ""]:
    """Late decrease of log ||F G^T - M||_F per step of asymmetric gradient descent.

    In the null space G is multiplied by I - eta F^T F a step while F stays, so the
    slowest direction decays as (1 - eta s_min^2)^t: the rate is -log(1 - eta s_min^2),
    to first order eta s_min^2. As s is proportional to the initial scale, the rate is
    to its square.

    The least singular value of F itself makes this exact. Restricted to the null space
    it is larger by O(alpha^2) of its own: the rate by 0 to 4 % at alpha = 0.8.

    Args:
        singular_values: From `null_space_singular_values` of the limit of F.
        eta: Step size [1/||M||].

    Returns:
        The rate, dimensionless.

    Raises:
        ValueError: If there are no superfluous directions (k = r).

    References:
        Xiong, Ding, Du. "How Over-Parameterization Slows Down Gradient Descent in
        Matrix Sensing: The Curses of Symmetry and Initialization". 2023.
        arXiv:2310.01769.
    """
    if not singular_values.size:
        raise ValueError("`singular_values` is empty: the rate is that of k > r.")
    return -jnp.log1p(-eta * jnp.min(singular_values) ** 2)


def rebalanced_rate(*, eta: Hyper, beta: Hyper) -> Float[Array, ""]:
    """Decrease of log ||F G^T - M||_F per step after `rebalance`: -log(1 - eta beta^2).

    Then F^T F = beta^2 I, so every direction of G contracts by 1 - eta beta^2, whatever
    the initial scale was.

    Args:
        eta: Step size [1/||M||].
        beta: Singular values of the rebalanced F [sqrt(||M||)].

    Returns:
        The rate, about eta beta^2, dimensionless.

    References:
        Xiong, Ding, Du. "How Over-Parameterization Slows Down Gradient Descent in
        Matrix Sensing: The Curses of Symmetry and Initialization". 2023.
        arXiv:2310.01769, equation 5.1.
    """
    return -jnp.log1p(-jnp.asarray(eta) * beta**2)
