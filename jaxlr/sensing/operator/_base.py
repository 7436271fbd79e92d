"""What every measurement ensemble does, and the checks of what it is given."""

import abc
from collections.abc import Sequence
import operator as operators

import equinox as eqx
from jaxtyping import Array, Float
import numpy as np


class Operator(eqx.Module):
    """A linear map A from n1-by-n2 matrices to measurements, `A(X)_i = <A_i, X>`.

    A pytree: it may be batched, donated, differentiated. Letters: k columns of the
    factors F (n1 x k) and G (n2 x k). In a sweep, close over one operator for all
    cells: a product with every lane's vector then is one matrix-matrix product.

    Attributes:
        shape: (n1, n2). Static.
    """

    shape: eqx.AbstractVar[tuple[int, int]]

    @property
    @abc.abstractmethod
    def measurement_shape(self) -> tuple[int, ...]:
        """Shape of what `apply` returns."""

    @property
    @abc.abstractmethod
    def isotropy(self) -> float:
        """The c of E A*A = c I; a step of gradient descent is divided by it."""

    @abc.abstractmethod
    def apply(self, x: Float[Array, "n1 n2"]) -> Float[Array, "..."]:
        """A(X).

        Raises:
            ValueError: If the shape of `x` is not `shape`.
        """

    @abc.abstractmethod
    def apply_factors(
        self, f: Float[Array, "n1 k"], g: Float[Array, "n2 k"]
    ) -> Float[Array, "..."]:
        """A(F G^T).

        Raises:
            ValueError: If `f` and `g` are not factors of a matrix of this `shape`.
        """

    @abc.abstractmethod
    def adjoint(self, z: Float[Array, "..."]) -> Float[Array, "n1 n2"]:
        """A*(z) = sum_i z_i A_i.

        Raises:
            ValueError: If the shape of `z` is not `measurement_shape`.
        """

    @abc.abstractmethod
    def adjoint_matmul(
        self, z: Float[Array, "..."], g: Float[Array, "n2 k"]
    ) -> Float[Array, "n1 k"]:
        """A*(z) G.

        Raises:
            ValueError: If the shape of `z` is not `measurement_shape`, or if `g` has
                not n2 rows.
        """

    @abc.abstractmethod
    def adjoint_factors(
        self, z: Float[Array, "..."], f: Float[Array, "n1 k"], g: Float[Array, "n2 k"]
    ) -> tuple[Float[Array, "n1 k"], Float[Array, "n2 k"]]:
        """`(D G, D^T F)` with D = A*(z): the gradient of <z, A(F G^T)> in F and G.

        Raises:
            ValueError: If `z`, `f` or `g` is not of a shape that belongs to A.
        """


def check_shape(shape: Sequence[int]) -> tuple[int, int]:
    """`shape` as a tuple of ints.

    Raises:
        ValueError: Unless it is two sizes of at least 1.
    """
    try:
        n1, n2 = map(operators.index, shape)
    except (TypeError, ValueError):  # not integers; not two
        n1 = n2 = 0
    if min(n1, n2) < 1:
        raise ValueError(f"`shape` must be two sizes (n1, n2) >= 1, got {shape}.")
    return n1, n2


def check_num_measurements(num_measurements: int, most: int | None = None) -> None:
    """Raises `ValueError` unless it is an integer of at least 1 and at most `most`."""
    is_valid = isinstance(num_measurements, int | np.integer) and num_measurements >= 1
    if not is_valid or (most is not None and num_measurements > most):
        valid = ">= 1" if most is None else f"in 1..{most} (n1 n2)"
        raise ValueError(
            f"`num_measurements` must be an integer {valid}, got {num_measurements}."
        )


def check_matrix(operator: Operator, x: Array) -> None:
    """Raises `ValueError` unless `x` is of the operator's shape."""
    if x.shape != operator.shape:
        raise ValueError(f"`x` must have shape {operator.shape}, got {x.shape}.")


def check_measurements(operator: Operator, z: Array) -> None:
    """Raises `ValueError` unless `z` is shaped like measurements."""
    if z.shape != operator.measurement_shape:
        raise ValueError(
            f"`z` must have shape {operator.measurement_shape}, got {z.shape}."
        )


def check_right(operator: Operator, g: Array) -> None:
    """Raises `ValueError` unless `g` is a right factor: n2 rows."""
    if g.ndim != 2 or g.shape[0] != operator.shape[1]:
        raise ValueError(
            f"`g` must have shape ({operator.shape[1]}, k), got {g.shape}."
        )


def check_factors(operator: Operator, f: Array, g: Array) -> None:
    """Raises `ValueError` unless F G^T is of the operator's shape."""
    check_right(operator, g)
    if f.shape != (operator.shape[0], g.shape[1]):
        raise ValueError(
            f"`f` must have shape {(operator.shape[0], g.shape[1])}, got {f.shape}."
        )
