"""Gradient descent on one factor (M = X X^T) or two (M = F G^T), plain and scaled.

    symmetric   L(X) = 1/4 ||A(X X^T) - y||^2,      X <- X - (eta / c) sym(D) X
    asymmetric  L(F, G) = 1/2 ||A(F G^T) - y||^2,   F <- F - (eta / c) D G
                                                    G <- G - (eta / c) D^T F

with D = A*(A(.) - y), sym(D) = (D + D^T) / 2, and c the operator's isotropy, E A*A =
c I. No term balances F and G: their imbalance is what makes the asymmetric form fast.
"""

from typing import Unpack

from jaxlr.core import Hyper, signatures, Solver
from jaxlr.sensing.problem import SensingProblem
from jaxlr.sensing.solver._descent import descend, DescentSettings, scale_by_rate


@signatures.passes_on(descend)
def gd(
    problem: SensingProblem,
    *,
    num_columns: int,
    eta: Hyper = 0.1,
    **settings: Unpack[DescentSettings],
) -> Solver:
    """Gradient descent on factors; the rank need not be known.

    Args:
        problem: The instance to solve (`jax.vmap` the caller for many). Quantized
            measurements are fitted by their likelihood.
        num_columns: Number k of columns of the factors, at least the rank of the truth;
            with more the problem is over-parameterized. Static.
        eta: Step size [1/||M||]; at most about 1 / (2 ||M||) is stable. For sampled
            entries the step is eta / p, p their share, which assumes that they were
            sampled uniformly; for another mask choose eta smaller.
        **settings: Keywords of `descend`.

    Returns:
        A `Solver` with `FactorState`, of the type of `problem.y`, and `FactorInfo`. A
        step costs one `residual_gradient`, and 2 n1 n2 k flops for the error if the
        truth is known.

    Raises:
        ValueError: As `descend`.

    References:
        Xiong, Ding, Du. "How Over-Parameterization Slows Down Gradient Descent in
        Matrix Sensing: The Curses of Symmetry and Initialization". 2023.
        arXiv:2310.01769.
    """
    rate = scale_by_rate(problem, eta)
    return descend(problem, rate, num_columns=num_columns, **settings)
