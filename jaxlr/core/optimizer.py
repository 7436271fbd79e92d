"""Training by any optax optimizer as a `Solver`, and the batches of an epoch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, Key, PyTree
import optax

from jaxlr.core import checks
from jaxlr.core.types import Count, Solver


class OptaxState(NamedTuple):
    """Where training is.

    Attributes:
        params: The parameters, or the whole Equinox module.
        opt_state: What the optimizer remembers.
        step: Number of steps taken.
    """

    params: PyTree
    opt_state: PyTree
    step: Int[Array, ""]


class OptaxInfo(NamedTuple):
    """Measured at the parameters before the step.

    Attributes:
        loss: Value of the loss on the step's batch, in its units.
        grad_norm: Euclidean norm of the whole gradient that the optimizer is given.
    """

    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]


_LINE_SEARCH = (
    optax.ScaleByBacktrackingLinesearchState,
    optax.ScaleByZoomLinesearchState,
)


def from_optax(
    loss_fn: Callable[..., Float[Array, ""]],
    optimizer: optax.GradientTransformation,
    params_fn: Callable[[Key[Array, ""]], PyTree],
    batch_fn: Callable[[Key[Array, ""], Int[Array, ""]], tuple[Any, ...]] | None = None,
    *,
    value_and_grad_fn: Callable[..., tuple[Float[Array, ""], PyTree]] | None = None,
) -> Solver:
    """Minimize `loss_fn(params, *batch)` by an optax optimizer.

    Floating and complex arrays among the leaves of the parameters are trained; all
    other leaves, such as the activation functions of an Equinox module, stay. The
    optimizer is given the conjugate of a complex parameter's gradient, the way uphill.

    Args:
        loss_fn: `loss_fn(params, *batch)`. Line searches call it along their line.
        optimizer: Any optax chain. Those that search along a line are given `value`,
            `grad` and `value_fn`; one that ends its chain with it, as `optax.lbfgs`,
            also saves the next step's evaluation, where there is no batch.
        params_fn: `params_fn(key)`, the first parameters.
        batch_fn: `batch_fn(key, step)`, the further arguments of the loss: from the key
            of the step, which a stochastic loss may be handed on, and from the number
            of steps taken before. None for a loss of the parameters alone.
        value_and_grad_fn: `value_and_grad_fn(params, *batch) -> (loss, gradient)` where
            the gradient is not that of the loss: what `sam_value_and_grad` returns.
            None for `eqx.filter_value_and_grad(loss_fn)`.

    Returns:
        A `Solver` with `OptaxState` and `OptaxInfo`. A step costs one value and
        gradient, and an update of the optimizer.

    Raises:
        ValueError: By the solver's `init`, if no floating or complex array is among the
            parameters.

    References:
        Bottou, Curtis, Nocedal. "Optimization Methods for Large-Scale Machine
        Learning". 2018. arXiv:1606.04838.
    """
    optimizer = optax.with_extra_args_support(optimizer)
    is_plain = batch_fn is None and value_and_grad_fn is None
    if value_and_grad_fn is None:
        value_and_grad_fn = eqx.filter_value_and_grad(loss_fn)

    def init(key: Key[Array, ""]) -> OptaxState:
        params = params_fn(key)
        opt_state = optimizer.init(_trained(params))
        return OptaxState(params, opt_state, jnp.zeros((), int))

    def step(key: Key[Array, ""], state: OptaxState) -> tuple[OptaxState, OptaxInfo]:
        batch = () if batch_fn is None else batch_fn(key, state.step)
        params, rest = eqx.partition(state.params, eqx.is_inexact_array)

        def value_fn(params):
            return loss_fn(eqx.combine(params, rest), *batch)

        # The last of a chain has found its value and gradient where the step ends.
        chain = state.opt_state if type(state.opt_state) is tuple else ()
        last = chain[-1] if chain else None
        if is_plain and isinstance(last, _LINE_SEARCH) and last.grad is not None:
            found = optax.value_and_grad_from_state(value_fn)
            loss, grad = found(params, state=last)
        else:
            loss, grad = value_and_grad_fn(state.params, *batch)
        # The gradient of a complex parameter is the conjugate of the way uphill.
        uphill = jax.tree.map(jnp.conj, grad)
        updates, opt_state = optimizer.update(
            uphill, state.opt_state, params, value=loss, grad=grad, value_fn=value_fn
        )
        after = eqx.apply_updates(state.params, updates)
        info = OptaxInfo(jnp.asarray(loss), optax.tree.norm(grad))
        return OptaxState(after, opt_state, state.step + 1), info

    return Solver(init, step)


def _trained(params):
    """The leaves that are trained; None in the place of others."""
    trained = eqx.filter(params, eqx.is_inexact_array)
    if not jax.tree.leaves(trained):
        raise ValueError(f"`params_fn` gives no array to train, got {params!r}.")
    return trained


def epoch_batch(
    key: Key[Array, ""], step: Count, num_examples: int, batch_size: int
) -> Int[Array, " batch_size"]:
    """Which examples a step takes: every epoch goes once through a new order of all.

    Args:
        key: The same key at every step.
        step: Number of steps taken before; may be traced.
        num_examples: Number of examples to draw from. Static.
        batch_size: Number of examples of a batch, at most `num_examples`; those at the
            end of an epoch's order that fill no batch are left out. Static.

    Raises:
        ValueError: Unless both are integers, `batch_size` in 1..`num_examples`.
    """
    num_examples = checks.count("num_examples", num_examples)
    batch_size = checks.count("batch_size", batch_size, most=num_examples)
    per_epoch = num_examples // batch_size
    order = jr.permutation(jr.fold_in(key, step // per_epoch), num_examples)
    return jax.lax.dynamic_slice_in_dim(
        order, step % per_epoch * batch_size, batch_size
    )
