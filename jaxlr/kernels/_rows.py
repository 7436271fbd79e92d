"""The rows of a measurement matrix: stored, packed in bits, or drawn when needed.

Letters: m rows of `size` entries each, unscaled. Products take blocks of rows, so that
nothing of m-by-size is formed that is not stored.
"""

import abc
from collections.abc import Callable
from typing import Any, TYPE_CHECKING

import equinox as eqx
import jax
from jax import lax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, DTypeLike, Float, Inexact, Key, Num, UInt32
import numpy as np

from jaxlr.core import checks


TILE = 8  # Rows drawn from one key: a float32 tile of a TPU has 8 rows.
# Drawing a block takes four times its bytes: this keeps a product below 64 MiB up to
# 512-by-512 measurements in float32, where a block is one tile.
_BLOCK_BYTES = 2**23
_BITS = 32


class Rows(eqx.Module):
    """m rows of `size` entries: a pytree that may be batched.

    Under `vmap` over the vectors alone, the rows are read (or drawn) once for all
    lanes, and products with vectors become products with matrices.

    Attributes:
        num_rows: Number m of rows.
        size: Number of entries of a row.
        dtype: Type of the entries of `to_dense`.
    """

    if TYPE_CHECKING:  # to which an AbstractVar is an argument of the constructor
        num_rows = size = property(lambda self: 0)
        dtype = property(lambda self: np.dtype(float))
    else:
        num_rows: eqx.AbstractVar[int]
        size: eqx.AbstractVar[int]
        dtype: eqx.AbstractVar[np.dtype]

    @abc.abstractmethod
    def _block(self, start: Any, num_rows: int, dtype: np.dtype) -> Array:
        """`block`, after its checks."""

    def block(self, start: Any, num_rows: int, dtype: np.dtype) -> Array:
        """Rows start to start + num_rows - 1.

        Args:
            start: First row; may be traced; a multiple of 8 where rows are drawn.
            num_rows: Number of rows, at most m. Static.
            dtype: Type of the entries, where they have none of their own.

        Returns:
            (num_rows, size) entries.

        Raises:
            ValueError: Unless `num_rows` is an integer in 1..m.
        """
        num_rows = checks.count("num_rows", num_rows, most=self.num_rows)
        return self._block(start, num_rows, dtype)

    def product_dtype(self, dtype: np.dtype) -> np.dtype:
        """Type of a product with a vector of type `dtype`."""
        return jnp.promote_types(self.dtype, dtype)

    def default_block_rows(self, dtype: np.dtype) -> int:
        """Rows taken at once: all m, or what fits 8 MiB, but 8 at least."""
        row_bytes = self.size * jnp.dtype(dtype).itemsize
        return min(self.num_rows, max(_BLOCK_BYTES // row_bytes // TILE, 1) * TILE)

    def dot(self, x: Num[Array, " size"]) -> Inexact[Array, " m"]:
        """A x: 2 m size flops; 64 MiB at most up to size 2^18 in float32.

        Raises:
            ValueError: If the shape of `x` is not (size,).
        """
        x = check_vector("x", x, self.size)
        dtype = self.product_dtype(x.dtype)

        def body(rows, carry, start, num, x):
            return carry, block_dot(rows.block(start, num, dtype), x)

        return scan_blocks(self, self.default_block_rows(dtype), body, (), x)[1]

    def transpose_dot(self, z: Num[Array, " m"]) -> Inexact[Array, " size"]:
        """A^T z: flops and memory as `dot`.

        Raises:
            ValueError: If the shape of `z` is not (m,).
        """
        z = check_vector("z", z, self.num_rows)
        dtype = self.product_dtype(z.dtype)

        def body(rows, total, start, num, z):
            part = lax.dynamic_slice_in_dim(z, start, num)
            return total + block_transpose_dot(rows.block(start, num, dtype), part), ()

        total = jnp.zeros(self.size, dtype)
        return scan_blocks(self, self.default_block_rows(dtype), body, total, z)[0]

    def to_dense(self) -> Inexact[Array, "m size"]:
        """All entries: m size numbers, and a block's worth while they are made."""
        dtype = self.dtype

        def body(rows, dense, start, num):
            part = rows.block(start, num, dtype)
            return lax.dynamic_update_slice_in_dim(dense, part, start, 0), ()

        dense = jnp.zeros((self.num_rows, self.size), dtype)
        return scan_blocks(self, self.default_block_rows(dtype), body, dense)[0]


class StoredRows(Rows):
    """Rows in memory; a product is one pass over them.

    Attributes:
        raw: The entries. Those in bfloat16 meet vectors rounded to bfloat16; sums are
            in float32 and results in the vector's type.
    """

    raw: Float[Array, "m size"]

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return self.raw.shape[0]

    @property
    def size(self) -> int:
        """Number of entries of a row."""
        return self.raw.shape[1]

    @property
    def dtype(self) -> np.dtype:
        """That of `raw`."""
        return self.raw.dtype

    def _block(self, start, num_rows, dtype):
        if num_rows == self.num_rows:
            return self.raw
        return lax.dynamic_slice_in_dim(self.raw, start, num_rows)

    def default_block_rows(self, dtype: np.dtype) -> int:
        """All: two passes beat one pass by blocks on a CPU."""
        return self.num_rows

    def to_dense(self) -> Float[Array, "m size"]:
        """All rows as they are stored."""
        return self.raw


class PackedSigns(Rows):
    """Entries +1 and -1, one bit each: 1/32 of the bytes of float32. See `draw_signs`.

    Attributes:
        words: Bit b of word w is entry b W + w of a row, W = ceil(size / 32) words: one
            bit of consecutive words is consecutive entries. A bit that is set is -1;
            bits beyond the size are ignored.
        size: Number of entries of a row. Static.

    Raises:
        ValueError: Unless `size` is an integer of at least 1.
    """

    words: UInt32[Array, "m words"]
    size: int = eqx.field(static=True)  # pyright: ignore

    def __init__(self, words: UInt32[Array, "m words"], size: int):
        self.words, self.size = words, checks.count("size", size)

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return self.words.shape[0]

    @property
    def dtype(self) -> np.dtype:
        """The default floating type; products have the type of the vector."""
        return jnp.zeros(()).dtype

    def product_dtype(self, dtype: np.dtype) -> np.dtype:
        """`dtype` itself."""
        return dtype

    def _block(self, start, num_rows, dtype):
        words = lax.dynamic_slice_in_dim(self.words, start, num_rows)
        bits = jnp.arange(_BITS, dtype=words.dtype)[:, None]
        bits = (words[:, None] >> bits & 1).astype(dtype)
        return (1 - 2 * bits).reshape(num_rows, -1)[:, : self.size]


class NormalRows(Rows):
    """Entries N(0, 1) that are drawn anew in every product, never stored as a whole.

    Attributes:
        key: Rows 8 t to 8 t + 7 are `normal(fold_in(key, t), (8, size), dtype)`.
        num_rows: Number m of rows. Static.
        size: Number of entries of a row. Static.
        dtype: Floating type of the entries. Static.

    Raises:
        ValueError: Unless `num_rows` and `size` are integers of at least 1.
    """

    key: Key[Array, ""]
    num_rows: int = eqx.field(static=True)  # pyright: ignore
    size: int = eqx.field(static=True)  # pyright: ignore
    dtype: np.dtype = eqx.field(static=True)  # pyright: ignore

    def __init__(
        self, key: Key[Array, ""], num_rows: int, size: int, dtype: DTypeLike = float
    ):
        self.key = key
        self.num_rows = checks.count("num_rows", num_rows)
        self.size = checks.count("size", size)
        self.dtype = jnp.zeros((), dtype).dtype

    def _block(self, start, num_rows, dtype):
        # Drawn in three times their bytes.
        tiles = start // TILE + jnp.arange(-(-num_rows // TILE))
        keys = jax.vmap(jr.fold_in, in_axes=(None, 0))(self.key, tiles)
        draw = jax.vmap(lambda key: jr.normal(key, (TILE, self.size), self.dtype))
        return draw(keys).reshape(-1, self.size)[:num_rows]


def draw_normals(
    key: Key[Array, ""], num_rows: int, size: int, dtype: Any = float
) -> StoredRows:
    """Independent N(0, 1) entries, stored: those of `NormalRows`, bit for bit.

    Args:
        key: Source of randomness.
        num_rows: Number m of rows. Static.
        size: Number of entries of a row. Static.
        dtype: Floating type of the entries. Static.

    Returns:
        The rows: m size numbers.

    Raises:
        ValueError: Unless `num_rows` and `size` are integers of at least 1.
    """
    return StoredRows(NormalRows(key, num_rows, size, dtype).to_dense())


def draw_signs(key: Key[Array, ""], num_rows: int, size: int) -> PackedSigns:
    """Independent entries, +1 and -1 with equal probability, packed.

    Args:
        key: The words of rows 8 t to 8 t + 7 are random bits from `fold_in(key, t)`.
        num_rows: Number m of rows. Static.
        size: Number of entries of a row. Static.

    Returns:
        The rows: m ceil(size / 32) words.

    Raises:
        ValueError: Unless `num_rows` and `size` are integers of at least 1.
    """
    num_rows, size = checks.count("num_rows", num_rows), checks.count("size", size)
    tiles, words = jnp.arange(-(-num_rows // TILE)), -(-size // _BITS)
    keys = jax.vmap(jr.fold_in, in_axes=(None, 0))(key, tiles)
    bits = jax.vmap(lambda key: jr.bits(key, (TILE, words), jnp.uint32))(keys)
    return PackedSigns(bits.reshape(-1, words)[:num_rows], size)


def check_vector(name: str, x: Any, size: int) -> Array:
    """`x` as an array, of a floating type.

    Raises:
        ValueError: If its shape is not (size,).
    """
    x = jnp.asarray(x)
    if x.shape != (size,):
        raise ValueError(f"`{name}` must have shape {(size,)}, got {x.shape}.")
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(float)


def block_dot(block: Array, x: Array) -> Array:
    """`block @ x` at full precision; in bfloat16 if the block is, summed in float32."""
    return _product(block, x, 1)


def block_transpose_dot(block: Array, z: Array) -> Array:
    """`block.T @ z`, as `block_dot`."""
    return _product(block, z, 0)


def _product(block, x, axis):
    dtype = jnp.promote_types(block.dtype, x.dtype)
    inner, acc = (
        (jnp.bfloat16, jnp.float32) if block.dtype == jnp.bfloat16 else (dtype, dtype)
    )
    return lax.dot_general(
        block.astype(inner),
        x.astype(inner),
        (((axis,), (0,)), ((), ())),
        precision="highest",
        preferred_element_type=acc,
    ).astype(dtype)


def scan_blocks(
    rows: Rows,
    block_rows: int,
    body_fn: Callable[..., tuple[Any, Any]],
    carry: Any,
    *operands: Any,
) -> tuple[Any, Any]:
    """Go over the rows in blocks; the last may have fewer, so that none is padded.

    Args:
        rows: The m rows to go over.
        block_rows: Number of rows of a block. Static.
        body_fn: `(rows, carry, start, num, *operands) -> (carry, out)`, where the
            arrays of `out` have a leading axis of `num`. Derivatives recompute what it
            makes. It must not close over traced values: jax would keep them.
        carry: What the first block is given.
        *operands: Other values that every block is given.

    Returns:
        The last carry, and the outs in one: a leading axis of m.
    """
    num_rows = rows.num_rows
    if block_rows >= num_rows:
        return body_fn(rows, carry, 0, num_rows, *operands)
    # Without this the derivative of a product would keep every block.
    body_fn = jax.checkpoint(body_fn, prevent_cse=False, static_argnums=3)
    num_blocks = (num_rows - 1) // block_rows
    start = num_blocks * block_rows
    # The last block comes first: in a `shard_map` the carry then varies over the same
    # devices as after every other block, which the scan asks for.
    carry, last = body_fn(rows, carry, start, num_rows - start, *operands)
    carry, outs = lax.scan(
        lambda carry, i: body_fn(rows, carry, i * block_rows, block_rows, *operands),
        carry,
        jnp.arange(num_blocks),
    )

    def join(out, last):
        return jnp.concatenate([out.reshape(-1, *last.shape[1:]), last])

    return carry, jax.tree.map(join, outs, last)
