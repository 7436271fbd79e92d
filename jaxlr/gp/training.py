"""Hyper-parameters by quasi-Newton steps from many starts."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, PyTree
import optax

from jaxlr.core import loop
from jaxlr.core.batching import one_by_one
from jaxlr.core.optimizer import from_optax


class Fitted(NamedTuple):
    """The best of r runs, and how each went.

    Attributes:
        params: Where the loss is least.
        loss: There; infinite if no run has a finite one.
        losses: Of every run at its end.
        num_steps: Of every run.
        status: A `jaxlr.core.loop.Status` of every run.
    """

    params: PyTree
    loss: Float[Array, ""]
    losses: Float[Array, " r"]
    num_steps: Int[Array, " r"]
    status: Int[Array, " r"]


def fit(
    loss_fn: Callable[[Any], Float[Array, ""]],
    starts: PyTree,
    *,
    max_num_steps: int = 100,
    tolerance: float = 1e-5,
) -> Fitted:
    """Minimize by L-BFGS from r starts, in one program, and keep the best end.

    For a Gaussian process the loss is, say, minus `GridGP.log_marginal_likelihood` of a
    `GridGP` made from the parameters; those that must be positive are best given by
    their logarithms. Runs that ended or became infinite do not move any more, and do
    not disturb the others. On a CPU they go one after the other, also under `vmap`;
    elsewhere in lockstep, where all wait for the longest line search of any.

    Args:
        loss_fn: `loss_fn(params)`, differentiable.
        starts: Parameters with an axis of r starts in front.
        max_num_steps: Static; each step is a line search of at most 20 evaluations.
        tolerance: On the gradient's norm, over 1 + |loss|.

    Raises:
        ValueError: Unless `starts` have one and the same axis of r >= 1 starts in
            front, and `max_num_steps` is an integer >= 1.

    References:
        Liu, Nocedal. "On the limited memory BFGS method for large scale optimization".
        1989. Mathematical Programming.
    """
    if not isinstance(max_num_steps, int) or max_num_steps < 1:
        raise ValueError(
            f"`max_num_steps` must be an integer >= 1, got {max_num_steps!r}."
        )
    shapes = [jnp.shape(x) for x in jax.tree.leaves(starts)]
    if len({shape[:1] for shape in shapes}) != 1 or shapes[0][:1] in ((), (0,)):
        raise ValueError(
            "`starts` must have an axis of r >= 1 starts in front of every parameter, "
            f"got shapes {shapes}."
        )

    def run(start):
        end = loop.run_until(
            jr.key(0),
            from_optax(loss_fn, optax.lbfgs(), lambda _: start),
            max_num_steps,
            tolerance=tolerance,
            value_fn=lambda info: info.grad_norm / (1 + jnp.abs(info.loss)),
        )
        loss = loss_fn(end.state.params)
        loss = jnp.where(jnp.isfinite(loss), loss, jnp.inf)
        return end.state.params, loss, end.num_steps, end.status

    params, losses, num_steps, status = jax.vmap(one_by_one(run))(starts)
    best = jnp.argmin(losses)
    params = jax.tree.map(lambda x: x[best], params)
    return Fitted(params, losses[best], losses, num_steps, status)
