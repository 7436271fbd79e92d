"""Where the solvers start: small random factors, or factors read off A*(y).

Letters: k columns of the factors F (n1 x k) and G (n2 x k); m measurements.
"""

import math

import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, DTypeLike, Float, Key

from jaxlr import linalg
from jaxlr.core import checks, Hyper
from jaxlr.sensing.operator import check_shape, EntrySampling, Operator


def small_random(
    key: Key[Array, ""],
    shape: tuple[int, int],
    num_columns: int,
    *,
    alpha: Hyper,
    imbalance: Hyper = 1 / 3,
    dtype: DTypeLike = float,
    is_symmetric: bool = False,
) -> tuple[Float[Array, "n1 k"], Float[Array, "n2 k"]]:
    """Gaussian factors: F of entries alpha N(0, 1/n1), G of a smaller scale.

    Args:
        key: Source of the entries.
        shape: Sizes (n1, n2) of F G^T. Static.
        num_columns: Number k of columns of the factors; may exceed the sides. Static.
        alpha: Scale of F [sqrt(||M||)].
        imbalance: Scale of G over that of F, positive: the entries of G are drawn from
            alpha imbalance N(0, 1/n2).
        dtype: Type of both factors.
        is_symmetric: Whether G is F itself. Static.

    Returns:
        `(f, g)`.

    Raises:
        ValueError: If `num_columns` is not an integer >= 1, if `is_symmetric` and the
            sides differ, or if `imbalance` is known while tracing and not positive.

    References:
        Xiong, Ding, Du. "How Over-Parameterization Slows Down Gradient Descent in
        Matrix Sensing: The Curses of Symmetry and Initialization". 2023.
        arXiv:2310.01769.
    """
    n1, n2 = check_shape(shape)
    k = checks.count("num_columns", num_columns)
    _check_square(shape, is_symmetric)
    checks.positive("imbalance", imbalance)

    def draw(key, num_rows, scale):
        scale = jnp.asarray(scale, dtype)
        return jr.normal(key, (num_rows, k), dtype) * scale

    f_key, g_key = jr.split(key)
    f = draw(f_key, n1, alpha / n1**0.5)
    if is_symmetric:
        return f, f
    # Divided, not multiplied: at 1/3 this is alpha / 3 to the last bit.
    return f, draw(g_key, n2, alpha / (1 / imbalance) / n2**0.5)


def spectral(
    operator: Operator,
    y: Float[Array, "..."],
    num_columns: int,
    *,
    is_symmetric: bool = False,
) -> tuple[Float[Array, "n1 k"], Float[Array, "n2 k"]]:
    """Balanced factors of the best approximation of A*(y) / c of rank k, E A*A = c I.

    Sampled entries, fewer than 1/8 of all, are never spread out to an n1-by-n2 matrix:
    8 subspace iterations from a fixed seed give an approximation that is as good as
    the gap after the k + 10 leading singular values, in O(m k) flops and memory each.
    Otherwise, and in the symmetric form, a full decomposition costs
    O(n1 n2 min(n1, n2)) flops.

    Args:
        operator: The linear map A.
        y: The measurements A(M) of the matrix sought.
        num_columns: Number k of columns of the factors, at most min(n1, n2). Static.
        is_symmetric: Whether M = X X^T is sought: X X^T is the positive part of rank k
            of the symmetric part of A*(y) / c. Static.

    Returns:
        `(f, g) = (U sqrt(S), V sqrt(S))`; `(X, X)` in the symmetric form, whose columns
        are zero where fewer than k eigenvalues are positive. No gradient where
        singular values are equal.

    Raises:
        ValueError: If `num_columns` is not an integer in 1..min(n1, n2), or if
            `is_symmetric` and the sides differ.

    References:
        Keshavan, Montanari, Oh. "Matrix completion from a few entries". 2010.
        arXiv:0901.3150.
    """
    k = checks.count("num_columns", num_columns, most=min(operator.shape))
    _check_square(operator.shape, is_symmetric)
    z = y / operator.isotropy
    if is_symmetric:
        f = _psd_factor(operator.adjoint(z), k)
        return f, f
    if isinstance(operator, EntrySampling) and operator.is_sparse:
        transposed = operator.transpose()
        u, s, vt = linalg.randomized_svd(
            jr.key(0),
            lambda x: operator.adjoint_matmul(z, x),
            lambda x: transposed.adjoint_matmul(z, x),
            operator.shape,
            k,
            num_iterations=8,
            dtype=z.dtype,
        )
    else:
        u, s, vt = jnp.linalg.svd(operator.adjoint(z), full_matrices=False)
    root = jnp.sqrt(s[:k])
    return u[:, :k] * root, vt[:k].T * root


def sign_spectral(
    operator: Operator, y: Float[Array, "..."], num_columns: int, *, alpha: Hyper
) -> Float[Array, "n k"]:
    """The start of the subgradient method: of y only the signs enter.

    Args:
        operator: The linear map A, of square matrices; scaled so that E A*A = I.
        y: The measurements A(M) of the matrix sought.
        num_columns: Number k of columns of the factor, at most n. Static.
        alpha: Scale of the factor [sqrt(||M||)].

    Returns:
        alpha B, with B B^T the positive part of rank k of the symmetric part of
        A*(sign(y)) / sqrt(m); columns are zero where fewer than k eigenvalues are
        positive. O(n^3) flops after one `adjoint`.

    Raises:
        ValueError: If `num_columns` is not an integer in 1..n, or if the sides differ.

    References:
        Ma, Fattahi. "Global Convergence of Sub-gradient Method for Robust Matrix
        Recovery: Small Initialization, Noisy Measurements, and Over-parameterization".
        2022. arXiv:2202.08788.
    """
    k = checks.count("num_columns", num_columns, most=min(operator.shape))
    _check_square(operator.shape, True)
    num_measurements = operator.total(math.prod(operator.measurement_shape))
    z = jnp.sign(y) / num_measurements**0.5
    b = _psd_factor(operator.adjoint(z), k)
    return jnp.asarray(alpha, b.dtype) * b


def _check_square(shape, is_symmetric):
    if is_symmetric and shape[0] != shape[1]:
        raise ValueError(f"a symmetric start needs a square matrix, got {shape}.")


def _psd_factor(x, num_columns):
    """B, with B B^T the positive part of rank k of the symmetric part of X."""
    values, vectors = jnp.linalg.eigh((x + x.T) / 2)
    leading = jnp.maximum(values[::-1][:num_columns], 0)
    return vectors[:, ::-1][:, :num_columns] * jnp.sqrt(leading)
