"""The population limit: the matrix itself is observed."""

import equinox as eqx

from jaxlr.sensing.operator import _base
from jaxlr.sensing.operator._base import Operator


class Identity(Operator):
    """A(X) = X; measurements are n1-by-n2 matrices. See `identity`.

    With factors, 2 n1 n2 k flops for A(F G^T) and for each of D G and D^T F.
    """

    shape: tuple[int, int] = eqx.field(static=True)

    @property
    def measurement_shape(self) -> tuple[int, int]:
        """(n1, n2)."""
        return self.shape

    @property
    def isotropy(self) -> float:
        """1: A*A = I."""
        return 1.0

    def _apply(self, x):
        return x

    def _adjoint(self, z):
        return z


def identity(shape: tuple[int, int]) -> Identity:
    """The fully observed matrix, also the limit of infinitely many measurements.

    Args:
        shape: Sizes (n1, n2) of the matrix. Static.

    Raises:
        ValueError: Unless `shape` is two sizes of at least 1.
    """
    return Identity(_base.check_shape(shape))
