"""Small problems minimized by quasi-Newton steps, from many starts."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, PyTree
import optax

from jaxlr.core import checks, loop
from jaxlr.core.batching import one_by_one
from jaxlr.core.optimizer import from_optax, OptaxState
from jaxlr.core.types import Hyper, Solver


class Minimum(NamedTuple):
    """Where a run ended, and how.

    Attributes:
        params: The parameters where the run ended.
        loss: The loss there; infinite if it is not finite.
        num_steps: Number of steps taken.
        status: A `jaxlr.core.loop.Status`, as an integer array.
    """

    params: PyTree
    loss: Float[Array, ""]
    num_steps: Int[Array, ""]
    status: Int[Array, ""]


class Fitted(NamedTuple):
    """The best of r runs, and how each went.

    Attributes:
        params: Where the loss is least.
        loss: The loss there; infinite if no run has a finite one.
        losses: Loss of every run at its end.
        num_steps: Number of steps of every run.
        status: A `jaxlr.core.loop.Status` of every run.
    """

    params: PyTree
    loss: Float[Array, ""]
    losses: Float[Array, " r"]
    num_steps: Int[Array, " r"]
    status: Int[Array, " r"]


def multistart(solve: Callable[[Any], Minimum], starts: PyTree) -> Fitted:
    """The least of the minima that are found from r starts, in one program.

    Runs that ended or became infinite do not move any more, and do not disturb the
    others. On a CPU the searches of `lbfgs` go one after the other; elsewhere runs go
    in lockstep, where all wait for the longest line search of any.
    Differentiable as `solve` is.

    Args:
        solve: `solve(start) -> Minimum`, such as `lbfgs(loss_fn)`.
        starts: Parameters with an axis of r starts in front of every array.

    Raises:
        ValueError: Unless `starts` have one and the same axis of r >= 1 starts in
            front.
    """
    shapes = [jnp.shape(x) for x in jax.tree.leaves(starts)]
    if len({shape[:1] for shape in shapes}) != 1 or shapes[0][:1] in ((), (0,)):
        raise ValueError(
            "`starts` must have an axis of r >= 1 starts in front of every parameter, "
            f"got shapes {shapes}."
        )
    params, losses, num_steps, status = jax.vmap(solve)(starts)
    best = jnp.argmin(losses)
    params = jax.tree.map(lambda x: x[best], params)
    return Fitted(params, losses[best], losses, num_steps, status)


class _Search(NamedTuple):
    training: OptaxState
    loss: Float[Array, ""]
    gain: Float[Array, ""]
    num_evaluations: Int[Array, ""]


def lbfgs(
    loss_fn: Callable[[Any], Float[Array, ""]],
    *,
    max_steps: int = 100,
    max_evaluations: int | None = None,
    max_search: int = 20,
    tolerance: Hyper = 1e-5,
    least_gain: Hyper | None = None,
) -> Callable[[Any], Minimum]:
    """Minimize by L-BFGS with a line search, from one start.

    The search is a constant to differentiation, the loss at its end is not. Parameters
    that must be positive are best given by their logarithms.

    Args:
        loss_fn: `loss_fn(params) -> loss`, differentiable.
        max_steps: Bound on the number of steps. Static.
        max_evaluations: Bound on the number of evaluations of the loss and its
            gradient, at least `1 + max_search`; None for none. Static.
        max_search: Bound on the evaluations of one step's line search. Static.
        tolerance: The run has converged when the norm of the gradient, over 1 + |loss|,
            is not above it.
        least_gain: The run has converged when a step lessens the loss by no more than
            this [loss]; None for a run that goes on.

    Returns:
        `solve(start) -> Minimum`, with the status `MAX_STEPS` where one of the bounds
        ended the run.

    Raises:
        ValueError: If a bound is not an integer >= 1, or `max_evaluations` less than
            `1 + max_search`.

    References:
        Liu, Nocedal. "On the limited memory BFGS method for large scale optimization".
        1989. Mathematical Programming.
    """
    max_steps = checks.count("max_steps", max_steps)
    max_search = checks.count("max_search", max_search)
    if max_evaluations is not None:
        least = 1 + max_search
        max_evaluations = checks.count("max_evaluations", max_evaluations, least=least)
    optimizer = optax.lbfgs(
        linesearch=optax.scale_by_zoom_linesearch(
            max_search, initial_guess_strategy="one"
        )
    )

    def is_spent(state):
        if max_evaluations is None:
            return jnp.asarray(False)
        return state.num_evaluations + max_search > max_evaluations

    def has_ended(state):
        is_idle = False if least_gain is None else ~(state.gain > least_gain)
        return is_spent(state) | is_idle

    def search(start):
        training = from_optax(loss_fn, optimizer, lambda _: start)

        def init(key):
            loss = jnp.asarray(jnp.inf, jax.eval_shape(loss_fn, start).dtype)
            return _Search(training.init(key), loss, loss, jnp.asarray(1))

        def step(key, state):
            after, info = training.step(key, state.training)
            num: Any = after.opt_state[-1].info.num_linesearch_steps
            num = state.num_evaluations + num
            return _Search(after, info.loss, state.loss - info.loss, num), info

        end = loop.run_until(
            jr.key(0),
            Solver(init, step, has_ended),
            max_steps,
            tolerance=tolerance,
            value_fn=lambda info: info.grad_norm / (1 + jnp.abs(info.loss)),
        )
        has_met = end.status == loop.Status.CONVERGED
        status = jnp.where(
            has_met & is_spent(end.state), loop.Status.MAX_STEPS, end.status
        )
        return end.state.training.params, end.num_steps, status

    def solve(start):
        closed = eqx.filter_closure_convert(search, start)
        arrays, static = eqx.partition((closed, start), eqx.is_array)
        constant, start = eqx.combine(jax.lax.stop_gradient(arrays), static)
        params, num_steps, status = one_by_one(constant)(start)
        loss = loss_fn(params)
        loss = jnp.where(jnp.isfinite(loss), loss, jnp.inf)
        return Minimum(params, loss, num_steps, status)

    return solve
