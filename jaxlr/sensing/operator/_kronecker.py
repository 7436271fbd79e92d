"""Measurements of rows and columns: P X Q^T."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlr.core import Hyper
from jaxlr.linalg import matmul
from jaxlr.sensing.operator import _base
from jaxlr.sensing.operator._base import Operator


class Kronecker(Operator):
    """A(X) = P X Q^T, the matrix Q kron P on vec(X). See `kronecker`.

    With factors, 2 (p n1 + q n2 + p q) k flops for A(F G^T).

    Attributes:
        left: The matrix P, which multiplies columns.
        right: The matrix Q, which multiplies rows.
    """

    left: Float[Array, "p n1"]
    right: Float[Array, "q n2"]

    @property
    def shape(self) -> tuple[int, int]:  # pyright: ignore
        """(n1, n2)."""
        return self.left.shape[1], self.right.shape[1]

    @property
    def measurement_shape(self) -> tuple[int, int]:
        """(p, q)."""
        return self.left.shape[0], self.right.shape[0]

    @property
    def isotropy(self) -> Hyper:
        """||P||_F^2 ||Q||_F^2 / (n1 n2): the mean eigenvalue of A*A.

        The largest is ||P||^2 ||Q||^2: where it is much larger, choose smaller steps.
        """
        squares = jnp.sum(self.left**2) * jnp.sum(self.right**2)
        return squares / (self.shape[0] * self.shape[1])

    def _apply(self, x):
        return matmul(matmul(self.left, x), self.right.T)

    def _adjoint(self, z):
        return matmul(matmul(self.left.T, z), self.right)

    def _apply_factors(self, f, g):
        return matmul(matmul(self.left, f), matmul(self.right, g).T)

    def _adjoint_matmul(self, z, g):
        return matmul(self.left.T, matmul(z, matmul(self.right, g)))

    def _adjoint_factors(self, z, f, g):
        right = matmul(self.right.T, matmul(z.T, matmul(self.left, f)))
        return self._adjoint_matmul(z, g), right


def kronecker(p: Float[Array, "p n1"], q: Float[Array, "q n2"]) -> Kronecker:
    """Measure P X Q^T: every row by P's columns, every column by Q's.

    Args:
        p: The matrix P, which multiplies the columns of X.
        q: The matrix Q, which multiplies the rows of X.

    Returns:
        The operator; measurements are p-by-q matrices.

    Raises:
        ValueError: Unless both are real matrices.
    """
    p, q = _base.check_real("p", p), _base.check_real("q", q)
    for name, matrix in (("p", p), ("q", q)):
        if matrix.ndim != 2 or not matrix.size:
            raise ValueError(f"`{name}` must be a matrix, got shape {matrix.shape}.")
    return Kronecker(left=p, right=q)  # pyright: ignore[reportCallIssue]
