"""Which degree of a polynomial is certain to do, and whether one is."""

import math
from typing import Any

from jax.core import Tracer
import jax.numpy as jnp
import numpy as np

from jaxlr.attention.theory import (
    certified_error,
    entry_score_bound,
    score_bound,
    too_many_features,
)


_MOST_DEGREE = 30


def check_bounds(degree, entry_bound, error_bound, implementation):
    """Arguments such as `tensor_attention` takes.

    Raises:
        ValueError: If they are not.
    """
    is_auto = degree == "auto"
    if not is_auto and (not isinstance(degree, int | np.integer) or degree < 0):
        raise ValueError(f"`degree` must be an integer >= 0 or 'auto', got {degree!r}.")
    if is_auto and error_bound is None:
        raise ValueError("`degree='auto'` needs `error_bound`.")
    may_be_exact = implementation is None and error_bound is None
    for name, bound in (("error_bound", error_bound), ("entry_bound", entry_bound)):
        if bound is None:
            continue
        if isinstance(bound, Tracer) or not bound > 0:
            raise ValueError(
                f"`{name}` must be a positive number known while tracing, got "
                f"{bound!r}."
            )
        if may_be_exact or implementation not in (None, "polynomial"):
            raise ValueError(
                f"`{name}` is of polynomials, got {bound!r} with `implementation` "
                f"{implementation!r}; use 'polynomial', or None with `error_bound`."
            )


def choose(degree, query, keys, scale, entry_bound, error_bound):
    """`(why the polynomial is not certain, degree)`.

    Raises:
        ValueError: Where nothing bounds the scores of traced arrays.
    """
    arrays = query, *keys
    is_known = not any(isinstance(x, Tracer) for x in arrays)
    if entry_bound is not None and is_known:
        most = max(float(jnp.max(jnp.abs(x))) for x in arrays)
        if not most <= entry_bound * (1 + 1e-6):
            return (
                f"Entries of `query` and `keys` reach {most:.3g}, beyond `entry_bound` "
                f"{entry_bound:.3g}."
            ), degree
    features = query.shape[-1]
    is_scale_known = not isinstance(scale, Tracer)
    most: Any = None
    if error_bound is None:
        tries = [degree]
    else:
        if entry_bound is not None and is_scale_known:
            most = entry_score_bound(entry_bound, features, len(keys), scale)
        elif is_known and is_scale_known:
            most = float(abs(scale) * score_bound(query, keys))
        else:
            raise ValueError(
                "`error_bound` needs `entry_bound` and a known `scale` where arrays "
                "are not known: under jit, grad or vmap."
            )
        tries = range(0, _MOST_DEGREE + 1, 2) if degree == "auto" else [degree]
    tried, error, rounding = 0, math.inf, 0.0
    if error_bound is not None:
        # Sums of p(s) >= e^-R are made of terms up to e^R.
        wide = jnp.promote_types(query.dtype, jnp.float32)
        growth = 4 * math.exp(min(2 * most, 500)) * float(jnp.finfo(wide).eps)
        rounding = growth + float(jnp.finfo(query.dtype).eps)
    for tried in tries:
        reason = too_many_features(features, tried)
        if reason is not None:
            return reason, degree
        if error_bound is None:
            return None, tried
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
    """Of known sums of shares.

    Raises:
        ValueError: If one is not positive at an odd degree.
    """
    if degree % 2 and not isinstance(lse, Tracer) and bool(jnp.any(jnp.isnan(lse))):
        raise ValueError(
            f"A polynomial of odd `degree` {degree} gave a sum of shares that is not "
            "positive; use an even degree."
        )
