"""What the solvers of least-squares subproblems share."""

from collections.abc import Callable

import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key
import numpy as np

from jaxlr.core import Count, Hyper, Solver
from jaxlr.sensing.operator import entries, EntrySampling, Identity
from jaxlr.sensing.problem import check_unquantized, relative, SensingProblem
from jaxlr.sensing.solver._descent import (
    factor_info,
    FactorInfo,
    FactorState,
    starting_factors,
)


def measurements(problem: SensingProblem, solver: str) -> Float[Array, "..."]:
    """`problem.y`, of a floating type.

    Raises:
        ValueError: If they are levels of a quantizer: least squares cannot fit them.
    """
    check_unquantized(problem, solver)
    return problem.y.astype(jnp.result_type(problem.y, 0.0))


def observed_entries(problem: SensingProblem, solver: str) -> EntrySampling:
    """The operator as sampled entries, in the order of `problem.y.ravel()`.

    Raises:
        ValueError: Unless it is an `EntrySampling` or an `Identity`.
    """
    match problem.operator:
        case EntrySampling() as operator:
            return operator
        case Identity(shape=shape):
            rows, cols = np.indices(shape)
            return entries(rows.ravel(), cols.ravel(), shape)
        case operator:
            raise ValueError(
                f"`{solver}` completes matrices: `problem.operator` must be an "
                f"EntrySampling or an Identity, got {type(operator).__name__}."
            )


def spectral_start(
    problem: SensingProblem, num_columns: int, num_active: Count | None
) -> Callable[[Key[Array, ""]], FactorState]:
    """`key -> FactorState`: the spectral start, columns from `num_active` on zero."""
    start_fn = starting_factors(
        problem, num_columns=num_columns, start="spectral", num_active=num_active
    )
    return lambda key: FactorState(*start_fn(key))


def relative_residual(problem: SensingProblem, square: Array) -> Float[Array, ""]:
    """||A(X) - y|| / ||y||, the square of the numerator being given."""
    return jnp.sqrt(relative(square, problem.operator.total(jnp.sum(problem.y**2))))


def damped_info(problem, f, g, gap, damping) -> FactorInfo:
    """The metrics at (F, G), `gap` = A(F G^T) - y, of the damped least squares."""
    square = problem.operator.total(jnp.sum(gap**2))
    loss = (square + damping * (jnp.sum(f**2) + jnp.sum(g**2))) / 2
    return factor_info(problem, f, g, loss, relative_residual(problem, square))


def alternating(
    problem: SensingProblem,
    solver: str,
    solve_fn: Callable[[EntrySampling, Array], Callable[..., Array]],
    *,
    num_columns: int,
    num_active: Count | None,
    damping: Hyper,
) -> Solver:
    """Minimize 1/2 ||A(F G^T) - y||^2 + damping / 2 (||F||^2 + ||G||^2) by turns.

    Args:
        problem: The instance, of sampled or of all entries.
        solver: Name of the method, for errors.
        solve_fn: `solve_fn(operator, damping)`, called once for M and once for M^T,
            returns `solve(key, downhill, g) -> change` of F, row by row.
        num_columns: Number k of columns of the factors.
        num_active: Number of columns in use; None for all.
        damping: Weight of ||F||^2 + ||G||^2.

    References:
        Jain, Netrapalli, Sanghavi. "Low-rank Matrix Completion using Alternating
        Minimization". 2012. arXiv:1212.0467.
    """
    operator = observed_entries(problem, solver)
    transposed = operator.transpose()
    y = measurements(problem, solver).ravel()
    damping = jnp.asarray(damping, y.dtype)
    solves = solve_fn(operator, damping), solve_fn(transposed, damping)

    def half(key, operator, solve, gap, f, g):
        """The F that `solve` finds, given G and `gap` = A(F G^T) - y."""
        change = solve(key, -operator.adjoint_matmul(gap, g) - damping * f, g)
        # Where G has an exact zero column the change is zero, and F's would stay.
        return jnp.where(jnp.any(g != 0, axis=0), f + change, 0)

    def step(key: Key[Array, ""], state: FactorState) -> tuple[FactorState, FactorInfo]:
        f_key, g_key = jr.split(key)
        f, g = state.factors
        gap = operator.apply_factors(f, g) - y
        info = damped_info(problem, f, g, gap, damping)
        f = half(f_key, operator, solves[0], gap, f, g)
        gap = transposed.apply_factors(g, f) - y
        g = half(g_key, transposed, solves[1], gap, g, f)
        return FactorState(f, g), info

    return Solver(spectral_start(problem, num_columns, num_active), step)
