"""Training by epochs, looked at from block to block."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree
import optax

from jaxlr.core import checks, epoch_batch, from_optax, loop


def epoch_batches(
    key: Key[Array, ""], batch_size: int, *arrays: Array
) -> Callable[[Any, Int[Array, ""]], tuple[Array, ...]]:
    """A `batch_fn` of `from_optax`: every epoch goes once through all examples.

    Args:
        key: Key that draws every epoch's order of examples.
        batch_size: Number of examples in a batch. Static.
        *arrays: The examples, along the first axis of each.
    """

    def batch(_, step):
        index = epoch_batch(key, step, len(arrays[0]), batch_size)
        return tuple(x[index] for x in arrays)

    return batch


def train_epochs(
    order_key: Key[Array, ""],
    solve_key: Key[Array, ""],
    hparams: Any,
    data: Any,
    *,
    loss_fn: Callable[..., Float[Array, ""]],
    params_fn: Callable[[Key[Array, ""]], PyTree],
    optimizer_fn: Callable[[int], optax.GradientTransformation],
    watch_fn: Callable[[PyTree], PyTree] = lambda model: None,
    value_and_grad_fn: Callable[..., Any] | None = None,
) -> tuple[PyTree, Float[Array, " epoch"], PyTree]:
    """Train a model on `data.x` and `data.labels`, and look at it before every epoch.

    Args:
        order_key: Key that draws every epoch's order of examples.
        solve_key: Key of the run, which draws the first parameters.
        hparams: Hyper-parameters with the counts `num_epochs` and `batch_size`.
        data: Examples `x` and their `labels`, along the first axis of each.
        loss_fn: `loss_fn(model, x, labels)` gives the loss of a batch.
        params_fn: `params_fn(key)` draws the model.
        optimizer_fn: `optimizer_fn(num_steps)` gives the optimizer for so many steps.
        watch_fn: `watch_fn(model)` measures a model, before every epoch.
        value_and_grad_fn: `value_and_grad_fn(model, x, labels)` gives loss and
            gradient; None stands for those of `loss_fn`.

    Returns:
        The trained model; before every epoch the loss on its first batch, and what
        `watch_fn` measured.

    Raises:
        ValueError: If `batch_size` or `num_epochs` is no count, or there are fewer
            examples than a batch has.
    """
    num_epochs = checks.count("num_epochs", hparams.num_epochs)
    size = checks.count("batch_size", hparams.batch_size, most=len(data.x))
    per_epoch = len(data.x) // size
    batch = epoch_batches(
        order_key, size, jnp.asarray(data.x), jnp.asarray(data.labels)
    )
    solver = from_optax(
        loss_fn,
        optimizer_fn(num_epochs * per_epoch),
        params_fn,
        batch,
        value_and_grad_fn=value_and_grad_fn,
    )

    def watch(state):
        loss = loss_fn(state.params, *batch(None, state.step))
        return loss, watch_fn(state.params)

    state, (loss, watched) = loop.run(
        solve_key, solver, num_epochs * per_epoch, every=per_epoch, watch_fn=watch
    )
    return state.params, loss, watched


def after_blocks(before: PyTree, last: PyTree) -> PyTree:
    """What was measured after every block, given that before each and the last."""
    return jax.tree.map(lambda x, y: jnp.append(x[1:], y[None], axis=0), before, last)


def num_parameters(model: PyTree) -> int:
    """Numbers that are trained."""
    arrays = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
    return sum(x.size for x in arrays)
