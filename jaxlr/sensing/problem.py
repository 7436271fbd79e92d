"""Instances of matrix sensing, real and made up, and the metrics on them.

Recover M (n1 x n2, rank r) from y = A(M). Letters: k columns of the factors F (n1 x k)
and G (n2 x k) of an iterate F G^T.
"""

from collections.abc import Sequence

import equinox as eqx
import jax
from jax.core import Tracer
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key
import numpy as np

from jaxlr import linalg
from jaxlr.core import errors, Hyper
from jaxlr.sensing.operator import Operator


class SensingProblem(eqx.Module):
    """What a solver is given, and the truth that its metrics compare with.

    Attributes:
        operator: A.
        y: The measurements.
        truth: M, or None where it is not known. No solver's step depends on it.

    Raises:
        ValueError: Unless `y` and `truth` have the shapes that belong to A.
    """

    operator: Operator
    y: Float[Array, "..."]
    truth: Float[Array, "n1 n2"] | None = None

    def __check_init__(self):
        for name, value, shape in (
            ("y", self.y, self.operator.measurement_shape),
            ("truth", self.truth, self.operator.shape),
        ):
            if value is not None and value.shape != shape:
                raise ValueError(
                    f"`{name}` must have shape {shape}, got {value.shape}."
                )


def measure(
    operator: Operator, truth: Float[Array, "n1 n2"] | np.ndarray
) -> SensingProblem:
    """The noiseless problem y = A(truth).

    Args:
        operator: A.
        truth: M, of `operator.shape`.

    Raises:
        ValueError: If the shape of `truth` is not `operator.shape`.
    """
    truth = jnp.asarray(truth)
    if truth.shape != operator.shape:
        raise ValueError(
            f"`truth` must have shape {operator.shape}, got {truth.shape}."
        )
    return SensingProblem(operator, operator.apply(truth), truth)


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
        key: Source of randomness.
        shape: (n1, n2). Static.
        rank: r, the number of nonzero singular values. Static.
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
    if len(shape) != 2 or not 1 <= rank <= min(shape):
        raise ValueError(f"`rank` must be in 1..min{tuple(shape)}, got {rank}.")
    if is_psd and shape[0] != shape[1]:
        raise ValueError(f"`is_psd` needs a square `shape`, got {shape}.")
    if spectrum is None:
        if _is_known(condition) and not np.all(np.asarray(condition) >= 1):
            raise ValueError(f"`condition` must be >= 1, got {condition}.")
        spectrum = jnp.asarray(condition) ** -jnp.linspace(0.0, 1.0, rank)
    elif isinstance(condition, jax.Array) or condition != 1:
        raise ValueError(f"give `condition` or `spectrum`, not both ({condition}).")
    spectrum = jnp.asarray(spectrum)
    if spectrum.shape != (rank,):
        raise ValueError(f"`spectrum` must have shape ({rank},), got {spectrum.shape}.")
    if is_psd and _is_known(spectrum) and np.any(np.asarray(spectrum) < 0):
        raise ValueError(f"`spectrum` must be >= 0 if `is_psd`, got {spectrum}.")
    left_key, right_key = jr.split(key)
    u = linalg.random_orthonormal(left_key, shape[0], rank)
    v = u if is_psd else linalg.random_orthonormal(right_key, shape[1], rank)
    return linalg.matmul(u * spectrum, v.T)


def _is_known(value):
    return not isinstance(value, Tracer)


PHOTOGRAPHS = ("china", "flower")
"""Names that `photograph` knows."""


def photograph(name: str, size: int = 256) -> Float[Array, "{size} {size}"]:
    """A real photograph in greyscale: the central square, scaled down.

    Read on the host while tracing, so that inside `jit` it is a constant.

    Args:
        name: "china" (a temple; edges at right angles) or "flower" (a dahlia; smooth).
        size: Side [pixels], at most the photograph's own, 427. Static.

    Returns:
        Luma (ITU-R BT.601), from 0 (black) to 1 (white).

    Raises:
        ValueError: For an unknown name, or a `size` that is not in 1..427.
        ImportError: Without scikit-learn, whose sample images these are, or Pillow.
    """
    if name not in PHOTOGRAPHS:
        raise ValueError(errors.unknown("photograph", name, PHOTOGRAPHS))
    try:
        from PIL import Image
        from sklearn.datasets import load_sample_image
    except ImportError as error:
        raise ImportError(
            f'`photograph` needs {error.name}: run `pip install "jaxlr[data]"`.'
        ) from error

    color = load_sample_image(f"{name}.jpg").astype(np.float64) / 255
    luma = color @ np.array([0.299, 0.587, 0.114])
    side = min(luma.shape)
    if not 1 <= size <= side:
        raise ValueError(f"`size` must be in 1..{side}, got {size}.")
    top, left = ((n - side) // 2 for n in luma.shape)
    square = Image.fromarray(
        luma[top : top + side, left : left + side].astype(np.float32)
    )
    small = square.resize((size, size), Image.Resampling.BOX)
    return jnp.asarray(np.asarray(small), float)


def relative_error(
    f: Float[Array, "n1 k"], g: Float[Array, "n2 k"], truth: Float[Array, "n1 n2"]
) -> Float[Array, ""]:
    """||F G^T - M||_F / ||M||_F, dimensionless; 2 n1 n2 k flops."""
    gap = jnp.linalg.norm(linalg.matmul(f, g.T) - truth)
    return gap / jnp.linalg.norm(truth)


def psnr(
    image: Float[Array, "n1 n2"], truth: Float[Array, "n1 n2"], peak: float = 1.0
) -> Float[Array, ""]:
    """Peak signal-to-noise ratio [dB]: 10 log10(peak^2 / mean squared error).

    Args:
        image: What was recovered.
        truth: What it should be.
        peak: The largest value a pixel can have.
    """
    return 10 * jnp.log10(peak**2 / jnp.mean((image - truth) ** 2))


def best_rank(x: Float[Array, "n1 n2"], rank: int) -> Float[Array, "n1 n2"]:
    """The best approximation of X of a given rank, in every unitarily invariant norm.

    Args:
        x: The matrix.
        rank: r. Static.

    Returns:
        The first r terms of its singular value decomposition; O(n1 n2 min(n1, n2))
        flops.

    Raises:
        ValueError: If `rank` is not in 1..min(n1, n2).

    References:
        Eckart, Young. "The approximation of one matrix by another of lower rank".
        Psychometrika, 1936.
    """
    if not 1 <= rank <= min(x.shape[-2:]):
        raise ValueError(f"`rank` must be in 1..{min(x.shape[-2:])}, got {rank}.")
    u, s, vt = jnp.linalg.svd(x, full_matrices=False)
    return linalg.matmul(u[..., :rank] * s[..., None, :rank], vt[..., :rank, :])
