"""Closed forms of SAM on quadratics, that experiments compare with.

Letters: H the Hessian, lambda_i its eigenvalues, a_i = 1 - eta lambda_i (1 + rho
lambda_i) the factor by which a step of unnormalized SAM (USAM: w <- w - eta grad L(w +
rho grad L(w))) shrinks the error along the i-th; rho = 0 is gradient descent (GD). n
samples y = f* + noise, of variance sigma^2, d parameters, T steps from zero.

    least squares      L(w) = ||X w - y||^2 / 2 n,   f* = X w*,   H = X^T X / n
    kernel regression  f = sum_j alpha_j k(x_j, .),  L = ||K alpha - y||^2 / 2 n

The latter's gradient is the one in the reproducing kernel Hilbert space, of
coefficients (K alpha - y) / n, for the perturbation as for the step: H = K / n.
"""

from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlr.core import checks, Count, Hyper
from jaxlr.linalg import matmul


Steps: TypeAlias = Int[Array, "..."] | Float[Array, "..."] | int
"""T, a whole number: one or many."""


class Modes(NamedTuple):
    """A regression problem, seen along the eigenvectors of H.

    Attributes:
        eigenvalues: lambda_i of H, ascending.
        signal: Mean square of f*'s component along each, in the units of f*^2: lambda_i
            (v_i^T w*)^2 in least squares, (u_i^T f*)^2 / n with a kernel.
    """

    eigenvalues: Float[Array, " d"]
    signal: Float[Array, " d"]


class BiasVariance(NamedTuple):
    """Two parts of the risk E ||f_T - f*||^2 / n at the samples, units of f*^2.

    Attributes:
        squared_bias: sum_i a_i^(2 T) signal_i, of the mean prediction.
        variance: sigma^2 / n sum_i (1 - a_i^T)^2, of the prediction over the noise.
    """

    squared_bias: Float[Array, "..."]
    variance: Float[Array, "..."]

    @property
    def risk(self) -> Float[Array, "..."]:
        """Their sum."""
        return self.squared_bias + self.variance


def least_squares_modes(x: Float[Array, "n d"], truth: Float[Array, " d"]) -> Modes:
    """The modes of least squares, H = X^T X / n.

    Args:
        x: The matrix X of samples, one a row.
        truth: The coefficients w* of the truth, one a column of X.

    Returns:
        d modes; O(n d^2 + d^3) flops.

    Raises:
        ValueError: Unless `x` is a matrix and `truth` of its columns.
    """
    if x.ndim != 2 or truth.shape != x.shape[1:]:
        raise ValueError(
            "`x` must be a matrix and `truth` have an entry a column, got shapes "
            f"{x.shape} and {truth.shape}."
        )
    values, vectors = jnp.linalg.eigh(matmul(x.T, x) / x.shape[0])
    # Of a singular matrix the least may come out below zero.
    values = jnp.maximum(values, 0)
    return Modes(values, values * matmul(vectors.T, truth) ** 2)


def kernel_modes(kernel: Float[Array, "n n"], truth: Float[Array, " n"]) -> Modes:
    """The modes of kernel regression, H = K / n.

    Args:
        kernel: The matrix K of the kernel at all pairs of samples, positive
            semi-definite.
        truth: Values of f* at the samples; it need not lie in the Hilbert space.

    Returns:
        n modes; O(n^3) flops.

    Raises:
        ValueError: Unless `kernel` is square and `truth` of its size.
    """
    _check_square("kernel", kernel, "truth", truth)
    n = truth.shape[0]
    values, vectors = jnp.linalg.eigh(kernel / n)
    return Modes(jnp.maximum(values, 0), matmul(vectors.T, truth) ** 2 / n)


def bias_variance(
    modes: Modes,
    *,
    num_samples: Count,
    sigma: Hyper,
    eta: Hyper,
    rho: Hyper = 0.0,
    num_steps: Steps,
) -> BiasVariance:
    """Squared bias and variance after T steps of USAM; of GD where rho = 0.

    If eta lambda_1 (1 + rho lambda_1) <= 1, SAM has the lower bias and the higher
    variance of the two, at every T.

    Args:
        modes: The problem, as `least_squares_modes` or `kernel_modes` sees it.
        num_samples: Number n of samples, which the modes no longer know.
        sigma: Standard deviation of the noise, in the units of f*.
        eta: Step size [1/lambda].
        rho: Perturbation a gradient [1/lambda]; 0 is gradient descent.
        num_steps: Numbers T of steps after which to look, of any shape.

    Returns:
        Both, of the shape of `num_steps`.

    References:
        Behdin, Mazumder. "SAM: an implicit regularization perspective". 2023.
        arXiv:2302.11836.
    """
    rest = _rest(modes.eigenvalues, eta, rho, num_steps)
    noise = jnp.asarray(sigma) ** 2 / num_samples
    return BiasVariance(
        jnp.sum(rest**2 * modes.signal, -1), noise * jnp.sum((1 - rest) ** 2, -1)
    )


def sam_advantage(
    modes: Modes,
    *,
    num_samples: Count,
    sigma: Hyper,
    eta: Hyper,
    rho: Hyper,
    num_steps: Steps,
) -> Float[Array, "... d"]:
    """Risk of GD less that of USAM, at equal eta and T, mode by mode.

    It is positive where stopping at T is early enough for SAM to win: while a_SAM^T <=
    a_GD^T, where a_SAM^T + a_GD^T > 2 / (1 + n signal_i / sigma^2).

    Args:
        modes: The problem, as `least_squares_modes` or `kernel_modes` sees it.
        num_samples: Number n of samples, which the modes no longer know.
        sigma: Standard deviation of the noise, in the units of f*.
        eta: Step size of both [1/lambda].
        rho: Perturbation a gradient [1/lambda].
        num_steps: Numbers T of steps after which to look, of any shape.

    Returns:
        The shape of `num_steps`, then d modes, in the units of f*^2; their sum is the
        difference of the risks.
    """
    noise = jnp.asarray(sigma) ** 2 / num_samples
    gd = _rest(modes.eigenvalues, eta, 0.0, num_steps)
    sam = _rest(modes.eigenvalues, eta, rho, num_steps)
    return (gd - sam) * ((gd + sam) * (modes.signal + noise) - 2 * noise)


def quadratic_iterate(
    hessian: Float[Array, "d d"],
    offset: Float[Array, " d"],
    *,
    eta: Hyper,
    rho: Hyper = 0.0,
    num_steps: Steps,
) -> Float[Array, "... d"]:
    """w_T of USAM on L(w) = w^T H w / 2 - b^T w, from w_0 = 0.

    w_T = sum_i (1 - a_i^T) v_i v_i^T H^+ b; b is in the range of H, or the rest of it
    grows linearly in T. Least squares: H = X^T X / n, b = X^T y / n. Kernel regression:
    H = K / n, b = y / n, then w_T are the coefficients alpha and K alpha the
    predictions. mSAM: `msam_operator`, with rho = 0 here.

    Args:
        hessian: The symmetric matrix H of the loss.
        offset: The vector b of the loss, minus its gradient at zero.
        eta: Step size [1/lambda].
        rho: Perturbation a gradient [1/lambda]; 0 is gradient descent.
        num_steps: Numbers T of steps after which to look, of any shape.

    Returns:
        The shape of `num_steps`, then d; O(d^3) flops once, 2 d^2 for each T.
        Derivatives in `hessian` exist if its eigenvalues differ; in eta, rho and b,
        always.

    Raises:
        ValueError: Unless `hessian` is square and `offset` of its size.
    """
    _check_square("hessian", hessian, "offset", offset)
    values, vectors = jnp.linalg.eigh(hessian)
    rate = 1 + rho * values
    times = jnp.asarray(num_steps)[..., None]
    coefficients = eta * rate * matmul(vectors.T, offset)
    series = _geometric_sum(eta * rate * values, times)
    return matmul(series * coefficients, vectors.T)


def msam_operator(
    x: Float[Array, "n d"],
    y: Float[Array, " n"],
    *,
    rho: Hyper = 0.0,
    num_shards: int = 1,
) -> tuple[Float[Array, "d d"], Float[Array, " d"]]:
    """M and r of unnormalized mSAM on least squares: w <- w - eta (M w - r).

    M = mean_j (H_j + rho H_j^2) and r = mean_j (I + rho H_j) b_j, where H_j = X_j^T X_j
    / n_j and b_j = X_j^T y_j / n_j belong to shard j, a block of consecutive samples.
    As mean_j H_j^2 >= H^2, more shards penalize curvature more. With rho = 0 they are H
    and b.

    Args:
        x: The matrix X of samples, one a row.
        y: The label of each sample.
        rho: Perturbation a gradient [1/lambda]; 0 is gradient descent.
        num_shards: Number of shards of equal size that a batch is cut in. Static.

    Returns:
        `(M, r)`; w_T is `quadratic_iterate(M, r, ...)`. O(n d^2 + num_shards d^3) flops
        and num_shards d^2 memory.

    Raises:
        ValueError: Unless `x` is a matrix, `y` has an entry a row, and `num_shards`
            divides their number.

    References:
        Behdin, Song, Gupta, Durfee, Acharya, Keerthi, Mazumder. "mSAM: Micro-Batch-
        Averaged Sharpness-Aware Minimization". 2023. arXiv:2302.09693.
    """
    if x.ndim != 2 or y.shape != x.shape[:1]:
        raise ValueError(
            "`x` must be a matrix and `y` have an entry a row, got shapes "
            f"{x.shape} and {y.shape}."
        )
    n, d = x.shape
    num_shards = checks.count("num_shards", num_shards)
    if n % num_shards:
        raise ValueError(f"`num_shards` must divide the {n} samples, got {num_shards}.")
    size = n // num_shards
    x = x.reshape(num_shards, size, d)
    y = y.reshape(num_shards, size, 1)
    transposed = jnp.swapaxes(x, 1, 2)
    h, b = matmul(transposed, x) / size, matmul(transposed, y) / size
    matrix = jnp.mean(h + rho * matmul(h, h), 0)
    return matrix, jnp.mean(b + rho * matmul(h, b), 0)[:, 0]


def largest_stable_eta(eigenvalue: Hyper, *, rho: Hyper = 0.0) -> Float[Array, ""]:
    """The step size below which USAM on a quadratic converges.

    Args:
        eigenvalue: The largest eigenvalue of the Hessian, lambda_1 > 0.
        rho: Perturbation a gradient [1/lambda]; 0 is gradient descent.

    Returns:
        2 / (lambda_1 (1 + rho lambda_1)) [1/lambda].
    """
    eigenvalue = jnp.asarray(eigenvalue)
    return 2 / (eigenvalue * (1 + rho * eigenvalue))


def edge_of_stability(*, eta: Hyper, rho: Hyper = 0.0) -> Float[Array, ""]:
    """The sharpness at which USAM's step is just stable; training hovers around it.

    The positive root of eta lambda (1 + rho lambda) = 2, which is (sqrt(1 + 8 rho /
    eta) - 1) / (2 rho).

    Args:
        eta: Step size [1/lambda], positive.
        rho: Perturbation a gradient [1/lambda]; 0 gives GD's 2 / eta.

    Returns:
        The eigenvalue.

    References:
        Cohen, Kaur, Li, Kolter, Talwalkar. "Gradient Descent on Neural Networks
        Typically Occurs at the Edge of Stability". 2021. arXiv:2103.00065 (for GD).
    """
    # The root without its cancellation, so that rho = 0 is no special case.
    eta = jnp.asarray(eta)
    return 4 / (eta + jnp.sqrt(eta * (eta + 8 * rho)))


def two_cycle_radius(eigenvalue: Hyper, *, eta: Hyper, rho: Hyper) -> Float[Array, ""]:
    """||w|| of the cycle w, -w, w, ... in which normalized SAM ends on a quadratic.

    From almost any start, along the eigenvector of the largest eigenvalue lambda, where
    the gradient is taken at w + rho w / ||w||.

    Args:
        eigenvalue: The largest eigenvalue of the Hessian, lambda > 0.
        eta: Step size [1/lambda].
        rho: Length of the perturbation [w].

    Returns:
        eta lambda rho / (2 - eta lambda) [w]; infinite if eta lambda >= 2, where SAM
        diverges.
    """
    rate = jnp.asarray(eta) * eigenvalue
    is_stable = rate < 2
    return jnp.where(is_stable, rate * rho / jnp.where(is_stable, 2 - rate, 1), jnp.inf)


def _rest(eigenvalues, eta, rho, num_steps):
    """a_i^T: what is left of the error along each mode."""
    factors = 1 - eta * eigenvalues * (1 + rho * eigenvalues)
    return factors ** jnp.asarray(num_steps)[..., None]


def _geometric_sum(x, times):
    """(1 - (1 - x)^T) / x, T for x = 0; without cancellation for small x."""
    is_small = jnp.abs(x) < 0.5
    small = jnp.where(is_small & (x != 0), x, 0.5)
    large = jnp.where(is_small, 1, x)
    series = jnp.where(
        is_small,
        -jnp.expm1(times * jnp.log1p(-small)) / small,
        (1 - (1 - large) ** times) / large,
    )
    return jnp.where(x == 0, times, series)


def _check_square(name, matrix, other, vector):
    if matrix.ndim != 2 or {*matrix.shape} != {*vector.shape} or vector.ndim != 1:
        raise ValueError(
            f"`{name}` must be square and `{other}` a vector of its size, got shapes "
            f"{matrix.shape} and {vector.shape}."
        )
