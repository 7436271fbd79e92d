"""Sharpness-aware minimization: the gradient at a perturbed point, as a transform.

    SAM    e = rho g / ||g||                  USAM   e = rho g
    ASAM   e = rho w^2 g / || |w| g ||        mSAM   mean_j grad L_j(w + e_j)

g = grad L(w) is the first pass's gradient, and grad L(w + e), the second's, is what the
optimizer is given; products with w are elementwise. mSAM has one perturbation e_j a
shard j of the batch, which is cut in `num_shards` equal shards.
"""

from collections.abc import Callable, Sequence
import functools as ft
from typing import Any, get_args, Literal, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlr.core import checks, compat, Hyper
from jaxlr.sharpness._common import check_rho, perturb, scan_mean
from jaxlr.sharpness._ghost import ghost


Backend: TypeAlias = Literal["scan", "vmap", "unroll", "ghost"]
"""How the shards of a batch are run."""


class SAMInfo(NamedTuple):
    """Measured on the way; shape () for one shard, (num_shards,) for more.

    Attributes:
        grad_norm: Norm of the first pass's gradient over the leaves that are perturbed.
        perturbed_value: Value of `fun` at w + e; less the clean value it is the
            sharpness, and rho `grad_norm` is its first-order form.
    """

    grad_norm: Float[Array, "*s"]
    perturbed_value: Float[Array, "*s"]


def sam_value_and_grad(
    fun: Callable[..., Any],
    rho: Hyper,
    *,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    is_normalized: bool = True,
    is_adaptive: bool = False,
    num_shards: int = 1,
    in_axes: Any = 0,
    backend: Backend = "scan",
    perturb_axis_name: str | tuple[str, ...] | None = None,
    reduce_axis_name: str | tuple[str, ...] | None = None,
    perturb_filter: Any = None,
    return_info: bool = False,
) -> Callable[..., Any]:
    """`jax.value_and_grad` whose gradient is the one that SAM gives to the optimizer.

    The value and the auxiliary output are those of the clean pass, at w. Both passes
    see the same arguments, a random key included: common random numbers. e is a
    constant to differentiation, but for its factor rho; `SAMInfo.grad_norm` too.

    Across devices (`shard_map`, `pmap`), each with its part of the batch and the same
    parameters, with `reduce_axis_name="d"`:

    * `perturb_axis_name=None`: one perturbation a device, which is mSAM with the
      devices as shards (times `num_shards`), and one message a step;
    * `perturb_axis_name="d"`: the first gradient is averaged too, so that the
      perturbation is that of the full batch, and the result that of one device.

    Under `shard_map` the gradient with respect to replicated parameters is summed over
    devices by jax's type system. Over the axes named here the parameters are cast so
    that it is not; over an axis that neither name holds it still is, and the result is
    the number of devices times full-batch SAM.

    Args:
        fun: `fun(*args, **kwargs) -> value`, a scalar that averages over its batch, or
            `(value, aux)` if `has_aux`.
        rho: Radius of the perturbation, at least 0 [norm of w]; without `is_normalized`
            [1/curvature], with `is_adaptive` [1], and with the latter alone [1/value].
            It may be traced, as in a sweep or a schedule.
        argnums: Which arguments to differentiate: pytrees of any shapes, which may be
            whole Equinox modules; the norm is over all of them together. Leaves that
            are not inexact arrays pass through, with None as gradient. Static.
        has_aux: Whether `fun` has an auxiliary output: arrays of any shapes; more than
            one shard stack theirs along a new leading axis. Static.
        is_normalized: Whether the perturbation has the length rho; else it is rho times
            the gradient, e = rho g, or rho w^2 g if `is_adaptive`. Static.
        is_adaptive: Whether the radius is relative to the size of each parameter, which
            makes it ASAM. Static.
        num_shards: Number of equal shards of the batch; value and gradient are their
            means. Not the size of a shard. Static.
        in_axes: Which axis of each positional argument is cut: as in `jax.vmap`, an
            integer for all but those in `argnums`, or a tuple of one tree prefix an
            argument, None for those in `argnums` and what all shards share. Keyword
            arguments are shared. A random key must be shared; keys of shape
            (num_shards,) can be cut, and a shard then gets keys of shape (1,). With one
            shard nothing is cut. Static.
        backend: How shards are run; results agree to rounding. With p the size of the
            parameters: "scan", one after the other, p more memory at work; "vmap",
            together, p `num_shards` and more; "unroll", a scan without a loop, as
            convolutions on a CPU want it, with up to the memory of "vmap"; "ghost",
            together, for the weights that `fun` gives to `sharpness.dense`, whose
            perturbations of low rank are formed only where cheaper (in two halves if
            the inputs and outputs of those layers outnumber p); other leaves cost as in
            "vmap". One shard needs none of them. Static.
        perturb_axis_name: Names of mapped axes over which the first gradient is
            averaged; None for none.
        reduce_axis_name: Names of mapped axes over which the value and the returned
            gradient are averaged, unlike auxiliary outputs and info; None for none.
        perturb_filter: Which leaves to perturb: None for all; a function
            `leaf -> bool`; or a tree prefix of Booleans for the differentiated argument
            (a tuple of such if `argnums` is one), as Equinox's filters. The rest has
            e = 0, is left out of the norm, and still has a gradient.
        return_info: Whether to join a `SAMInfo` to the auxiliary output. Static.

    Returns:
        A function of fun's arguments that gives `(value, gradient)`, or
        `((value, aux), gradient)` if `has_aux`; aux is the info, or `(aux, info)`, if
        `return_info`. It costs two evaluations of fun's value and gradient; "ghost"
        with b rows a shard saves 2 b k n flops for a (k, n) weight and spends
        6 b^2 (k + n), or as much as "vmap" where that is less.

    Raises:
        ValueError: For a negative rho, an unknown backend, and `num_shards` below 1;
            when called, for arguments and `in_axes` that do not fit, an axis that
            `num_shards` does not divide, a single random key that is to be cut, and
            nothing to differentiate. For "ghost" with `is_adaptive` or
            `perturb_axis_name`; when called, if `fun` has no `dense`, or a weight that
            is not a leaf, that is used in another way too, or in a loop.

    References:
        Foret, Kleiner, Mobahi, Neyshabur. "Sharpness-Aware Minimization for Efficiently
        Improving Generalization". 2021. arXiv:2010.01412.
        Andriushchenko, Flammarion. "Towards Understanding Sharpness-Aware
        Minimization". 2022. arXiv:2206.06232.
        Kwon, Kim, Park, Choi. "ASAM: Adaptive Sharpness-Aware Minimization for
        Scale-Invariant Learning of Deep Neural Networks". 2021. arXiv:2102.11600.
        Behdin, Song, Gupta, Durfee, Acharya, Keerthi, Mazumder. "Improved Deep Neural
        Network Generalization Using m-Sharpness-Aware Minimization". 2022.
        arXiv:2212.04343.
    """
    check_rho(rho)
    checks.choice("backend", backend, get_args(Backend))
    num_shards = checks.count("num_shards", num_shards)
    if not (in_axes is None or isinstance(in_axes, int | tuple | list)):
        raise ValueError(
            f"`in_axes` must be an integer, None or a tuple, got {in_axes!r}."
        )
    if backend == "ghost" and (is_adaptive or perturb_axis_name is not None):
        raise ValueError(
            "backend 'ghost' is for `is_adaptive=False` and `perturb_axis_name=None`, "
            f"got {is_adaptive} and {perturb_axis_name!r}; 'scan', 'vmap' and 'unroll' "
            "allow both."
        )
    is_one = not isinstance(argnums, Sequence)
    axis_names = [*_names(perturb_axis_name), *_names(reduce_axis_name)]

    @ft.wraps(fun)
    def value_and_grad(*args, **kwargs):
        nums = _positions(argnums, len(args))
        params, static = _partition(tuple(args[i] for i in nums), argnums)
        params = compat.vary(params, axis_names)
        keep = True if perturb_filter is None else perturb_filter
        chosen = eqx.filter(params, (keep,) if is_one else keep)
        rest = [None if i in nums else arg for i, arg in enumerate(args)]
        cut, merge = _cut(rest, _axes(in_axes, nums, args), num_shards)

        def loss(params, shard):
            full = merge(shard)
            for i, arg in zip(nums, eqx.combine(params, static), strict=True):
                full[i] = arg
            out = fun(*full, **kwargs)
            return out if has_aux else (out, None)

        rule = {"is_normalized": is_normalized, "chosen": chosen}
        if cut and backend == "ghost":
            value, grads, aux, info = ghost(loss, params, cut, rho, **rule)
        else:
            move = ft.partial(perturb, rho=rho, is_adaptive=is_adaptive, **rule)
            one = ft.partial(_two_passes, loss, params, move, perturb_axis_name)
            value, grads, aux, info = _shard_mean(one, cut, backend)
        if reduce_axis_name is not None:
            value, grads = jax.lax.pmean((value, grads), reduce_axis_name)
        if return_info:
            info = SAMInfo(*info)
            aux = (aux, info) if has_aux else info
        grads = grads[0] if is_one else grads
        return ((value, aux) if has_aux or return_info else value), grads

    return value_and_grad


def _two_passes(loss, params, move, axis_name, shard):
    """Value, SAM's gradient, auxiliary output, (first norm, perturbed value)."""
    differentiate = jax.value_and_grad(loss, has_aux=True)
    (value, aux), grads = differentiate(params, shard)
    if axis_name is not None:
        grads = jax.lax.pmean(grads, axis_name)
    moved, norm = move(params, grads)
    (perturbed, _), grads = differentiate(moved, shard)
    return value, grads, aux, (norm, perturbed)


def _shard_mean(one, cut, backend):
    """`one` of each shard: the mean of value and gradient, and the rest stacked."""
    if not cut:
        return one(cut)
    if backend == "vmap":
        value, grads, *rest = jax.vmap(one)(cut)
        return *jax.tree.map(lambda x: jnp.mean(x, 0), (value, grads)), *rest
    return scan_mean(one, cut, is_unrolled=backend == "unroll")


def _names(names):
    return () if names is None else (names,) if isinstance(names, str) else names


def _positions(argnums, num_args):
    """`argnums` as non-negative integers."""
    bounds = {"least": -num_args, "most": num_args - 1}
    nums = argnums if isinstance(argnums, Sequence) else (argnums,)
    return tuple(checks.count("argnums", i, **bounds) % num_args for i in nums)


def _partition(wanted, argnums):
    """What can be differentiated, and the rest."""
    params, static = eqx.partition(wanted, eqx.is_inexact_array)
    if not jax.tree.leaves(params):
        raise ValueError(
            f"`argnums` {argnums} holds no floating or complex array to differentiate, "
            f"got {wanted}."
        )
    return params, static


def _axes(in_axes, nums, args):
    """The axes of each argument: a prefix of its tree."""
    if not isinstance(in_axes, tuple | list):
        return [None if i in nums else in_axes for i in range(len(args))]
    if len(in_axes) != len(args):
        raise ValueError(
            f"`in_axes` must have an entry for each of the {len(args)} positional "
            f"arguments, got {in_axes}."
        )
    if any(jax.tree.leaves(in_axes[i]) for i in nums):
        raise ValueError(
            f"`in_axes` must be None for the differentiated arguments {nums}, got "
            f"{in_axes}."
        )
    return in_axes


def _cut(args, axes, num_shards):
    """The leaves to cut, with a leading axis of shards, and what puts a shard back."""
    leaves, treedef = jax.tree.flatten(args)
    if num_shards == 1:
        return [], lambda _: jax.tree.unflatten(treedef, leaves)
    spread = []
    for i, (axis, arg) in enumerate(zip(axes, args, strict=True)):
        jax.tree.map(
            lambda a, part, i=i: spread.extend((i, a) for _ in jax.tree.leaves(part)),
            axis,
            arg,
            is_leaf=lambda a: a is None,
        )
    cut = [
        _split(leaf, axis, i, num_shards)
        for leaf, (i, axis) in zip(leaves, spread, strict=True)
        if axis is not None
    ]
    if not cut:
        raise ValueError(f"`in_axes` cuts no argument in {num_shards} `num_shards`.")

    def merge(shard):
        parts = iter(shard)
        pairs = zip(leaves, spread, strict=True)
        return jax.tree.unflatten(
            treedef, [x if a is None else next(parts) for x, (_, a) in pairs]
        )

    return cut, merge


def _split(x, axis, position, num_shards):
    shape = getattr(x, "shape", ())
    is_key = hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    if not -len(shape) <= axis < len(shape):
        what = "a single random key" if is_key else f"a leaf of shape {shape}"
        raise ValueError(
            f"argument {position} holds {what}, which has no axis {axis} to cut in "
            f"{num_shards} shards; share it by None in `in_axes`."
        )
    axis %= len(shape)
    if shape[axis] % num_shards:
        raise ValueError(
            f"axis {axis} of argument {position} has size {shape[axis]}, which is no "
            f"multiple of `num_shards` {num_shards}."
        )
    size = shape[axis] // num_shards
    x = jnp.reshape(x, (*shape[:axis], num_shards, size, *shape[axis + 1 :]))
    return jnp.moveaxis(x, axis, 0)
