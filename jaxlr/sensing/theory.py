"""Closed forms and predictions that experiments compare with.

Of gradient descent on factors, first, in the population case:

M = Q Q^T (or Q V^T) with r orthonormal columns, so its condition number is 1; k > r
columns in the factors; the matrix is fully observed. The k - r superfluous directions
of a factor X live in the null space: with N an orthonormal basis of ker(Q^T X), they
are (I - Q Q^T) X N, and their singular values decide how fast the error falls.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Num
import numpy as np

from jaxlr.core import checks, Hyper
from jaxlr.linalg import matmul
from jaxlr.sensing.problem import Quantizer


def null_space_singular_values(
    x: Float[Array, "n k"], basis: Float[Array, "n r"]
) -> Float[Array, " k-r"]:
    """Singular values of (I - Q Q^T) X N, N an orthonormal basis of ker(Q^T X).

    Args:
        x: A factor X.
        basis: Orthonormal columns Q that span the truth's columns.

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
    num_steps: Num[ArrayLike, "..."],
) -> Float[Array, "..."]:
    """||X X^T - M||_F after T steps of symmetric gradient descent, k > r.

    Each null-space singular value obeys s^2(T) = 1 / (2 eta T + 1 / s^2(0)): the error
    is sqrt(sum_i s_i^4(T)), hence sqrt(k - r) / (2 eta T) in the end. What is left of
    the signal's error by then is exponentially smaller, and not counted.

    Args:
        singular_values: Those of the superfluous directions at the start, s_i(0), from
            `null_space_singular_values` of X(0).
        eta: Step size [1/||M||].
        num_steps: Number T of steps, one or many.

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
        singular_values: Those of the superfluous directions of the limit of F, from
            `null_space_singular_values`.
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


def small_init_exponent(
    truth: Float[Array, "n n"], observed: Float[Array, "n n"], rank: int
) -> Float[Array, ""]:
    """The p of error ~ alpha^p, at the end of the linear phase from a small start.

    While the signal grows from alpha to 1, at a rate eta sigma_r or more a step, the
    superfluous directions grow by the noise of the measurements alone: at a rate eta
    lambda, lambda the largest eigenvalue of A*A(M) outside M's columns. They end at
    alpha^(1 - lambda / sigma_r), the error at the square of that. In the population
    case lambda = 0: p = 2.

    Args:
        truth: The matrix M, positive semi-definite.
        observed: What the measurements say of M: A*(y) / c = A*A(M) / c.
        rank: Rank r of M. Static.

    Returns:
        p = 2 (1 - max(lambda, 0) / sigma_r), dimensionless, to first order in lambda;
        O(n^3) flops.

    Raises:
        ValueError: Unless both are matrices of one square shape, and r in 1..n - 1.

    References:
        Stöger, Soltanolkotabi. "Small random initialization is akin to spectral
        learning". 2021. arXiv:2106.15013.
    """
    if truth.ndim != 2 or truth.shape[0] != truth.shape[1]:
        raise ValueError(f"`truth` must be a square matrix, got shape {truth.shape}.")
    if observed.shape != truth.shape:
        raise ValueError(
            f"`observed` must have shape {truth.shape}, got {observed.shape}."
        )
    n = truth.shape[0]
    rank = checks.count("rank", rank, most=n - 1)
    values, vectors = jnp.linalg.eigh(truth)
    outside = vectors[:, : n - rank]
    noise = matmul(outside.T, matmul((observed + observed.T) / 2, outside))
    growth = jnp.maximum(jnp.linalg.eigvalsh(noise)[-1], 0)
    return 2 * (1 - growth / values[n - rank])


def degrees_of_freedom(
    shape: tuple[int, int], rank: int, *, is_symmetric: bool = False
) -> int:
    """Dimension of the rank-r matrices: r (n1 + n2 - r); symmetric r (2 n - r + 1) / 2.

    Args:
        shape: Sizes (n1, n2) of the matrices.
        rank: Rank r of the matrices.
        is_symmetric: Whether symmetric matrices alone are counted.

    Raises:
        ValueError: If `rank` is not in 1..min(n1, n2).
    """
    rank = checks.count("rank", rank, most=min(shape))
    if is_symmetric:
        return rank * (2 * shape[0] - rank + 1) // 2
    return rank * (shape[0] + shape[1] - rank)


def recoverable_rank(
    shape: tuple[int, int], num_measurements: int, *, oversampling: float = 2.5
) -> int:
    """The largest rank that so many measurements per degree of freedom determine.

    Args:
        shape: Sizes (n1, n2) of the matrix.
        num_measurements: Number m of measurements.
        oversampling: Measurements per degree of freedom; at 2.5 completion succeeds.

    Returns:
        The largest r with `oversampling` r (n1 + n2 - r) <= m; at least 1.

    Raises:
        ValueError: Unless `num_measurements` is an integer >= 1.
    """
    num_measurements = checks.count("num_measurements", num_measurements)
    ranks = np.arange(1, min(shape) + 1)
    needed = oversampling * ranks * (sum(shape) - ranks)
    return max(1, int(np.sum(needed <= num_measurements)))


def noise_floor(
    shape: tuple[int, int],
    rank: int,
    num_measurements: int,
    *,
    std: Hyper,
    is_symmetric: bool = False,
) -> Float[Array, ""]:
    """E ||X - M||_F^2 of least squares over rank-r matrices, Gaussian measurements.

    With small noise it is least squares on the tangent space, of d dimensions, where A
    is an m x d matrix of N(0, 1/m) entries: std^2 times the mean trace of an inverse
    Wishart matrix, std^2 m d / (m - d - 1).

    Args:
        shape: Sizes (n1, n2) of the matrices. Static.
        rank: Rank r of the matrices. Static.
        num_measurements: Number m of measurements. Static.
        std: Standard deviation of the noise on each measurement, in the units of y.
        is_symmetric: Whether X is sought among symmetric matrices. Static.

    Returns:
        The mean squared error [||M||^2], exact as std -> 0.

    Raises:
        ValueError: If `rank` is not in 1..min(n1, n2), or unless m > d + 1.
    """
    dimension = degrees_of_freedom(shape, rank, is_symmetric=is_symmetric)
    m = checks.count("num_measurements", num_measurements, least=dimension + 2)
    factor = m * dimension / (m - dimension - 1)
    return jnp.asarray(std) ** 2 * factor


def quantization_efficiency(quantizer: Quantizer, std: Hyper) -> Float[Array, ""]:
    """Share of the Fisher information about A(X) that its levels keep, 0..1.

    Of A(X) ~ N(0, std^2) seen through noise: the information of the levels, averaged
    over A(X), over that of the noisy number itself. With probit, least squares has the
    mean squared error `noise_floor`; the maximum of the likelihood of levels that, over
    this share, for many measurements a degree of freedom. One threshold at 0 and std <<
    scale leave 2 / pi of probit's, 3 / 4 of logit's.

    Args:
        quantizer: How a number becomes a level: thresholds, noise and link.
        std: Standard deviation of A(X): ||X||_F / sqrt(m) of Gaussian measurements.

    Returns:
        The share, dimensionless, by Gauss-Hermite quadrature at 101 nodes: three digits
        while std <= 5 scale. 101 L derivatives of the likelihood.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(101)
    x = jnp.asarray(nodes, quantizer.thresholds.dtype) * std
    levels = jnp.arange(quantizer.thresholds.shape[0] + 1)

    def term(x, level):
        value, slope = jax.value_and_grad(quantizer.log_likelihood, 1)(level, x)
        return jnp.exp(value) * slope**2

    terms = jax.vmap(jax.vmap(term, (None, 0)), (0, None))(x, levels)
    kept = (weights / weights.sum()) @ jnp.sum(terms, axis=1)
    whole = {"probit": 1.0, "logit": 1 / 3}[quantizer.link]
    return kept * jnp.asarray(quantizer.scale) ** 2 / whole


def sign_rip_scale(
    norm: Hyper, *, outlier_share: Hyper = 0.0, outlier_scale: Hyper = 1.0
) -> Float[Array, ""]:
    """<A*(sign(A(X) - s)), X> / (sqrt(m) ||X||_F) expected of Gaussian measurements.

    For a measurement without outlier E |g| = sqrt(2 / pi); Gaussian outliers of scale S
    on A(X) of scale ||X||_F / sqrt(m) leave sqrt(2 / pi) / sqrt(1 + m S^2 / ||X||_F^2).

    Args:
        norm: Frobenius norm ||X||_F of the matrix.
        outlier_share: Share p of the measurements with outliers, in 0..1.
        outlier_scale: sqrt(m) S: the outliers' standard deviation over 1 / sqrt(m).

    Returns:
        The scale, dimensionless: sqrt(2 / pi) (1 - p + p / sqrt(1 + ...)). Positive at
        any p < 1: signs keep pointing home.

    References:
        Ma, Fattahi. "Global Convergence of Sub-gradient Method for Robust Matrix
        Recovery: Small Initialization, Noisy Measurements, and Over-parameterization".
        2022. arXiv:2202.08788.
    """
    norm = jnp.asarray(norm)
    spoilt = norm / jnp.hypot(norm, outlier_scale)
    return jnp.sqrt(2 / jnp.pi) * (1 - outlier_share + outlier_share * spoilt)
