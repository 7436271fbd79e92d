"""By tiles, in XLA, for any number of modes."""

import functools as ft
import math
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array

from jaxlr.kernels.tensor_attention._plan import Head, is_seen, TensorBlocks


def tiles(query, lens, blocks):
    """Queries of a tile, and positions of every mode."""
    num_modes = len(lens)
    if blocks is None:
        # With more modes no more positions of all but the last together.
        outer = min(8, round(64 ** (1 / max(num_modes - 1, 1))))
        blocks = TensorBlocks(query=128 if num_modes == 1 else 16, outer=outer)
    wanted = (blocks.outer,) * (num_modes - 1) + (blocks.inner,)
    return min(blocks.query, query.shape[1]), tuple(map(min, wanted, lens))


def forward(plan, head):
    """`(out, lse)`."""
    return _over_heads(ft.partial(_forward, plan), head)


def backward(plan, head, lse, d_out, shared):
    """Gradients of the query, keys and values."""
    query, *rest = _over_heads(ft.partial(_backward, plan), head, lse, d_out, shared)

    def of_shared(gradient, x):
        # From every head to what it shares.
        return jnp.sum(gradient.reshape(len(x), -1, *x.shape[1:]), axis=1)

    return query, *jax.tree.map(of_shared, tuple(rest), (head.keys, head.values))


def _product(plan, subscripts, *operands):
    """Einsum that adds up in float32 at least."""
    wide = jnp.promote_types(jnp.float32, operands[0].dtype)
    return jnp.einsum(
        subscripts, *operands, precision=plan.precision, preferred_element_type=wide
    )


def _over_heads(function, head, *others):
    mask = head.mask
    is_shared = mask is None or mask.shape[0] == 1
    axes = Head(0, 0, 0, 0, None if is_shared else 0)
    if is_shared and mask is not None:
        head = head._replace(mask=mask[0])
    keys, values = (
        tuple(jnp.repeat(x, len(head.query) // len(x), axis=0) for x in part)
        for part in (head.keys, head.values)
    )
    head = head._replace(keys=keys, values=values)
    return jax.vmap(function, in_axes=(axes, *[0] * len(others)))(head, *others)


def _forward(plan, head):
    """The output of one head, a block of queries after another."""
    num_blocks = head.query.shape[0] // plan.num_queries
    wide = jnp.promote_types(jnp.float32, head.query.dtype)
    features = head.query.shape[1]

    def block(number):
        start = number * plan.num_queries
        query = _rows(head.query, start, plan.num_queries)

        def body(tile, carry):
            most, total, out = carry
            tile = _tile(plan, head, query, start, tile)
            new = jnp.maximum(most, jnp.max(tile.scores, axis=(1, 2)))
            # Of a query that has seen nothing: no -inf - -inf.
            level = jnp.where(new == -jnp.inf, 0, new)
            share = jnp.exp(tile.scores - level[:, None, None])
            kept = jnp.exp(most - level)
            added = _product(
                plan, "iro,od->ird", share.astype(query.dtype), tile.values[-1]
            )
            added = _product(plan, "ird,rd->id", added, tile.outer_values.astype(wide))
            total = total * kept + jnp.sum(share, axis=(1, 2))
            return new, total, out * kept[:, None] + added

        begin = (
            jnp.full(plan.num_queries, -jnp.inf, wide),
            jnp.zeros(plan.num_queries, wide),
            jnp.zeros((plan.num_queries, features), wide),
        )
        num_tiles = math.prod(_tiles(plan, head, start)[1])
        most, total, out = lax.fori_loop(0, num_tiles, body, begin)
        is_seen = total > 0
        total = jnp.where(is_seen, total, 1)
        lse = jnp.where(is_seen, most + jnp.log(total), -jnp.inf)
        return (out / total[:, None]).astype(query.dtype), lse

    out, lse = lax.map(block, jnp.arange(num_blocks))
    return out.reshape(-1, features), lse.reshape(-1)


def _backward(plan, head, lse, d_out, shared):
    """Gradients of one head's query, keys and values."""
    num_blocks = head.query.shape[0] // plan.num_queries
    wide = lse.dtype

    def block(carry, number):
        start = number * plan.num_queries
        query, lse_here, d_out_here, shared_here = (
            _rows(x, start, plan.num_queries) for x in (head.query, lse, d_out, shared)
        )
        level = jnp.where(lse_here == -jnp.inf, 0, lse_here)

        def body(number, carry):
            d_query, d_keys, d_values = carry
            tile = _tile(plan, head, query, start, number)
            share = jnp.exp(tile.scores - level[:, None, None])
            into = d_out_here[:, None] * tile.outer_values.astype(d_out.dtype)
            d_share = _product(plan, "ird,od->iro", into, tile.values[-1])
            d_score = share * (d_share - shared_here[:, None, None])
            narrow = d_score.astype(query.dtype), share.astype(query.dtype)
            d_key = _product(plan, "iro,ird->od", narrow[0], tile.query)
            d_value = _product(plan, "iro,ird->od", narrow[1], into)
            d_row = _product(plan, "iro,od->ird", narrow[0], tile.keys[-1])
            seen = _product(plan, "iro,od->ird", narrow[1], tile.values[-1])
            d_query = d_query + _product(
                plan, "ird,rd->id", d_row, tile.outer_keys.astype(wide)
            )
            outer_key = _product(plan, "ird,id->rd", d_row, query.astype(wide))
            outer_value = _product(plan, "ird,id->rd", seen, d_out_here.astype(wide))
            d_keys = _add(tile, d_keys, _factors(tile.keys, outer_key), d_key)
            d_values = _add(tile, d_values, _factors(tile.values, outer_value), d_value)
            return d_query, d_keys, d_values

        num_tiles = math.prod(_tiles(plan, head, start)[1])
        d_query = jnp.zeros(query.shape, wide)
        d_query, *carry = lax.fori_loop(0, num_tiles, body, (d_query, *carry))
        return tuple(carry), d_query

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, wide), (head.keys, head.values))
    (d_keys, d_values), d_query = lax.scan(block, zeros, jnp.arange(num_blocks))
    return d_query.reshape(head.query.shape), d_keys, d_values


class _Tile(NamedTuple):
    """What a block of queries sees of one tile of each mode.

    Attributes:
        starts: First positions.
        keys: Of each mode.
        values: Of each mode.
        outer_keys: Products over all modes but the last, (rows, d).
        outer_values: Likewise.
        query: Queries times those keys, (queries, rows, d).
        scores: (queries, rows, positions of the last mode); -inf where not seen.
    """

    starts: list[Array]
    keys: list[Array]
    values: list[Array]
    outer_keys: Array
    outer_values: Array
    query: Array
    scores: Array


def _tile(plan, head, query, start, number):
    firsts, counts = _tiles(plan, head, start)
    starts = []
    for first, count, size in reversed(
        list(zip(firsts, counts, plan.sizes, strict=True))
    ):
        starts.insert(0, (first + number % count) * size)
        number = number // count
    keys, values = (
        [_rows(x, *at) for x, *at in zip(parts, starts, plan.sizes, strict=True)]
        for parts in (head.keys, head.values)
    )
    outer_keys, outer_values = _khatri_rao(keys), _khatri_rao(values)
    rows = query[:, None] * outer_keys
    scores = _product(plan, "ird,od->iro", rows, keys[-1])
    is_seen = _is_seen(plan, head, start, starts).reshape(scores.shape)
    scores = jnp.where(is_seen, scores, -jnp.inf)
    return _Tile(starts, keys, values, outer_keys, outer_values, rows, scores)


def _tiles(plan, head, start):
    """The first tile of each mode that a block of queries sees, and how many."""
    firsts, counts = [], []
    end = start + plan.num_queries - 1
    for keys, size, (left, right) in zip(
        head.keys, plan.sizes, plan.windows, strict=True
    ):
        most = keys.shape[0] // size
        first = 0 if left is None else jnp.clip((start - left) // size, 0, most)
        last = most if right is None else jnp.clip((end + right) // size + 1, 0, most)
        firsts.append(first)
        counts.append(last - first)
    return firsts, counts


def _is_seen(plan, head, start, starts):
    """An axis of queries, and an axis for every mode."""
    num_modes = len(starts)

    def along(x, axis):
        return x.reshape([-1 if axis == a else 1 for a in range(num_modes + 1)])

    i = along(start + jnp.arange(plan.num_queries), 0)
    places = [
        along(begin + jnp.arange(size), axis)
        for axis, (begin, size) in enumerate(zip(starts, plan.sizes, strict=True), 1)
    ]
    seen = is_seen(plan, i, places, head.lengths)
    seen = jnp.broadcast_to(seen, (plan.num_queries, *plan.sizes))
    if head.mask is not None:
        sizes = plan.num_queries, *plan.sizes
        at = [
            (begin, size) if have > 1 else (0, 1)
            for begin, size, have in zip(
                (start, *starts), sizes, head.mask.shape, strict=True
            )
        ]
        seen &= lax.dynamic_slice(head.mask, *zip(*at, strict=True))
    return seen


def _rows(x, start, size):
    return lax.dynamic_slice_in_dim(x, start, size)


def _khatri_rao(parts):
    """Products of rows of all but the last, (rows, d), the first mode slowest."""
    ones = jnp.ones((1, parts[0].shape[1]), parts[0].dtype)
    return ft.reduce(
        lambda a, b: (a[:, None] * b).reshape(-1, b.shape[1]), parts[:-1], ones
    )


def _factors(parts, cotangent):
    """Cotangents of the parts of `_khatri_rao`, from that of the product."""
    _, pullback = jax.vjp(
        lambda *outer: _khatri_rao([*outer, parts[-1]]).astype(cotangent.dtype),
        *(part.astype(cotangent.dtype) for part in parts[:-1]),
    )
    return pullback(cotangent)


def _add(tile, totals, outer, last):
    """Totals of each mode, with what a tile adds."""
    added = zip(totals, tile.starts, (*outer, last), strict=True)
    return tuple(
        lax.dynamic_update_slice_in_dim(
            total, _rows(total, start, len(part)) + part, start, 0
        )
        for total, start, part in added
    )
