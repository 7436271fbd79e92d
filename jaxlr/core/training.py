"""First-order training, wherever the gradient comes from, and its batches."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, Key, PyTree
import optax

from jaxlr.core.types import Count, Solver


class TrainState(NamedTuple):
    """Where training is.

    Attributes:
        params: The parameters; a module's leaves that are no arrays included.
        opt_state: Of the optax optimizer.
        step: Steps taken.
    """

    params: PyTree
    opt_state: PyTree
    step: Int[Array, ""]


class TrainInfo(NamedTuple):
    """Measured at the parameters before the step.

    Attributes:
        loss: On the step's batch.
        grad_norm: Of the gradient that the optimizer is given.
    """

    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]


def train(
    value_and_grad_fn: Callable[..., tuple[Float[Array, ""], PyTree]],
    optimizer: optax.GradientTransformation,
    params_fn: Callable[[Key[Array, ""]], PyTree],
    batch_fn: Callable[[Int[Array, ""]], tuple[Any, ...]] = lambda step: (),
) -> Solver:
    """Training by an optax optimizer.

    Args:
        value_and_grad_fn: `(params, *batch) -> (loss, gradient)`: what
            `sam_value_and_grad` returns, or `eqx.filter_value_and_grad`.
        optimizer: Any optax chain.
        params_fn: Draws the first parameters from a key.
        batch_fn: The rest of the arguments at step t; none by default.

    Returns:
        A `Solver` with `TrainState` and `TrainInfo`; a step costs one call of
        `value_and_grad_fn` and one of the optimizer.

    References:
        Bottou, Curtis, Nocedal. "Optimization Methods for Large-Scale Machine
        Learning". 2018. arXiv:1606.04838.
    """

    def init(key):
        params = params_fn(key)
        opt_state = optimizer.init(eqx.filter(params, eqx.is_inexact_array))
        return TrainState(params, opt_state, jnp.zeros((), int))

    def step(key, state):
        del key
        params, opt_state, count = state
        loss, grads = value_and_grad_fn(params, *batch_fn(count))
        updates, opt_state = optimizer.update(
            grads, opt_state, eqx.filter(params, eqx.is_inexact_array)
        )
        info = TrainInfo(loss, optax.tree.norm(grads))
        return TrainState(
            eqx.apply_updates(params, updates), opt_state, count + 1
        ), info

    return Solver(init, step)


def epoch_batch(
    key: Key[Array, ""], step: Count, num_examples: int, batch_size: int
) -> Int[Array, " batch_size"]:
    """Which examples step t takes: every epoch goes once through a new order of all.

    Args:
        key: The same at every step.
        step: t, traced.
        num_examples: n. Static.
        batch_size: Examples of a batch, static; the n mod `batch_size` last ones of an
            epoch's order are left out.

    Raises:
        ValueError: Unless `batch_size` is in 1..n.
    """
    if not 1 <= batch_size <= num_examples:
        raise ValueError(
            f"`batch_size` must be in 1..{num_examples}, got {batch_size}."
        )
    per_epoch = num_examples // batch_size
    order = jr.permutation(jr.fold_in(key, step // per_epoch), num_examples)
    return jax.lax.dynamic_slice_in_dim(
        order, step % per_epoch * batch_size, batch_size
    )
