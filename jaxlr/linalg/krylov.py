"""What a symmetric matrix known by its products tells: spectrum, trace, trace of f(A).

Letters: A is n x n and symmetric; k steps of Lanczos; p probes. A pytree of vectors is
flattened by the caller (`jax.flatten_util.ravel_pytree`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, DTypeLike, Float, Key

from jaxlr.core import checks
from jaxlr.linalg.dense import matmul


class Lanczos(NamedTuple):
    """k steps of Lanczos: Q A Q^T = T, symmetric and tridiagonal.

    Attributes:
        alphas: Diagonal of T, in the units of A.
        betas: Below the diagonal; the last one is the norm of what T leaves out.
        basis: Q, orthonormal rows; zero after an invariant subspace was found.
    """

    alphas: Float[Array, " k"]
    betas: Float[Array, " k"]
    basis: Float[Array, "k n"]


class Ritz(NamedTuple):
    """Eigenvalues of T, which approach those of A from inside its spectrum.

    Attributes:
        values: Ascending, in the units of A; the outermost converge first.
        weights: Squares of the start's share in each [1], which sum to 1: the Gauss
            quadrature of the spectrum as the start sees it.
        residuals: An eigenvalue of A is no further from the value than this.
    """

    values: Float[Array, "... k"]
    weights: Float[Array, "... k"]
    residuals: Float[Array, "... k"]


class Estimate(NamedTuple):
    """A mean over random draws.

    Attributes:
        value: The mean of the draws.
        standard_error: Its standard deviation, estimated from that of the draws.
    """

    value: Float[Array, ""]
    standard_error: Float[Array, ""]

    @classmethod
    def of(cls, draws: Float[Array, " p"]) -> "Estimate":
        """The mean of `draws`, p independent ones.

        Raises:
            ValueError: If there are fewer than two: they show no spread.
        """
        num = draws.shape[0]
        if num < 2:
            raise ValueError(f"A standard error needs 2 draws or more, got {num}.")
        return cls(jnp.mean(draws), jnp.std(draws, ddof=1) / jnp.sqrt(num))


def lanczos(
    matvec_fn: Callable[[Float[Array, " n"]], Float[Array, " n"]],
    start: Float[Array, " n"],
    num_steps: int,
) -> Lanczos:
    """The Krylov space of A from one vector, fully reorthogonalized.

    If the space closes early, at j < k vectors, the rest of T is diagonal and repeats
    `alphas[0]`: it lies inside the spectrum of the first block and has no weight, so
    that neither the extremes nor a quadrature of f change, and f is defined there.

    Args:
        matvec_fn: `v -> A v`, A symmetric.
        start: Any vector but zero, of n entries; its type is that of the result.
        num_steps: Number k of products with A, in 1..n. Static.

    Returns:
        The decomposition. Costs k products and 8 n k^2 flops, n k memory. It can be
        differentiated while the space has not closed.

    Raises:
        ValueError: Unless `start` is a vector and `num_steps` in 1..n.

    References:
        Golub, Meurant. "Matrices, Moments and Quadrature with Applications". 2010.
    """
    if start.ndim != 1:
        raise ValueError(f"`start` must be a vector, got shape {start.shape}.")
    num_steps = checks.count("num_steps", num_steps, most=start.size)
    epsilon = jnp.finfo(start.dtype).eps

    def step(carry, i):
        basis, v, first, scale = carry
        basis = basis.at[i].set(v)
        w = matvec_fn(v)
        alpha = matmul(v, w)
        first = jnp.where(i == 0, alpha, first)
        has_ended = ~jnp.any(v != 0)
        for _ in range(2):  # once leaves rounding errors of the size of the overlap
            w = w - matmul(matmul(basis, w), basis)
        w, beta = _normalize(w)
        scale = jnp.maximum(scale, jnp.maximum(jnp.abs(alpha), beta))
        is_closed = beta <= 10 * epsilon * scale
        beta = jnp.where(is_closed, 0, beta)
        carry = basis, jnp.where(is_closed, 0, w), first, scale
        return carry, (jnp.where(has_ended, first, alpha), beta)

    zero = jnp.zeros((), start.dtype)
    basis = jnp.zeros((num_steps, start.size), start.dtype)
    carry = basis, _normalize(start)[0], zero, zero
    (basis, *_), (alphas, betas) = jax.lax.scan(step, carry, jnp.arange(num_steps))
    return Lanczos(alphas, betas, basis)


def _normalize(x):
    """`x / ||x||` and `||x||`; zero for zero, in derivatives too."""
    square = matmul(x, x)
    norm = jnp.sqrt(jnp.where(square > 0, square, 1))
    return x / norm, jnp.where(square > 0, norm, 0)


def ritz(decomposition: Lanczos) -> Ritz:
    """Eigenvalues of T, their weights and error bounds; O(k^3) flops.

    Args:
        decomposition: Result of `lanczos`, whose basis is not read.
    """
    alphas, betas, _ = decomposition
    off = jnp.diag(betas[:-1], 1)
    values, vectors = jnp.linalg.eigh(jnp.diag(alphas) + off + off.T)
    return Ritz(values, vectors[0] ** 2, jnp.abs(betas[-1] * vectors[-1]))


def stochastic_lanczos(
    key: Key[Array, ""],
    matvec_fn: Callable[[Float[Array, " n"]], Float[Array, " n"]],
    size: int,
    *,
    num_probes: int = 10,
    num_steps: int = 25,
    dtype: DTypeLike = float,
    batch_size: int = 1,
) -> Ritz:
    """The spectral density of A, as point masses: Lanczos from random signs.

    The density of eigenvalues is nearly `mean_p sum_k weights delta(x - values)`, and
    its moments of order 2 k - 1 and less are without bias. `quadrature_trace` turns it
    into traces, such as a log-determinant.

    Args:
        key: Draws the probes, entries +1 or -1.
        matvec_fn: `v -> A v`, A symmetric.
        size: Number n of rows of A. Static.
        num_probes: Number p of random starts. Static.
        num_steps: Number k of Lanczos steps from each, in 1..n. Static.
        dtype: Floating type of the probes and of the result.
        batch_size: How many probes are in one product, by `vmap`: memory against time.
            Static.

    Returns:
        Values, weights and residuals, (p, k) each. Costs p k products and 8 p n k^2
        flops, batch_size n k memory.

    Raises:
        ValueError: Unless `num_probes` and `batch_size` are at least 1, and `num_steps`
            in 1..n.

    References:
        Ubaru, Chen, Saad. "Fast Estimation of tr(f(A)) via Stochastic Lanczos
        Quadrature". 2017. SIAM Journal on Matrix Analysis and Applications.
    """
    size = checks.count("size", size)

    def probe(key):
        start = jr.rademacher(key, (size,), dtype)
        return ritz(lanczos(matvec_fn, start, num_steps))

    return map_draws(probe, key, num_probes, "num_probes", batch_size)


def quadrature_trace(
    spectrum_fn: Callable[[Float[Array, "p k"]], Float[Array, "p k"]],
    density: Ritz,
    size: int,
) -> Estimate:
    """The trace of f(A), from `stochastic_lanczos`; of log A, the log-determinant.

    Args:
        spectrum_fn: The function f, elementwise; `jnp.log`, say.
        density: Values and weights of p >= 2 probes.
        size: Number n of rows of A.

    Returns:
        The estimate, in the units of f; its standard error is that of the probes, the
        quadrature's own error, which falls geometrically in k, comes on top.

    Raises:
        ValueError: If `density` is of fewer than two probes, or `size` no integer of
            at least 1.
    """
    values = spectrum_fn(density.values)
    return Estimate.of(
        checks.count("size", size) * jnp.sum(density.weights * values, -1)
    )


def stochastic_trace(
    key: Key[Array, ""],
    matvec_fn: Callable[[Float[Array, " n"]], Float[Array, " n"]],
    size: int,
    *,
    num_samples: int = 100,
    dtype: DTypeLike = float,
    batch_size: int = 1,
) -> Estimate:
    """The trace of A by Hutchinson's estimator: mean z^T A z over random signs z.

    Args:
        key: Draws the probes.
        matvec_fn: `v -> A v`; of A only the symmetric part counts.
        size: Number n of rows of A. Static.
        num_samples: Number p >= 2 of probes, each a product with A. Static.
        dtype: Floating type of the probes and of the result.
        batch_size: How many probes are in one product, by `vmap`: memory against time.
            Static.

    Returns:
        The estimate, in the units of A; its variance is 2 sum_{i != j} A_ij^2 / p.

    Raises:
        ValueError: Unless `num_samples` is at least 2, `batch_size` at least 1.

    References:
        Hutchinson. "A stochastic estimator of the trace of the influence matrix for
        Laplacian smoothing splines". 1990. Communications in Statistics.
    """
    size = checks.count("size", size)

    def sample(key):
        z = jr.rademacher(key, (size,), dtype)
        return matmul(z, matvec_fn(z))

    return Estimate.of(map_draws(sample, key, num_samples, "num_samples", batch_size))


def map_draws(
    draw_fn: Callable[[Key[Array, ""]], Any],
    key: Key[Array, ""],
    num: int,
    name: str,
    batch_size: int,
) -> Any:
    """`draw_fn` of each of `num` keys, results stacked.

    Args:
        draw_fn: `key -> result`, any pytree of arrays.
        key: Split into the keys of all draws.
        num: Number of draws. Static.
        name: What the caller's own argument for `num` is called, for the error.
        batch_size: How many draws are made at once, by `vmap`. Static.

    Raises:
        ValueError: Unless `num` and `batch_size` are integers of at least 1.
    """
    num = checks.count(name, num)
    most = min(checks.count("batch_size", batch_size), num)
    return jax.lax.map(draw_fn, jr.split(key, num), batch_size=most)
