"""Kronecker attention: softmax attention over tuples of keys, one of every mode.

    s_ijk = scale sum_d q_id k_jd k'_kd,    o_i = sum_jk softmax_jk(s_ijk) (v_j * v'_k)

Letters: B sequences, T queries, N heads, K heads of keys, modes of S positions, d
features of a head.
"""

from collections.abc import Sequence
from typing import Any, get_args, Literal, TypeAlias, TypedDict

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int
import numpy as np

from jaxlr import kernels
from jaxlr.attention import _certainty, _polynomial
from jaxlr.core import checks, Hyper
from jaxlr.kernels.tensor_attention import Window


Implementation: TypeAlias = Literal[
    "reference", "xla", "pallas", "pallas_interpret", "polynomial"
]
LocalWindow: TypeAlias = int | Sequence[int | tuple[int, int] | None] | None


class AttentionSettings(TypedDict, total=False):
    """Keywords of `tensor_attention` that layers pass on to it."""

    mask: Bool[Array, "..."] | None
    scale: Hyper | None
    is_causal: bool
    is_ordered: bool
    local_window_size: LocalWindow
    key_lengths: Int[ArrayLike, " B"] | Sequence[Any] | None
    implementation: Implementation | None
    degree: int | Literal["auto"]
    entry_bound: float | None
    error_bound: float | None
    precision: str | None


def tensor_attention(
    query: Float[Array, "B T N d"],
    keys: Sequence[Float[Array, "B _ _ d"]],
    values: Sequence[Float[Array, "B _ _ d"]],
    *,
    mask: Bool[Array, "..."] | None = None,
    scale: Hyper | None = None,
    is_causal: bool = False,
    is_ordered: bool = False,
    local_window_size: LocalWindow = None,
    key_lengths: Int[ArrayLike, " B"] | Sequence[Any] | None = None,
    implementation: Implementation | None = None,
    degree: int | Literal["auto"] = 4,
    entry_bound: float | None = None,
    error_bound: float | None = None,
    precision: str | None = "highest",
    return_residual: bool = False,
) -> Any:
    """Attention of every query to all tuples of positions, a position of each mode.

    With one mode this is `jax.nn.dot_product_attention`. The order of the modes does
    not matter, unless `is_ordered`. In float32 the exact forms are within 2e-6 of
    float64 and their gradients within 5e-6, for scores of standard deviation 1.

    Args:
        query: The queries q_i of all heads.
        keys: An array (B, S, K, d) a mode; S and K may differ from mode to mode, and
            every K divides N: heads in a row share theirs.
        values: An array for each of `keys`, of its shape.
        mask: Where scores count; of axes (B, N, T, S of each mode), each of its length
            or 1. None for everywhere.
        scale: Number that multiplies all scores; None for d^-1/2.
        is_causal: Whether query i sees positions 0..i of every mode only.
        is_ordered: Whether positions must not fall from mode to mode: j <= k.
        local_window_size: How far from i a query i sees: w positions to either side in
            every mode, or a tuple of one entry a mode, each w, `(left, right)`, or None
            for everything. With two modes (2, 3) is 2 for one, 3 for the other.
        key_lengths: Number of positions that count, from the first: (B,), or one such
            array or None for each mode; traced ones beyond S are S. Beyond, keys and
            values may be NaN. None for all positions.
        implementation: How it is computed. `"xla"`: exact, by tiles, in memory linear
            in T and S, 4 B N T d prod S flops; windows and causality skip tiles; has
            gradients, and forward derivatives of those alone (`jax.jvp` of `jax.grad`).
            `"pallas"`: the same by kernels on a TPU or GPU, for two modes of float32 or
            bfloat16; `"pallas_interpret"`: those kernels anywhere, slow, for tests.
            `"reference"`: exact, all scores at once, differentiable at will.
            `"polynomial"`: the exponential as its Taylor polynomial, for bounded
            entries, with any number of modes: 2 B N (T + sum S) r (d + 1) flops,
            r = C(d + degree, degree), and B N r (d + 1) numbers and a chunk in memory;
            causality, windows and order multiply sums of every mode at every query, 14
            times the flops at d = 4 and degree 4. Gradients are products with the same
            factors, 2 to 3 times the flops. NaN where a sum of shares is not positive.
            A window subtracts what leaves it: its rounding is that of the largest
            values seen before, and an infinite one stays. None: `"xla"`; with
            `error_bound`, `"polynomial"` where that bound is certain and the mask
            allows it. Kernels share keys among heads; all others repeat them.
        degree: Degree of the polynomial; `"auto"` for the least even one that meets
            `error_bound`. Even ones keep shares positive. Static.
        entry_bound: What entries of query and keys do not exceed, for a polynomial;
            known ones are checked. None where nothing bounds them.
        error_bound: What the error may be at most, in units of the largest product of
            values; None for anything. It is `certified_error` and rounding, 4 e^2R
            units in the last place for scores up to R; windows add to it as above.
            While tracing it needs `entry_bound`; of traced arrays
            `certified_error(degree, score_bound(scale * query, keys))` is a value.
        precision: Precision of products, as jax names it; None for that of the device.
        return_residual: Whether to return the log-sum-exp too. Static.

    Returns:
        Outputs (B, T, N, d), 0 where a query sees nothing; with `return_residual`
        `(out, lse)`, lse of (B, T, N) the natural logarithm of the sum of exponentials,
        differentiable, in float32 at least.

    Raises:
        ValueError: On shapes, bounds and names that are not as above; for a polynomial,
            if the mask does not stay linear, the error bound is not met, or for known
            arguments of an odd degree a sum of shares is not positive.

    References:
        Alman, Song. "How to Capture Higher-order Correlations? Generalizing Matrix
        Softmax Attention to Kronecker Computation". 2023. arXiv:2310.04064.
        Liang, Shi, Song, Zhou. "Tensor Attention Training: Provably Efficient Learning
        of Higher-order Transformers". 2024. arXiv:2405.16411: gradients.
    """
    query = jnp.asarray(query)
    keys, values = (tuple(map(jnp.asarray, part)) for part in (keys, values))
    mask = mask if mask is None else jnp.asarray(mask)
    _check_shapes(query, keys, values, mask)
    checks.choice("implementation", implementation, (*get_args(Implementation), None))
    degree = _certainty.check_bounds(degree, entry_bound, error_bound, implementation)
    if scale is None:
        scale = query.shape[-1] ** -0.5
    elif jnp.ndim(scale):
        raise ValueError(f"`scale` must be a number, got shape {jnp.shape(scale)}.")
    is_ordered = is_ordered and len(keys) > 1
    most = max(x.shape[1] for x in (query, *keys))
    windows = _windows(local_window_size, len(keys), most, is_causal)
    lengths = _lengths(key_lengths, keys)
    if key_lengths is not None:
        # What does not count is not to be NaN either.
        keys, values = (_zero_beyond(lengths, part) for part in (keys, values))

    if implementation == "polynomial" or (
        implementation is None and error_bound is not None
    ):
        reason = _polynomial.obstacle(mask, windows, is_ordered)
        if reason is None:
            with jax.ensure_compile_time_eval():
                reason, degree = _certainty.choose(
                    degree, query, keys, scale, entry_bound, error_bound
                )
        if reason is not None and implementation is not None:
            raise ValueError(reason)
        implementation = None if reason is not None else "polynomial"

    wide = jnp.promote_types(query.dtype, jnp.float32)
    query = (query.astype(wide) * jnp.asarray(scale, wide)).astype(query.dtype)
    arguments = query, keys, values, lengths, windows, is_ordered, mask, precision
    out, lse = _heads_in_front(implementation, degree, *arguments)
    return (out, lse) if return_residual else out


def _heads_in_front(
    implementation,
    degree,
    query,
    keys,
    values,
    lengths,
    windows,
    is_ordered,
    mask,
    precision,
):
    """The implementations take a head of a sequence each: `(out, lse)`."""
    num_batch, _, num_heads, _ = query.shape
    is_repeated = implementation in ("reference", "polynomial")
    query, *heads = (
        _heads(x, num_heads // x.shape[2] if is_repeated else 1)
        for x in (query, *keys, *values)
    )
    keys, values = heads[: len(keys)], heads[len(keys) :]
    lengths = jnp.repeat(lengths, num_heads, axis=0)
    mask = _flat_mask(mask, num_batch, num_heads)
    arguments = query, keys, values, lengths, windows, is_ordered, mask, precision
    if implementation == "polynomial":
        out, lse = _polynomial.attend(*arguments, degree=degree)
        _certainty.check_positive(lse, degree)
    elif implementation == "reference":
        out, lse = _reference(*arguments)
    else:
        out, lse = kernels.tensor_attention(
            query,
            keys,
            values,
            lengths=lengths,
            windows=windows,
            is_ordered=is_ordered,
            mask=mask,
            precision=precision,
            implementation=implementation,
        )
    out, lse = (x.reshape(-1, num_heads, *x.shape[1:]) for x in (out, lse))
    return jnp.swapaxes(out, 1, 2), jnp.swapaxes(lse, 1, 2)


def _reference(query, keys, values, lengths, windows, is_ordered, mask, precision):
    """All scores at once."""
    letters = "jklmnopqrstuvwxy"[: len(keys)]
    parts = ",".join(f"z{letter}d" for letter in letters)
    out_type = query.dtype
    wide = jnp.promote_types(out_type, jnp.float32)
    query, *rest = (x.astype(wide) for x in (query, *keys, *values))
    scores = jnp.einsum(
        f"zid,{parts}->zi{letters}", query, *rest[: len(keys)], precision=precision
    )
    places = jnp.meshgrid(*map(jnp.arange, scores.shape[1:]), indexing="ij")
    i, *places = (place[None] for place in places)
    seen = jnp.ones(scores.shape[1:], bool)[None] if mask is None else mask
    for mode, (place, (left, right)) in enumerate(zip(places, windows, strict=True)):
        length = lengths[:, mode].reshape(-1, *[1] * (scores.ndim - 1))
        seen = seen & (place < length)
        if left is not None:
            seen = seen & (place >= i - left)
        if right is not None:
            seen = seen & (place <= i + right)
        if is_ordered and mode:
            seen = seen & (places[mode - 1] <= place)
    axes = tuple(range(2, scores.ndim))
    is_seen = jnp.any(seen, axis=axes)
    # A query that sees nothing: its scores are finite until the end.
    scores = jnp.where(seen | ~jnp.any(seen, axes, keepdims=True), scores, -jnp.inf)
    lse = jax.nn.logsumexp(scores, axis=axes, keepdims=True)
    shares = jnp.exp(scores - lse)
    out = jnp.einsum(
        f"zi{letters},{parts}->zid", shares, *rest[len(keys) :], precision=precision
    )
    lse = lse.reshape(lse.shape[:2])
    out = jnp.where(is_seen[..., None], out, 0)
    return out.astype(out_type), jnp.where(is_seen, lse, -jnp.inf)


def _check_shapes(query, keys, values, mask):
    if not keys or len(keys) != len(values):
        raise ValueError(
            "`keys` and `values` must be tuples of one array a mode, got "
            f"{len(keys)} and {len(values)}."
        )
    if jnp.ndim(query) != 4 or not jnp.issubdtype(query.dtype, jnp.floating):
        raise ValueError(
            "`query` must be a real floating-point array of shape (B, T, N, d), got "
            f"{query.dtype} of shape {jnp.shape(query)}."
        )
    batch, num_queries, num_heads, features = query.shape
    if not query.size:
        raise ValueError(f"`query` must not be empty, got shape {query.shape}.")
    for mode, (key, value) in enumerate(zip(keys, values, strict=True)):
        if key.shape != value.shape:
            raise ValueError(
                f"`keys[{mode}]` and `values[{mode}]` must have one shape, got "
                f"{key.shape} and {value.shape}."
            )
        fits = key.ndim == 4 and (key.shape[0], key.shape[3]) == (batch, features)
        if not fits or not key.size or num_heads % key.shape[2]:
            raise ValueError(
                f"`keys[{mode}]` must have shape ({batch}, S >= 1, K, {features}) with "
                f"a K that divides {num_heads}, got {key.shape}."
            )
        for name, x in (("keys", key), ("values", value)):
            if x.dtype != query.dtype:
                raise ValueError(
                    f"`{name}[{mode}]` must be {query.dtype} as `query`, got {x.dtype}."
                )
    if mask is not None:
        shape = batch, num_heads, num_queries, *(key.shape[1] for key in keys)
        fits = mask.ndim == len(shape) and all(
            have in (1, want) for have, want in zip(mask.shape, shape, strict=True)
        )
        if mask.dtype != jnp.bool_ or not fits:
            raise ValueError(
                f"`mask` must be boolean with axes of {shape} or 1, got {mask.dtype} "
                f"of shape {mask.shape}."
            )


def _windows(given, num_modes, most, is_causal) -> tuple[Window, ...]:
    """`(left, right)` a mode, no wider than sequences are; causality among them."""
    entries = given if isinstance(given, tuple | list) else [given] * num_modes
    pairs = [x if isinstance(x, tuple | list) else (x, x) for x in entries]
    if len(pairs) != num_modes or any(len(pair) != 2 for pair in pairs):
        raise ValueError(
            "`local_window_size` must be an integer >= 0 or one entry for each of the "
            f"{num_modes} modes, an integer, (left, right) or None, got {given!r}."
        )

    def width(w):
        if w is None:
            return None
        return min(checks.count("local_window_size", w, least=0), most)

    widths = [(width(left), width(right)) for left, right in pairs]
    return tuple((left, 0 if is_causal else right) for left, right in widths)


def _lengths(key_lengths, keys):
    """(B, modes)."""
    is_one = not isinstance(key_lengths, tuple | list)
    entries = [key_lengths] * len(keys) if is_one else key_lengths
    if len(entries) != len(keys):
        raise ValueError(
            f"`key_lengths` must have an entry for each of the {len(keys)} modes, got "
            f"{len(entries)}."
        )
    found = []
    for entry, key in zip(entries, keys, strict=True):
        batch, most = key.shape[:2]
        entry = np.full(batch, most) if entry is None else entry
        shape, dtype = jnp.shape(entry), jnp.result_type(entry)
        if shape != (batch,) or not jnp.issubdtype(dtype, jnp.integer):
            raise ValueError(
                f"`key_lengths` must be whole numbers of shape ({batch},), got {dtype} "
                f"of shape {shape}."
            )
        checks.within("key_lengths", entry, 0, most)
        found.append(jnp.minimum(jnp.asarray(entry, jnp.int32), most))
    return jnp.stack(found, axis=1)


def _zero_beyond(lengths, arrays):
    """Arrays (B, S, K, d) of every mode, zero from its lengths on."""
    places = (jnp.arange(x.shape[1]) for x in arrays)
    return tuple(
        jnp.where((place < lengths[:, mode, None])[..., None, None], x, 0)
        for mode, (place, x) in enumerate(zip(places, arrays, strict=True))
    )


def _heads(x, num_times):
    """(B K, S, d) from (B, S, K, d), each head so many times."""
    x = jnp.repeat(jnp.swapaxes(x, 1, 2), num_times, axis=1)
    return x.reshape(-1, *x.shape[2:])


def _flat_mask(mask, batch, num_heads):
    """B and N as one axis, of length 1 if both are."""
    if mask is None:
        return None
    if mask.shape[:2] != (1, 1):
        mask = jnp.broadcast_to(mask, (batch, num_heads, *mask.shape[2:]))
    return mask.reshape(-1, *mask.shape[2:])
