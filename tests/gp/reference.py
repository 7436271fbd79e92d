"""A Gaussian process on part of a grid, dense, in float64 NumPy; tests compare with it.

Letters: the grid has N points, of which `observed` are the m that have values.
"""

from collections.abc import Sequence
import functools as ft
from typing import NamedTuple

from jaxtyping import Bool, Float
import numpy as np


class Dense(NamedTuple):
    """What the whole covariance matrix tells.

    Attributes:
        log_marginal_likelihood: In nats.
        logdet: log det A, A the covariance of what was observed.
        solution: A^-1 y on the grid, 0 where nothing was observed.
        mean: Of the posterior at the points asked for.
        covariance: Of the posterior there, without noise.
    """

    log_marginal_likelihood: float
    logdet: float
    solution: Float[np.ndarray, "..."]
    mean: Float[np.ndarray, " P"]
    covariance: Float[np.ndarray, "P P"]


def dense_gp(
    factors: Sequence[Float[np.ndarray, "_ _"]],
    noise: Float[np.ndarray, "..."],
    observed: Bool[np.ndarray, "..."],
    y: Float[np.ndarray, "..."],
    cross: Float[np.ndarray, "P N"] | None = None,
    prior: Float[np.ndarray, "P P"] | None = None,
) -> Dense:
    """Cholesky of the m x m covariance: m^3 / 3 flops, N^2 memory.

    Args:
        factors: K_d of each axis.
        noise: Variances on the grid.
        observed: Where y counts.
        y: On the grid; may be NaN elsewhere.
        cross: Covariances of points asked for with the grid's. None: the grid itself.
        prior: Covariances among points asked for, with `cross`.
    """
    k = ft.reduce(np.kron, factors)
    cross = k if cross is None else cross
    prior = k if prior is None else prior
    index = np.flatnonzero(observed)
    low = np.linalg.cholesky(k[np.ix_(index, index)] + np.diag(noise.ravel()[index]))
    values = y.ravel()[index]
    white = np.linalg.solve(low, values)
    x = np.linalg.solve(low.T, white)
    logdet = 2 * np.sum(np.log(np.diag(low)))
    solution = np.zeros(k.shape[0])
    solution[index] = x
    part = np.linalg.solve(low, cross[:, index].T)
    return Dense(
        -(white @ white + logdet + len(index) * np.log(2 * np.pi)) / 2,
        logdet,
        solution.reshape(observed.shape),
        cross[:, index] @ x,
        prior - part.T @ part,
    )
