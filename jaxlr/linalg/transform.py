"""Fast orthogonal transforms."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.jit  # one program, where it is called outside of any
def hadamard_transform(x: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
    """The orthonormal Walsh-Hadamard transform H x down the first axis.

    H_ij = (-1)^(number of ones in the binary i & j) / sqrt(n): symmetric, its own
    inverse.

    Args:
        x: What H multiplies; its number n of rows is a power of 2.

    Returns:
        H x; n log2(n) additions for each column.

    Raises:
        ValueError: If n is not a power of 2.
    """
    n = x.shape[0]
    if n < 1 or n & (n - 1):
        raise ValueError(f"`x` must have a power of 2 of rows, got shape {x.shape}.")
    half = 1
    while half < n:
        pairs = x.reshape(n // (2 * half), 2, half, *x.shape[1:])
        even, odd = pairs[:, 0], pairs[:, 1]
        x = jnp.stack([even + odd, even - odd], axis=1).reshape(x.shape)
        half *= 2
    return x / n**0.5
