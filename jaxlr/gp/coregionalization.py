"""Covariances among outputs, which are an axis of the grid like any other."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from jaxlr.core import checks
from jaxlr.linalg import matmul


class Coregionalization(eqx.Module):
    """B = F F^T + diag(v) among T outputs, as a kernel of `GridGP`.

    The points of its axis are whole numbers, which output each is; with it a `GridGP`
    is the intrinsic coregionalization model B (x) K.

    Attributes:
        factor: Factor F of rank r, in the units of the outputs.
        diagonal: Variances v >= 0 that each output has of its own, in their squares.

    Raises:
        ValueError: Unless `factor` is a matrix with a row for each entry of `diagonal`,
            whose entries, where known, are >= 0.

    References:
        Bonilla, Chai, Williams. "Multi-task Gaussian Process Prediction". 2007.
        NeurIPS.
    """

    factor: Float[ArrayLike, "T r"]
    diagonal: Float[ArrayLike, " T"]

    def __check_init__(self):
        shapes = jnp.shape(self.factor), jnp.shape(self.diagonal)
        if len(shapes[0]) != 2 or shapes[0][:1] != shapes[1]:
            raise ValueError(
                "`factor` must be a matrix with a row for each entry of the vector "
                f"`diagonal`, got shapes {shapes[0]} and {shapes[1]}."
            )
        checks.positive("diagonal", self.diagonal, or_zero=True)

    def gram(self, x: Int[Array, " n"], y: Int[Array, " m"]) -> Float[Array, "n m"]:
        """Covariances B_{x_i y_j} of outputs.

        Args:
            x: Outputs of the rows, counted from 0.
            y: Outputs of the columns; those that do not exist give NaN.
        """
        same = jnp.where(x[:, None] == y, _rows(self.diagonal, x)[:, None], 0)
        return matmul(_rows(self.factor, x), _rows(self.factor, y).T) + same

    def variance(self, x: Int[Array, " n"]) -> Float[Array, " n"]:
        """Variances B_{x_i x_i} of outputs.

        Args:
            x: Outputs, counted from 0; those that do not exist give NaN.
        """
        return jnp.sum(_rows(self.factor, x) ** 2, 1) + _rows(self.diagonal, x)


def _rows(values, index):
    """The rows of an index; NaN where there is none."""
    index = jnp.where(index < 0, len(values), index)
    return jnp.asarray(values).at[index].get(mode="fill", fill_value=jnp.nan)
