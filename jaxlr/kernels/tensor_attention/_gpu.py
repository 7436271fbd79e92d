"""Kernels for a GPU, of two modes, by Triton.

Heads that share all their keys are rows of one matrix: row r is of query r // group. A
program has a block of rows and goes over tiles of the second mode, in each over single
positions of the first: their keys times the rows are one side of a matrix product.

Gradients take three launches and 11 products where 6 would do: those of the queries as
above, 3; those of either mode's keys and values, 4, by a program for every tile of them
that goes over the rows which see it, and over single positions of the other mode. No
two programs add to one place: results are the same every time.

Products of float32 at precision "highest" do not use the matrix unit; those at
"TF32_TF32_F32_X3" do, three times.
"""

import functools as ft
import math
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.experimental import pallas as pl
import jax.numpy as jnp
import numpy as np

from jaxlr.kernels.tensor_attention._plan import (
    check_two_modes,
    div,
    dot,
    Head,
    is_seen,
    TensorBlocks,
)


_F32 = jnp.float32
_LEAST = 16  # Of the sides of a product.
_LOG2E = math.log2(math.e)  # Of exponentials a GPU has those of two.


def tiles(query, lens, blocks):
    """Queries of a tile, and positions of every mode.

    Raises:
        ValueError: On other than two modes, or types or blocks that there are not.
    """
    check_two_modes(query, len(lens))
    if blocks is None:
        # Full products of float32 are made in registers, which hold no more.
        size = 32 if query.dtype == _F32 else 64
        blocks = TensorBlocks(size, size, size)
    wanted = blocks.query, blocks.outer, blocks.inner
    if any(size < _LEAST or size & (size - 1) for size in wanted):
        raise ValueError(
            f"The kernel's `blocks` must be powers of two, at least {_LEAST}, got "
            f"{blocks}."
        )
    num_queries, *sizes = map(min, wanted, map(_power, (query.shape[1], *lens)))
    return num_queries, tuple(sizes)


def forward(plan, head):
    """`(out, lse)`."""
    group = _group(head)
    rows = _rows_of(head, group)
    shape = rows.query.shape
    out, lse = _launch(
        plan,
        group,
        rows,
        (),
        _forward_kernel,
        (jax.ShapeDtypeStruct(shape, head.query.dtype), _float32(*shape[:2])),
        plan.num_queries,
        name="tensor_attention",
        num_products=2,
    )
    return _unfold(out, group)[..., : head.query.shape[2]], _unfold(lse, group)


def backward(plan, head, lse, d_out, shared):
    """Gradients of the query, keys and values, in float32."""
    group = _group(head)
    rows = _rows_of(head, group)
    # Of a query that sees nothing: no -inf - -inf.
    level = jnp.where(lse == -jnp.inf, 0, lse) * _LOG2E
    d_out = _widen(d_out.astype(head.query.dtype))
    saved = tuple(_fold(x, group) for x in (d_out, level, shared))
    launch = ft.partial(_launch, plan, group, rows, saved)
    (d_query,) = launch(
        _query_kernel,
        (_float32(*rows.query.shape),),
        plan.num_queries,
        name="tensor_attention_queries",
        num_products=3,
    )
    parts = [
        launch(
            ft.partial(_keys_kernel, mode),
            (_float32(len(rows.query), *rows.keys[mode].shape[1:]),) * 2,
            plan.sizes[mode],
            name=f"tensor_attention_keys_{mode + 1}",
            num_products=4,
        )
        for mode in (0, 1)
    ]

    def of_shared(gradient, x):
        gradient = gradient.reshape(len(x), -1, *gradient.shape[1:])
        return jnp.sum(gradient, axis=1)[..., : x.shape[2]]

    d_keys, d_values = (
        tuple(map(of_shared, gradients, inputs))
        for gradients, inputs in zip(
            zip(*parts, strict=True), (head.keys, head.values), strict=True
        )
    )
    return _unfold(d_query, group)[..., : head.query.shape[2]], d_keys, d_values


def _float32(*shape):
    return jax.ShapeDtypeStruct(shape, _F32)


def _power(size):
    """The least power of two that is no smaller than the size."""
    return max(_LEAST, 1 << (size - 1).bit_length())


def _group(head):
    """Heads in a row that share the keys and values of both modes."""
    return len(head.query) // math.lcm(*map(len, (*head.keys, *head.values)))


def _fold(x, group):
    """Heads that share all keys as rows, those of one query together."""
    heads, steps, *rest = x.shape
    x = jnp.swapaxes(x.reshape(heads // group, group, steps, *rest), 1, 2)
    return x.reshape(heads // group, steps * group, *rest)


def _unfold(x, group):
    heads, num_rows, *rest = x.shape
    x = jnp.swapaxes(x.reshape(heads, num_rows // group, group, *rest), 1, 2)
    return x.reshape(heads * group, num_rows // group, *rest)


def _widen(x):
    """With features 0 up to a power of two."""
    features = x.shape[-1]
    return jnp.pad(x, ((0, 0), (0, 0), (0, _power(features) - features)))


def _rows_of(head, group):
    """What kernels take: queries as rows; lengths of (heads, modes, group)."""
    # Nothing is read that is not there.
    most = jnp.asarray([key.shape[1] for key in head.keys], jnp.int32)
    lengths = jnp.minimum(head.lengths.astype(jnp.int32), most).reshape(-1, group, 2)
    return Head(
        _fold(_widen(head.query), group),
        tuple(map(_widen, head.keys)),
        tuple(map(_widen, head.values)),
        jnp.swapaxes(lengths, 1, 2),
        None if head.mask is None else head.mask[None],
    )


def _launch(plan, group, rows, saved, kernel, out_shape, size, *, name, num_products):
    """A program for each head and `size` places along the second axis of results."""
    heads, num_rows, features = rows.query.shape

    def whole(x):
        ratio = heads // len(x)  # the mask is one for all
        zeros = (0,) * (x.ndim - 1)
        return pl.BlockSpec((None, *x.shape[1:]), lambda i, z: (div(z, ratio), *zeros))

    def block(x):
        zeros = (0,) * (len(x.shape) - 2)
        return pl.BlockSpec((None, size, *x.shape[2:]), lambda i, z: (z, i, *zeros))

    params = None
    if plan.implementation == "pallas":
        # Newer versions of jax say that it will go: nothing else is to need it.
        from jax.experimental.pallas import triton

        params = triton.CompilerParams(
            num_warps=4 if features <= 64 else 8, num_stages=2
        )
    operands = rows, *saved
    pairs = heads * num_rows
    for key, window in zip(rows.keys, plan.windows, strict=True):
        seen = key.shape[1] if None in window else sum(w or 0 for w in window) + 1
        pairs *= min(seen, key.shape[1])
    return pl.pallas_call(
        ft.partial(kernel, plan, group),
        grid=(out_shape[0].shape[1] // size, heads),
        in_specs=jax.tree.map(whole, operands),
        out_specs=tuple(map(block, out_shape)),
        out_shape=out_shape,
        compiler_params=params,
        cost_estimate=pl.CostEstimate(
            flops=2 * num_products * features * pairs,
            bytes_accessed=sum(x.nbytes for x in jax.tree.leaves(operands)),
            transcendentals=pairs,
        ),
        interpret=plan.implementation == "pallas_interpret",
        name=name,
    )(*operands)


class _Block(NamedTuple):
    """A block of rows.

    Attributes:
        at: Where they are.
        first: The first query.
        last: The last.
        i: The query of each row.
        heads: The head of each row.
        lengths: For each row, of both modes.
    """

    at: Any
    first: Any
    last: Any
    i: Any
    heads: Any
    lengths: list[Any]


def _block(plan, group, head, z, number, axis):
    """Vectors along one axis of two."""
    size = plan.num_queries
    start = number * size
    row = start + lax.broadcasted_iota(jnp.int32, (size,), 0)
    i = div(row, group)
    member = row - i * group
    vectors = (
        i,
        z * group + member,
        [head.lengths[mode, member] for mode in (0, 1)],
    )
    return _Block(
        pl.ds(start, size),
        div(start, group),
        div(start + size - 1, group),
        *jax.tree.map(lambda x: jnp.expand_dims(x, 1 - axis), vectors),
    )


def _reach(plan, mode, block):
    """The first position that a block of rows sees, and the first one beyond."""
    left, right = plan.windows[mode]
    first, end = np.int32(0), jnp.max(block.lengths[mode])
    if left is not None:
        first = jnp.maximum(block.first - left, 0)
    if right is not None:
        end = jnp.minimum(block.last + right + 1, end)
    return first, end


def _places(plan, mode, tile, axis):
    """Positions of a tile, along one axis of two."""
    size = plan.sizes[mode]
    place = tile * size + lax.broadcasted_iota(jnp.int32, (size,), 0)
    return pl.ds(tile * size, size), jnp.expand_dims(place, 1 - axis)


def _masked(plan, head, block, places, scores):
    """Scores in powers of two, -inf where they do not count."""
    seen = is_seen(plan, block.i, places, block.lengths)
    if head.mask is not None:
        at = zip((block.heads, block.i, *places), head.mask.shape, strict=True)
        seen &= head.mask[
            tuple(jnp.broadcast_to(x if n > 1 else 0, scores.shape) for x, n in at)
        ]
    return jnp.where(seen, scores * _LOG2E, -jnp.inf)


def _over_places(plan, head, block, step, carry):
    """`step(carry, j, k, key, value)` for all j, and tiles k, that rows see."""
    size = plan.sizes[1]
    first, end = _reach(plan, 1, block)

    def over_tiles(number, carry):
        at, k = _places(plan, 1, number, 1)
        key, value = head.keys[1][at], head.values[1][at]
        first, end = _reach(plan, 0, block)
        if plan.is_ordered:
            end = jnp.minimum(end, (number + 1) * size)
        return lax.fori_loop(
            first, end, lambda j, carry: step(carry, j, k, key, value), carry
        )

    return lax.fori_loop(div(first, size), div(end + size - 1, size), over_tiles, carry)


def _forward_kernel(plan, group, head, out, lse):
    number, z = pl.program_id(0), pl.program_id(1)
    block = _block(plan, group, head, z, number, 0)
    query = head.query[block.at]

    def step(carry, j, k, key, value):
        most, total, sums = carry
        rows = query * head.keys[0][j][None]
        scores = dot(plan, rows, key, 1, 1)
        scores = _masked(plan, head, block, [j, k], scores)
        new = jnp.maximum(most, jnp.max(scores, axis=1))
        # Of a query that has seen nothing: no -inf - -inf.
        level = jnp.where(new == -jnp.inf, 0.0, new)
        share = jnp.exp2(scores - level[:, None])
        kept = jnp.exp2(most - level)
        found = dot(plan, share.astype(value.dtype), value, 1, 0)
        found = found * head.values[0][j].astype(_F32)[None]
        total = total * kept + jnp.sum(share, axis=1)
        return new, total, sums * kept[:, None] + found

    size = len(lse)
    begin = (
        jnp.full((size,), -jnp.inf, _F32),
        jnp.zeros((size,), _F32),
        jnp.zeros(out.shape, _F32),
    )
    most, total, sums = _over_places(plan, head, block, step, begin)
    has_seen = total > 0
    total = jnp.where(has_seen, total, 1.0)
    lse[...] = jnp.where(has_seen, most / _LOG2E + jnp.log(total), -jnp.inf)
    out[...] = (sums / total[:, None]).astype(out.dtype)


def _query_kernel(plan, group, head, d_out, level, shared, d_query):
    number, z = pl.program_id(0), pl.program_id(1)
    block = _block(plan, group, head, z, number, 0)
    query, into = head.query[block.at], d_out[block.at]
    level, shared = level[block.at][:, None], shared[block.at][:, None]

    def step(total, j, k, key, value):
        outer = head.keys[0][j][None]
        scores = dot(plan, query * outer, key, 1, 1)
        share = jnp.exp2(_masked(plan, head, block, [j, k], scores) - level)
        d_share = dot(plan, into * head.values[0][j][None], value, 1, 1)
        d_score = (share * (d_share - shared)).astype(key.dtype)
        return total + dot(plan, d_score, key, 1, 0) * outer.astype(_F32)

    begin = jnp.zeros(d_query.shape, _F32)
    d_query[...] = _over_places(plan, head, block, step, begin)


def _keys_kernel(mode, plan, group, head, d_out, level, shared, d_key, d_value):
    tile, z, other = pl.program_id(0), pl.program_id(1), 1 - mode
    at, place = _places(plan, mode, tile, 0)
    key, value = head.keys[mode][at], head.values[mode][at]
    start, end = tile * plan.sizes[mode], (tile + 1) * plan.sizes[mode]

    def over_rows(number, carry):
        block = _block(plan, group, head, z, number, 1)
        query, into = head.query[block.at], d_out[block.at]
        level_here, shared_here = level[block.at][None], shared[block.at][None]

        def over_other(o, carry):
            d_key, d_value = carry
            row = query * head.keys[other][o][None]
            into_row = into * head.values[other][o][None]
            scores = dot(plan, key, row, 1, 1)
            places = [place, o] if mode == 0 else [o, place]
            share = jnp.exp2(_masked(plan, head, block, places, scores) - level_here)
            d_share = dot(plan, value, into_row, 1, 1)
            d_score = (share * (d_share - shared_here)).astype(key.dtype)
            d_key += dot(plan, d_score, row, 1, 0)
            d_value += dot(plan, share.astype(key.dtype), into_row, 1, 0)
            return d_key, d_value

        first, last = _reach(plan, other, block)
        if plan.is_ordered and mode == 0:
            first = jnp.maximum(first, start)
        if plan.is_ordered and mode == 1:
            last = jnp.minimum(last, end)
        is_here = start < jnp.max(block.lengths[mode])
        return lax.fori_loop(first, jnp.where(is_here, last, 0), over_other, carry)

    left, right = plan.windows[mode]
    num_rows, size = len(level), plan.num_queries
    first, last = np.int32(0), np.int32(num_rows)
    if right is not None:
        first = jnp.maximum(start - right, 0) * group
    if left is not None:
        last = jnp.minimum(end + left, num_rows // group) * group
    zeros = jnp.zeros(key.shape, _F32)
    d_key[...], d_value[...] = lax.fori_loop(
        div(first, size), div(last + size - 1, size), over_rows, (zeros, zeros)
    )
