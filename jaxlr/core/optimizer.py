"""Any optax transformation as a `Solver`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float, Key, PyTree
import optax

from jaxlr.core.types import Solver


class OptaxState(NamedTuple):
    """Parameters, and what the transformation remembers."""

    params: PyTree
    opt_state: PyTree


class OptaxInfo(NamedTuple):
    """Measured at the parameters before the step.

    Attributes:
        loss: Value of the loss function, in its units.
        gradient_norm: Euclidean norm of its whole gradient.
    """

    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]


def from_optax(
    loss_fn: Callable[..., Float[Array, ""]],
    transformation: optax.GradientTransformation,
    init_fn: Callable[[Key[Array, ""]], PyTree] | None = None,
    *,
    is_stochastic: bool = False,
) -> Solver:
    """Minimize `loss_fn` by `transformation`.

    Args:
        loss_fn: `loss_fn(params)`; `loss_fn(key, params)` if `is_stochastic`.
        transformation: Any optax chain; line searches get value, grad and value_fn.
        init_fn: `init_fn(key) -> params`. None: the solver's `init` takes the
            parameters themselves, as optax's own does.
        is_stochastic: Whether `loss_fn` takes the step's key.

    Returns:
        A `Solver` with `OptaxState` and `OptaxInfo`; one loss gradient a step.
    """
    transformation = optax.with_extra_args_support(transformation)

    def init(key_or_params: Any) -> OptaxState:
        params = key_or_params if init_fn is None else init_fn(key_or_params)
        return OptaxState(params, transformation.init(params))

    def step(key: Key[Array, ""], state: OptaxState) -> tuple[OptaxState, OptaxInfo]:
        def value_fn(params):
            return loss_fn(key, params) if is_stochastic else loss_fn(params)

        loss, grad = jax.value_and_grad(value_fn)(state.params)
        updates, opt_state = transformation.update(
            grad,
            state.opt_state,
            state.params,
            value=loss,
            grad=grad,
            value_fn=value_fn,
        )
        params = optax.apply_updates(state.params, updates)
        return OptaxState(params, opt_state), OptaxInfo(loss, optax.tree.norm(grad))

    return Solver(init, step)
