"""One linear system in three forms that agree: a convolution, a scan by chunks, a step.

Letters: N conjugate representatives a channel, channels of any shape, L steps. Systems
are y = K * u with K_l = 2 Re sum_n c_n bbar_n abar_n^l; `discretize` makes abar, bbar.
"""

from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Complex, Float, Inexact, Int, Real

from jaxlr import kernels
from jaxlr.core import checks
from jaxlr.kernels.diagonal_scan import check_resets_and_lengths
from jaxlr.linalg import matmul
from jaxlr.ssm.discretize import check_system, Discretization, log_discretize
from jaxlr.ssm.init import DPLR


def kernel(
    lam: Inexact[ArrayLike, "*#channels N"],
    b: Inexact[ArrayLike, "*#channels N"],
    c: Inexact[ArrayLike, "*#channels N"],
    dt: Float[ArrayLike, "*#channels"],
    length: int,
    *,
    method: Discretization = "zoh",
    implementation: kernels.Implementation | None = None,
    allow_unstable: bool = False,
) -> Float[Array, "*channels L"]:
    """The first L entries of the impulse response, for all channels at once.

    Differentiable in reverse mode, and forward over that.

    Args:
        lam: Eigenvalues of the systems, their representatives last.
        b: Input vectors of the systems.
        c: Output vectors of the systems.
        dt: Length of a step of every channel, in the unit of time of 1 / lam.
        length: Number L of entries. Static.
        method: How time is cut: `"zoh"` or `"bilinear"`, as `discretize` tells. Static.
        implementation: Which of those of `kernels.vandermonde`, which has the cost and
            memory, to use; None for the best on the device. Static.
        allow_unstable: Whether known eigenvalues may have a real part of 0 or more.
            Static.

    Raises:
        ValueError: For what `discretize` and `kernels.vandermonde` refuse.

    References:
        Gu, Gupta, Goel, Re. "On the Parameterization and Initialization of Diagonal
        State Space Models". 2022. arXiv:2206.11893.
    """
    length = checks.count("length", length)
    check_system(lam, dt, method, allow_unstable=allow_unstable)
    dt = jnp.asarray(dt)[..., None]
    exponent, bbar = log_discretize(lam, b, dt, method)
    # In float32 the product dt lam has too few digits for its large multiples.
    is_product = method == "zoh"
    dtype = bbar.real.dtype
    return kernels.vandermonde(
        _pair(jnp.asarray(c) * bbar),
        _pair(jnp.asarray(lam, bbar.dtype) if is_product else exponent),
        length,
        step=dt.astype(dtype) if is_product else None,
        implementation=implementation,
    )


def fft_conv(
    u: Real[ArrayLike, "*#channels L"], k: Float[ArrayLike, "*#channels lags"]
) -> Float[Array, "*channels L"]:
    """y_l = sum_{j<=l} k_j u_{l-j} by FFT: O(L log L) flops, 6 L numbers a channel.

    Args:
        u: Input of every channel.
        k: Impulse response of every channel, of any number of lags; those beyond L do
            not matter.
    """
    u, k = jnp.asarray(u), jnp.asarray(k)
    length = u.shape[-1]
    k = k[..., :length]
    size = 1 << (length + k.shape[-1] - 2).bit_length()
    dtype = jnp.result_type(u, k)
    wide = jnp.promote_types(dtype, jnp.float32)
    spectrum = jnp.fft.rfft(u.astype(wide), size) * jnp.fft.rfft(k.astype(wide), size)
    return jnp.fft.irfft(spectrum, size)[..., :length].astype(dtype)


def step(
    abar: Inexact[ArrayLike, "*#channels N"],
    bbar: Inexact[ArrayLike, "*#channels N"],
    c: Inexact[ArrayLike, "*#channels N"],
    state: Complex[ArrayLike, "*#channels N"],
    u: Real[ArrayLike, "*#channels"],
) -> tuple[Float[Array, "*channels"], Complex[Array, "*channels N"]]:
    """One step of the recurrence: 14 N flops a channel.

    Args:
        abar: What multiplies the state, as `discretize` gives it.
        bbar: What multiplies the input, as `discretize` gives it.
        c: Output vectors of the systems.
        state: State x_{l-1} before the step; zeros to begin with.
        u: Input u_l of the step, a number for every channel.

    Returns:
        `(y_l, x_l)`, x_l = abar x_{l-1} + bbar u_l and y_l = 2 Re sum_n c_n x_l,n.
    """
    abar, bbar, c, state, u = map(jnp.asarray, (abar, bbar, c, state, u))
    state = abar * state + bbar * u[..., None]
    return 2 * jnp.sum((c * state).real, axis=-1), state


def scan(
    lam: Inexact[ArrayLike, "*#channels N"],
    b: Inexact[ArrayLike, "*#channels N"],
    c: Inexact[ArrayLike, "*#channels N"],
    dt: Float[ArrayLike, "*#channels"],
    u: Real[ArrayLike, "*#channels L"],
    state: Complex[ArrayLike, "*#channels N"] | None = None,
    *,
    resets: Bool[ArrayLike, "*#channels L"] | None = None,
    lengths: Int[ArrayLike, "*#channels"] | None = None,
    chunk: int | None = None,
    method: Discretization = "zoh",
    implementation: kernels.Implementation | None = None,
    allow_unstable: bool = False,
) -> tuple[Float[Array, "*channels L"], Complex[Array, "*channels N"]]:
    """The recurrence by chunks of T steps, from a state and to a state.

    Within a chunk it is a T-by-T Toeplitz product; a state goes from chunk to chunk.
    About 2 T + 8 N flops a step, and N / T states a step in memory; resets take T
    numbers a step more. In float32 its powers have the rounding of dt lam, from which
    `kernel` is free: about 1e-5 of the impulse response's maximum for S4D-LegS of 64
    states at dt = 1e-3, 4e-5 for 256.

    Args:
        lam: Eigenvalues of the systems, their representatives last.
        b: Input vectors of the systems.
        c: Output vectors of the systems.
        dt: Length of a step of every channel, in the unit of time of 1 / lam.
        u: Input; leading axes, of a batch and of channels, broadcast with all others.
        state: State before the first step; None for zeros.
        resets: Where true, what came before that step is forgotten, unless it is
            infinite or NaN.
        lengths: Number of steps that count, 0..L; y is 0 beyond, and the state stays.
            None for all.
        chunk: Number T of steps of a chunk, which changes speed, and results by
            rounding; None for 64. Static.
        method: How time is cut: `"zoh"` or `"bilinear"`, as `discretize` tells. Static.
        implementation: Which of those of `kernels.diagonal_scan` goes from chunk to
            chunk; None for the best on the device. Static.
        allow_unstable: Whether known eigenvalues may have a real part of 0 or more.
            Static.

    Returns:
        `(y, last_state)`.

    Raises:
        ValueError: For what `discretize` refuses; for a chunk or an L below 1; if
            resets are not boolean or not of L steps; if lengths are not whole numbers
            or, known while tracing, not in 0..L.
    """
    check_system(lam, dt, method, allow_unstable=allow_unstable)
    dt, c = jnp.asarray(dt), jnp.asarray(c)
    exponent, bbar = log_discretize(lam, b, dt[..., None], method)
    u = jnp.asarray(u, jnp.result_type(u, bbar.real))
    length = u.shape[-1]
    if length < 1:
        raise ValueError(f"`u` must have at least one step, got shape {u.shape}.")
    check_resets_and_lengths(resets, lengths, length)
    size = min(64, length) if chunk is None else checks.count("chunk", chunk)

    chunks = _cut(u, resets, lengths, size)
    steps = jnp.arange(size)[:, None]
    powers = jnp.exp(steps * exponent[..., None, :])  # abar^r, r = 0..T-1
    factor, added = _advance(chunks, exponent, bbar, powers)
    before, last = _states_between(factor, added, c, state, implementation)
    y = _outputs(chunks, before, exponent, bbar, c, powers)
    return y.reshape(*y.shape[:-2], -1)[..., :length], last


class _Chunks(NamedTuple):
    """The input by chunks of T steps, and what of it counts.

    Attributes:
        u: Input (..., chunks, T), zero where it does not count.
        counts: Number of steps that count of every chunk, None where all do.
        segment: Number of resets in the chunk up to every step, None without any.
    """

    u: Array
    counts: Any
    segment: Any

    def is_valid(self):
        return jnp.arange(self.u.shape[-1]) < self.counts[..., None]


def _cut(u, resets, lengths, size) -> _Chunks:
    length = u.shape[-1]

    def chunks(x):
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -length % size)])
        return x.reshape(*x.shape[:-1], -1, size)

    found = _Chunks(chunks(u), None, None)
    if lengths is not None or length % size:
        lengths = jnp.asarray(length if lengths is None else lengths)[..., None]
        starts = jnp.arange(found.u.shape[-2]) * size
        found = found._replace(counts=jnp.clip(lengths - starts, 0, size))
        found = found._replace(u=jnp.where(found.is_valid(), found.u, 0))
    if resets is not None:
        is_reset = chunks(jnp.asarray(resets))
        if found.counts is not None:
            is_reset = is_reset & found.is_valid()
        found = found._replace(segment=jnp.cumsum(is_reset, axis=-1))
    return found


def _advance(chunks, exponent, bbar, powers):
    """By what each chunk multiplies the state, and what it adds to it."""
    kept, counts, segment = chunks
    size = kept.shape[-1]
    if segment is not None:
        kept = jnp.where(segment == segment[..., -1:], kept, 0)
    if counts is not None:
        # The last valid step goes last.
        source = jnp.arange(size) - (size - counts[..., None])
        shape = jnp.broadcast_shapes(source.shape, kept.shape)
        moved = jnp.take_along_axis(
            jnp.broadcast_to(kept, shape),
            jnp.broadcast_to(jnp.maximum(source, 0), shape),
            axis=-1,
        )
        kept = jnp.where(source >= 0, moved, 0)
    num_steps = size if counts is None else counts[..., None]
    factor = jnp.exp(exponent[..., None, :] * num_steps)
    if segment is not None:
        factor = jnp.where(segment[..., -1:] > 0, 0, factor)
    inward = bbar[..., None, :] * powers[..., ::-1, :]
    return factor, lax.complex(matmul(kept, inward.real), matmul(kept, inward.imag))


def _states_between(factor, added, c, state, implementation):
    """The state before each chunk, of all axes that outputs have, and the last one."""
    shape = jnp.broadcast_shapes(
        added.shape,
        factor.shape,
        (*c.shape[:-1], 1, 1),
        () if state is None else (*jnp.shape(state)[:-1], 1, 1),
    )
    factor, added = (jnp.broadcast_to(x, shape) for x in (factor, added))
    state = jnp.asarray(0 if state is None else state).astype(added.dtype)
    state = jnp.broadcast_to(state, (*shape[:-2], shape[-1]))
    after, last = kernels.diagonal_scan(
        _pair(factor), _pair(added), _pair(state), implementation=implementation
    )
    after = lax.complex(*after)[..., :-1, :]
    return jnp.concatenate([state[..., None, :], after], -2), lax.complex(*last)


def _outputs(chunks, before, exponent, bbar, c, powers):
    """What every step reads of the state before its chunk, and of the input since."""
    u, counts, segment = chunks
    outward = jnp.swapaxes(2 * (c * jnp.exp(exponent))[..., None, :] * powers, -1, -2)
    carried = matmul(before.real, outward.real) - matmul(before.imag, outward.imag)
    response = 2 * jnp.sum((c * bbar)[..., None, :] * powers, axis=-1).real
    place = jnp.arange(u.shape[-1])
    gap = place - place[:, None]  # of the output's step after the input's
    toeplitz = jnp.where(gap >= 0, response[..., jnp.maximum(gap, 0)], 0)
    if segment is None:
        y = matmul(u, toeplitz) + carried
    else:
        carried = jnp.where(segment == 0, carried, 0)
        y = _masked_product(u, toeplitz, segment) + carried
    if counts is not None:
        y = jnp.where(chunks.is_valid(), y, 0)
    return y.astype(jnp.result_type(u, response))


@jax.checkpoint
def _masked_product(blocks, toeplitz, segment):
    """Within chunks, where input and output have no reset between them; one by one."""
    is_same = segment[..., None] == segment[..., None, :]

    def product(args):
        block, is_same = args
        return matmul(block[..., None, :], jnp.where(is_same, toeplitz, 0))[..., 0, :]

    args = jnp.moveaxis(blocks, -2, 0), jnp.moveaxis(is_same, -3, 0)
    return jnp.moveaxis(lax.map(product, args), 0, -2)


def dplr_kernel(
    system: DPLR,
    c: Inexact[ArrayLike, " n"],
    dt: Float[ArrayLike, ""],
    length: int,
) -> Float[Array, " L"]:
    """The impulse response of V (diag(lam) - p p*) V* itself: S4's, by its own way.

    The system is discretized by the bilinear rule; its generating function is summed
    at the roots of unity by Woodbury's identity, and inverted by FFT. O(n L) flops for
    the sums and O(n^3 log L) for abar^L; 64 frequencies at a time are in memory. The
    precision is that of `dt`'s type; float64 has 1e-11 of the maximum at n = 64.

    Args:
        system: The system as a normal matrix minus one of rank one, by `dplr_legs`.
        c: Output vector C of a real system; this multiplies it by V.
        dt: Length of a step.
        length: Number L of entries. Static.

    Raises:
        ValueError: If a known step is not positive, or for a length below 1.

    References:
        Gu, Goel, Re. "Efficiently Modeling Long Sequences with Structured State
        Spaces". 2021. arXiv:2111.00396.
    """
    length = checks.count("length", length)
    checks.positive("dt", dt)
    dt = jnp.asarray(dt, jnp.result_type(dt, float))
    dtype = jnp.result_type(dt, jnp.complex64)
    lam, p, b, v = (jnp.asarray(x, dtype) for x in system)
    c = matmul(jnp.asarray(c, dtype), v)
    identity = jnp.eye(lam.size, dtype=dtype)
    a = jnp.diag(lam) - jnp.outer(p, p.conj())
    abar = jnp.linalg.solve(identity - dt / 2 * a, identity + dt / 2 * a)
    # Of the infinite sum over powers, the first L terms.
    c = c - matmul(c, jnp.linalg.matrix_power(abar, length))

    def generating(z):
        beta = (1 + z) * dt / 2
        inverse = 1 / (1 - z - beta * lam)
        plain = jnp.sum(c * inverse * b)
        crossed = jnp.sum(c * inverse * p) * jnp.sum(p.conj() * inverse * b)
        return dt * (
            plain - beta * crossed / (1 + beta * jnp.sum(p.conj() * inverse * p))
        )

    turns = jnp.arange(length // 2 + 1) / jnp.asarray(length, dt.dtype)
    roots = jnp.exp(-2j * jnp.pi * turns.astype(dtype))
    return jnp.fft.irfft(lax.map(generating, roots, batch_size=64), length)


def _pair(x):
    return x.real, x.imag
