"""Polynomial attention a position at a time, from sums of a fixed size.

Letters: B sequences, N heads, K heads of keys, d features, r monomials.
"""

from collections.abc import Sequence
import functools as ft

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlr.attention._polynomial import features, normalized, table
from jaxlr.attention.theory import too_many_features
from jaxlr.core import checks


class PolynomialState(eqx.Module):
    """What positions so far leave behind: 8 B N r (d + 1) bytes for two modes.

    Attributes:
        sums: Sum over positions of features times values and a one, (B, N, r, d + 1)
            for each mode.
        degree: Degree of the polynomial. Static.
        is_ordered: Whether positions must not fall from mode to mode. Static.
    """

    sums: tuple[Float[Array, "B N r _"], ...]
    degree: int = eqx.field(static=True)
    is_ordered: bool = eqx.field(static=True)


def init_state(
    num_modes: int,
    batch_size: int,
    num_heads: int,
    head_dim: int,
    *,
    degree: int = 4,
    is_ordered: bool = False,
    dtype: jnp.dtype = jnp.float32,
) -> PolynomialState:
    """The state before any position.

    Args:
        num_modes: Number of sets of keys and values, which queries see tuples of.
        batch_size: Number B of sequences.
        num_heads: Number N of heads of queries.
        head_dim: Number d of features of a head.
        degree: Degree of the polynomial; even ones keep shares positive.
        is_ordered: Whether positions must not fall from mode to mode.
        dtype: Type of the sums: float32 or wider, or few positions would be counted.

    Raises:
        ValueError: Unless all numbers are at least 1, and the degree at least 0; for
            more monomials than 2^17, or a narrower type.
    """
    if jnp.promote_types(dtype, jnp.float32) != dtype:
        raise ValueError(f"`dtype` must be float32 or float64, got {dtype!r}.")
    num_modes = checks.count("num_modes", num_modes)
    batch_size = checks.count("batch_size", batch_size)
    num_heads = checks.count("num_heads", num_heads)
    head_dim = checks.count("head_dim", head_dim)
    degree = checks.count("degree", degree, least=0)
    reason = too_many_features(head_dim, degree)
    if reason is not None:
        raise ValueError(reason)
    _, weights = table(head_dim, degree)
    shape = batch_size, num_heads, weights.size, head_dim + 1
    return PolynomialState((jnp.zeros(shape, dtype),) * num_modes, degree, is_ordered)


def update(
    state: PolynomialState,
    keys: Sequence[Float[Array, "B _ d"]],
    values: Sequence[Float[Array, "B _ d"]],
) -> PolynomialState:
    """With one position more, of every mode: 2 B N r (d + 1) flops a mode.

    Args:
        state: What the positions before left behind.
        keys: Keys at the position, an array (B, K, d) for each mode; K divides N.
        values: Values at the position, an array for each of `keys`, of its shape.

    Raises:
        ValueError: For another number of modes, or shapes that are not the state's.
    """
    batch, num_heads, _, columns = state.sums[0].shape
    if not len(keys) == len(values) == len(state.sums):
        raise ValueError(
            f"`keys` and `values` must have an array for each of the {len(state.sums)} "
            f"modes, got {len(keys)} and {len(values)}."
        )
    sums, within = [], 1.0
    for mode, (before, key, value) in enumerate(
        zip(state.sums, keys, values, strict=True)
    ):
        fits = key.ndim == 3 and (key.shape[0], key.shape[2]) == (batch, columns - 1)
        if (
            not fits
            or key.shape != value.shape
            or not _divides(key.shape[1], num_heads)
        ):
            raise ValueError(
                f"`keys[{mode}]` and `values[{mode}]` must have shape ({batch}, K, "
                f"{columns - 1}) with a K that divides {num_heads}, got {key.shape} "
                f"and {value.shape}."
            )
        key, value = (
            jnp.repeat(x.astype(before.dtype), num_heads // x.shape[1], axis=1)
            for x in (key, value)
        )
        value = jnp.concatenate([value, jnp.ones_like(value[..., :1])], axis=-1)
        row = features(key, state.degree)[..., None] * value[..., None, :]
        sums.append(before + row * within)
        within = sums[-1] if state.is_ordered else 1.0
    return PolynomialState(tuple(sums), state.degree, state.is_ordered)


def _divides(number, total):
    return number > 0 and total % number == 0


def query(
    state: PolynomialState,
    queries: Float[Array, "B N d"],
    *,
    scale: float | None = None,
) -> Float[Array, "B N d"]:
    """What a query finds in the positions so far; 0 if there are none.

    NaN where an odd degree makes a sum of shares that is not positive.

    What `tensor_attention(implementation="polynomial", is_causal=True)` gives it.

    Args:
        state: What the positions so far left behind.
        queries: A query for each head.
        scale: Number that multiplies all scores; None for d^-1/2.

    Raises:
        ValueError: For a shape that is not the state's.
    """
    sums = state.sums
    shape = *sums[0].shape[:2], sums[0].shape[-1] - 1
    if queries.shape != shape:
        raise ValueError(f"`queries` must have shape {shape}, got {queries.shape}.")
    factor = shape[-1] ** -0.5 if scale is None else scale
    _, weights = table(shape[-1], state.degree)
    phi = features(queries.astype(sums[0].dtype) * factor, state.degree)
    product = sums[-1] if state.is_ordered else ft.reduce(jnp.multiply, sums)
    both = jnp.einsum(
        "bnr,bnrc->bnc",
        phi * jnp.asarray(weights, phi.dtype),
        product,
        precision="highest",
    )
    # The monomial 1 times 1 counts positions.
    out, _ = normalized(both, product[..., 0, -1:] > 0)
    return out.astype(queries.dtype)
