"""mSAM of dense layers, exact, forming a shard's perturbation only where cheaper.

For y = h W, shard j's gradient is G_j = H_j^T D_j: H_j the inputs of its rows, D_j the
derivatives of its loss by the outputs y. With c_j = rho / ||G_j||, all layers together,

    h (W + c_j G_j) = h W + c_j (h H_j^T) D_j,    ||G_j||^2 = <H_j H_j^T, D_j D_j^T>,

so all shards share the products with W and its gradient, and the rest costs b^2 (k + n)
for b rows and W of shape (k, n). Where b (k + n) > k n, G_j is cheaper, and formed.

`fun` is traced once to a jaxpr, in which a call of `dense` is seen by its name; two
interpreters of that jaxpr are the two passes.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import Literal
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxlr.core import compat, Hyper
from jaxlr.sharpness._common import scale_of, scaled, scan_mean, shift, wide


_OTHERS = "use backend 'scan', 'vmap' or 'unroll'"


def dense(
    x: Float[Array, "*a k"],
    weight: Float[Array, "k n"],
    bias: Float[Array, " n"] | None = None,
) -> Float[Array, "*a n"]:
    """`x @ weight + bias`: the way to say to the backend "ghost" that a layer is dense.

    Works in all transformations, and under "ghost" in `jax.vmap` and `jax.jit` in `fun`
    too; there `weight` must be a leaf of the differentiated argument itself, neither
    cast nor transposed, or not depend on it at all.

    Args:
        x: Inputs of the layer; its rows, of k features, lie along the last axis.
        weight: The matrix W that multiplies every row from the right.
        bias: What is added to every row of the product; None for nothing.

    Returns:
        Outputs of the layer, n a row; 2 k n flops a row.

    Raises:
        ValueError: Unless `weight` is a matrix with as many rows as x has columns.
    """
    if weight.ndim != 2 or x.ndim < 1 or x.shape[-1] != weight.shape[0]:
        raise ValueError(
            "`weight` must be a matrix with as many rows as `x` has columns, got "
            f"shapes {weight.shape} and {x.shape}."
        )
    out = _sharpness_dense(x, weight)
    return out if bias is None else out + bias


_NAME = "_sharpness_dense"


@jax.jit
def _sharpness_dense(x, weight):
    """The product, in a call whose name makes it visible in a jaxpr."""
    dtype = jnp.result_type(x, weight)
    dimensions = (((x.ndim - 1,), (0,)), ((), ()))
    return jax.lax.dot_general(x.astype(dtype), weight.astype(dtype), dimensions)


def ghost(
    loss: Callable[..., tuple[Float[Array, ""], PyTree]],
    params: PyTree,
    cut: Sequence[Array],
    rho: Hyper,
    *,
    is_normalized: bool,
    chosen: PyTree,
) -> tuple[PyTree, ...]:
    """Value, gradient, auxiliary output, and (first norms, perturbed values).

    `loss(params, shard) -> (value, aux)`; `cut` has the shards along first axes.
    """
    program = _trace(loss, params, [x[0] for x in cut])
    num_shards = cut[0].shape[0]
    size = sum(call.size for call in program.calls.values()) * num_shards

    def together(cut):
        return _together(program, params, cut, rho, is_normalized, chosen)

    if num_shards % 2 or size <= sum(w.size for w in jax.tree.leaves(params)):
        return together(cut)
    # What both passes keep outweighs the parameters: two halves keep half of it.
    halves = [x.reshape(2, num_shards // 2, *x.shape[1:]) for x in cut]
    value, grads, *rest = scan_mean(together, halves)
    rest = jax.tree.map(lambda x: x.reshape(num_shards, *x.shape[2:]), rest)
    return value, grads, *rest


def _together(program, params, cut, rho, is_normalized, chosen):
    leaves, treedef = jax.tree.flatten(params)
    is_chosen = [c is not None for c in treedef.flatten_up_to(chosen)]
    calls = program.calls.values()
    dense_leaves = {call.leaf for call in calls}
    rest = {i: w for i, w in enumerate(leaves) if i not in dense_leaves}
    zeros = [
        compat.vary(jnp.zeros(y.shape, y.dtype), compat.varying_axes(y))
        for y in (call.out for call in calls)
    ]

    def clean(rest, zeros, shard):
        inputs = {}

        def product(call, x, y):
            inputs[call.order] = x
            return y + zeros[call.order]

        full = [rest.get(i, w) for i, w in enumerate(leaves)]
        value, aux = program.run(full, shard, product)
        return value, (aux, inputs)

    passed = jax.value_and_grad(clean, argnums=(0, 1), has_aux=True)
    (value, (aux, h)), (g, d) = jax.vmap(passed, (None, None, 0))(rest, zeros, cut)
    h, d, g = jax.lax.stop_gradient((h, d, g))

    squares = [_square(g[i]) for i in g if is_chosen[i]]
    factors = {}
    for i in (i for i in dense_leaves if is_chosen[i]):
        own = [call for call in calls if call.leaf == i]
        outputs = jnp.concatenate([_rows(d[call.order]) for call in own], 1)
        inputs = [jax.vmap(call.rows)(h[call.order]) for call in own]
        inputs = jnp.concatenate(inputs, 1).astype(outputs.dtype)
        square, factors[i] = _perturbation(inputs, outputs)
        squares.append(square)
    total = sum(squares, jnp.zeros(value.shape, jnp.float32))
    norm = jnp.sqrt(jnp.maximum(total, 0))  # rounding can make a sum of grams negative
    scale = scale_of(rho, norm, is_normalized=is_normalized)
    scale = jnp.broadcast_to(scale, norm.shape)
    factors = {
        i: (*first, jax.vmap(scaled)(scale, last).astype(last.dtype))
        for i, (*first, last) in factors.items()
    }
    # The gradient of a complex parameter is the conjugate of the way uphill.
    steps = {i: jnp.conj(jax.vmap(scaled)(scale, g[i])) for i in g if is_chosen[i]}

    def perturbed(leaves, steps, factors, shard):
        def product(call, x, y):
            extra = call.rows(x).astype(y.dtype)
            for factor in factors.get(call.leaf, ()):
                extra = extra @ factor
            return y + extra.reshape(y.shape) if call.leaf in factors else y

        full = [shift(w, steps[i]) if i in steps else w for i, w in enumerate(leaves)]
        return program.run(full, shard, product)[0]

    def mean(leaves):
        values = jax.vmap(perturbed, (None, 0, 0, 0))(leaves, steps, factors, cut)
        return jnp.mean(values), values

    (_, values), grads = jax.value_and_grad(mean, has_aux=True)(leaves)
    grads = jax.tree.unflatten(treedef, grads)
    return jnp.mean(value), grads, aux, (norm, values)


def _rows(x):
    """Shape (s, ..., n) as (s, rows, n)."""
    return x.reshape(x.shape[0], -1, x.shape[-1])


def _square(x):
    """Shape (s, ...) to the squared norms of each of s."""
    return jnp.sum(jnp.square(jnp.abs(x.astype(wide(x.dtype)))), range(1, x.ndim))


def _perturbation(h, d):
    """`||h^T d||^2` and the factors of h^T d, whichever are the cheaper ones."""
    (_, b, k), n = h.shape, d.shape[2]

    def product(formula, x, y):
        # Gradients are small sums of large terms: no place for rounded operands.
        return jnp.einsum(
            formula, x, y, precision="highest", preferred_element_type=wide(d.dtype)
        )

    if b * (k + n) > k * n:
        g = product("sbk,sbn->skn", h, d)
        return _square(g), (g.astype(d.dtype),)
    gram = product("sak,sbk->sab", h, h) * product("san,sbn->sab", d, d)
    return jnp.sum(gram, (1, 2)), (jnp.swapaxes(h, 1, 2), d)


class _Call(NamedTuple):
    """One call of `dense`.

    Attributes:
        order: Its place among them.
        leaf: Which leaf its weight is.
        axis: The axis of x that it sums over.
        size: Elements of its input and output together.
        out: The type of its output.
    """

    order: int
    leaf: int
    axis: int
    size: int
    out: Any

    def rows(self, x):
        x = jnp.moveaxis(x, self.axis, -1)
        return x.reshape(-1, x.shape[-1])


class _Program(NamedTuple):
    """`loss` as a jaxpr, and which of its equations are calls of `dense`."""

    jaxpr: Any
    calls: dict[int, _Call]
    out_tree: Any

    def run(self, leaves, shard, product):
        """`loss`, with `product(call, x, x @ w)` for the result of each call."""
        return jax.tree.unflatten(
            self.out_tree, _evaluate(self.jaxpr, [*leaves, *shard], self.calls, product)
        )


def _evaluate(closed, args, calls: Any = (), product: Any = None):
    """Run a jaxpr, calls of jitted functions that hold a `dense` inlined."""
    jaxpr = closed.jaxpr
    names = [*jaxpr.constvars, *jaxpr.invars]
    env = dict(zip(names, [*closed.consts, *args], strict=True))

    def read(v):
        return v.val if isinstance(v, Literal) else env[v]

    for i, eqn in enumerate(jaxpr.eqns):
        values = [read(v) for v in eqn.invars]
        if eqn.primitive.name in ("jit", "pjit") and _holds_dense(eqn):
            outs = _evaluate(eqn.params["jaxpr"], values)
        else:
            outs = compat.bind(eqn, values)
        if i in calls:
            outs = [product(calls[i], values[0], outs[0])]
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _is_dense(eqn):
    return eqn.params.get("name") == _NAME


def _holds_dense(eqn):
    """Whether there is a `dense` in the loop, branch or function that `eqn` calls."""
    inner = (getattr(x, "jaxpr", x) for x in jax.tree.leaves([*eqn.params.values()]))
    eqns = (e for jaxpr in inner for e in getattr(jaxpr, "eqns", ()))
    return any(_is_dense(e) or _holds_dense(e) for e in eqns)


def _trace(loss, params, shard):
    """The program of one shard, refused unless its `dense` weights are that alone."""
    leaves, treedef = jax.tree.flatten(params)

    def flat(leaves, shard):
        return loss(jax.tree.unflatten(treedef, leaves), shard)

    closed, shape = jax.make_jaxpr(flat, return_shape=True)(leaves, shard)
    closed = jax.make_jaxpr(lambda *args: _evaluate(closed, args))(*leaves, *shard)
    place = {v: i for i, v in enumerate(closed.jaxpr.invars[: len(leaves)])}
    calls, elsewhere, varies = {}, set(), set(place)
    for i, eqn in enumerate(closed.jaxpr.eqns):
        inputs = {v for v in eqn.invars if not isinstance(v, Literal)}
        if _is_dense(eqn):
            weight = eqn.invars[-1]
            if weight in place:
                calls[i] = _call(eqn, len(calls), place[weight])
                inputs = set(eqn.invars[:-1])
            elif weight in varies:
                raise ValueError(
                    "`weight` of `sharpness.dense` must be a leaf of the "
                    "differentiated argument, got an array of shape "
                    f"{weight.aval.shape} that is computed from one; {_OTHERS}."
                )
        elif _holds_dense(eqn):
            raise ValueError(
                f"`sharpness.dense` inside of `{eqn.primitive.name}` is not for "
                f"backend 'ghost', unlike in `jax.jit` and `jax.vmap`; {_OTHERS}."
            )
        elsewhere |= {place[v] for v in inputs if v in place}
        if inputs & varies:
            varies.update(eqn.outvars)
    if not calls:
        raise ValueError(
            "`fun` gives no leaf of the differentiated argument to `sharpness.dense`, "
            f"as backend 'ghost' needs; {_OTHERS}."
        )
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree.leaves_with_path(params)]
    for call in calls.values():
        if call.leaf in elsewhere:
            raise ValueError(
                f"`weight` {paths[call.leaf]} of `sharpness.dense` is used in `fun` in "
                f"another way too; {_OTHERS}."
            )
        leaf = compat.varying_axes(leaves[call.leaf])
        if unnamed := compat.varying_axes(call.out) - leaf:
            raise ValueError(
                "`reduce_axis_name` must hold the mesh axes that the batch is spread "
                f"over for backend 'ghost', got none of {sorted(unnamed)}."
            )
    return _Program(closed, calls, jax.tree.structure(shape))


def _call(eqn, order, leaf):
    inner = eqn.params["jaxpr"].jaxpr.eqns
    (out,) = (v.aval for v in eqn.outvars)
    dots = [e for e in inner if e.primitive.name == "dot_general"]
    (x_axes, w_axes), batch = dots[0].params["dimension_numbers"]
    if len(dots) > 1 or any(batch) or tuple(w_axes) != (0,):
        raise ValueError(
            "`sharpness.dense` over a batch of weights is not for backend 'ghost'; "
            f"{_OTHERS}."
        )
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(
            f"`sharpness.dense` must be of real numbers for backend 'ghost', got "
            f"{out.dtype}; {_OTHERS}."
        )
    return _Call(order, leaf, x_axes[0], eqn.invars[0].aval.size + out.size, out)
