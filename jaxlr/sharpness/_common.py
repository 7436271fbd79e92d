"""The step uphill before SAM's gradient, and the mean over shards one by one."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Inexact, PyTree

from jaxlr.core import checks, compat, Hyper


def check_rho(rho: Hyper) -> None:
    """Refuse a rho that cannot be a radius.

    Raises:
        ValueError: For an array, and a known number that is below 0 or not finite.
    """
    if jnp.ndim(rho):
        raise ValueError(f"`rho` must be a number, got shape {jnp.shape(rho)}.")
    checks.positive("rho", rho, or_zero=True)


def wide(dtype: DTypeLike) -> jnp.dtype:
    """The type in which to accumulate: float32 or better."""
    return jnp.promote_types(dtype, jnp.float32)


def norm_of(leaves: Iterable[Inexact[Array, "..."]]) -> Float[Array, ""]:
    """Euclidean norm of all leaves together, in the widest of their wide types."""
    squares = [jnp.sum(jnp.square(jnp.abs(x.astype(wide(x.dtype))))) for x in leaves]
    return jnp.sqrt(jnp.asarray(sum(squares), None if squares else jnp.float32))


def scale_of(rho: Hyper, norm: Float[Array, "*s"], *, is_normalized: bool) -> Any:
    """What to multiply the gradient by."""
    return rho / (norm + 1e-12) if is_normalized else rho


def scaled(scale: Hyper, x: Inexact[Array, "..."]) -> Inexact[Array, "..."]:
    """`scale * x` in the wide type of x, whatever that of the scale."""
    dtype = wide(x.dtype)
    return jnp.asarray(scale, jnp.finfo(dtype).dtype) * x.astype(dtype)


def shift(w: Inexact[Array, "..."], e: Inexact[Array, "..."]) -> Inexact[Array, "..."]:
    """`w + e` for a wide e, rounded once, to the type of w."""
    return (w.astype(e.dtype) + e).astype(w.dtype)


def perturb(
    params: PyTree,
    grads: PyTree,
    rho: Hyper,
    *,
    is_normalized: bool,
    is_adaptive: bool,
    chosen: PyTree,
) -> tuple[PyTree, Float[Array, ""]]:
    """`(w + e, ||g||)`; leaves that are None in `chosen` keep e = 0, outside of ||g||.

    e is a constant to differentiation but for its factor rho.
    """
    leaves, treedef = jax.tree.flatten(params)
    is_chosen = [c is not None for c in treedef.flatten_up_to(chosen)]

    def pick(tree):
        pairs = zip(treedef.flatten_up_to(tree), is_chosen, strict=True)
        picked = [x for x, chosen in pairs if chosen]
        return [x.astype(wide(x.dtype)) for x in jax.lax.stop_gradient(picked)]

    steps = pick(grads)
    norm = size = norm_of(steps)
    if is_adaptive:
        sizes = [jnp.abs(w) for w in pick(params)]
        steps = [w * g for w, g in zip(sizes, steps, strict=True)]
        size = norm_of(steps)
        steps = [w * g for w, g in zip(sizes, steps, strict=True)]
    scale = scale_of(rho, size, is_normalized=is_normalized)
    # The gradient of a complex parameter is the conjugate of the way uphill.
    ups = iter([jnp.conj(scaled(scale, g)) for g in steps])
    moved = [
        shift(w, next(ups)) if c else w for w, c in zip(leaves, is_chosen, strict=True)
    ]
    return jax.tree.unflatten(treedef, moved), norm


def scan_mean(
    one: Callable[[Sequence[Array]], tuple[PyTree, ...]],
    cut: Sequence[Array],
    *,
    is_unrolled: bool = False,
) -> tuple[PyTree, ...]:
    """Over first axes: the mean of value and gradient, as they come; the rest stacked.

    `one(shard) -> (value, gradient, *rest)`.
    """

    def step(total, shard):
        value, grads, *rest = one(shard)
        return jax.tree.map(jnp.add, total, (value, grads)), rest

    def zeros(s):
        # The type of what a loop carries holds the mesh axes over which it varies.
        return compat.vary(jnp.zeros(s.shape, wide(s.dtype)), compat.varying_axes(s))

    shapes = jax.eval_shape(lambda shard: one(shard)[:2], [x[0] for x in cut])
    start = jax.tree.map(zeros, shapes)
    total, rest = jax.lax.scan(step, start, cut, unroll=is_unrolled or 1)
    num = cut[0].shape[0]
    mean = jax.tree.map(lambda x, s: (x / num).astype(s.dtype), total, shapes)
    return *mean, *rest
