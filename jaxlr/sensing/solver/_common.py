"""What the solvers of least-squares subproblems share."""

import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from jaxlr.sensing.operator import entries, EntrySampling, Identity
from jaxlr.sensing.problem import (
    check_unquantized,
    relative,
    relative_error,
    SensingProblem,
)
from jaxlr.sensing.solver._descent import FactorInfo, FactorState, initial_factors


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


def spectral_state(key, problem, num_columns, num_active) -> FactorState:
    """The spectral start, its columns from `num_active` on being zero."""
    factors = initial_factors(
        key,
        problem,
        num_columns=num_columns,
        start="spectral",
        alpha=1.0,
        num_active=num_active,
    )
    return FactorState(factors.f, factors.g)


def factor_info(problem, f, g, gap, damping) -> FactorInfo:
    """The metrics at (F, G), `gap` = A(F G^T) - y, of the damped least squares."""
    square = problem.operator._total(jnp.sum(gap**2))
    return FactorInfo(
        (square + damping * (jnp.sum(f**2) + jnp.sum(g**2))) / 2,
        jnp.sqrt(relative(square, problem.operator._total(jnp.sum(problem.y**2)))),
        None if problem.truth is None else relative_error(f, g, problem.truth),
    )
