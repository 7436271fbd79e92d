"""Instances of matrix sensing, and the metrics on them.

Recover M (n1 x n2, rank r) from y = A(M). Letters: k columns of the factors F (n1 x k)
and G (n2 x k) of an iterate F G^T.
"""

from collections.abc import Sequence
import dataclasses
import math
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key, Num, UInt8
import numpy as np

from jaxlr import linalg
from jaxlr.core import checks, Hyper
from jaxlr.sensing.operator import check_array, check_shape, Operator


class Quantizer(eqx.Module):
    """How a number is observed as a level: by the thresholds that it exceeds.

    P(level <= l | x) = link((t_l - x) / scale): with the "probit" link, x plus Gaussian
    noise of standard deviation `scale` is compared with the thresholds; with "logit",
    x plus logistic noise. One threshold makes one bit a measurement.

    Attributes:
        thresholds: t_0 < t_1 < ..., L - 1 of them for L levels, in the units of A(X).
        scale: Scale of the noise before the thresholds, in the units of A(X), > 0.
        link: Distribution of the noise: "probit" for Gaussian, "logit" for logistic.
            Static.

    Raises:
        ValueError: On an unknown link; unless `thresholds` is a vector; and, where the
            values are known while tracing, unless it ascends and `scale > 0`.

    References:
        Davenport, Plan, van den Berg, Wootters. "1-Bit Matrix Completion". 2014.
        arXiv:1209.3672.
    """

    thresholds: Float[Array, " levels-1"] = eqx.field(converter=jnp.asarray)
    scale: Hyper
    link: Literal["probit", "logit"] = eqx.field(static=True, default="probit")

    def __check_init__(self):
        checks.choice("link", self.link, ("probit", "logit"))
        if self.thresholds.ndim != 1 or not self.thresholds.size:
            raise ValueError(
                f"`thresholds` must be a vector, got shape {self.thresholds.shape}."
            )
        t = self.thresholds
        if checks.known(t) and not np.all(np.diff(t) > 0):
            raise ValueError(f"`thresholds` must ascend, got {self.thresholds}.")
        checks.positive("scale", self.scale)

    def draw(self, key: Key[Array, ""], x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Random levels 0..L-1 of the numbers `x`, as floats.

        Args:
            key: Source of the noise before the thresholds.
            x: Numbers A(M), of any shape.
        """
        noise = jr.normal if self.link == "probit" else jr.logistic
        noisy = x + self.scale * noise(key, x.shape, x.dtype)
        return jnp.sum(noisy[..., None] > self.thresholds, axis=-1).astype(x.dtype)

    def log_likelihood(
        self, levels: Num[Array, "..."], x: Float[Array, "..."]
    ) -> Float[Array, "..."]:
        """Log P(level | x), for each pair; finite, as is its slope, far in the tails.

        As far as x has digits left that tell neighboring thresholds apart.

        Args:
            levels: Integers 0..L-1, of any type; others get NaN.
            x: Numbers of the same shape.
        """
        log_cdf = jax.scipy.special.log_ndtr
        if self.link == "logit":
            log_cdf = jax.nn.log_sigmoid
        num_thresholds = self.thresholds.shape[0]
        index = jnp.nan_to_num(levels, nan=-1.0).astype(int)
        is_first, is_last = index == 0, index == num_thresholds

        def distance(i):  # the edges at infinity are selected away below
            t = self.thresholds[jnp.clip(i, 0, num_thresholds - 1)]
            return (t - x) / self.scale

        low, high = distance(index - 1), distance(index)
        # P(low < z < high), mirrored into the lower tail, where the CDF is accurate.
        is_upper = low + high > 0
        a, b = (jnp.where(is_upper, p, q) for p, q in ((-high, low), (-low, high)))
        a = jnp.where(is_first | is_last, b - 1, a)  # a dummy: no NaN in its slope
        between = log_cdf(b) + jnp.log(-jnp.expm1(log_cdf(a) - log_cdf(b)))
        value = jnp.where(is_first, log_cdf(high), between)
        value = jnp.where(is_last, log_cdf(-low), value)
        is_valid = (index >= 0) & (index <= num_thresholds) & (index == levels)
        return jnp.where(is_valid, value, jnp.nan)


class SensingProblem(eqx.Module):
    """What a solver is given, and the truth that its metrics compare with.

    Attributes:
        operator: The linear map A.
        y: The measurements A(M); levels, where there is a quantizer.
        truth: The matrix M, or None where it is not known. No solver's step depends
            on it.
        quantizer: How A(M) became levels; or None.

    Raises:
        ValueError: Unless `y` and `truth` have the shapes that belong to A and are
            real; where their values are known while tracing, unless they are finite.
            (Where they are not, a run from them has diverged at its first step.)
    """

    operator: Operator
    y: Float[Array, "..."] = eqx.field(converter=jnp.asarray)
    truth: Float[Array, "n1 n2"] | None = eqx.field(
        converter=lambda x: None if x is None else jnp.asarray(x), default=None
    )
    quantizer: Quantizer | None = None

    def __check_init__(self):
        for name, value, shape in (
            ("truth", self.truth, self.operator.shape),
            ("y", self.y, self.operator.measurement_shape),
        ):
            if value is None:
                continue
            check_array(name, value, shape)
            if checks.known(value) and not (is_finite := np.isfinite(value)).all():
                where = np.argwhere(~is_finite)[0]
                raise ValueError(
                    f"`{name}` must be finite, got {np.asarray(value)[tuple(where)]} "
                    f"at {tuple(where.tolist())} and {(~is_finite).sum() - 1} more."
                )


def measure(
    operator: Operator, truth: Float[Array, "n1 n2"] | np.ndarray
) -> SensingProblem:
    """The noiseless problem y = A(truth).

    Args:
        operator: The linear map A.
        truth: The matrix M, of `operator.shape`.

    Raises:
        ValueError: If the shape of `truth` is not `operator.shape`, if it is complex,
            or, where its values are known while tracing, not finite.
    """
    truth = check_array("truth", truth, operator.shape)
    return SensingProblem(operator, operator.apply(truth), truth)


def add_noise(
    key: Key[Array, ""], problem: SensingProblem, std: Hyper
) -> SensingProblem:
    """The problem with independent Gaussian noise on its measurements.

    Args:
        key: Source of the noise.
        problem: The problem without noise.
        std: Standard deviation of the noise, in the units of `problem.y`. Gaussian
            measurements themselves have a standard deviation of ||M||_F / sqrt(m).

    Returns:
        The same operator and truth; y + std N(0, 1).

    Raises:
        ValueError: If the problem is quantized already.
    """
    check_unquantized(problem, "add_noise")
    y = problem.y
    noise = jr.normal(key, y.shape, y.dtype) * jnp.asarray(std, y.dtype)
    return dataclasses.replace(problem, y=y + noise)


def add_outliers(
    key: Key[Array, ""], problem: SensingProblem, share: Hyper, scale: Hyper
) -> SensingProblem:
    """The problem with gross errors on a random share of its measurements.

    Args:
        key: Source of randomness. The measurements hit at a smaller share are among
            those hit at a larger one.
        problem: The problem without outliers.
        share: Share of the m measurements that are hit, in 0..1; rounded to whole ones.
        scale: Standard deviation of the errors, in the units of `problem.y`.

    Returns:
        The same operator and truth; y + scale N(0, 1) where hit, y elsewhere.

    Raises:
        ValueError: If the problem is quantized already; or, where it is known while
            tracing, if `share` is not in 0..1.
    """
    check_unquantized(problem, "add_outliers")
    checks.within("share", share, 0, 1)
    order_key, error_key = jr.split(key)
    y = problem.y
    order = jr.permutation(order_key, y.size).reshape(y.shape)
    error = jr.normal(error_key, y.shape, y.dtype) * jnp.asarray(scale, y.dtype)
    is_hit = order < jnp.round(share * y.size)
    return dataclasses.replace(problem, y=jnp.where(is_hit, y + error, y))


def quantize(
    key: Key[Array, ""], problem: SensingProblem, quantizer: Quantizer
) -> SensingProblem:
    """The problem with measurements observed as levels; solvers use the likelihood.

    Args:
        key: Source of the noise before the thresholds.
        problem: The problem whose measurements are numbers.
        quantizer: How a number becomes a level: thresholds, noise and link.

    Returns:
        The same operator and truth; levels 0..L-1 for y.

    Raises:
        ValueError: If the problem is quantized already.
    """
    check_unquantized(problem, "quantize")
    levels = quantizer.draw(key, problem.y)
    return dataclasses.replace(problem, y=levels, quantizer=quantizer)


def check_unquantized(problem: SensingProblem, what: str) -> None:
    """Refuse a problem whose measurements are levels.

    Args:
        problem: The problem that is to be solved, or changed.
        what: Name of the function that needs numbers, for the error.

    Raises:
        ValueError: If the problem has a quantizer.
    """
    if problem.quantizer is not None:
        raise ValueError(
            f"`{what}` needs measurements that are numbers, got quantized ones; `gd` "
            "takes those."
        )


def low_rank(
    key: Key[Array, ""],
    shape: tuple[int, int],
    rank: int,
    *,
    condition: Hyper = 1.0,
    spectrum: Float[Array, " rank"] | Sequence[float] | None = None,
    is_psd: bool = False,
) -> Float[Array, "n1 n2"]:
    """A matrix with random (Haar) singular vectors and a given spectrum.

    Args:
        key: Source of the singular vectors.
        shape: Sizes (n1, n2) of the matrix. Static.
        rank: Number r of nonzero singular values. Static.
        condition: Largest over smallest nonzero singular value; they fall from 1 to
            1 / condition in geometric progression. At rank 1 it has no effect.
        spectrum: The r singular values themselves, in place of `condition`.
        is_psd: Whether the matrix is symmetric positive semi-definite. Static.

    Returns:
        The matrix, of spectral norm 1 unless `spectrum` says otherwise.

    Raises:
        ValueError: If `rank` is not in 1..min(n1, n2), if `spectrum` has not r values,
            if `condition` is given along with it, for a PSD matrix that is not square;
            or, where the values are known while tracing, if `condition < 1` or
            `spectrum` has a negative value for a PSD matrix.
    """
    n1, n2 = check_shape(shape)
    rank = checks.count("rank", rank, most=min(n1, n2))
    if is_psd and n1 != n2:
        raise ValueError(f"`is_psd` needs a square `shape`, got {shape}.")
    if spectrum is None:
        checks.within("condition", condition, 1, math.inf)
        spectrum = jnp.asarray(condition) ** -jnp.linspace(0.0, 1.0, rank)
    elif isinstance(condition, jax.Array) or condition != 1:
        raise ValueError(f"give `condition` or `spectrum`, not both ({condition}).")
    spectrum = jnp.asarray(spectrum)
    if spectrum.shape != (rank,):
        raise ValueError(f"`spectrum` must have shape ({rank},), got {spectrum.shape}.")
    if is_psd:
        checks.positive("spectrum", spectrum, or_zero=True)
    left_key, right_key = jr.split(key)
    u = linalg.random_orthonormal(left_key, n1, rank)
    v = u if is_psd else linalg.random_orthonormal(right_key, n2, rank)
    return linalg.matmul(u * spectrum, v.T)


def relative_error(
    f: Float[Array, "n1 k"], g: Float[Array, "n2 k"], truth: Float[Array, "n1 n2"]
) -> Float[Array, ""]:
    """||F G^T - M||_F / ||M||_F, dimensionless; 2 n1 n2 k flops.

    Args:
        f: Left factor F.
        g: Right factor G.
        truth: The matrix M.
    """
    gap = jnp.linalg.norm(linalg.matmul(f, g.T) - truth)
    return gap / jnp.linalg.norm(truth)


def relative(value: Float[Array, ""], scale: Float[Array, ""]) -> Float[Array, ""]:
    """`value / scale`; `value` itself where `scale` is 0."""
    return value / jnp.where(scale > 0, scale, 1)


def psnr(
    image: Float[Array, "n1 n2"], truth: Float[Array, "n1 n2"], peak: float = 1.0
) -> Float[Array, ""]:
    """Peak signal-to-noise ratio [dB]: 10 log10(peak^2 / mean squared error).

    Args:
        image: The image that was recovered.
        truth: The image that it should be.
        peak: The largest value that a pixel can have.
    """
    return 10 * jnp.log10(peak**2 / jnp.mean((image - truth) ** 2))


def to_pixels(image: Float[Array, "*shape"]) -> UInt8[Array, "*shape"]:
    """The luma of an `image`, 0..1, as whole numbers 0..255; the outside is clipped."""
    return jnp.round(255 * jnp.clip(image, 0, 1)).astype(jnp.uint8)


def best_rank(x: Float[Array, "n1 n2"], rank: int) -> Float[Array, "n1 n2"]:
    """The best approximation of X of a given rank, in every unitarily invariant norm.

    Args:
        x: The matrix X.
        rank: Rank r of the approximation. Static.

    Returns:
        The first r terms of its singular value decomposition; O(n1 n2 min(n1, n2))
        flops.

    Raises:
        ValueError: If `rank` is not in 1..min(n1, n2).

    References:
        Eckart, Young. "The approximation of one matrix by another of lower rank".
        Psychometrika, 1936.
    """
    rank = checks.count("rank", rank, most=min(x.shape[-2:]))
    u, s, vt = jnp.linalg.svd(x, full_matrices=False)
    return linalg.matmul(u[..., :rank] * s[..., None, :rank], vt[..., :rank, :])
