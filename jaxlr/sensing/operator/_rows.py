"""Ensembles of independent entries: Gaussian and Rademacher, stored or not."""

from typing import ClassVar, Literal

import equinox as eqx
import jax
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxlr.core import checks
from jaxlr.kernels import (
    draw_normals,
    draw_signs,
    loss_value,
    NormalRows,
    residual_adjoint,
    Rows,
    StoredRows,
)
from jaxlr.linalg import matmul
from jaxlr.sensing.operator import _base
from jaxlr.sensing.operator._base import Operator


class RowEnsemble(Operator):
    """A_i with independent entries of variance 1/m. See `gaussian`, `rademacher`.

    `apply` and `adjoint` cost 2 m n1 n2 flops and one pass over the entries, each; with
    factors, 2 n1 n2 k more, for F G^T or its like, a 1/m-th of the entries.

    Attributes:
        rows: The entries before scaling, one measurement a row of n1 n2 numbers. The
            scale 1/sqrt(m) is applied to results.
        shape: Sizes (n1, n2) of the matrices.
        is_symmetric: Whether A_i enters by its symmetric part (A_i + A_i^T) / 2.
        axis_name: The mesh axis over whose devices the measurements are spread, within
            a `shard_map` where `rows` are this device's share; or None.
    """

    has_kernel: ClassVar[bool] = True
    rows: Rows
    shape: tuple[int, int] = eqx.field(static=True)
    is_symmetric: bool = eqx.field(static=True, default=False)
    axis_name: str | None = eqx.field(static=True, default=None)

    @property
    def measurement_shape(self) -> tuple[int, ...]:
        """(m,); on each device its share of them."""
        return (self.rows.num_rows,)

    @property
    def isotropy(self) -> float:
        """1, by the scale 1/sqrt(m)."""
        return 1.0

    @property
    def _scale(self):
        return self.total(self.rows.num_rows) ** -0.5

    def total(self, value):
        """The sum over the measurements of all devices: see `Operator.total`."""
        if self.axis_name is None:
            return value
        if isinstance(value, int | float):
            return jax.lax.psum(value, self.axis_name)
        flat, unravel = ravel_pytree(value)  # one message, whatever is summed
        return unravel(jax.lax.psum(flat, self.axis_name))

    def _part(self, x):
        """The part of a matrix that measurements see, or consist of."""
        return (x + x.T) / 2 if self.is_symmetric else x

    def _apply(self, x):
        return self.rows.dot(self._part(x).ravel()) * self._scale

    def _adjoint(self, z):
        d = self.rows.transpose_dot(z * self._scale)
        return self._part(self.total(d).reshape(self.shape))

    def _residual_adjoint(self, f, g, y, loss, huber_delta, implementation):
        value, d = self._local(f, g, y, loss, huber_delta, implementation)
        return self.total((value, d))

    def _residual_gradient(self, f, g, y, loss, huber_delta, implementation):
        value, d = self._local(f, g, y, loss, huber_delta, implementation)
        return self.total((value, matmul(d, g), matmul(d.T, f)))

    def _local(self, f, g, y, loss, huber_delta, implementation):
        gap, d = residual_adjoint(
            self.rows,
            self._part(matmul(f, g.T)).ravel(),
            y,
            loss=loss,
            huber_delta=huber_delta,
            scale=self._scale,
            implementation=implementation,
        )
        return loss_value(loss, gap, huber_delta), self._part(d.reshape(self.shape))


def gaussian(
    key: Key[Array, ""],
    shape: tuple[int, int],
    num_measurements: int,
    *,
    storage: Literal["dense", "regenerate"] = "dense",
) -> RowEnsemble:
    """Measure by matrices with independent N(0, 1/m) entries, so that E A*A = I.

    Args:
        key: Measurements 8 t to 8 t + 7 are drawn from `fold_in(key, t)`: any of them
            can be drawn again, alone.
        shape: Sizes (n1, n2) of the matrices. Static.
        num_measurements: Number m of measurements. Static.
        storage: "dense" stores m n1 n2 numbers. "regenerate" stores the key alone and
            draws the same entries, bit for bit on one backend, again in each pass, a
            few measurements at a time: memory does not grow with m, time does by the
            drawing. Static.

    Returns:
        The operator, in the default floating type.

    Raises:
        ValueError: Unless `num_measurements` and both sizes are integers >= 1; on an
            unknown `storage`.
    """
    shape = _base.check_shape(shape)
    m = checks.count("num_measurements", num_measurements)
    checks.choice("storage", storage, ("dense", "regenerate"))
    size = shape[0] * shape[1]
    if storage == "dense":
        rows = draw_normals(key, m, size)
    else:
        rows = NormalRows(key, m, size, jnp.zeros(()).dtype)
    return RowEnsemble(rows=rows, shape=shape)


def symmetric_gaussian(
    key: Key[Array, ""],
    shape: tuple[int, int],
    num_measurements: int,
    *,
    storage: Literal["dense", "regenerate"] = "dense",
) -> RowEnsemble:
    """Measure symmetric matrices by the symmetric parts of Gaussian ones.

    A_i = (B_i + B_i^T) / 2 with the B_i of `gaussian` of the same key, so that
    E A*A = I on symmetric matrices; an antisymmetric one is not seen.

    Args:
        key: Source of the B_i, as they are drawn by `gaussian`.
        shape: Sizes (n, n) of the matrices. Static.
        num_measurements: Number m of measurements. Static.
        storage: "dense" stores the entries of the B_i; "regenerate" stores the key
            alone and draws them again in each pass. Static.

    Returns:
        The operator.

    Raises:
        ValueError: As `gaussian`; and if `shape` is not square.
    """
    base = gaussian(key, shape, num_measurements, storage=storage)
    if base.shape[0] != base.shape[1]:
        raise ValueError(
            f"`shape` must be square for symmetric measurements, got {shape}."
        )
    return RowEnsemble(rows=base.rows, shape=base.shape, is_symmetric=True)


def rademacher(
    key: Key[Array, ""],
    shape: tuple[int, int],
    num_measurements: int,
    *,
    storage: Literal["dense", "packed"] = "dense",
) -> RowEnsemble:
    """Measure by matrices with independent entries +-1/sqrt(m): E A*A = I.

    Args:
        key: Source of the signs.
        shape: Sizes (n1, n2) of the matrices. Static.
        num_measurements: Number m of measurements. Static.
        storage: "dense" stores m n1 n2 numbers; "packed" the same signs, a bit each,
            unpacked a few at a time. Static.

    Returns:
        The operator; the signs are exact in bfloat16.

    Raises:
        ValueError: Unless `num_measurements` and both sizes are integers >= 1; on an
            unknown `storage`.
    """
    shape = _base.check_shape(shape)
    m = checks.count("num_measurements", num_measurements)
    checks.choice("storage", storage, ("dense", "packed"))
    signs = draw_signs(key, m, shape[0] * shape[1])
    rows = signs if storage == "packed" else StoredRows(signs.to_dense())
    return RowEnsemble(rows=rows, shape=shape)
