"""SAM as an optax transformation, for training loops that are built around one."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree
import optax

from jaxlr.core import Hyper
from jaxlr.sharpness._common import check_rho, perturb


class AsOptaxState(NamedTuple):
    """What `as_optax` remembers between updates.

    Attributes:
        num_steps: Number of updates done, which a schedule of rho is given.
        base: State of the transformation that is given the second gradient.
    """

    num_steps: Int[Array, ""]
    base: Any


def as_optax(
    base: optax.GradientTransformation,
    rho: Hyper | Callable[[Int[Array, ""]], Hyper],
    *,
    is_normalized: bool = True,
    is_adaptive: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """SAM whose second gradient is taken inside of `update`, for one shard.

    Its steps are those of `optax.contrib.sam` in opaque mode, with a rho that follows
    its schedule and a zero gradient that stays one. New code should rather give
    `sam_value_and_grad` to an unchanged optimizer: that has shards and auxiliary
    outputs, and clips and accumulates the second gradient, as SAM is meant to.

    Args:
        base: Any optax chain; it is given the second gradient.
        rho: Radius of the perturbation, at least 0, in the units that
            `sam_value_and_grad` gives; or a schedule, `rho(step)` of the number of
            updates done.
        is_normalized: Whether the perturbation has the length rho; else it is rho times
            the gradient. Static.
        is_adaptive: Whether the radius is relative to the size of each parameter, which
            makes it ASAM. Static.

    Returns:
        A transformation with `AsOptaxState`. Its update needs the parameters, and
        `grad_fn(params, i)`, the gradient anywhere, on the batch of the one it is
        given; i is 0. One gradient a step in addition to the one given. Other keyword
        arguments go to `base`.

    Raises:
        ValueError: For a negative rho; at an update without `params` or `grad_fn`.

    References:
        Foret, Kleiner, Mobahi, Neyshabur. "Sharpness-Aware Minimization for Efficiently
        Improving Generalization". 2021. arXiv:2010.01412.
    """
    if not callable(rho):
        check_rho(rho)
    base = optax.with_extra_args_support(base)

    def init(params: PyTree) -> AsOptaxState:
        return AsOptaxState(jnp.zeros((), jnp.int32), base.init(params))

    def update(
        updates: PyTree,
        state: Any,
        params: PyTree | None = None,
        *,
        grad_fn: Callable[[PyTree, int], PyTree] | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, AsOptaxState]:
        grad_fn = _given("grad_fn", grad_fn)
        params = _given("params", params)
        moved, _ = perturb(
            params,
            updates,
            rho(state.num_steps) if callable(rho) else rho,
            is_normalized=is_normalized,
            is_adaptive=is_adaptive,
            chosen=params,
        )
        updates, inner = base.update(
            grad_fn(moved, 0), state.base, params, **extra_args
        )
        return updates, AsOptaxState(state.num_steps + 1, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def _given(name, value):
    if value is None:
        raise ValueError(f"`{name}` must be given to the update of SAM, got None.")
    return value
