"""Gauss-Newton on the factors: quadratic convergence at exact rank.

A(F G^T) is linearized in (F, G), and the linear least squares that result are solved
by conjugate gradients:

    min over (dF, dG) of ||A(F G^T + dF G^T + F dG^T) - y||^2 + damping ||(dF, dG)||^2.
"""

import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxlr.core import checks, Count, Hyper, Solver
from jaxlr.linalg import cg_steps
from jaxlr.sensing.problem import SensingProblem
from jaxlr.sensing.solver import _common
from jaxlr.sensing.solver._descent import FactorInfo, FactorState


def gauss_newton(
    problem: SensingProblem,
    *,
    num_columns: int,
    num_active: Count | None = None,
    damping: Hyper = 0.0,
    num_cg_steps: int = 50,
) -> Solver:
    """Gauss-Newton, or Levenberg-Marquardt with a fixed damping; any operator.

    Undamped it takes the shortest of all minimizing changes: (F Q, G Q^-T) is as good
    for every Q, and no change is spent on that. Near a solution of rank k it then
    squares the error every step, until rounding, provided that the linear problems
    are solved to that accuracy. Far from one, or with more columns than the rank (the
    linear problems are then singular in the end), it takes some damping.

    Args:
        problem: The instance to solve, of any operator.
        num_columns: Number k of columns of the factors. Static.
        num_active: Number of columns in use, 1..k, the others being zero; None for all.
            May be traced: one program then serves all ranks.
        damping: Weight of the square of the change (dF, dG) [||M||].
        num_cg_steps: Number of conjugate-gradient iterations a step, fewer where they
            reach rounding. Each gains a factor of about (c - 1) / (c + 1), c^2 the
            ratio of the largest to the smallest singular value of M, times 2 at least,
            and more the fewer the measurements. Static.

    Returns:
        A `Solver` with `FactorState`, from the `spectral` start, and `FactorInfo`, its
        loss without the damping. A step costs num_cg_steps + 1 times one
        `apply_factors` with 2 k columns and one `adjoint_factors` of the operator.
        A column that is exactly zero in both factors stays so.

    Raises:
        ValueError: If `num_columns` is not an integer in 1..min(n1, n2), or
            `num_cg_steps` not one >= 1.

    References:
        Zilber, Nadler. "GNMR: A Provable One-Line Algorithm for Low Rank Matrix
        Recovery". 2021. arXiv:2106.12933.
    """
    operator = problem.operator
    n1 = operator.shape[0]
    num_cg_steps = checks.count("num_cg_steps", num_cg_steps)
    y = _common.measurements(problem, "gauss_newton")
    damping = jnp.asarray(damping, y.dtype)

    def step(key: Key[Array, ""], state: FactorState) -> tuple[FactorState, FactorInfo]:
        del key
        f, g = state.factors
        gap = operator.apply_factors(f, g) - y

        def pull_back(z):  # J^T z, dF over dG
            return jnp.concatenate(operator.adjoint_factors(z, f, g))

        def apply_normal(d):  # J d = A(dF G^T + F dG^T)
            left = jnp.concatenate([d[:n1], f], axis=1)
            right = jnp.concatenate([g, d[n1:]], axis=1)
            return pull_back(operator.apply_factors(left, right)) + damping * d

        # A gap that stays, of noise, leaves rounding where its pull-back should vanish.
        eps = float(jnp.finfo(y.dtype).eps)
        squares = operator.total(jnp.sum(gap**2)) * operator.isotropy
        change, _ = cg_steps(
            apply_normal,
            -pull_back(gap),
            max_steps=num_cg_steps,
            tolerance=eps**0.75,
            floor=10 * eps * jnp.sqrt(squares * (jnp.sum(f**2) + jnp.sum(g**2))),
            is_unrolled=True,
        )
        info = _common.damped_info(problem, f, g, gap, 0.0)
        return FactorState(f + change[:n1], g + change[n1:]), info

    return Solver(_common.spectral_start(problem, num_columns, num_active), step)
