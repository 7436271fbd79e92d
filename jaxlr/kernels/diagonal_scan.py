"""Linear recurrence of independent states, in about sqrt(L) sequential steps.

    h_l = a_l h_{l-1} + u_l,        l = 0..L-1

Letters: L positions in Q chunks of T, N states, h the state, a the decay and u the
input, all complex and given as pairs of real arrays.
"""

import dataclasses
import functools as ft

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
from jaxtyping import ArrayLike, Bool, Int

from jaxlr.core import checks
from jaxlr.kernels._common import (
    check_pairs,
    complex_product,
    Implementation,
    LANE,
    Pair,
    pick,
    round_up,
    SUBLANE,
    vmem_params,
)


_KERNEL_CHUNK = 64  # By arithmetic: with 4 registers a row, 12 MiB of VMEM.
_MOST_SUBLANES = 32  # Registers at once, whose steps do not wait for each other.


def diagonal_scan(
    a: Pair,
    u: Pair,
    h0: Pair | None = None,
    *,
    resets: Bool[ArrayLike, "... L"] | None = None,
    lengths: Int[ArrayLike, "..."] | None = None,
    is_reverse: bool = False,
    chunk: int | None = None,
    implementation: Implementation | None = None,
) -> tuple[Pair, Pair]:
    """h_l = a_l h_{l-1} + u_l for all l; the gradient is the same scan, backwards.

    All chunks run at once twice, from zero to find what each adds, then from the state
    that enters each: 2 T + Q sequential steps, 22 L N flops. The gradient keeps a, h
    and h0 alone.

    Args:
        a: Decay, a pair (re, im) of shape (..., L, N), with as many axes as `u`; or,
            with fewer, of (..., N) and constant in time. Axes in front broadcast
            everywhere.
        u: Input, a pair of shape (..., L, N).
        h0: The state before the first position, a pair of (..., N). None is zero.
        resets: Where true, the state that enters position l is dropped, h0 too, unless
            it is infinite or NaN.
        lengths: Positions from there on leave the state as it is, whatever `a`, `u` and
            `resets` hold there. None is L.
        is_reverse: Whether the scan goes from the right: h_l = a_l h_{l+1} + u_l, and
            `h0` enters there. Static.
        chunk: Number T of positions in a chunk. Changes speed and memory, and results
            by rounding. None: for `"xla"` the first power of two that is no less than
            sqrt(L), for a kernel 64. Static.
        implementation: `"xla"` anywhere: a few states a chunk beside arguments and
            result, copies of `a` and `u` if L is no multiple of T, or with resets or
            lengths; for the gradient, copies of `a` and of the cotangent.
            `"pallas"` on a TPU, float32: copies with time in front, the state in VMEM,
            L sequential steps for every 4096 states; differentiable once, where `"xla"`
            is differentiable again. `"pallas_interpret"`: the same kernel anywhere,
            slow, for tests. None is `"xla"`. There is no silent fallback.

    Returns:
        `(h, h_last)`, pairs of shape (..., L, N) and (..., N): all states, and the one
        that the scan ends with. Beyond the length, h holds the state it ends with, or
        in reverse h0.

    Raises:
        ValueError: If an argument is complex or not a pair, shapes do not fit, `resets`
            are not boolean, `lengths` not whole numbers or known and not in 0..L, on an
            unknown `implementation` or a `chunk` below 1; with a kernel, if anything is
            not float32 or a chunk would exceed 100 MiB of VMEM.

    References:
        Guy Blelloch, *Prefix Sums and Their Applications*, 1990: scans by blocks.
    """
    implementation = pick(implementation)
    if h0 is None:
        a, u = check_pairs(implementation, a=a, u=u)
        zero = jnp.zeros(u[0].shape[-1:], u[0].dtype)
        start = zero, zero
    else:
        a, u, start = check_pairs(implementation, a=a, u=u, h0=h0)
    for name, (re, im), least in (("a", a, 1), ("u", u, 2), ("h0", start, 1)):
        if re.shape != im.shape or re.ndim < least:
            raise ValueError(
                f"`{name}` must be two arrays of one shape of at least {least} axes, "
                f"got {re.shape} and {im.shape}."
            )
    if a[0].ndim < u[0].ndim:
        a = a[0][..., None, :], a[1][..., None, :]
    length = u[0].shape[-2]
    if chunk is None:
        root = 2 ** (((length - 1).bit_length() + 1) // 2)
        chunk = root if implementation == "xla" else _KERNEL_CHUNK
    chunk = checks.count("chunk", chunk)
    lead = _lead(a[0], u[0], start[0], resets, lengths)
    a, u = _fold(a, u, resets, lengths)
    plan = _Plan(is_reverse, min(chunk, length), implementation)
    flat = _flatten(a, lead, 2), _flatten(u, lead, 2), _flatten(start, lead, 1)
    h, last = _scan(plan, *flat)
    return _unflatten(h, lead), _unflatten(last, lead)


def _lead(a, u, h0, resets, lengths):
    """The axes in front of all; every shape is checked."""
    length, num = u.shape[-2:]
    if length < 1:
        raise ValueError(f"`u` must have at least one position, got {u.shape}.")
    shapes = {"a": (a.shape, 2), "u": (u.shape, 2), "h0": (h0.shape, 1)}
    fits = a.shape[-2] in (1, length) and a.shape[-1] == h0.shape[-1] == num
    check_resets_and_lengths(resets, lengths, length)
    if resets is not None:
        shapes["resets"] = jnp.shape(resets), 1
    if lengths is not None:
        shapes["lengths"] = jnp.shape(lengths), 0
    try:
        lead = jnp.broadcast_shapes(
            *(shape[: len(shape) - tail] for shape, tail in shapes.values())
        )
    except ValueError:
        lead, fits = (), False
    if not fits:
        got = ", ".join(f"`{name}` {shape}" for name, (shape, _) in shapes.items())
        raise ValueError(
            "Shapes must be `a` (..., N) or (..., L, N), `u` (..., L, N), `h0` "
            f"(..., N), `resets` (..., L) and `lengths` (...), got {got}."
        )
    return lead


def check_resets_and_lengths(
    resets: Bool[ArrayLike, "... L"] | None,
    lengths: Int[ArrayLike, "..."] | None,
    length: int,
) -> None:
    """Refuse marks of another sequence than one of so many positions.

    Args:
        resets: Where a state is dropped. None: nowhere.
        lengths: How many positions count. None: all.
        length: Number of positions.

    Raises:
        ValueError: If `resets` are not boolean or their last axis is not `length`; if
            `lengths` are not whole numbers, or known and not in 0..length.
    """
    if resets is not None:
        if jnp.result_type(resets) != jnp.bool_:
            got = jnp.result_type(resets)
            raise ValueError(f"`resets` must be boolean, got {got}.")
        if jnp.shape(resets)[-1:] != (length,):
            raise ValueError(
                f"`resets` must have shape (..., {length}), got {jnp.shape(resets)}."
            )
    if lengths is not None:
        if not jnp.issubdtype(jnp.result_type(lengths), jnp.integer):
            got = jnp.result_type(lengths)
            raise ValueError(f"`lengths` must be whole numbers, got {got}.")
        checks.within("lengths", lengths, 0, length)


def _fold(a, u, resets, lengths):
    """Decay 0 at a reset; 1 and no input where the state is to stay."""
    if resets is not None:
        is_reset = jnp.asarray(resets)[..., None]
        a = jnp.where(is_reset, 0, a[0]), jnp.where(is_reset, 0, a[1])
    if lengths is not None:
        positions = jnp.arange(u[0].shape[-2])
        is_valid = (positions < jnp.asarray(lengths)[..., None])[..., None]
        a = jnp.where(is_valid, a[0], 1), jnp.where(is_valid, a[1], 0)
        u = jnp.where(is_valid, u[0], 0), jnp.where(is_valid, u[1], 0)
    return a, u


def _flatten(pair, lead, tail):
    shape = pair[0].shape[pair[0].ndim - tail :]
    re, im = (jnp.broadcast_to(part, lead + shape) for part in pair)
    return re.reshape(-1, *shape), im.reshape(-1, *shape)


def _unflatten(pair, lead):
    re, im = (part.reshape(lead + part.shape[1:]) for part in pair)
    return re, im


@dataclasses.dataclass(frozen=True)
class _Plan:
    """All that is static about a scan."""

    is_reverse: bool
    chunk: int
    implementation: Implementation

    def pad(self, pair, length):
        """Positions to whole chunks, at the end that is reached last."""
        beyond = -length % self.chunk
        if not beyond or pair[0].shape[1] == 1 < length:
            return pair
        widths = (0, 0), ((beyond, 0) if self.is_reverse else (0, beyond)), (0, 0)
        return jnp.pad(pair[0], widths), jnp.pad(pair[1], widths)

    def unpad(self, h, length):
        """The states of the positions, and the last."""
        start = h[0].shape[1] - length if self.is_reverse else 0
        h = tuple(lax.slice_in_dim(part, start, start + length, axis=1) for part in h)
        return h, tuple(part[:, 0 if self.is_reverse else -1] for part in h)


def _value(plan, a, u, h0):
    """All states and the last, of (channels, length, states) arrays."""
    length = u[0].shape[1]
    run = _run if plan.implementation == "xla" else _launch
    return plan.unpad(run(plan, plan.pad(a, length), plan.pad(u, length), h0), length)


def _fwd(plan, a, u, h0):
    out = _value(plan, a, u, h0)
    return out, (a, h0, out[0])


def _bwd(plan, saved, cotangents):
    # With b the cotangent of h: b_l = g_l + conj(a_{l+1}) b_{l+1}, du = b, and
    # da_l = conj(h_{l-1}) b_l; the last state's cotangent is one more part of g.
    a, h0, h = saved
    g, g_last = cotangents
    last, first = (0, -1) if plan.is_reverse else (-1, 0)
    g = tuple(x.at[:, last].add(y) for x, y in zip(g, g_last, strict=True))
    after = 1 if plan.is_reverse else -1  # what enters at the end meets a zero
    conj = jnp.roll(a[0], after, 1), -jnp.roll(a[1], after, 1)
    back = dataclasses.replace(plan, is_reverse=not plan.is_reverse)
    b, _ = _value(back, conj, g, (jnp.zeros_like(h0[0]), jnp.zeros_like(h0[1])))
    d_h0 = complex_product(
        (a[0][:, first], -a[1][:, first]), (b[0][:, first], b[1][:, first])
    )
    before = [_shift(x, y, plan.is_reverse) for x, y in zip(h, h0, strict=True)]
    d_a = complex_product((before[0], -before[1]), b)
    if a[0].shape[1] == 1:
        d_a = d_a[0].sum(1, keepdims=True), d_a[1].sum(1, keepdims=True)
    return d_a, b, d_h0


_scan = jax.custom_vjp(_value, nondiff_argnums=(0,))
_scan.defvjp(_fwd, _bwd)


def _shift(h, h0, is_reverse):
    """The state that enters each position."""
    if is_reverse:
        return jnp.concatenate((h[:, 1:], h0[:, None]), 1)
    return jnp.concatenate((h0[:, None], h[:, :-1]), 1)


def _advance(a, u, h):
    re, im = complex_product(a, h)
    return re + u[0], im + u[1]


def _run(plan, a, u, h0):
    """Padded; every step reads and writes one position of all chunks in place."""
    shape = u[0].shape
    split = shape[0], -1, plan.chunk, shape[2]
    u = u[0].reshape(split), u[1].reshape(split)
    is_constant = a[0].shape[1] == 1 < shape[1]
    if is_constant:
        a = a[0][:, None], a[1][:, None]
    else:
        a = a[0].reshape(split), a[1].reshape(split)
    num_chunks = u[0].shape[1]

    def loop(num, body, carry):
        def ordered(t, carry):
            return body(num - 1 - t if plan.is_reverse else t, carry)

        return lax.fori_loop(0, num, ordered, carry)

    def at(pair, t, axis=2):
        return tuple(lax.dynamic_index_in_dim(x, t, axis, False) for x in pair)

    def put(pair, values, t, axis):
        return tuple(
            lax.dynamic_update_index_in_dim(x, y, t, axis)
            for x, y in zip(pair, values, strict=True)
        )

    def decay(t):
        return (a[0][:, :, 0], a[1][:, :, 0]) if is_constant else at(a, t)

    start = h0[0][:, None], h0[1][:, None]
    if num_chunks > 1:

        def add(t, carry):
            h, product = carry
            here = decay(t)
            return _advance(here, at(u, t), h), complex_product(here, product)

        zero = jnp.zeros_like(u[0][:, :, 0])
        one = jnp.ones_like(a[0][:, :, 0])
        carry = (zero, zero), (one, jnp.zeros_like(one))
        adds, product = loop(plan.chunk, add, carry)

        def enter(t, carry):
            h, starts = carry
            factor = at(product, 0 if is_constant else t, 1)
            return _advance(factor, at(adds, t, 1), h), put(starts, h, t, 1)

        _, start = loop(num_chunks, enter, (h0, (zero, zero)))

    def write(t, carry):
        h, states = carry
        h = _advance(decay(t), at(u, t), h)
        return h, put(states, h, t, 2)

    states = jnp.zeros_like(u[0]), jnp.zeros_like(u[1])
    _, states = loop(plan.chunk, write, (start, states))
    return states[0].reshape(shape), states[1].reshape(shape)


def _launch(plan, a, u, h0):
    """Padded; states of all channels side by side, as rows of whole registers."""
    channels, length, num = u[0].shape
    size = channels * num
    sublanes = min(round_up(pl.cdiv(size, LANE), SUBLANE), _MOST_SUBLANES)
    width = round_up(size, sublanes * LANE)
    rows = a[0].shape[1]
    chunk = plan.chunk
    vmem = 4 * 2 * sublanes * LANE * (2 * (2 * chunk + min(rows, chunk)) + 4)
    params = vmem_params(vmem, f"`chunk` {chunk} needs", "use a smaller one")

    def front(x):
        x = jnp.moveaxis(x, 1, 0).reshape(x.shape[1], size)
        return jnp.pad(x, ((0, 0), (0, width - size))).reshape(-1, width // LANE, LANE)

    num_chunks = length // chunk
    varies = rows == length

    def spec(num_rows, moves):
        def index(s, i):
            block = num_chunks - 1 - i if plan.is_reverse else i
            return (block if moves else 0), s, 0

        return pl.BlockSpec((num_rows, sublanes, LANE), index)

    decays, moving = spec(chunk if varies else 1, varies), spec(chunk, True)
    state = jax.ShapeDtypeStruct((length, width // LANE, LANE), jnp.float32)
    h = pl.pallas_call(
        ft.partial(_kernel, plan.is_reverse),
        out_shape=(state, state),
        grid=(width // (sublanes * LANE), num_chunks),
        in_specs=[decays] * 2 + [moving] * 2 + [spec(1, False)] * 2,
        out_specs=(moving, moving),
        scratch_shapes=[pltpu.VMEM((sublanes, LANE), jnp.float32)] * 2,
        compiler_params=params,
        cost_estimate=pl.CostEstimate(
            flops=8 * length * width,
            bytes_accessed=8 * width * (2 * length + rows + 1),
            transcendentals=0,
        ),
        interpret=plan.implementation == "pallas_interpret",
        name="diagonal_scan",
    )(*map(front, (*a, *u, h0[0][:, None], h0[1][:, None])))
    return tuple(
        jnp.moveaxis(
            part.reshape(length, width)[:, :size].reshape(length, channels, num), 0, 1
        )
        for part in h
    )


def _kernel(is_reverse, *refs):
    a_re, a_im, u_re, u_im, h0_re, h0_im, h_re, h_im, s_re, s_im = refs

    @pl.when(pl.program_id(1) == 0)
    def _():
        s_re[...], s_im[...] = h0_re[0], h0_im[0]

    chunk = u_re.shape[0]

    def body(t, h):
        row = chunk - 1 - t if is_reverse else t
        at = row if a_re.shape[0] > 1 else 0
        h = _advance((a_re[at], a_im[at]), (u_re[row], u_im[row]), h)
        h_re[row], h_im[row] = h
        return h

    s_re[...], s_im[...] = lax.fori_loop(0, chunk, body, (s_re[...], s_im[...]))
