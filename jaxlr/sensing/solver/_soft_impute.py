"""The convex baseline: least squares with a nuclear-norm penalty.

    L(X) = 1/2 ||A(X) - y||^2 + penalty ||X||_*,
    X <- S(X - eta A*(A(X) - y)),

where S lessens every singular value by eta penalty, those below it to zero.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxlr.core import checks, Hyper, Solver
from jaxlr.linalg import matmul
from jaxlr.sensing.problem import SensingProblem
from jaxlr.sensing.solver import _common


class SoftImputeState(NamedTuple):
    """The iterate.

    Attributes:
        x: X [||M||].
        singular_values: Singular values of X, descending [||M||].
        previous: X one step before; None unless accelerated.
        num_steps: Steps taken; None unless accelerated.
    """

    x: Float[Array, "n1 n2"]
    singular_values: Float[Array, " s"]
    previous: Float[Array, "n1 n2"] | None
    num_steps: Int[Array, ""] | None


class SoftImputeInfo(NamedTuple):
    """Measured at the iterate before the step.

    Attributes:
        loss: The objective L, the penalty included, in units of ||y||^2.
        residual: ||A(X) - y|| / ||y||, dimensionless.
        relative_error: ||X - M||_F / ||M||_F; None if the truth is not known.
        rank: Number of singular values that are not zero.
    """

    loss: Float[Array, ""]
    residual: Float[Array, ""]
    relative_error: Float[Array, ""] | None
    rank: Int[Array, ""]


def soft_impute(
    problem: SensingProblem,
    *,
    penalty: Hyper,
    eta: Hyper = 1.0,
    is_accelerated: bool = False,
) -> Solver:
    """Proximal gradient descent on X itself, from X = 0.

    For sampled entries, none repeated, and eta = 1 a step fills in the entries that are
    not observed by those of X and shrinks the singular values: soft-impute.

    Args:
        problem: The instance to solve, of any operator.
        penalty: Weight of the nuclear norm [||M||]; the smallest for which X = 0 is
            the solution is the spectral norm of A*(y).
        eta: Step size, dimensionless; L falls for eta <= 1 / ||A* A||, which is 1 for
            sampled entries, none repeated, and for the identity, and less for
            Gaussian measurements, about 1 / (1 + sqrt(n1 n2 / m))^2.
        is_accelerated: Whether to extrapolate the iterates (Nesterov's momentum): in
            the worst case L then falls as 1/t^2 instead of 1/t, not monotonically.
            Static.

    Returns:
        A `Solver` with `SoftImputeState`, of the type of `problem.y`, and
        `SoftImputeInfo`. A step costs one `apply` (two if accelerated) and one
        `adjoint` of the operator, and a singular value decomposition,
        O(n1 n2 min(n1, n2)) flops.

    Raises:
        ValueError: If `penalty` is known while tracing and negative, or for quantized
            measurements.

    References:
        Mazumder, Hastie, Tibshirani. "Spectral Regularization Algorithms for Learning
        Large Incomplete Matrices". JMLR, 2010.
        Beck, Teboulle. "A Fast Iterative Shrinkage-Thresholding Algorithm for Linear
        Inverse Problems". SIAM Journal on Imaging Sciences, 2009.
    """
    operator, truth = problem.operator, problem.truth
    y = _common.measurements(problem, "soft_impute")
    checks.positive("penalty", penalty, or_zero=True)
    dtype = y.dtype
    penalty, eta = jnp.asarray(penalty, dtype), jnp.asarray(eta, dtype)

    def init(key: Key[Array, ""]) -> SoftImputeState:
        del key
        zero = jnp.zeros(operator.shape, dtype)
        return SoftImputeState(
            zero,
            jnp.zeros(min(operator.shape), dtype),
            zero if is_accelerated else None,
            jnp.asarray(0) if is_accelerated else None,
        )

    def step(
        key: Key[Array, ""], state: SoftImputeState
    ) -> tuple[SoftImputeState, SoftImputeInfo]:
        del key
        x, s, previous, num_steps = state
        gap = operator.apply(x) - y
        square = operator.total(jnp.sum(gap**2))
        info = SoftImputeInfo(
            square / 2 + penalty * jnp.sum(s),
            _common.relative_residual(problem, square),
            None
            if truth is None
            else jnp.linalg.norm(x - truth) / jnp.linalg.norm(truth),
            jnp.sum(s > 0),
        )
        point = x
        if previous is not None and num_steps is not None:
            momentum = (num_steps / (num_steps + 3)).astype(dtype)
            point = x + momentum * (x - previous)
            gap = operator.apply(point) - y
            previous, num_steps = x, num_steps + 1
        u, s, vt = jnp.linalg.svd(
            point - eta * operator.adjoint(gap), full_matrices=False
        )
        s = jnp.maximum(s - eta * penalty, 0).astype(dtype)
        x = matmul(u * s, vt).astype(dtype)
        return SoftImputeState(x, s, previous, num_steps), info

    return Solver(init, step)
