"""Attention with a Taylor polynomial in place of the exponential: near-linear time.

With phi(x) all monomials of degree up to g, p(s) = phi(q)^T diag(w) (phi(k) * phi(k'))
for p(s) = sum_m s^m / m! and w the inverse factorials of the powers. So sums over
tuples become products of sums over positions, one of every mode:

    sum_jk p(s_ijk) v_j v'_k = (w phi(q_i))^T (sum_j phi(k_j) v_j * sum_k phi(k_k) v_k)

Letters: Z heads, T queries, modes of S positions, d features, r monomials. A column of
ones beside the values makes the sum of shares.
"""

import functools as ft
import math

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np


_CHUNK = 2**18  # Entries of features that a step makes, for all heads.
_ROWS = 16  # Of a cumulative sum by one matrix product.


@ft.cache
def table(num_variables: int, degree: int):
    """Levels `(parents, variables)` of monomials, and the inverse factorials.

    A monomial of a level is its parent, counted in the level below, times a variable
    that is not before the last of the parent's.
    """
    level, levels, weights = [(0, ())], [], [1.0]
    for _ in range(degree):
        made = [
            (place, (*powers, v))
            for place, (_, powers) in enumerate(level)
            for v in range(powers[-1] if powers else 0, num_variables)
        ]
        levels.append(
            (
                np.array([place for place, _ in made], np.int32),
                np.array([powers[-1] for _, powers in made], np.int32),
            )
        )
        for _, powers in made:
            counts = np.bincount(powers)
            weights.append(1 / math.prod(map(math.factorial, counts.tolist())))
        level = made
    return levels, np.array(weights)


def features(x, degree):
    """All monomials of the last axis, (..., r); one product each."""
    levels, _ = table(x.shape[-1], degree)
    take = ft.partial(jnp.take, axis=-1, mode="clip")
    level = jnp.ones((*x.shape[:-1], 1), x.dtype)
    found = [level]
    for parents, variables in levels:
        level = take(level, parents) * take(x, variables)
        found.append(level)
    return jnp.concatenate(found, axis=-1)


def obstacle(mask, windows, is_ordered):
    """Why masks do not leave sums over each mode apart; None if they do."""
    if is_ordered and set(windows) not in ({(None, None)}, {(None, 0)}):
        return "`is_ordered` with `local_window_size` is not linear: use an exact form."
    if mask is not None and sum(size > 1 for size in mask.shape[2:]) > 1:
        return (
            "`mask` must be of queries or one mode's positions alone for a polynomial, "
            f"got shape {mask.shape}; causality, windows, order and lengths have "
            "arguments of their own."
        )
    return None


def attend(
    query, keys, values, lengths, windows, is_ordered, mask, precision, *, degree
):
    """`(out, lse)` of all heads; lse is NaN where a sum of shares is not positive."""
    chunk = max(_CHUNK // query.shape[0], 1)
    one = ft.partial(_one_head, windows, is_ordered, precision, degree, chunk)
    is_shared = mask is None or mask.shape[0] == 1
    if is_shared and mask is not None:
        mask = mask[0]
    return jax.vmap(one, in_axes=(0, 0, 0, 0, None if is_shared else 0))(
        query, keys, values, lengths, mask
    )


def _one_head(
    windows, is_ordered, precision, degree, chunk, query, keys, values, lengths, mask
):
    wide = jnp.promote_types(query.dtype, jnp.float32)
    out_type, num_queries = query.dtype, query.shape[0]
    query, *rest = (x.astype(wide) for x in (query, *keys, *values))
    keys, values = rest[: len(keys)], rest[len(keys) :]
    query, keys = _balanced(query, keys)
    counted = _counted(keys, lengths, mask)
    # What does not count adds nothing, be it shares or values.
    rows = [
        (key, _augmented(value, here))
        for key, value, here in zip(keys, values, counted, strict=True)
    ]
    sums = _Sums(query.shape[1], degree, precision, chunk, wide)
    if is_ordered:
        is_causal = windows[0][1] == 0
        length = num_queries if is_causal else max(key.shape[0] for key in keys)
        rows = [tuple(_shifted(x, 0, length) for x in row) for row in rows]
        if is_causal:
            both = sums.ordered(query, rows)
        else:
            both = sums.read(query, sums.ordered_total(rows))
        is_seen = jnp.ones(length, bool)
        for here in counted:
            here = _shifted(here[:, None], 0, length)[:, 0]
            is_seen = jnp.cumsum(here & is_seen) > 0
        if not is_causal:
            is_seen = jnp.broadcast_to(is_seen[-1], (num_queries,))
    else:
        if all(window == (None, None) for window in windows):
            both = sums.read(query, ft.reduce(jnp.multiply, map(sums.total, rows)))
        else:
            both = sums.moving(query, rows, windows)
        is_seen = ft.reduce(
            jnp.logical_and,
            (
                _num_seen(here, window, num_queries) > 0
                for here, window in zip(counted, windows, strict=True)
            ),
        )
    if mask is not None and mask.shape[0] > 1:
        is_seen = is_seen & mask.ravel()
    out, shares = normalized(both, is_seen[:, None])
    lse = jnp.where(is_seen, jnp.log(shares[:, 0]), -jnp.inf)
    return out.astype(out_type), lse


def normalized(both, is_seen):
    """Sums of values over those of shares, the last column, and the latter.

    NaN where those are not positive, 0 where nothing is seen.
    """
    is_positive = both[..., -1:] > 0
    shares = jnp.where(is_positive, both[..., -1:], 1)
    out = jnp.where(is_positive, both[..., :-1] / shares, jnp.nan)
    return (
        jnp.where(is_seen, out, 0),
        jnp.where(is_positive | ~is_seen, shares, jnp.nan),
    )


class _Sums:
    """Sums over positions of features times values, (r, d + 1), a chunk at a time."""

    def __init__(self, num_variables, degree, precision, chunk, dtype):
        _, weights = table(num_variables, degree)
        self.degree = degree
        self.weights = jnp.asarray(weights, dtype)
        self.einsum = ft.partial(jnp.einsum, precision=precision)
        self.shape = weights.size, num_variables + 1
        self.chunk, self.dtype = chunk, dtype

    def features(self, x):
        return features(x, self.degree)

    def zeros(self):
        return jnp.zeros(self.shape, self.dtype)

    def total(self, row):
        """Over all positions."""

        def body(carry, part):
            key, value = part
            return carry + self.einsum("sr,sc->rc", self.features(key), value), None

        parts = _split(row, self.chunk // self.shape[0])
        return lax.scan(jax.checkpoint(body), self.zeros(), parts)[0]

    def read(self, query, sums):
        """What every query finds in sums over all positions."""
        weighted = self.weights[:, None] * sums

        def body(part):
            return self.einsum("tr,rc->tc", self.features(part), weighted)

        parts = _split(query, self.chunk // self.shape[0])
        found = lax.map(jax.checkpoint(body), parts)
        return found.reshape(-1, self.shape[1])[: query.shape[0]]

    def each(self, row):
        """What each position adds to the sum, by itself."""
        key, value = row
        # A product of matrices, so that its gradients are too, which is faster.
        return self.einsum("tr,tc->trc", self.features(key), value)

    def cumsum(self, x):
        """Over the first axis."""
        parts = _split(x, _ROWS)
        size = parts.shape[1]
        # Products are faster than what `jnp.cumsum` does on a CPU.
        within = self.einsum("ij,bj...->bi...", jnp.tri(size, dtype=x.dtype), parts)
        total = jnp.cumsum(within[:, -1:], axis=0)
        sums = within + jnp.pad(total[:-1], [(1, 0), *[(0, 0)] * x.ndim])
        return sums.reshape(-1, *x.shape[1:])[: len(x)]

    def find(self, query, sums):
        """What every query finds in sums of its own."""
        return self.einsum("tr,trc->tc", self.features(query) * self.weights, sums)

    def moving(self, query, rows, windows):
        """Sums of each mode over a window that moves along with the queries."""
        begin, moves = [], []
        for (key, value), (left, right) in zip(rows, windows, strict=True):
            here = jnp.arange(len(key)) < (len(key) if right is None else right)
            begin.append(self.total((key, jnp.where(here[:, None], value, 0))))
            leaving = None if left is None else -left - 1
            moves.append(
                tuple(
                    None
                    if offset is None
                    else tuple(_shifted(x, offset, len(query)) for x in (key, value))
                    for offset in (right, leaving)
                )
            )

        def body(carry, part):
            query, moves = part
            product, after = 1.0, []
            for sums, (entering, leaving) in zip(carry, moves, strict=True):
                change = 0.0
                if entering is not None:
                    change = change + self.each(entering)
                if leaving is not None:
                    change = change - self.each(leaving)
                if entering is None and leaving is None:
                    sums = sums[None]
                else:
                    sums = sums + self.cumsum(change)
                product = product * sums
                after.append(sums[-1])
            return tuple(after), self.find(query, product)

        found = self.scan(body, tuple(begin), (query, moves))[1]
        return found.reshape(-1, self.shape[1])[: query.shape[0]]

    def nested(self, carry, rows):
        """Sums over positions that do not fall from mode to mode, up to each."""
        sums, after = 1.0, []
        for before, row in zip(carry, rows, strict=True):
            sums = before + self.cumsum(self.each(row) * sums)
            after.append(sums[-1])
        return tuple(after), sums

    def ordered(self, query, rows):
        """What query i finds in ordered positions up to i."""

        def body(carry, part):
            query, rows = part
            carry, sums = self.nested(carry, rows)
            return carry, self.find(query, sums)

        begin = (self.zeros(),) * len(rows)
        found = self.scan(body, begin, (query, rows))[1]
        return found.reshape(-1, self.shape[1])[: query.shape[0]]

    def ordered_total(self, rows):
        """Over all ordered positions."""

        def body(carry, rows):
            return self.nested(carry, rows)[0], None

        begin = (self.zeros(),) * len(rows)
        return self.scan(body, begin, rows)[0][-1]

    def scan(self, body, carry, rows):
        """Over chunks of rows with sums of their own; gradients keep few carries."""
        num = len(jax.tree.leaves(rows)[0])
        num_chunks = -(-num * math.prod(self.shape) // self.chunk)
        num_groups = math.isqrt(num_chunks)
        num_each = -(-num_chunks // num_groups)
        parts = _split(_split(rows, -(-num // (num_groups * num_each))), num_each)

        def some(carry, parts):
            return lax.scan(jax.checkpoint(body), carry, parts)

        return lax.scan(jax.checkpoint(some), carry, parts)


def _balanced(query, keys):
    """With the same scores, keys of no entry above 1: powers do not overflow."""
    found = []
    for key in keys:
        most = lax.stop_gradient(jnp.max(jnp.abs(key), axis=0))
        most = jnp.where(most > 0, most, 1)
        query, key = query * most, key / most
        found.append(key)
    return query, found


def _counted(keys, lengths, mask):
    """Positions of each mode that count; the mask is of one mode, or of none."""
    counted = []
    for mode, key in enumerate(keys):
        here = jnp.arange(key.shape[0]) < lengths[mode]
        if mask is not None:
            size = mask.shape[mode + 1]
            others = mask.size // size
            if others == 1:
                here = here & jnp.reshape(mask, size)
        counted.append(here)
    return counted


def _augmented(value, here):
    ones = jnp.ones_like(value[:, :1])
    return jnp.where(here[:, None], jnp.concatenate([value, ones], axis=1), 0)


def _num_seen(here, window, num_queries):
    """How many positions that count a query sees."""
    left, right = window
    before = jnp.pad(jnp.cumsum(here), (1, 0))
    i = jnp.arange(num_queries)
    last = len(here) if right is None else jnp.clip(i + right + 1, 0, len(here))
    first = 0 if left is None else jnp.clip(i - left, 0, len(here))
    return jnp.broadcast_to(before[last] - before[first], i.shape)


def _shifted(x, offset, num):
    """Rows offset, offset + 1, ... of x, num of them; zeros where it has none."""
    x = x[max(offset, 0) :]
    front = min(max(-offset, 0), num)
    x = x[: num - front]
    return jnp.pad(x, ((front, num - front - len(x)), (0, 0)))


def _split(tree, size):
    """Leading axes cut into chunks of about that size, the last filled with zeros."""
    num = len(jax.tree.leaves(tree)[0])
    num_chunks = -(-num // max(size, 1))
    size = -(-num // num_chunks)  # all alike, so that little is filled

    def cut(x):
        x = jnp.pad(x, [(0, -num % size), *[(0, 0)] * (x.ndim - 1)])
        return x.reshape(-1, size, *x.shape[1:])

    return jax.tree.map(cut, tree)
