"""How far polynomial attention can be off, and how many features it needs."""

from collections.abc import Sequence
import math

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from jaxlr.core import checks, Hyper


_LARGEST = 50.0  # Of a score, beyond which nothing is sure at any degree in use.
_MOST_FEATURES = 2**17


def num_features(num_variables: int, degree: int) -> int:
    """C(d + g, g): number of monomials of degree up to g in d variables.

    Args:
        num_variables: Number d of variables.
        degree: Largest degree g of the monomials.
    """
    num_variables = checks.count("num_variables", num_variables, least=0)
    degree = checks.count("degree", degree, least=0)
    return math.comb(num_variables + degree, degree)


def too_many_features(num_variables: int, degree: int) -> str | None:
    """Why so many monomials are too many; None if they are not."""
    number = num_features(num_variables, degree)
    if number <= _MOST_FEATURES:
        return None
    return (
        f"`degree` {degree} of {num_variables} features a head makes {number} "
        f"monomials, more than {_MOST_FEATURES}; use fewer features a head, a lower "
        "`degree`, or an exact implementation."
    )


def entry_score_bound(
    entry_bound: Hyper, num_variables: int, num_modes: int, scale: Hyper
) -> Hyper:
    """Largest score of queries and keys whose entries are at most `entry_bound`.

    Args:
        entry_bound: What no entry of queries and keys exceeds.
        num_variables: Number d of features of a head.
        num_modes: Number of modes, an array of keys each.
        scale: Number that multiplies all scores.
    """
    num_variables = checks.count("num_variables", num_variables)
    num_modes = checks.count("num_modes", num_modes)
    return abs(scale) * num_variables * entry_bound ** (num_modes + 1)


def score_bound(
    query: Float[Array, "... d"], keys: Sequence[Float[Array, "... d"]]
) -> Float[Array, ""]:
    """A bound on every score: sum over features of the largest products of entries.

    Args:
        query: Queries, multiplied by the scale.
        keys: An array of keys for each mode.
    """
    largest = 1.0
    for x in (query, *keys):
        largest = largest * jnp.max(jnp.abs(x), axis=tuple(range(x.ndim - 1)))
    return jnp.sum(largest)


def certified_error(degree: int, score_bound: ArrayLike) -> Float[Array, "..."]:
    """How far attention by the Taylor polynomial can be off, whatever the arrays.

    In exact arithmetic; rounding adds its own. In units of the largest product of
    values: 2 delta / (1 - delta) with delta the largest of |p(s) / e^s - 1| for
    |s| <= R, which is at an end of that interval; infinite for delta >= 1, and for an R
    that is no bound. It is loose: errors of random entries are far smaller.

    Args:
        degree: Degree g of the polynomial p. Static.
        score_bound: Bound R on the modulus of every score, of any shape.

    References:
        Alman, Song. "How to Capture Higher-order Correlations? Generalizing Matrix
        Softmax Attention to Kronecker Computation". 2023. arXiv:2310.04064: bounded
        entries. The bound is Taylor's theorem.
    """
    degree = checks.count("degree", degree, least=0)
    bound = jnp.asarray(score_bound, float)
    r = jnp.clip(bound, 1e-30, _LARGEST)
    # p(s) / e^s - 1 is minus the integral of t^g e^-t / g! from 0 to s. At -R all terms
    # of its series have one sign.
    k = jnp.arange(200)
    logs = (degree + 1 + k) * jnp.log(r)[..., None] - jnp.cumsum(
        jnp.log(jnp.maximum(k, 1))
    )
    terms = jnp.exp(logs - math.lgamma(degree + 1)) / (degree + 1 + k)
    delta = jnp.sum(terms, axis=-1)
    is_sure = (bound > 0) & (bound <= _LARGEST) & (delta < 1)
    error = jnp.where(is_sure, 2 * delta / jnp.where(is_sure, 1 - delta, 1), jnp.inf)
    return jnp.where(bound == 0, 0, error)
