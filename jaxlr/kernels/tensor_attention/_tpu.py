"""Kernels for a TPU, of two modes.

A step takes a tile of queries and one of each mode. Queries times some positions of the
first mode are the rows of a matrix product with the second mode. Gradients take six
such products; those of a head's keys and values stay in VMEM.
"""

import functools as ft
import math
from typing import NamedTuple

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np

from jaxlr.kernels._common import LANE, round_up, SUBLANE, vmem_params
from jaxlr.kernels.tensor_attention._plan import (
    check_two_modes,
    div,
    dot,
    is_seen,
    Plan,
    TensorBlocks,
)


_F32 = jnp.float32
_ROWS = 16  # Positions of the first mode in a product: a register of bfloat16.


class _Static(NamedTuple):
    """What a kernel is made for.

    Attributes:
        plan: The caller's.
        grid: Heads, tiles of queries, and tiles of the second and of the first mode
            that a tile of queries sees, counted from the first of them.
        lens: Positions of each mode.
        groups: Heads that share those.
        has_mask: Whether there is one.
    """

    plan: Plan
    grid: tuple[int, ...]
    lens: tuple[int, ...]
    groups: tuple[int, ...]
    has_mask: bool


def tiles(query, lens, blocks):
    """Queries of a tile, and positions of every mode.

    Raises:
        ValueError: If there are not two modes, or types or `blocks` are others.
    """
    check_two_modes(query, len(lens))
    blocks = TensorBlocks(32, 128, 512) if blocks is None else blocks
    if blocks.query % _ROWS or blocks.outer % _ROWS or blocks.inner % LANE:
        raise ValueError(
            f"The kernel's `blocks` must be multiples of {_ROWS}, {_ROWS} and {LANE}, "
            f"got {blocks}."
        )
    outer, inner = lens
    return min(blocks.query, round_up(query.shape[1], _ROWS)), (
        min(blocks.outer, round_up(outer, _ROWS)),
        min(blocks.inner, round_up(inner, LANE)),
    )


def forward(plan, head):
    """`(out, lse)`."""
    heads, num_queries, features = head.query.shape
    rows = plan.num_queries * _ROWS
    out, lse = _launch(
        plan,
        head,
        (),
        _forward_kernel,
        name="tensor_attention",
        num_products=2,
        out_shape=(
            jax.ShapeDtypeStruct(head.query.shape, head.query.dtype),
            jax.ShapeDtypeStruct((heads, num_queries, 1), _F32),
        ),
        out_specs=(_of_queries(plan, features), _of_queries(plan, 1)),
        scratch_shapes=[pltpu.VMEM((rows, size), _F32) for size in (1, 1, features)],
    )
    return out, lse[..., 0]


def backward(plan, head, lse, d_out, shared):
    """Gradients of the query, keys and values, in float32."""
    arrays = head.query, *head.keys, *head.values
    query, *rest = _launch(
        plan,
        head,
        (d_out.astype(head.query.dtype), lse[..., None], shared[..., None]),
        _backward_kernel,
        name="tensor_attention_gradient",
        num_products=6,
        out_shape=tuple(jax.ShapeDtypeStruct(x.shape, _F32) for x in arrays),
        out_specs=(
            _of_queries(plan, head.query.shape[2]),
            *(_whole(head, x) for x in arrays[1:]),
        ),
        scratch_shapes=[],
    )
    return query, tuple(rest[:2]), tuple(rest[2:])


def _launch(
    plan, head, extra, kernel, *, num_products, out_specs, scratch_shapes, **options
):
    heads, num_queries, features = head.query.shape
    counts = [
        _most_seen(plan, key.shape[1], mode) for mode, key in enumerate(head.keys)
    ]
    grid = heads, num_queries // plan.num_queries, counts[1], counts[0]
    static = _Static(
        plan,
        grid,
        tuple(key.shape[1] for key in head.keys),
        tuple(heads // len(key) for key in head.keys),
        head.mask is not None,
    )
    operands = [head.lengths[:, None], head.query, *head.keys, *head.values, *extra]
    specs = [
        pl.BlockSpec(
            (1, 1, 2), lambda z, i, t2, t1: (z, 0, 0), memory_space=pltpu.SMEM
        ),
        _of_queries(plan, features),
        *(_of_places(plan, head, mode) for mode in (0, 1, 0, 1)),
        *(_of_queries(plan, x.shape[2]) for x in extra),
    ]
    if head.mask is not None:
        operands.append(head.mask.astype(jnp.int32))
        specs.append(_of_mask(plan, head))

    rows = plan.num_queries * _ROWS
    blocks = sum(2 * _num_bytes(spec.block_shape) for spec in (*specs[1:], *out_specs))
    scratch = sum(_num_bytes(x.shape) for x in scratch_shapes)
    values = _num_bytes((rows, plan.sizes[1])) + _num_bytes((rows, features))
    vmem = blocks + scratch + 2 * num_products * values
    params = vmem_params(
        vmem,
        f"Tiles of {plan.num_queries} queries and {plan.sizes} positions, of "
        f"{list(static.lens)} with {features} features, need",
        "use smaller `blocks`, or 'xla'",
    )
    steps = math.prod(grid) * plan.num_queries * math.prod(plan.sizes)
    return pl.pallas_call(
        ft.partial(kernel, static),
        grid=grid,
        in_specs=specs,
        out_specs=out_specs,
        scratch_shapes=scratch_shapes,
        compiler_params=params,
        cost_estimate=pl.CostEstimate(
            flops=2 * num_products * features * steps,
            bytes_accessed=sum(x.nbytes for x in operands),
            transcendentals=steps,
        ),
        interpret=plan.implementation == "pallas_interpret",
        **options,
    )(*operands)


def _num_bytes(shape):
    *rest, rows, lanes = shape
    return 4 * math.prod(rest) * round_up(rows, SUBLANE) * round_up(lanes, LANE)


def _of_queries(plan, features):
    return pl.BlockSpec((1, plan.num_queries, features), lambda z, i, t2, t1: (z, i, 0))


def _of_places(plan, head, mode):
    heads, length, features = head.keys[mode].shape
    group = len(head.query) // heads
    size = plan.sizes[mode]

    def index(z, i, t2, t1):
        return div(z, group), _tile(plan, length, mode, i, (t1, t2)[mode]), 0

    return pl.BlockSpec((1, size, features), index)


def _whole(head, x):
    heads, length, features = x.shape
    group = len(head.query) // heads
    return pl.BlockSpec(
        (1, length, features), lambda z, i, t2, t1: (div(z, group), 0, 0)
    )


def _of_mask(plan, head):
    sizes = 1, plan.num_queries, *plan.sizes
    shape = head.mask.shape
    lens = [key.shape[1] for key in head.keys]

    def index(z, i, t2, t1):
        at = z, i, *(_tile(plan, lens[m], m, i, (t1, t2)[m]) for m in (0, 1))
        return tuple(place if n > 1 else 0 for place, n in zip(at, shape, strict=True))

    block = tuple(min(*pair) for pair in zip(sizes, shape, strict=True))
    return pl.BlockSpec(block, index)


def _reach(plan, length, mode, i):
    """First and last tile that a tile of queries sees; the last may be before it."""
    size, (left, right) = plan.sizes[mode], plan.windows[mode]
    start, end = i * plan.num_queries, (i + 1) * plan.num_queries - 1
    first, last = 0, length // size - 1
    if left is not None:
        first = div(jnp.maximum(start - left, 0), size)
    if right is not None:
        last = jnp.minimum(div(end + right, size), last)
    return first, last


def _tile(plan, length, mode, i, step):
    """The tile of a step; at steps that see nothing, one that is there already."""
    first, last = _reach(plan, length, mode, i)
    return jnp.clip(first + step, 0, last)


def _most_seen(plan, length, mode):
    """The largest number of tiles that a tile of queries sees."""
    size, (left, right) = plan.sizes[mode], plan.windows[mode]
    num = length // size
    if left is None or right is None:
        return num
    return min(num, pl.cdiv(left + plan.num_queries - 1 + right, size) + 1)


def _over_tile(static, lengths, mask, function):
    """Calls `function(at, is_seen)` for some positions of the first mode at a time.

    `at` are those positions in their tile; `is_seen` is of queries times them, by
    positions of the second mode. Nothing is called where a tile is out of sight.
    """
    plan = static.plan
    i, *steps = map(pl.program_id, (1, 3, 2))
    starts, is_here = [], True
    for mode, step in enumerate(steps):
        first, last = _reach(plan, static.lens[mode], mode, i)
        starts.append((first + step) * plan.sizes[mode])
        is_here &= (first + step <= last) & (starts[mode] < lengths[0, 0, mode])
    shape = plan.num_queries * _ROWS, plan.sizes[1]
    row, column = (lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 1))
    query = i * plan.num_queries + div(row, _ROWS)

    def group(number, _):
        begin = pl.multiple_of(number * _ROWS, _ROWS)
        at = pl.ds(begin, _ROWS)
        places = [starts[0] + begin + lax.rem(row, np.int32(_ROWS)), starts[1] + column]
        seen = is_seen(plan, query, places, [lengths[0, 0, 0], lengths[0, 0, 1]])
        if mask is not None:
            part = mask[0, :, at if mask.shape[2] > 1 else slice(None)]
            part = jnp.broadcast_to(part, (plan.num_queries, _ROWS, shape[1]))
            seen &= part.reshape(shape) != 0
        function(at, seen)

    @pl.when(is_here)
    def _():
        lax.fori_loop(0, plan.sizes[0] // _ROWS, group, None)


def _forward_kernel(static, lengths, query, k1, k2, v1, v2, *rest):
    *mask, out, lse, most, total, sums = rest
    plan = static.plan
    dtype, features = query.dtype, query.shape[2]
    is_first, is_last = _ends(static)

    @pl.when(is_first)
    def _():
        most[...] = jnp.full(most.shape, -jnp.inf, _F32)
        total[...] = jnp.zeros(total.shape, _F32)
        sums[...] = jnp.zeros(sums.shape, _F32)

    def add(at, seen):
        rows = _rows(query[0], k1[0, at]).astype(dtype)
        scores = jnp.where(seen, dot(plan, rows, k2[0], 1, 1), -jnp.inf)
        new = jnp.maximum(most[...], jnp.max(scores, axis=1, keepdims=True))
        level = jnp.where(new == -jnp.inf, 0.0, new)  # no -inf - -inf
        share = jnp.exp(scores - level)
        kept = jnp.exp(most[...] - level)
        found = dot(plan, share.astype(dtype), v2[0], 1, 0)
        ones = jnp.ones((plan.num_queries, features), _F32)
        most[...] = new
        total[...] = total[...] * kept + jnp.sum(share, axis=1, keepdims=True)
        sums[...] = sums[...] * kept + found * _rows(ones, v1[0, at])

    _over_tile(static, lengths, mask[0] if mask else None, add)

    @pl.when(is_last)
    def _():
        levels, totals, found = (_split(plan, x[...]) for x in (most, total, sums))
        top = jnp.max(levels, axis=1, keepdims=True)
        weight = jnp.exp(levels - jnp.where(top == -jnp.inf, 0.0, top))
        shares = jnp.sum(totals * weight, axis=1)
        has_seen = shares > 0
        shares = jnp.where(has_seen, shares, 1.0)
        out[0] = (jnp.sum(found * weight, axis=1) / shares).astype(dtype)
        lse[0] = jnp.where(has_seen, top[:, 0] + jnp.log(shares), -jnp.inf)


def _backward_kernel(static, lengths, query, k1, k2, v1, v2, d_out, lse, *rest):
    shared, *mask, d_query, d_k1, d_k2, d_v1, d_v2 = rest
    plan = static.plan
    dtype = query.dtype
    z, i, *steps = map(pl.program_id, (0, 1, 3, 2))
    is_first, _ = _ends(static)

    @pl.when(is_first)
    def _():
        d_query[...] = jnp.zeros(d_query.shape, _F32)

    for mode, gradients in enumerate(((d_k1, d_v1), (d_k2, d_v2))):

        @pl.when(is_first & (i == 0) & (lax.rem(z, np.int32(static.groups[mode])) == 0))
        def _(gradients=gradients):
            for gradient in gradients:
                gradient[...] = jnp.zeros(gradient.shape, _F32)

    starts = [
        pl.multiple_of(
            _tile(plan, static.lens[mode], mode, i, step) * plan.sizes[mode],
            plan.sizes[mode],
        )
        for mode, step in enumerate(steps)
    ]
    ones = jnp.ones((_ROWS, 1), _F32)

    def add(at, seen):
        key, value = k1[0, at], v1[0, at]
        rows = _rows(query[0], key).astype(dtype)
        into = _rows(d_out[0], value).astype(dtype)
        # Of a query that sees nothing, and of what is not seen: no -inf - -inf.
        level = _rows(jnp.where(lse[0] == -jnp.inf, 0.0, lse[0]), ones)
        scores = jnp.where(seen, dot(plan, rows, k2[0], 1, 1), -jnp.inf)
        share = jnp.exp(scores - level)
        d_share = dot(plan, into, v2[0], 1, 1)
        d_score = (share * (d_share - _rows(shared[0], ones))).astype(dtype)
        share = share.astype(dtype)
        inner = pl.ds(starts[1], plan.sizes[1])
        d_k2[0, inner] += dot(plan, d_score, rows, 0, 0)
        d_v2[0, inner] += dot(plan, share, into, 0, 0)
        d_rows = _split(plan, dot(plan, d_score, k2[0], 1, 0))
        seen_values = _split(plan, dot(plan, share, v2[0], 1, 0))
        d_query[0] += jnp.sum(d_rows * key.astype(_F32)[None], axis=1)
        outer = pl.ds(pl.multiple_of(starts[0] + at.start, _ROWS), _ROWS)
        d_k1[0, outer] += jnp.sum(d_rows * query[0].astype(_F32)[:, None], axis=0)
        d_v1[0, outer] += jnp.sum(seen_values * d_out[0].astype(_F32)[:, None], axis=0)

    _over_tile(static, lengths, mask[0] if mask else None, add)


def _ends(static):
    """Whether this is the first, and the last, step of a tile of queries."""
    _, _, num_inner, num_outer = static.grid
    inner, outer = pl.program_id(2), pl.program_id(3)
    is_last = (inner == num_inner - 1) & (outer == num_outer - 1)
    return (inner == 0) & (outer == 0), is_last


def _rows(query, places):
    """Products of all pairs, those of one query together, in float32."""
    product = query.astype(_F32)[:, None] * places.astype(_F32)[None]
    return product.reshape(-1, product.shape[2])


def _split(plan, rows):
    """An axis of queries and one of places."""
    return rows.reshape(plan.num_queries, _ROWS, rows.shape[1])
