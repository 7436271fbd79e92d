"""GP-HM: equations solved by the most likely solution, kernels and noise together.

Letters: D axes of n_1, ..., n_D points, N in all; Q components of a kernel; C_d the
covariance of axis d, Toeplitz on a regular grid.
"""

from collections.abc import Sequence
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, ArrayLike, Float, Num
import numpy as np

from jaxlr import linalg
from jaxlr.core import checks, Hyper
from jaxlr.covariance import gram, regular_spacing, SpectralMixture, toeplitz_column
from jaxlr.pde.problem import Problem


class GPHM(eqx.Module):
    """What GP-HM trains: a solution on the grid, a kernel for every axis, two noises.

    Attributes:
        u: The solution, (n_1, ..., n_D).
        log_weights: Logarithms of the weights w of every axis' `SpectralMixture`.
        log_rates: Logarithms of its rates rho.
        frequencies: Its frequencies mu, in periods for a unit of x.
        log_tau_boundary: Logarithm of the inverse variance of the boundary's values.
        log_tau_equation: Logarithm of the inverse variance of the equation's residual.
        component: Form of the kernels' components, "gaussian" or "student". Static.
    """

    u: Float[Array, "..."]
    log_weights: tuple[Float[Array, " Q"], ...]
    log_rates: tuple[Float[Array, " Q"], ...]
    frequencies: tuple[Float[Array, " Q"], ...]
    log_tau_boundary: Hyper
    log_tau_equation: Hyper
    component: Literal["gaussian", "student"] = eqx.field(static=True)

    @property
    def kernels(self) -> tuple[SpectralMixture, ...]:
        """The kernel of every axis."""
        return tuple(
            SpectralMixture(
                log_weights, jnp.exp(log_rates), frequencies, self.component
            )
            for log_weights, log_rates, frequencies in zip(
                self.log_weights, self.log_rates, self.frequencies, strict=True
            )
        )


def gp_hm_init(
    problem: Problem,
    max_frequency: Hyper,
    *,
    num_components: int = 30,
    component: Literal["gaussian", "student"] = "gaussian",
) -> GPHM:
    """Where GP-HM starts: u = 0, equal weights of sum 1, rates and variances 1.

    Args:
        problem: Problem to be solved, which gives the shape.
        max_frequency: Largest frequency F, in periods for a unit of x. Frequencies are
            evenly spaced in 0..F, and should cover those of the solution.
        num_components: Number of components Q of every kernel. Static.
        component: Form of the components, "gaussian" or "student". Static.

    Raises:
        ValueError: Unless `num_components` is at least 1.
    """
    num_components = checks.count("num_components", num_components)
    num_axes, dtype = problem.source.ndim, problem.source.dtype
    zeros = jnp.zeros(num_components, dtype)
    frequencies = max_frequency * jnp.linspace(0, 1, num_components, dtype=dtype)
    return GPHM(
        jnp.zeros_like(problem.source),
        (zeros - np.log(num_components),) * num_axes,
        (zeros,) * num_axes,
        (frequencies,) * num_axes,
        jnp.zeros((), dtype),
        jnp.zeros((), dtype),
        component,
    )


def gp_hm_log_joint(
    params: GPHM,
    problem: Problem,
    *,
    boundary_weight: Hyper = 200.0,
    jitter: Hyper = 1e-6,
) -> Float[Array, ""]:
    """The logarithm of GP-HM's joint density, up to a constant: to be maximized.

        log N(u | 0, (x)C_d) + lambda_b log N(g | u_b, 1/tau_b)
        + log N(equation(u) - source | 0, 1/tau_e)

    Derivatives of u are those of the process's mean, C_d^(k) C_d^-1 u along axis d.
    The original code's objective, frequencies trained and corners counted on each of
    their faces: train all of `params` by Adam at 1e-2, or hold some by
    `jax.lax.stop_gradient`. It is meant for float64: a factorization that fails makes
    NaN, and in float32 that of 400 points does at this jitter.

    Args:
        params: Solution, kernels and noises.
        problem: The equation, on a regular grid.
        boundary_weight: Factor lambda_b of the boundary's log-likelihood.
        jitter: Added to the diagonal of every C_d, whose own is the sum of weights. It
            bounds the accuracy of derivatives.

    Returns:
        The log density. Costs n_d^3 / 3 flops an axis for one Cholesky factorization,
        whatever the equation, 2 N n_d for a solve along an axis, fast Fourier
        transforms for products with C_d^(k), and n_d Q evaluations of components. The
        gradient, which may be differentiated again, adds a solve for each solve and for
        each axis (the trace of C_d^-1 dC_d by the formula of Gohberg and Semencul), and
        no factorization. n_d^2 memory for the factors, up to 4 N for a transform.

    Raises:
        ValueError: Unless the grid is regular and `params.u` of its shape, and if the
            equation asks for derivatives of an order above 4.

    References:
        Fang, Cooley, Long, Li, Kirby, Zhe. "Solving High Frequency and Multi-Scale PDEs
        with Gaussian Processes". 2023. arXiv:2311.04465.
        Gohberg, Semencul. "On the inversion of finite Toeplitz matrices and their
        continuous analogs". 1972. Matematicheskie Issledovaniya.
    """
    u, kernels, log_tau = params.u, params.kernels, params.log_tau_boundary
    covariances = _covariances(params, problem, jitter)
    solved = [_solve(*c, u, axis) for axis, c in enumerate(covariances)]

    def unknown(*orders):
        value = None
        for axis, order in enumerate(orders):
            if order:
                # All derivatives that begin along an axis share its solve.
                if value is None:
                    value = solved[axis]
                else:
                    value = _solve(*covariances[axis], value, axis)
                spacing = regular_spacing(problem.grid[axis])
                column = toeplitz_column(kernels[axis], spacing, u.shape[axis], order)
                row = column * (-1) ** order
                value = linalg.toeplitz_matvec(column, value, axis, row=row)
        return u if value is None else value

    other = u if len(covariances) == 1 else solved[1]
    for axis in range(2, len(covariances)):
        other = _solve(*covariances[axis], other, axis)
    prior = jnp.sum(solved[0] * other)
    for factor, column in covariances:
        prior = prior + u.size / len(column) * _logdet(factor, column)

    boundary = sum(
        _log_normal(_face(u, *face) - _face(problem.boundary, *face), log_tau)
        for face in problem.faces
    )
    residual = problem.equation(unknown) - problem.source
    equation = _log_normal(residual, params.log_tau_equation)
    return boundary_weight * boundary + equation - prior / 2


def gp_hm_predict(
    params: GPHM,
    problem: Problem,
    points: Sequence[Num[ArrayLike, " _"]],
    *,
    jitter: Hyper = 1e-6,
) -> Float[Array, "..."]:
    """The process's mean at other points, as the original code tests it.

    Args:
        params: Solution, kernels and noises after training.
        problem: Equation that they were trained on.
        points: Points of every axis, m_d of them; the result is on their grid.
        jitter: What was added to the diagonal of every C_d in training.

    Returns:
        Shape (m_1, ..., m_D).

    Raises:
        ValueError: As `gp_hm_log_joint`; unless there are points for every axis.
    """
    if len(points) != len(problem.grid):
        raise ValueError(
            f"`points` must be vectors for {len(problem.grid)} axes, got {len(points)}."
        )
    value = params.u
    for axis, covariance in enumerate(_covariances(params, problem, jitter)):
        cross = gram(params.kernels[axis], points[axis], problem.grid[axis])
        value = linalg.mode_product(cross, _solve(*covariance, value, axis), axis)
    return value


def _face(x, axis, side):
    """What of an array on the grid lies on a face."""
    return jax.lax.index_in_dim(x, side, axis, keepdims=False)


def _log_normal(gap, log_tau):
    """The log density N(gap | 0, 1 / tau), without the constant."""
    return (gap.size * log_tau - jnp.exp(log_tau) * jnp.sum(gap**2)) / 2


def _covariances(params, problem, jitter) -> list[tuple[Array, Array]]:
    """The Cholesky factor and the first column of every C_d.

    The factors carry no derivative: what is made of them has it by the columns.
    """
    if params.u.shape != problem.shape:
        raise ValueError(
            f"`params.u` must be of the grid's shape {problem.shape}, got "
            f"{params.u.shape}."
        )
    found = []
    for kernel, points in zip(params.kernels, problem.grid, strict=True):
        column = toeplitz_column(kernel, regular_spacing(points), len(points))
        column = column.at[0].add(jitter)
        i = np.arange(len(points))
        dense = jax.lax.stop_gradient(column)[abs(i[:, None] - i)]
        found.append((jnp.linalg.cholesky(dense, symmetrize_input=False), column))
    return found


def _solve(factor, column, b, axis):
    """C^-1 b along an axis; C has that Cholesky factor and first column."""

    def solve(_, b):
        b = jnp.moveaxis(b, axis, 0)
        x = cho_solve((factor, True), b.reshape(len(b), -1))
        return jnp.moveaxis(x.reshape(b.shape), 0, axis)

    def product(x):
        return linalg.toeplitz_matvec(column, x, axis)

    return jax.lax.custom_linear_solve(product, b, solve, symmetric=True)


@jax.custom_jvp
def _logdet(factor, column):
    """The logarithm of |C|."""
    del column
    return 2 * jnp.sum(jnp.log(jnp.diagonal(factor)))


@_logdet.defjvp
def _logdet_jvp(primals, tangents):
    factor, column = primals
    n = len(column)
    # With x = C^-1 e_1, diagonal k of C^-1 sums to sum_p (n - k - 2 p) x_p x_p+k / x_0:
    # the inverse is a difference of products of triangular Toeplitz matrices.
    x = _solve(factor, column, jnp.zeros_like(column).at[0].set(1), 0)
    k = jnp.arange(n)
    sums = ((n - k) * _correlate(x, x) - 2 * _correlate(k * x, x)) / x[0]
    sums = 2 * sums.at[0].divide(2)
    return _logdet(factor, column), jnp.sum(sums * tangents[1])


def _correlate(a, b):
    """sum_p a_p b_p+k for every k >= 0."""
    n = len(a)
    spectrum = jnp.conj(jnp.fft.rfft(a, 2 * n)) * jnp.fft.rfft(b, 2 * n)
    return jnp.fft.irfft(spectrum, 2 * n)[:n]
