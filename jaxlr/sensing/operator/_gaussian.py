"""Dense Gaussian measurements."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key

from jaxlr.linalg import matmul
from jaxlr.sensing.operator import _base
from jaxlr.sensing.operator._base import Operator


_TILE = 8  # Measurements drawn from one key: a float32 tile of a TPU has 8 rows.


class Gaussian(Operator):
    """A_i with independent N(0, 1/m) entries, stored. See `gaussian`.

    Attributes:
        raw: The entries before scaling, N(0, 1), one measurement a row of n1 n2
            numbers. The scale 1/sqrt(m) is applied to results.
        shape: (n1, n2).
    """

    raw: Float[Array, "m size"]
    shape: tuple[int, int] = eqx.field(static=True)

    @property
    def measurement_shape(self) -> tuple[int, ...]:
        """(m,)."""
        return (self.raw.shape[0],)

    @property
    def isotropy(self) -> float:
        """1, by the scale 1/sqrt(m)."""
        return 1.0

    def apply(self, x: Float[Array, "n1 n2"]) -> Float[Array, " m"]:
        """A(X): 2 m n1 n2 flops, one pass over the entries."""
        x = jnp.asarray(x)
        _base.check_matrix(self, x)
        return matmul(self.raw, x.ravel()) / self.raw.shape[0] ** 0.5

    def apply_factors(
        self, f: Float[Array, "n1 k"], g: Float[Array, "n2 k"]
    ) -> Float[Array, " m"]:
        """A(F G^T): 2 n1 n2 (m + k) flops; forms F G^T, a 1/m-th of the entries."""
        _base.check_factors(self, f, g)
        return self.apply(matmul(f, g.T))

    def adjoint(self, z: Float[Array, " m"]) -> Float[Array, "n1 n2"]:
        """A*(z): 2 m n1 n2 flops, one pass over the entries."""
        _base.check_measurements(self, z)
        return matmul(z / self.raw.shape[0] ** 0.5, self.raw).reshape(self.shape)

    def adjoint_matmul(
        self, z: Float[Array, " m"], g: Float[Array, "n2 k"]
    ) -> Float[Array, "n1 k"]:
        """A*(z) G: 2 n1 n2 (m + k) flops."""
        _base.check_right(self, g)
        return matmul(self.adjoint(z), g)

    def adjoint_factors(
        self, z: Float[Array, " m"], f: Float[Array, "n1 k"], g: Float[Array, "n2 k"]
    ) -> tuple[Float[Array, "n1 k"], Float[Array, "n2 k"]]:
        """`(D G, D^T F)`: 2 n1 n2 (m + 2 k) flops, one pass over the entries."""
        _base.check_factors(self, f, g)
        d = self.adjoint(z)
        return matmul(d, g), matmul(d.T, f)


def gaussian(
    key: Key[Array, ""], shape: tuple[int, int], num_measurements: int
) -> Gaussian:
    """Measure by matrices with independent N(0, 1/m) entries, so that E A*A = I.

    Args:
        key: Measurements 8 t to 8 t + 7 are drawn from `fold_in(key, t)`: any of them
            can be drawn again, alone.
        shape: (n1, n2). Static.
        num_measurements: m. Static.

    Returns:
        The operator; it stores m n1 n2 numbers of the default floating type.

    Raises:
        ValueError: Unless `num_measurements` and both sizes are integers >= 1.
    """
    shape = _base.check_shape(shape)
    _base.check_num_measurements(num_measurements)
    num_tiles = -(-num_measurements // _TILE)
    size = shape[0] * shape[1]
    keys = jax.vmap(jr.fold_in, in_axes=(None, 0))(key, jnp.arange(num_tiles))
    raw = jax.vmap(lambda k: jr.normal(k, (_TILE, size)))(keys)
    return Gaussian(raw=raw.reshape(-1, size)[:num_measurements], shape=shape)
