"""Helpers on pytrees of arrays."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree


def all_finite(x: PyTree[Array]) -> Bool[Array, ""]:
    """Whether no inexact leaf of `x` holds a NaN or an infinity."""
    leaves = [leaf for leaf in jax.tree.leaves(x) if is_inexact(leaf)]
    return jnp.all(jnp.asarray([jnp.isfinite(leaf).all() for leaf in leaves], bool))


def has_diverged(before: PyTree, after: PyTree, info: PyTree) -> Bool[Array, ""]:
    """Whether a step made a NaN or an infinity: in the state `after` it, or in `info`.

    An infinity that was there `before` may belong to the state: the best value so far
    starts there.
    """
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    bad = [
        (jnp.isnan(new) | (jnp.isinf(new) & ~jnp.isinf(old))).any()
        for old, new in pairs
        if is_inexact(new)
    ]
    return jnp.any(jnp.asarray(bad, bool)) | ~all_finite(info)


def is_inexact(x: Array) -> bool:
    """Whether `x` is floating or complex (typed keys are neither)."""
    return jnp.issubdtype(x.dtype, jnp.inexact)


def select(which: Bool[Array, ""], on_true: PyTree, on_false: PyTree) -> PyTree:
    """`on_true` where `which`, else `on_false`: leaf by leaf, typed keys included."""
    return jax.tree.map(lambda a, b: jnp.where(which, a, b), on_true, on_false)


def partition(x: PyTree) -> tuple[PyTree, PyTree]:
    """Arrays and numbers of `x`, which loops carry; all other leaves, as functions are.

    Either has None in place of the other's leaves; `eqx.combine` puts them together.
    """
    return eqx.partition(x, eqx.is_array_like)
