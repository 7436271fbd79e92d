"""The subgradient method for robust recovery: l1 loss, positive semi-definite M."""

from collections.abc import Callable
from typing import get_args, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxlr.core import checks, Count, Hyper, Solver
from jaxlr.kernels import Implementation
from jaxlr.linalg import matmul
from jaxlr.sensing.operator import residual_adjoint
from jaxlr.sensing.problem import check_unquantized, relative, SensingProblem
from jaxlr.sensing.solver._descent import (
    check_symmetric,
    factor_info,
    FactorInfo,
    FactorState,
    Start,
    starting_factors,
)


Schedule = Literal["geometric", "constant", "inverse_time", "polyak"]


def subgm(
    problem: SensingProblem,
    *,
    num_columns: int,
    schedule: Schedule | Callable[[Int[Array, ""]], Float[Array, ""]] = "geometric",
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
        problem: The instance to solve; M positive semi-definite.
        num_columns: Number k of columns of U, at least the rank of the truth. Static.
        schedule: How the step size eta_t falls: "geometric", eta decay^t; "constant",
            eta; "inverse_time", eta / (1 + t); "polyak", the step that would reach
            `minimum` if the loss were linear along the subgradient; or a function of
            t, such as any of optax's schedules. Static.
        eta: The first step size [1]; "polyak" does not read it.
        decay: Factor of the "geometric" step size every step, in (0, 1).
        minimum: The least value of the loss, for "polyak" [||y||_1]: 0 without
            outliers, else the 1-norm of the outliers over that of y.
        start: Where U starts: "sign_spectral", alpha times the leading eigenvectors of
            A*(sign(y)); "random", entries alpha N(0, 1/n); "spectral", the leading
            eigenvectors of A*(y), scaled to approximate M. Static.
        alpha: Scale of U at a "random" or "sign_spectral" start [sqrt(||M||)].
        num_active: Number of columns in use, 1..k; the others are zero and stay so.
            None for all. May be traced: one program then serves all widths.
        implementation: How `residual_adjoint` runs: "xla", "pallas" or
            "pallas_interpret"; None to let it choose. Static.

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
    start_fn = starting_factors(
        problem,
        num_columns=num_columns,
        start=start,
        alpha=alpha,
        is_symmetric=True,
        num_active=num_active,
    )
    if not callable(schedule):
        checks.choice("schedule", schedule, get_args(Schedule))
    operator, y = problem.operator, problem.y
    dtype = jnp.result_type(y, 0.0)
    norm = operator.total(jnp.sum(jnp.abs(y)))

    def init(key: Key[Array, ""]) -> FactorState:
        return FactorState(*start_fn(key), jnp.zeros((), jnp.int32))

    def step(key: Key[Array, ""], state: FactorState) -> tuple[FactorState, FactorInfo]:
        del key
        u, t = state.f, state.memory
        loss, d = residual_adjoint(
            operator, u, u, y, loss="l1", implementation=implementation
        )
        d = (d + d.T) / 2
        direction = 2 * matmul(d, u)
        info = factor_info(problem, u, u, loss, relative(loss, norm))
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
