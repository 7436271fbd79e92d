"""Rank-one measurements: two vectors each, no n1-by-n2 matrix anywhere."""

import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key

from jaxlr.core import checks
from jaxlr.linalg import matmul
from jaxlr.sensing.operator import _base
from jaxlr.sensing.operator._base import Operator


class RankOne(Operator):
    """A_i = a_i b_i^T / sqrt(m). See `rank_one`.

    With factors, 2 m (n1 + n2) k flops and O(m k) memory.

    Attributes:
        left: The vectors a_i, one a row.
        right: The vectors b_i, one a row.
    """

    left: Float[Array, "m n1"]
    right: Float[Array, "m n2"]

    @property
    def shape(self) -> tuple[int, int]:  # pyright: ignore
        """(n1, n2)."""
        return self.left.shape[1], self.right.shape[1]

    @property
    def measurement_shape(self) -> tuple[int, ...]:
        """The shape (m,) of measurements."""
        return (self.left.shape[0],)

    @property
    def isotropy(self) -> float:
        """1, by the scale 1/sqrt(m)."""
        return 1.0

    def _apply(self, x):
        return self._scaled(jnp.sum(matmul(self.left, x) * self.right, axis=1))

    def _adjoint(self, z):
        return matmul(self.left.T, self._scaled(z)[:, None] * self.right)

    def _apply_factors(self, f, g):
        return self._scaled(
            jnp.sum(matmul(self.left, f) * matmul(self.right, g), axis=1)
        )

    def _adjoint_matmul(self, z, g):
        return matmul(self.left.T, self._scaled(z)[:, None] * matmul(self.right, g))

    def _adjoint_factors(self, z, f, g):
        right = matmul(self.right.T, self._scaled(z)[:, None] * matmul(self.left, f))
        return self._adjoint_matmul(z, g), right

    def _scaled(self, values):
        return values / self.left.shape[0] ** 0.5


def rank_one(
    key: Key[Array, ""], shape: tuple[int, int], num_measurements: int
) -> RankOne:
    """Measure by a_i b_i^T / sqrt(m), Gaussian vectors a_i and b_i: E A*A = I.

    Such ensembles lack the restricted isometry property of l2; results are known for
    l1 losses.

    Args:
        key: Source of randomness.
        shape: Sizes (n1, n2) of the matrices. Static.
        num_measurements: Number m of measurements. Static.

    Returns:
        The operator; it stores m (n1 + n2) numbers of the default floating type.

    Raises:
        ValueError: Unless `num_measurements` and both sizes are integers >= 1.

    References:
        Cai, Zhang. "ROP: Matrix Recovery via Rank-One Projections". 2015.
        arXiv:1310.5791.
    """
    shape = _base.check_shape(shape)
    m = checks.count("num_measurements", num_measurements)
    left, right = (
        jr.normal(part, (m, size))
        for part, size in zip(jr.split(key), shape, strict=True)
    )
    return RankOne(left=left, right=right)  # pyright: ignore[reportCallIssue]
