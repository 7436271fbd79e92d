"""Sampled entries: matrix completion."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Int, Key
import numpy as np

from jaxlr.core import checks
from jaxlr.sensing.operator import _base
from jaxlr.sensing.operator._base import Operator


# From this share of entries on, n1 n2 numbers are a small multiple of the data, and
# matrix products beat gathers; below it nothing of n1-by-n2 size is formed. Dense
# against gathers at k = 5, on a CPU with two cores: n = 2000, p = 0.0325: 9.6 and
# 3.2 ms; n = 500, p = 0.08, 16 lanes: 16.5 and 7.4 ms; n = 500, p = 0.25: 0.61 and
# 1.6 ms.
_DENSE_SHARE = 1 / 8


class EntrySampling(Operator):
    """A_i = e_row(i) e_col(i)^T: entries, unscaled. See `entry_sampling`, `entries`.

    An entry observed twice counts twice. With factors, 2 m k flops and O(m k) memory;
    where 1/8 of the entries or more are observed, 2 n1 n2 k flops and O(n1 n2) memory,
    which then is faster.

    Attributes:
        rows: Row of each observed entry.
        cols: Column of each observed entry.
        shape: Sizes (n1, n2) of the matrices.
    """

    rows: Int[Array, " m"]
    cols: Int[Array, " m"]
    shape: tuple[int, int] = eqx.field(static=True)

    @property
    def measurement_shape(self) -> tuple[int, ...]:
        """The shape (m,) of measurements."""
        return self.rows.shape

    @property
    def isotropy(self) -> float:
        """The share p = m / (n1 n2) of entries that are observed."""
        return self.rows.shape[0] / (self.shape[0] * self.shape[1])

    @property
    def is_sparse(self) -> bool:
        """Whether few enough entries are observed that gathers beat products."""
        return self.isotropy < _DENSE_SHARE

    def transpose(self) -> "EntrySampling":
        """The operator that observes the same entries of M^T, in the same order."""
        n1, n2 = self.shape
        return EntrySampling(rows=self.cols, cols=self.rows, shape=(n2, n1))

    def _apply(self, x):
        return _take(x, (self.rows, self.cols))

    def _adjoint(self, z):
        return jnp.zeros(self.shape, z.dtype).at[self.rows, self.cols].add(z)

    def _apply_factors(self, f, g):
        if not self.is_sparse:
            return super()._apply_factors(f, g)
        return jnp.sum(_take(f, self.rows) * _take(g, self.cols), axis=1)

    def _adjoint_matmul(self, z, g):
        if not self.is_sparse:
            return super()._adjoint_matmul(z, g)
        return _scatter_rows(self.rows, z[:, None] * _take(g, self.cols), self.shape[0])

    def _adjoint_factors(self, z, f, g):
        if not self.is_sparse:
            return super()._adjoint_factors(z, f, g)
        return (
            self._adjoint_matmul(z, g),
            _scatter_rows(self.cols, z[:, None] * _take(f, self.rows), self.shape[1]),
        )


def _take(x, index):
    """`x[index]`, NaN where a traced index, which nothing checked, is out of range."""
    return (
        jnp.asarray(x)
        .at[index]
        .get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
    )


def _scatter_rows(index, terms, num_rows):
    return jax.ops.segment_sum(terms, index, num_segments=num_rows)


def entry_sampling(
    key: Key[Array, ""], shape: tuple[int, int], num_measurements: int
) -> EntrySampling:
    """Observe entries drawn uniformly without replacement.

    Args:
        key: Source of randomness.
        shape: Sizes (n1, n2) of the matrices. Static.
        num_measurements: Number m of observed entries. Static.

    Returns:
        The operator, entries in row-major order. Drawing sorts n1 n2 numbers once.

    Raises:
        ValueError: Unless `num_measurements` is an integer in 1..n1 n2, or if n1 n2 is
            2^31 or more, which the 32-bit integers that are drawn cannot count.
    """
    shape = _base.check_shape(shape)
    size = shape[0] * shape[1]
    m = checks.count("num_measurements", num_measurements, most=size)
    if size >= 2**31:
        raise ValueError(
            "`shape` must have n1 n2 < 2**31 entries, as they are drawn by 32-bit "
            f"number, got {shape}; `entries` takes any."
        )
    flat = jnp.sort(jr.choice(key, size, (m,), replace=False))
    return EntrySampling(rows=flat // shape[1], cols=flat % shape[1], shape=shape)


def entries(
    rows: Int[Array, " m"] | np.ndarray | Sequence[int],
    cols: Int[Array, " m"] | np.ndarray | Sequence[int],
    shape: tuple[int, int],
) -> EntrySampling:
    """Observe the entries that the user names.

    The `isotropy` p = m / (n1 n2), by which `gd` divides its step, is that of entries
    sampled uniformly. For another mask a step may be larger than p suggests: give `gd`
    a smaller `eta`.

    Args:
        rows: Row of each observed entry; of a mask, `np.nonzero(mask)` gives both.
        cols: Column of each observed entry. An entry may be named more than once.
        shape: Sizes (n1, n2) of the matrices. Static.

    Returns:
        The operator; measurements are in the order given.

    Raises:
        ValueError: Unless `rows` and `cols` are integer vectors of one length >= 1,
            within `shape` (checked where their values are known while tracing; where
            they are not, measurements out of range are NaN).
    """
    shape = _base.check_shape(shape)
    rows, cols = (
        x if isinstance(x, jax.Array) else np.asarray(x) for x in (rows, cols)
    )
    for name, index, size in (("rows", rows, shape[0]), ("cols", cols, shape[1])):
        if index.ndim != 1 or not index.size or index.shape != rows.shape:
            raise ValueError(
                "`rows` and `cols` must be vectors of one length >= 1, got shapes "
                f"{rows.shape} and {cols.shape}."
            )
        if not jnp.issubdtype(index.dtype, jnp.integer):
            raise ValueError(f"`{name}` must be integers, got {index.dtype}.")
        checks.within(name, index, 0, size - 1)
    rows, cols = jnp.asarray(rows, int), jnp.asarray(cols, int)
    return EntrySampling(rows=rows, cols=cols, shape=shape)
