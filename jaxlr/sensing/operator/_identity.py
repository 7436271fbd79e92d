"""The population limit: the matrix itself is observed."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlr.linalg import matmul
from jaxlr.sensing.operator import _base
from jaxlr.sensing.operator._base import Operator


class Identity(Operator):
    """A(X) = X; measurements are n1-by-n2 matrices. See `identity`."""

    shape: tuple[int, int] = eqx.field(static=True)

    @property
    def measurement_shape(self) -> tuple[int, int]:
        """(n1, n2)."""
        return self.shape

    @property
    def isotropy(self) -> float:
        """1: A*A = I."""
        return 1.0

    def apply(self, x: Float[Array, "n1 n2"]) -> Float[Array, "n1 n2"]:
        """X itself."""
        x = jnp.asarray(x)
        _base.check_matrix(self, x)
        return x

    def apply_factors(
        self, f: Float[Array, "n1 k"], g: Float[Array, "n2 k"]
    ) -> Float[Array, "n1 n2"]:
        """F G^T: 2 n1 n2 k flops."""
        _base.check_factors(self, f, g)
        return matmul(f, g.T)

    def adjoint(self, z: Float[Array, "n1 n2"]) -> Float[Array, "n1 n2"]:
        """Z itself."""
        _base.check_measurements(self, z)
        return z

    def adjoint_matmul(
        self, z: Float[Array, "n1 n2"], g: Float[Array, "n2 k"]
    ) -> Float[Array, "n1 k"]:
        """Z G: 2 n1 n2 k flops."""
        _base.check_measurements(self, z)
        _base.check_right(self, g)
        return matmul(z, g)

    def adjoint_factors(
        self, z: Float[Array, "n1 n2"], f: Float[Array, "n1 k"], g: Float[Array, "n2 k"]
    ) -> tuple[Float[Array, "n1 k"], Float[Array, "n2 k"]]:
        """(Z G, Z^T F): 4 n1 n2 k flops."""
        _base.check_measurements(self, z)
        _base.check_factors(self, f, g)
        return matmul(z, g), matmul(z.T, f)


def identity(shape: tuple[int, int]) -> Identity:
    """The fully observed matrix, also the limit of infinitely many measurements.

    Args:
        shape: (n1, n2). Static.

    Raises:
        ValueError: Unless `shape` is two sizes of at least 1.
    """
    return Identity(_base.check_shape(shape))
