"""Decompositions of matrices that are known by their products only."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, DTypeLike, Float, Key

from jaxlr.core import checks
from jaxlr.linalg.dense import matmul


def randomized_svd(
    key: Key[Array, ""],
    matmul_fn: Callable[[Float[Array, "q w"]], Float[Array, "p w"]],
    rmatmul_fn: Callable[[Float[Array, "p w"]], Float[Array, "q w"]],
    shape: tuple[int, int],
    rank: int,
    *,
    num_iterations: int = 4,
    num_extra: int = 10,
    dtype: DTypeLike = float,
) -> tuple[Float[Array, "p r"], Float[Array, " r"], Float[Array, "r q"]]:
    """The leading part of the singular value decomposition of A, by products with A.

    Subspace iteration from a random start, with QR after every product. A component
    with singular value s_i outside of the w = r + `num_extra` leading ones is damped by
    (s_{w+1} / s_r)^(2 num_iterations + 1) relative to the last one sought: exact for
    a matrix of rank w or less, and as good as the decay of the spectrum otherwise.

    Args:
        key: Draws the start.
        matmul_fn: `x -> A x`.
        rmatmul_fn: `x -> A^T x`.
        shape: Rows and columns (p, q) of A. Static.
        rank: The number r of singular values sought. Static.
        num_iterations: Number of products with A^T A before the last pair. Static.
        num_extra: Number of columns carried in addition to r, as far as there are.
            Static.
        dtype: Floating type of the start, and so of the result.

    Returns:
        `(u, s, vt)`, s descending; u and vt^T have orthonormal columns. Costs
        2 num_iterations + 2 products with w columns, O((p + q) w^2) flops for each QR
        and O((p + q) w) memory.

    Raises:
        ValueError: Unless `rank` is an integer in 1..min(p, q), `num_iterations` and
            `num_extra` are integers of at least 0.

    References:
        Halko, Martinsson, Tropp. "Finding structure with randomness: Probabilistic
        algorithms for constructing approximate matrix decompositions". 2011.
        arXiv:0909.4061.
    """
    rank = checks.count("rank", rank, most=min(shape))
    num_iterations = checks.count("num_iterations", num_iterations, least=0)
    num_extra = checks.count("num_extra", num_extra, least=0)

    def orthonormal(x):
        return jnp.linalg.qr(x)[0]

    def iterate(right, _):
        return orthonormal(rmatmul_fn(orthonormal(matmul_fn(right)))), None

    width = min(rank + num_extra, *shape)
    right = orthonormal(jr.normal(key, (shape[1], width), dtype))
    right, _ = jax.lax.scan(iterate, right, length=num_iterations)
    left = orthonormal(matmul_fn(right))
    # A^T Q = V S W^T, so that A is nearly Q Q^T A = (Q W) S V^T.
    v, s, wt = jnp.linalg.svd(rmatmul_fn(left), full_matrices=False)
    return matmul(left, wt[:rank].T), s[:rank], v[:, :rank].T
