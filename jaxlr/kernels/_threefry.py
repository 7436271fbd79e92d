"""What `jax.random.normal` draws, in the arithmetic that a TPU kernel has."""

from typing import Any

from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from jaxlr.kernels._rows import TILE


def normals(keys: Any, start: Any, num_columns: int, size: int) -> Float[Array, "b c"]:
    """Columns of rows of normals: those of `NormalRows`, bit for bit.

    Row r of a tile starts at count r size; the high word of a count is 0, as a tile of
    2^32 entries would not fit.

    Args:
        keys: Each row's key, (b, 2) words; an array or a kernel's reference.
        start: First of the columns.
        num_columns: Number c of columns. Static.
        size: Number of entries of a whole row. Static.
    """
    shape = (keys.shape[0], num_columns)
    row = lax.broadcasted_iota(jnp.int32, shape, 0) & (TILE - 1)
    column = start + lax.broadcasted_iota(jnp.int32, shape, 1)
    count = (row * size + column).astype(jnp.uint32)
    bits = _threefry(keys[:, 0:1], keys[:, 1:2], count)
    bits = (bits >> jnp.uint32(9)) | jnp.uint32(0x3F800000)
    unit = lax.bitcast_convert_type(bits, jnp.float32) - 1.0
    low = np.nextafter(np.float32(-1), np.float32(0))
    uniform = jnp.maximum(low, unit * (np.float32(1) - low) + low)
    return np.float32(np.sqrt(2)) * lax.erf_inv(uniform)


def _threefry(key0, key1, count):
    """Both words of Threefry-2x32 of (0, count), combined by exclusive or.

    References:
        Salmon, Moraes, Dror, Shaw. "Parallel random numbers: as easy as 1, 2, 3". 2011.
    """
    keys = (key0, key1, key0 ^ key1 ^ jnp.uint32(0x1BD11BDA))
    rotations = ((13, 15, 26, 6), (17, 29, 16, 24))
    a, b = jnp.broadcast_to(keys[0], count.shape), count + keys[1]
    for i in range(5):
        for by in rotations[i % 2]:
            a = a + b
            b = (b << jnp.uint32(by)) | (b >> jnp.uint32(32 - by))
            b = a ^ b
        a = a + keys[(i + 1) % 3]
        b = b + keys[(i + 2) % 3] + jnp.uint32(i + 1)
    return a ^ b
