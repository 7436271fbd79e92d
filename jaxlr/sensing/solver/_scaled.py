"""Preconditioned gradient descent: the condition number of M does not slow it down.

    F <- F - (eta / c) D G (G^T G + lambda I)^-1,   G <- G - (eta / c) D^T F (...)^-1

with D = A*(A(F G^T) - y) and c the operator's isotropy; `scale_by_gram` is the
preconditioner alone, for any optax chain.
"""

from collections.abc import Callable
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import optax

from jaxlr.core import Hyper, signatures, Solver
from jaxlr.linalg import matmul
from jaxlr.sensing.problem import check_unquantized, SensingProblem
from jaxlr.sensing.solver._descent import (
    descend,
    DescentSettings,
    Factors,
    scale_by_rate,
)


def scale_by_gram(
    damping: Hyper | Callable[[Int[Array, ""], Float[Array, ""]], Hyper] = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Precondition the gradient of each factor by the other factor's Gram matrix.

    grad_F (G^T G + damping I)^-1 and grad_G (F^T F + damping I)^-1; in the symmetric
    form grad_X (X^T X + damping I)^-1. For any optax chain on `Factors`. A column of
    zeros is left alone: its entry of the Gram matrix counts as 1.

    Args:
        damping: Added to the Gram matrix, beside a few roundings [||M||]; or a function
            of the count of steps taken and of the loss, which the chain then must be
            given as `value`.

    Returns:
        A transformation that remembers the count; O((n1 + n2) k^2 + k^3) flops.

    Raises:
        ValueError: In `update`, without parameters; without `value` where `damping` is
            a function.

    References:
        Tong, Ma, Chi. "Accelerating Ill-Conditioned Low-Rank Matrix Estimation via
        Scaled Gradient Descent". 2021. arXiv:2005.08898.
        Zhang, Fattahi, Zhang. "Preconditioned Gradient Descent for Over-Parameterized
        Nonconvex Matrix Factorization". 2021. arXiv:2504.09708.
    """

    def _update(
        updates: Any, state: Any, params: Any = None, *, value=None, **_: Any
    ) -> Any:
        if params is None:
            raise ValueError("`scale_by_gram` needs `params`, got None.")
        if callable(damping):
            if value is None:
                raise ValueError("`damping` is a function of the loss: give `value`.")
            added = damping(state, value)
        else:
            added = damping
        f, g = params.f, params.f if params.g is None else params.g

        def solve(gradient, other):
            gram = matmul(other.T, other)
            unused = jnp.all(other == 0, axis=0)
            # Of the order of its rounding: a Gram matrix of no full rank has a factor.
            least = 4 * jnp.finfo(gram.dtype).eps * jnp.trace(gram)
            ridge = jnp.asarray(added, gram.dtype) + least
            gram += jnp.diag(jnp.where(unused, 1, ridge))
            factor = jax.scipy.linalg.cho_factor(gram)
            return jax.scipy.linalg.cho_solve(factor, gradient.T).T

        f_update = solve(updates.f, g)
        if params.g is None:
            return Factors(f_update, None), state + 1
        return Factors(f_update, solve(updates.g, f)), state + 1

    def init(params):
        del params
        return jnp.zeros((), jnp.int32)

    return optax.GradientTransformationExtraArgs(init, _update)


@signatures.passes_on(descend, start="spectral", imbalance=1.0)
def scaled_gd(
    problem: SensingProblem,
    *,
    num_columns: int,
    eta: Hyper = 0.5,
    damping: Hyper = 0.0,
    **settings: Unpack[DescentSettings],
) -> Solver:
    """ScaledGD; with `damping`, ScaledGD(lambda).

    Args:
        problem: The instance to solve.
        num_columns: Number k of columns of the factors. Static.
        eta: Step size, dimensionless: M need not be scaled. At most about 1 is stable.
        damping: lambda, added to the Gram matrices [||M||]. 0 is for k = r; for k > r
            take about 0.1 times the smallest singular value of M, and a random start
            with a tiny `alpha`.
        **settings: Keywords of `descend`.

    Returns:
        A `Solver` with `FactorState` and `FactorInfo`: a step of `gd`, and
        O((n1 + n2) k^2 + k^3) flops.

    Raises:
        ValueError: As `gd`.

    References:
        Tong, Ma, Chi. "Accelerating Ill-Conditioned Low-Rank Matrix Estimation via
        Scaled Gradient Descent". 2021. arXiv:2005.08898.
        Xu, Shen, Chi, Ma. "The Power of Preconditioning in Overparameterized Low-Rank
        Matrix Sensing". 2023. arXiv:2302.01186.
    """
    chain = optax.chain(scale_by_gram(damping), scale_by_rate(problem, eta))
    return descend(problem, chain, num_columns=num_columns, **settings)


@signatures.passes_on(descend, imbalance=1.0)
def prec_gd(
    problem: SensingProblem,
    *,
    num_columns: int,
    eta: Hyper = 0.5,
    damping: Hyper = 1.0,
    **settings: Unpack[DescentSettings],
) -> Solver:
    """PrecGD: damped by the norm of the residual, k > r is as fast as k = r.

    Args:
        problem: The instance to solve.
        num_columns: Number k of columns of the factors. Static.
        eta: Step size, dimensionless.
        damping: What is added to the Gram matrices, over the norm
            ||A(F G^T) - y|| / sqrt(c) of the iterate [1].
        **settings: Keywords of `descend`.

    Returns:
        A `Solver`, as `scaled_gd`.

    Raises:
        ValueError: As `gd`; for a loss other than l2, or quantized measurements.

    References:
        Zhang, Fattahi, Zhang. "Preconditioned Gradient Descent for Over-Parameterized
        Nonconvex Matrix Factorization". 2021. arXiv:2504.09708.
    """
    check_unquantized(problem, "prec_gd")
    if settings.get("loss") not in (None, "l2"):
        raise ValueError(
            f"`loss` must be l2, whose value is a norm, got {settings.get('loss')!r}."
        )
    # The loss is a half of the squared norm; a quarter in the symmetric form.
    weight = 4 if settings.get("is_symmetric") else 2

    def damping_fn(count, loss):
        del count
        return damping * jnp.sqrt(weight * loss / problem.operator.isotropy)

    chain = optax.chain(scale_by_gram(damping_fn), scale_by_rate(problem, eta))
    return descend(problem, chain, num_columns=num_columns, **settings)


@signatures.passes_on(descend, imbalance=1.0)
def noisy_prec_gd(
    problem: SensingProblem,
    *,
    num_columns: int,
    eta: Hyper = 0.5,
    damping: Hyper = 1.0,
    decay: Hyper = 0.9,
    **settings: Unpack[DescentSettings],
) -> Solver:
    """PrecGD for noisy measurements: the damping falls geometrically.

    The residual of noisy measurements never falls below the noise, and damping by it
    would slow the small directions; lambda_t = damping decay^t follows the error
    instead, without knowing the noise.

    Args:
        problem: The instance to solve.
        num_columns: Number k of columns of the factors. Static.
        eta: Step size, dimensionless.
        damping: lambda_0, added to the Gram matrices at the first step [||M||]; of the
            order of ||M|| or larger.
        decay: Factor by which lambda falls every step, in (0, 1) and not below the
            factor of the error.
        **settings: Keywords of `descend`.

    Returns:
        A `Solver`, as `scaled_gd`.

    Raises:
        ValueError: As `gd`.

    References:
        Zhang, Chiu, Zhang. "Fast and Accurate Estimation of Low-Rank Matrices from
        Noisy Measurements via Preconditioned Non-Convex Gradient Descent". 2024.
        arXiv:2305.17224.
    """

    def damping_fn(count, loss):
        first, factor = (jnp.asarray(x, loss.dtype) for x in (damping, decay))
        return first * factor**count

    chain = optax.chain(scale_by_gram(damping_fn), scale_by_rate(problem, eta))
    return descend(problem, chain, num_columns=num_columns, **settings)
