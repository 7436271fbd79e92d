"""The modified step: rebalance the factors once, then the start no longer matters."""

from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxlr.core import checks, Hyper, loop, signatures, Solver, tree
from jaxlr.linalg import matmul
from jaxlr.sensing.problem import SensingProblem
from jaxlr.sensing.solver._descent import (
    FactorInfo,
    FactorSettings,
    FactorState,
)
from jaxlr.sensing.solver._gd import gd


def rebalance(
    f: Float[Array, "n1 k"], g: Float[Array, "n2 k"], beta: Hyper
) -> tuple[Float[Array, "n1 k"], Float[Array, "n2 k"]]:
    """Make all singular values of F equal, leaving the product F G^T as it is.

    With the thin decomposition F = A S B^T: F <- beta A, G <- G B S / beta.

    Args:
        f: Left factor, n1 >= k.
        g: Right factor.
        beta: The singular values that F is given [sqrt(||M||)].

    Returns:
        `(f, g)` with F^T F = beta^2 I; of as many columns as F has that are not zero,
        the others being zero. O(n1 k^2 + n2 k^2) flops. Under `vmap` the
        decomposition is batched, so call it once, not under a `cond` in a loop. The
        gradient is not finite where F has equal singular values, as what is returned
        has.

    Raises:
        ValueError: If F has more columns than rows (no F then has F^T F = beta^2 I), or
            if the columns of F and G differ in number.

    References:
        Xiong, Ding, Du. "How Over-Parameterization Slows Down Gradient Descent in
        Matrix Sensing: The Curses of Symmetry and Initialization". 2023.
        arXiv:2310.01769, equation 5.1.
    """
    if f.ndim != 2 or g.ndim != 2 or f.shape[1] != g.shape[1]:
        raise ValueError(
            "`f` and `g` must be matrices with one number of columns, got shapes "
            f"{f.shape} and {g.shape}."
        )
    _check_tall(*f.shape)
    u, s, vt = jnp.linalg.svd(f, full_matrices=False)
    beta = jnp.asarray(beta, u.dtype)
    # Zero columns come last in u, as arbitrary directions: they must stay zero.
    is_active = jnp.arange(f.shape[1]) < jnp.sum(jnp.any(f != 0, axis=0))
    f, g = beta * u, matmul(g, vt.T) * (s / beta)
    return jnp.where(is_active, f, 0), jnp.where(is_active, g, 0)


@signatures.passes_on(gd)
def gd_rebalanced(
    problem: SensingProblem,
    *,
    num_columns: int,
    eta: Hyper = 0.1,
    beta: Hyper = 1.0,
    trigger: Hyper = 0.01,
    **settings: Unpack[FactorSettings],
) -> Solver:
    """Asymmetric gradient descent, rebalanced once when the residual is small.

    Under `vmap` every step pays for the decomposition that one step needs: there,
    `run_rebalanced` takes it out of the loop. As a `Solver`, this one can be a long
    run with checkpoints.

    Args:
        problem: The instance to solve.
        num_columns: Number k of columns of the factors, at most n1. Static.
        eta: Step size [1/||M||]. Afterwards the error contracts by 1 - eta beta^2.
        beta: Singular values of the rebalanced F [sqrt(||M||)].
        trigger: Rebalance before the first step with ||A(F G^T) - y|| <= trigger ||y||.
        **settings: Keywords of `gd`.

    Returns:
        A `Solver` with `FactorState`, whose memory is whether it was rebalanced and the
        memory of `gd`, and `FactorInfo`.

    Raises:
        ValueError: As `gd` and `rebalance`.

    References:
        Xiong, Ding, Du. "How Over-Parameterization Slows Down Gradient Descent in
        Matrix Sensing: The Curses of Symmetry and Initialization". 2023.
        arXiv:2310.01769, equation 5.1.
    """
    solver = _unbalanced(problem, num_columns, eta, settings)

    def init(key):
        f, g, memory = solver.init(key)
        return FactorState(f, g, (jnp.asarray(False), memory))

    def step(key, state):
        f, g, (is_rebalanced, memory) = state
        after, info = solver.step(key, FactorState(f, g, memory))

        def modified():
            balanced = FactorState(*rebalance(f, g, beta), memory)
            return solver.step(key, balanced)[0]

        is_due = ~is_rebalanced & (info.residual <= trigger)
        f, g, memory = jax.lax.cond(is_due, modified, lambda: after)
        return FactorState(f, g, (is_rebalanced | is_due, memory)), info

    return Solver(init, step)


def _unbalanced(problem, num_columns, eta, settings):
    """`gd` on factors that can be rebalanced."""
    solver = gd(problem, num_columns=num_columns, eta=eta, **settings)
    _check_tall(problem.operator.shape[0], num_columns)
    return solver


def _check_tall(num_rows, num_columns):
    if num_columns > num_rows:
        raise ValueError(
            f"`f` must not have more columns than rows, got {(num_rows, num_columns)}."
        )


class Rebalanced(NamedTuple):
    """What `run_rebalanced` returns.

    Attributes:
        state: The last state.
        infos: Infos of the steps kept, time in front.
        rebalanced_at: The step before which the factors were rebalanced; -1 if the
            residual never was small enough.
        drift: ||F G^T after - before||_F / ||before||_F of the rebalancing, which
            changes the product by rounding only; 0 where there was none.
    """

    state: FactorState
    infos: FactorInfo
    rebalanced_at: Int[Array, ""]
    drift: Float[Array, ""]


@signatures.passes_on(gd)
def run_rebalanced(
    key: Key[Array, ""],
    problem: SensingProblem,
    *,
    num_columns: int,
    num_steps: int,
    max_wait: int | None = None,
    eta: Hyper = 0.1,
    beta: Hyper = 1.0,
    trigger: Hyper = 0.01,
    every: int = 1,
    **settings: Unpack[FactorSettings],
) -> Rebalanced:
    """Asymmetric gradient descent, rebalanced once when the residual is small.

    Two scans with one `rebalance` between them. A lane waits, frozen, from when its
    residual is small to the end of the first scan; its curve is stitched together as
    if it had not, so that lanes that trigger at different steps share one program.

    Args:
        key: Source of the random start.
        problem: The instance to solve.
        num_columns: Number k of columns of the factors, at most n1. Static.
        num_steps: Number of steps of the curve. Static.
        max_wait: Number of steps after which a lane goes on without being rebalanced,
            at most num_steps; None for half of num_steps. Static.
        eta: Step size [1/||M||]. Afterwards it contracts by 1 - eta beta^2 a step.
        beta: Singular values of the rebalanced F [sqrt(||M||)].
        trigger: Rebalance once ||A(F G^T) - y|| <= trigger ||y||.
        every: Keep the infos of steps 0, every, 2 every, ... only. Static.
        **settings: Keywords of `gd`.

    Returns:
        A `Rebalanced`. Costs num_steps + max_wait steps of `gd`.

    Raises:
        ValueError: If `num_steps`, `max_wait` or `every` is not an integer >= 1, if
            `max_wait > num_steps`, or as `gd_rebalanced` does.

    References:
        Xiong, Ding, Du. "How Over-Parameterization Slows Down Gradient Descent in
        Matrix Sensing: The Curses of Symmetry and Initialization". 2023.
        arXiv:2310.01769, equation 5.1.
    """
    num_steps = checks.count("num_steps", num_steps)
    every = checks.count("every", every)
    max_wait = -(-num_steps // 2) if max_wait is None else max_wait
    max_wait = checks.count("max_wait", max_wait, most=num_steps)
    solver = _unbalanced(problem, num_columns, eta, settings)
    init_key, loop_key = loop.split_key(key)

    def wait(carry, _):
        state, num_taken = carry
        # The step key is unused by `gd`; a lane's own clock keeps the contract anyway.
        advanced, info = loop.take_step(solver, loop_key, num_taken, state)
        is_waiting = ~(info.residual <= trigger)  # a NaN waits
        state = tree.select(is_waiting, advanced, state)
        return (state, num_taken + is_waiting), info

    def advance(carry, _):
        state, num_taken = carry
        advanced, info = loop.take_step(solver, loop_key, num_taken, state)
        state = tree.select(num_taken < num_steps, advanced, state)
        return (state, num_taken + 1), info

    start = solver.init(init_key), jnp.asarray(0)
    (state, num_taken), first = jax.lax.scan(wait, start, length=max_wait)
    is_rebalanced = num_taken < max_wait
    before = matmul(state.f, state.g.T)
    f, g = rebalance(state.f, state.g, beta)
    drift = jnp.linalg.norm(matmul(f, g.T) - before) / jnp.linalg.norm(before)
    state = tree.select(is_rebalanced, FactorState(f, g, state.memory), state)
    (state, _), second = jax.lax.scan(advance, (state, num_taken), length=num_steps)

    times = jnp.arange(0, num_steps, every)

    def stitch(first, second):
        early = first[jnp.minimum(times, max_wait - 1)]
        late = second[jnp.maximum(times - num_taken, 0)]
        return jnp.where(times < num_taken, early, late)

    return Rebalanced(
        state,
        jax.tree.map(stitch, first, second),
        jnp.where(is_rebalanced, num_taken, -1),
        jnp.where(is_rebalanced, drift, 0.0),
    )
