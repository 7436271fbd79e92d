"""Alternating least squares for matrix completion, solved exactly.

    L(F, G) = 1/2 ||A(F G^T) - y||^2 + damping / 2 (||F||^2 + ||G||^2)

is quadratic in each factor, and apart in its rows: row i of F has the Gram matrix
sum_{j observed in row i} g_j g_j^T.
"""

import jax.numpy as jnp
from jax.scipy.linalg import cho_solve
import numpy as np

from jaxlr.core import Count, Hyper, Solver
from jaxlr.sensing.problem import SensingProblem
from jaxlr.sensing.solver import _common


def alternating_least_squares(
    problem: SensingProblem,
    *,
    num_columns: int,
    num_active: Count | None = None,
    damping: Hyper = 0.0,
) -> Solver:
    """Minimize over F, then over G, and again; each by one k-by-k solve a row.

    Solved for the change of a row, not for the row, with a ridge of a few roundings
    relative to the diagonal of its Gram matrix, without which one of no full rank has
    no Cholesky factor. So the ridge does not move the fixed point; a row with fewer
    than k observed entries takes a solution near its last value (in the directions
    that the entries leave open, rounding is felt at about a percent of the change); a
    row with none stays. A column that is exactly zero in both factors stays so.

    Args:
        problem: The instance to solve, of sampled or of all entries; a repeated entry
            counts as often as it occurs.
        num_columns: Number k of columns of the factors. Static.
        num_active: Number of columns in use, 1..k, the others being zero; None for all.
            May be traced: one program then serves all ranks.
        damping: Weight of ||F||^2 + ||G||^2 [||M||].

    Returns:
        A `Solver` with `FactorState`, from the `spectral` start, and `FactorInfo`. A
        step is one sweep, F and then G: m k (k + 1) + 4 m k flops and m k (k + 1) / 2
        numbers of memory for each factor; where 1/8 of the entries or more are
        observed, n1 n2 in place of m for the flops and O(n1 n2) memory, which then is
        faster. O((n1 + n2) k^3) for the solves.

    Raises:
        ValueError: If `num_columns` is not an integer in 1..min(n1, n2), or for an
            operator that does not observe entries, or quantized measurements.

    References:
        Jain, Netrapalli, Sanghavi. "Low-rank Matrix Completion using Alternating
        Minimization". 2012. arXiv:1212.0467.
    """

    def solve_fn(operator, damping):
        def solve(key, downhill, g):
            del key
            grams = _grams(operator, g) + damping * jnp.eye(g.shape[1], dtype=g.dtype)
            return _solve_psd(grams, downhill, max(operator.shape) ** 0.5)

        return solve

    return _common.alternating(
        problem,
        "alternating_least_squares",
        solve_fn,
        num_columns=num_columns,
        num_active=num_active,
        damping=damping,
    )


def _grams(operator, g):
    """For each row of M, the Gram matrix of the rows of G that its entries see."""
    k = g.shape[1]
    above = np.triu_indices(k)
    position = np.zeros((k, k), int)
    position[above] = position[above[::-1]] = np.arange(len(above[0]))
    counts = jnp.ones(operator.measurement_shape, g.dtype)
    grams = operator.adjoint_matmul(counts, g[:, above[0]] * g[:, above[1]])
    return grams[:, position]


def _solve_psd(grams, right, growth):
    """Solve (n, k, k) systems; `growth` times a rounding is the error of a Gram.

    Columns are scaled to unit diagonal first, so that the ridge means the same to each.
    """
    k = right.shape[1]
    diagonal = jnp.diagonal(grams, axis1=1, axis2=2)
    is_zero = diagonal <= 0
    scale = 1 / jnp.sqrt(jnp.where(is_zero, 1, diagonal))
    ridge = 4 * k * growth * jnp.finfo(right.dtype).eps
    unit = grams * scale[:, :, None] * scale[:, None, :]
    unit += jnp.eye(k, dtype=right.dtype) * (is_zero + ridge)[:, :, None]
    lower = jnp.linalg.cholesky(unit)
    return scale * cho_solve((lower, True), (scale * right)[:, :, None])[:, :, 0]
