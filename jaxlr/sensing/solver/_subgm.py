"""The subgradient method for robust recovery: l1 loss, positive semi-definite M."""

from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxlr.core import Count, errors, Hyper, Solver
from jaxlr.kernels import Implementation
from jaxlr.linalg import matmul
from jaxlr.sensing.operator import residual_adjoint
from jaxlr.sensing.problem import (
    check_unquantized,
    relative,
    relative_error,
    SensingProblem,
)
from jaxlr.sensing.solver._descent import (
    check_start,
    check_symmetric,
    FactorInfo,
    FactorState,
    initial_factors,
    Start,
)


SCHEDULES = ("geometric", "constant", "inverse_time", "polyak")


def subgm(
    problem: SensingProblem,
    *,
    num_columns: int,
    schedule: Literal["geometric", "constant", "inverse_time", "polyak"]
    | Callable[[Int[Array, ""]], Float[Array, ""]] = "geometric",
    eta: Hyper = 0.1,
    decay: Hyper = 0.99,
    minimum: Hyper = 0.0,
    start: Start = "sign_spectral",
    alpha: Hyper = 1e-6,
    num_active: Count | None = None,
    implementation: Implementation | None = None,
) -> Solver:
    """Subgradient method on ||A(U U^T) - y||_1: gross outliers do not matter.

    U <- U - 2 eta_t D U / ||D||_F with D = sym(A*(sign(A(U U^T) - y))). Neither the
    number of columns nor the outliers change the error that is reached.

    Args:
        problem: One instance; M positive semi-definite.
        num_columns: k, at least the rank of the truth. Static.
        schedule: Of eta_t: "geometric", eta decay^t; "constant", eta; "inverse_time",
            eta / (1 + t); "polyak", the step that would reach `minimum` if the loss
            were linear along the subgradient; or a function of t, such as any of
            optax's schedules. Static.
        eta: The first step size [1]; "polyak" does not read it.
        decay: Of the geometric schedule, in (0, 1).
        minimum: The least value of the loss, for "polyak" [||y||_1]: 0 without
            outliers, else the 1-norm of the outliers over that of y.
        start: As `descend`. Static.
        alpha: Initial scale [sqrt(||M||)].
        num_active: As `descend`.
        implementation: Of `residual_adjoint`. Static.

    Returns:
        A `Solver` with `FactorState`, whose memory is t, and `FactorInfo`, whose loss
        is the 1-norm. A step costs one `residual_adjoint`, which forms D, n^2 numbers.

    Raises:
        ValueError: If `num_columns` is not an integer >= 1; for a target that is not
            square, or known and not positive semi-definite; for quantized
            measurements; on an unknown `schedule` or `start`.

    References:
        Ma, Fattahi. "Global Convergence of Sub-gradient Method for Robust Matrix
        Recovery: Small Initialization, Noisy Measurements, and Over-parameterization".
        2022. arXiv:2202.08788.
        Polyak. "Minimization of unsmooth functionals". 1969.
    """
    check_symmetric(problem)
    check_unquantized(problem, "subgm")
    check_start(problem, start, num_columns, is_symmetric=True, num_active=num_active)
    if not callable(schedule) and schedule not in SCHEDULES:
        raise ValueError(errors.unknown("schedule", schedule, SCHEDULES))
    operator, y, truth = problem.operator, problem.y, problem.truth
    dtype = jnp.result_type(y, 0.0)
    norm = operator._total(jnp.sum(jnp.abs(y)))

    def init(key: Key[Array, ""]) -> FactorState:
        u, _ = initial_factors(
            key,
            problem,
            num_columns=num_columns,
            start=start,
            alpha=alpha,
            is_symmetric=True,
            num_active=num_active,
        )
        return FactorState(u, None, jnp.zeros((), jnp.int32))

    def step(key: Key[Array, ""], state: FactorState) -> tuple[FactorState, FactorInfo]:
        del key
        u, t = state.f, state.memory
        loss, d = residual_adjoint(
            operator, u, u, y, loss="l1", implementation=implementation
        )
        d = (d + d.T) / 2
        direction = 2 * matmul(d, u)
        info = FactorInfo(
            loss,
            relative(loss, norm),
            None if truth is None else relative_error(u, u, truth),
        )
        if schedule == "polyak":
            gap = loss - jnp.asarray(minimum, dtype) * norm
            size = gap / jnp.sum(direction**2)
        else:
            size = eta_of(t) / jnp.linalg.norm(d)
        # At the solution of a noiseless problem the subgradient may be exactly zero.
        is_moving = jnp.any(direction != 0)
        move = jnp.where(is_moving, size, 0) * direction
        u = jnp.where(is_moving, u - move.astype(u.dtype), u)
        return FactorState(u, None, t + 1), info

    def eta_of(t):
        if callable(schedule):
            return jnp.asarray(schedule(t), dtype)
        start_eta = jnp.asarray(eta, dtype)
        if schedule == "geometric":
            return start_eta * jnp.asarray(decay, dtype) ** t
        return start_eta / (1 + t) if schedule == "inverse_time" else start_eta

    return Solver(init, step)
