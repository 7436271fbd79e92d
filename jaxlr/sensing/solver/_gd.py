"""Gradient descent on one factor (M = X X^T) or two (M = F G^T).

    symmetric   L(X) = 1/4 ||A(X X^T) - y||^2,      X <- X - (eta / c) sym(D) X
    asymmetric  L(F, G) = 1/2 ||A(F G^T) - y||^2,   F <- F - (eta / c) D G
                                                    G <- G - (eta / c) D^T F

with D = A*(A(.) - y), sym(D) = (D + D^T) / 2, and c the operator's isotropy, E A*A =
c I. No term balances F and G: their imbalance is what makes the asymmetric form fast.
"""

from typing import NamedTuple

import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key
import numpy as np

from jaxlr.core import Hyper, Solver
from jaxlr.sensing.problem import relative_error, SensingProblem


class GDState(NamedTuple):
    """The iterate.

    Attributes:
        f: Left factor, or X in the symmetric form [sqrt(||M||)].
        g: Right factor; None in the symmetric form, where it is X too.
    """

    f: Float[Array, "n1 k"]
    g: Float[Array, "n2 k"] | None

    @property
    def factors(self) -> tuple[Float[Array, "n1 k"], Float[Array, "n2 k"]]:
        """`(F, G)`, in either form."""
        return self.f, self.f if self.g is None else self.g


class GDInfo(NamedTuple):
    """Measured at the iterate before the step.

    Attributes:
        loss: L, in units of ||y||^2.
        residual: ||A(.) - y|| / ||y||, dimensionless.
        relative_error: ||F G^T - M||_F / ||M||_F; None if the truth is not known.
    """

    loss: Float[Array, ""]
    residual: Float[Array, ""]
    relative_error: Float[Array, ""] | None


def gd(
    problem: SensingProblem,
    *,
    num_columns: int,
    eta: Hyper = 0.1,
    alpha: Hyper = 0.1,
    is_symmetric: bool = False,
) -> Solver:
    """Gradient descent on factors from a random start; the rank need not be known.

    Args:
        problem: One instance (`jax.vmap` the caller for many).
        num_columns: k, at least the rank of the truth; more is over-parameterized.
            Static.
        eta: Step size [1/||M||]; at most about 1 / (2 ||M||) is stable. For sampled
            entries the step is eta / p, p their share, which assumes that they were
            sampled uniformly; for another mask choose eta smaller.
        alpha: Initial scale [sqrt(||M||)]: entries of F (or X) start as
            alpha N(0, 1/n1), those of G as (alpha / 3) N(0, 1/n2).
        is_symmetric: Whether M = X X^T is sought. Static.

    Returns:
        A `Solver` with `GDState`, of the type of `problem.y`, and `GDInfo`. A step
        costs one `apply_factors` and one `adjoint_factors` of the operator, and
        2 n1 n2 k flops for the error if the truth is known.

    Raises:
        ValueError: If `num_columns` is not an integer >= 1, or if the symmetric form is
            asked for a matrix that is not square.

    References:
        Xiong, Ding, Du. "How Over-Parameterization Slows Down Gradient Descent in
        Matrix Sensing: The Curses of Symmetry and Initialization". 2023.
        arXiv:2310.01769.
    """
    operator, y, truth = problem.operator, problem.y, problem.truth
    n1, n2 = operator.shape
    if not isinstance(num_columns, int | np.integer) or num_columns < 1:
        raise ValueError(f"`num_columns` must be an integer >= 1, got {num_columns}.")
    if is_symmetric and n1 != n2:
        raise ValueError(f"`is_symmetric` needs a square matrix, got {operator.shape}.")
    # The problem's type, not the default one nor that of a hyperparameter, decides.
    dtype = jnp.result_type(y, 0.0)
    rate = jnp.asarray(eta / operator.isotropy, dtype)

    def draw(key, num_rows, scale):
        return jr.normal(key, (num_rows, num_columns), dtype) * jnp.asarray(
            scale, dtype
        )

    def init(key: Key[Array, ""]) -> GDState:
        f_key, g_key = jr.split(key)
        f = draw(f_key, n1, alpha / n1**0.5)
        if is_symmetric:
            return GDState(f, None)
        return GDState(f, draw(g_key, n2, alpha / 3 / n2**0.5))

    def step(key: Key[Array, ""], state: GDState) -> tuple[GDState, GDInfo]:
        del key
        f, g = state.factors
        gap = operator.apply_factors(f, g) - y
        f_grad, g_grad = operator.adjoint_factors(gap, f, g)
        square = jnp.sum(gap**2)
        info = GDInfo(
            square / (4 if is_symmetric else 2),
            jnp.sqrt(square) / jnp.linalg.norm(y.ravel()),
            None if truth is None else relative_error(f, g, truth),
        )
        if is_symmetric:
            return GDState(f - rate / 2 * (f_grad + g_grad), None), info
        return GDState(f - rate * f_grad, g - rate * g_grad), info

    return Solver(init, step)
