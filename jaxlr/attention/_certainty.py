"""Which degree of a polynomial is certain to do, and whether one is."""

import math

import jax.numpy as jnp

from jaxlr.attention.theory import (
    certified_error,
    entry_score_bound,
    score_bound,
    too_many_features,
)
from jaxlr.core import checks


_MOST_DEGREE = 30


def check_bounds(degree, entry_bound, error_bound, implementation):
    """The degree, if these are arguments such as `tensor_attention` takes.

    Raises:
        ValueError: If they are not.
    """
    if degree != "auto":
        degree = checks.count("degree", degree, least=0)
    elif error_bound is None:
        raise ValueError("`degree='auto'` needs `error_bound`.")
    may_be_exact = implementation is None and error_bound is None
    for name, bound in (("error_bound", error_bound), ("entry_bound", entry_bound)):
        if bound is None:
            continue
        if not checks.known(bound):
            raise ValueError(f"`{name}` must be known while tracing, got {bound!r}.")
        checks.positive(name, bound)
        if may_be_exact or implementation not in (None, "polynomial"):
            raise ValueError(
                f"`{name}` is of polynomials, got {bound!r} with `implementation` "
                f"{implementation!r}; use 'polynomial', or None with `error_bound`."
            )
    return degree


def choose(degree, query, keys, scale, entry_bound, error_bound):
    """`(why the polynomial is not certain, degree)`.

    Raises:
        ValueError: Where nothing bounds the scores of traced arrays.
    """
    arrays = query, *keys
    if entry_bound is not None and checks.known(arrays):
        most = max(float(jnp.max(jnp.abs(x))) for x in arrays)
        if not most <= entry_bound * (1 + 1e-6):
            return (
                f"Entries of `query` and `keys` reach {most:.3g}, beyond `entry_bound` "
                f"{entry_bound:.3g}."
            ), degree
    features = query.shape[-1]
    if error_bound is None:
        return too_many_features(features, degree), degree
    if not checks.known(scale, () if entry_bound is not None else arrays):
        raise ValueError(
            "`error_bound` needs `entry_bound` and a known `scale` where arrays are "
            "not known: under jit, grad or vmap."
        )
    if entry_bound is not None:
        most = entry_score_bound(entry_bound, features, len(keys), scale)
    else:
        most = float(abs(scale) * score_bound(query, keys))
    # Sums of p(s) >= e^-R are made of terms up to e^R.
    wide = jnp.promote_types(query.dtype, jnp.float32)
    growth = 4 * math.exp(min(2 * most, 500)) * float(jnp.finfo(wide).eps)
    rounding = growth + float(jnp.finfo(query.dtype).eps)
    tried, error = 0, math.inf
    for tried in range(0, _MOST_DEGREE + 1, 2) if degree == "auto" else [degree]:
        reason = too_many_features(features, tried)
        if reason is not None:
            return reason, degree
        error = float(certified_error(tried, most)) + rounding
        if error <= error_bound:
            return None, tried
    return (
        f"`error_bound` {error_bound:.3g} is not certain: scores up to {most:.3g} and "
        f"degree {tried} allow an error of {error:.3g}, of which rounding is "
        f"{rounding:.3g}; scale entries down, raise `degree`, or use an exact "
        "implementation."
    ), degree


def check_positive(lse, degree):
    """Refuse known sums of shares that are not positive, as of an odd degree.

    Raises:
        ValueError: If one is not.
    """
    if degree % 2 and checks.known(lse) and bool(jnp.any(jnp.isnan(lse))):
        raise ValueError(
            f"A polynomial of odd `degree` {degree} gave a sum of shares that is not "
            "positive; use an even degree."
        )
