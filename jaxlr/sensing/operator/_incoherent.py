"""Entries of a transformed matrix: completion of one made incoherent."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key

from jaxlr.linalg import hadamard_transform
from jaxlr.sensing.operator import _base
from jaxlr.sensing.operator._base import Operator
from jaxlr.sensing.operator._entries import entry_sampling, EntrySampling


class Incoherent(Operator):
    """Entries of T D1 X D2 T^T, T orthogonal. See `hadamard` and `dct`.

    n1 n2 log(n1 n2) flops; with factors, (n1 + n2) k log beside those of the entries.

    Attributes:
        base: Which entries of the transformed matrix are observed.
        left_signs: The diagonal of D1, of +-1.
        right_signs: The diagonal of D2, of +-1.
        transform: Which transform T is, "hadamard" or "dct".
    """

    base: EntrySampling
    left_signs: Float[Array, " n1"]
    right_signs: Float[Array, " n2"]
    transform: Literal["hadamard", "dct"] = eqx.field(static=True)

    @property
    def shape(self) -> tuple[int, int]:  # pyright: ignore
        """(n1, n2)."""
        return self.base.shape

    @property
    def measurement_shape(self) -> tuple[int, ...]:
        """The shape (m,) of measurements."""
        return self.base.measurement_shape

    @property
    def isotropy(self) -> float:
        """The share p = m / (n1 n2) of entries that are observed."""
        return self.base.isotropy

    def _forward(self, signs, x):
        """T D x, down the columns."""
        x = signs.astype(x.dtype)[:, None] * x
        if self.transform == "hadamard":
            return hadamard_transform(x)
        return jax.scipy.fft.dct(x, axis=0, norm="ortho")

    def _backward(self, signs, x):
        """D T^T x."""
        if self.transform == "hadamard":
            x = hadamard_transform(x)
        else:
            x = jax.scipy.fft.idct(x, axis=0, norm="ortho")
        return signs.astype(x.dtype)[:, None] * x

    def _apply(self, x):
        x = self._forward(self.left_signs, x)
        return self.base._apply(self._forward(self.right_signs, x.T).T)

    def _adjoint(self, z):
        x = self._backward(self.left_signs, self.base._adjoint(z))
        return self._backward(self.right_signs, x.T).T

    def _apply_factors(self, f, g):
        return self.base._apply_factors(
            self._forward(self.left_signs, f), self._forward(self.right_signs, g)
        )

    def _adjoint_matmul(self, z, g):
        g = self._forward(self.right_signs, g)
        return self._backward(self.left_signs, self.base._adjoint_matmul(z, g))

    def _adjoint_factors(self, z, f, g):
        left, right = self.base._adjoint_factors(
            z, self._forward(self.left_signs, f), self._forward(self.right_signs, g)
        )
        return (
            self._backward(self.left_signs, left),
            self._backward(self.right_signs, right),
        )


def hadamard(
    key: Key[Array, ""], shape: tuple[int, int], num_measurements: int
) -> Incoherent:
    """Observe entries of the matrix after a randomized Hadamard transform.

    Random signs and the orthonormal Walsh-Hadamard transform, of rows and of columns,
    spread any matrix evenly: completion then needs no assumption of incoherence.

    Args:
        key: Source of the signs and of the entries.
        shape: Sizes (n1, n2) of the matrices, powers of 2; `dct` takes any. Static.
        num_measurements: Number m of entries, drawn without replacement. Static.

    Returns:
        The operator; it stores 2 m + n1 + n2 numbers.

    Raises:
        ValueError: If a size is not a power of 2, or as `entry_sampling`.
    """
    if any(size & (size - 1) for size in _base.check_shape(shape)):
        raise ValueError(
            f"`shape` must be powers of 2 for `hadamard`, got {tuple(shape)}; "
            "`dct` takes any."
        )
    return _incoherent(key, shape, num_measurements, "hadamard")


def dct(
    key: Key[Array, ""], shape: tuple[int, int], num_measurements: int
) -> Incoherent:
    """Observe entries of the matrix after a randomized discrete cosine transform.

    As `hadamard`, with the orthonormal DCT-II, for any size.

    Args:
        key: Source of the signs and of the entries.
        shape: Sizes (n1, n2) of the matrices. Static.
        num_measurements: Number m of entries, drawn without replacement. Static.

    Returns:
        The operator; it stores 2 m + n1 + n2 numbers.

    Raises:
        ValueError: As `entry_sampling`.
    """
    return _incoherent(key, shape, num_measurements, "dct")


def _incoherent(key, shape, num_measurements, transform):
    left, right, entries = jr.split(key, 3)
    return Incoherent(  # pyright: ignore[reportCallIssue]
        base=entry_sampling(entries, shape, num_measurements),
        left_signs=jr.rademacher(left, (shape[0],), jnp.float32),
        right_signs=jr.rademacher(right, (shape[1],), jnp.float32),
        transform=transform,
    )
