"""Toeplitz matrices, constant along diagonals: those of a kernel on a regular grid."""

from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from jaxlr.core import checks


def toeplitz_matvec(
    column: Float[ArrayLike, " m"],
    x: Float[ArrayLike, "..."],
    axis: int,
    *,
    row: Float[ArrayLike, " n"] | None = None,
) -> Float[Array, "..."]:
    """T x along one axis, as a circular convolution: T is never formed.

    T_ij = column[i - j] for i >= j and row[j - i] above the diagonal. Rounding errors
    are small against the largest entries of T x, not against each.

    Args:
        column: The first column of T, m entries.
        x: What T multiplies, of any shape, n long at `axis`.
        axis: The axis of x; may count from the end. Static.
        row: The first row of T, n entries, of which the first is not read. None:
            `column`, T symmetric. An antisymmetric T, that of an odd derivative, has
            `row=-column`.

    Returns:
        The shape of x, with m at `axis`. FFTs of length L, the first power of 2 that is
        no less than m + n - 1: O(N / n L log L) flops, 2 N L / n memory, for N entries
        of x.

    Raises:
        ValueError: If something is not real, there is no such axis, or it has not n
            entries.
    """
    column, x = jnp.asarray(column), jnp.asarray(x)
    row = column if row is None else jnp.asarray(row)
    axis = checks.count("axis", axis, least=-x.ndim, most=x.ndim - 1)
    size = x.shape[axis]
    if column.ndim != 1 or not column.size or row.shape != (size,):
        raise ValueError(
            f"`column` must be a vector, and `row` (None: `column`) of {size} entries "
            f"as axis {axis} of `x`, got shapes {column.shape} and {row.shape}."
        )
    for name, array in (("column", column), ("row", row), ("x", x)):
        if jnp.issubdtype(array.dtype, jnp.complexfloating):
            raise ValueError(f"`{name}` must be real, got {array.dtype}.")
    length = 1 << (column.size + size - 2).bit_length()
    middle = jnp.zeros(length - column.size - size + 1, column.dtype)
    circle = jnp.fft.rfft(jnp.concatenate([column, middle, row[:0:-1]]))
    circle = circle.reshape(-1, *[1] * (x.ndim - 1 - axis % x.ndim))
    image = jnp.fft.irfft(jnp.fft.rfft(x, length, axis) * circle, length, axis)
    return lax.slice_in_dim(image, 0, column.size, axis=axis % x.ndim)
