"""Arrays that several tests attend with."""

import jax.random as jr


def draw(sizes, *, batch=2, queries=7, heads=2, features=4, size=1.0, dtype=float):
    """Query, keys, values; scores have a standard deviation above 1."""
    keys = jr.split(jr.key(0), 1 + 2 * len(sizes))
    query = size * 2 * jr.normal(keys[0], (batch, queries, heads, features), dtype)
    sets = [
        jr.normal(key, (batch, s, heads, features), dtype)
        for key, s in zip(keys[1:], [*sizes, *sizes], strict=True)
    ]
    return query, tuple(size * k for k in sets[: len(sizes)]), tuple(sets[len(sizes) :])
