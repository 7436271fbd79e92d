"""Products, decompositions and random bases of dense matrices.

Letters: p, q rows of two factors, k their columns; n rows, k columns of a basis.
"""

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Inexact, Key

from jaxlr.core import checks


def matmul(a: Inexact[Array, "..."], b: Inexact[Array, "..."]) -> Inexact[Array, "..."]:
    """`a @ b` at full precision: GPUs and TPUs else round float32 operands.

    Args:
        a: Left operand, of shape (..., p, k) or (k,).
        b: Right operand, of shape (..., k, q) or (k,).

    Returns:
        The product, as `jnp.matmul` shapes it; 2 p k q flops.
    """
    return jnp.matmul(a, b, precision="highest")


def total(x: Inexact[Array, "..."]) -> Inexact[Array, ""]:
    """The sum of all entries, half of them added to the other half as long as it goes.

    Adding a million equal logarithms one after the other, or a hundred along each axis,
    is off by 1e-5 or 1e-6 of their sum in float32.

    Args:
        x: Numbers to be added, of any shape.
    """
    x = x.ravel()
    while len(x) > 1:
        half = len(x) // 2
        pairs = x[:half] + x[half : 2 * half]
        x = jax.lax.optimization_barrier(jnp.concatenate([pairs, x[2 * half :]]))
    return jnp.sum(x)


def product_svd(
    f: Float[Array, "p k"], g: Float[Array, "q k"]
) -> tuple[Float[Array, "p s"], Float[Array, " s"], Float[Array, "s q"]]:
    """Thin singular value decomposition of F G^T, never forming it.

    QR of both factors, then the SVD of the small R_F R_G^T. Costs O((p + q) k^2 + k^3)
    flops and O((p + q) k) memory, where forming the product would take p q of both.

    Args:
        f: The left factor F.
        g: The right factor G, with as many columns.

    Returns:
        `(u, s, vt)` with `F G^T = u @ diag(s) @ vt`, s descending, of
        min(p, k) and min(q, k) values the fewer.

    Raises:
        ValueError: Unless both are matrices with one number of columns.
    """
    if f.ndim != 2 or g.ndim != 2 or f.shape[1] != g.shape[1]:
        raise ValueError(
            "`f` and `g` must be matrices with one number of columns, got shapes "
            f"{f.shape} and {g.shape}."
        )
    f_basis, f_small = jnp.linalg.qr(f)
    g_basis, g_small = jnp.linalg.qr(g)
    u, s, vt = jnp.linalg.svd(matmul(f_small, g_small.T), full_matrices=False)
    return matmul(f_basis, u), s, matmul(vt, g_basis.T)


def random_orthonormal(
    key: Key[Array, ""], num_rows: int, num_columns: int
) -> Float[Array, "{num_rows} {num_columns}"]:
    """A matrix with orthonormal columns, uniform (Haar) among all such.

    Args:
        key: Source of randomness.
        num_rows: Number n of rows. Static.
        num_columns: Number k <= n of columns. Static.

    Returns:
        Q with Q^T Q = I, in the default floating type; O(n k^2) flops.

    Raises:
        ValueError: Unless both are integers, `1 <= num_columns <= num_rows`.

    References:
        Mezzadri. "How to generate random matrices from the classical compact groups".
        2007. arXiv:math-ph/0609050.
    """
    num_rows = checks.count("num_rows", num_rows)
    num_columns = checks.count("num_columns", num_columns, most=num_rows)
    q, r = jnp.linalg.qr(jr.normal(key, (num_rows, num_columns)))
    # QR's own choice of signs is not uniform; with diag(R) > 0 the law is exactly Haar.
    return q * jnp.where(jnp.diagonal(r) < 0, -1.0, 1.0)
