"""One linear system in three forms that agree: a convolution, a scan by chunks, a step.

Letters: N conjugate representatives a channel, channels of any shape, L steps. Systems
are y = K * u with K_l = 2 Re sum_n c_n bbar_n abar_n^l; `discretize` makes abar, bbar.
"""

import jax
from jax import lax
from jax.core import Tracer
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Complex, Float, Inexact, Int, Real
import numpy as np

from jaxlr import kernels
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
        lam: Eigenvalues.
        b: Input vectors.
        c: Output vectors.
        dt: Steps, in the unit of time of 1 / lam.
        length: L. Static.
        method: As `discretize`. Static.
        implementation: As `kernels.vandermonde`, whose cost and memory it has. Static.
        allow_unstable: As `discretize`. Static.

    Raises:
        ValueError: As `discretize` and `kernels.vandermonde`.

    References:
        Gu, Gupta, Goel, Re. "On the Parameterization and Initialization of Diagonal
        State Space Models". 2022. arXiv:2206.11893.
    """
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
        u: Input.
        k: Impulse response, of any number of lags; those beyond L do not matter.
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
        abar: From `discretize`.
        bbar: From `discretize`.
        c: Output vectors.
        state: x_{l-1}; zeros to begin with.
        u: u_l.

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
        lam: Eigenvalues.
        b: Input vectors.
        c: Output vectors.
        dt: Steps, in the unit of time of 1 / lam.
        u: Input; leading axes, of a batch and of channels, broadcast with all others.
        state: Before the first step; None for zeros.
        resets: Where true, what came before that step is forgotten, unless it is
            infinite or NaN.
        lengths: Steps that count, 0..L; y is 0 beyond, and the state stays. None: L.
        chunk: T, which changes speed, and results by rounding. None: 64. Static.
        method: As `discretize`. Static.
        implementation: As `kernels.diagonal_scan`, from chunk to chunk. Static.
        allow_unstable: As `discretize`. Static.

    Returns:
        `(y, last_state)`.

    Raises:
        ValueError: As `discretize`; for a chunk or an L below 1; if resets are not
            boolean or not of L steps; if lengths are not whole numbers or, known while
            tracing, not in 0..L.
    """
    check_system(lam, dt, method, allow_unstable=allow_unstable)
    dt, c = jnp.asarray(dt), jnp.asarray(c)
    exponent, bbar = log_discretize(lam, b, dt[..., None], method)
    u = jnp.asarray(u, jnp.result_type(u, bbar.real))
    length = u.shape[-1]
    if length < 1:
        raise ValueError(f"`u` must have at least one step, got shape {u.shape}.")
    check_resets_and_lengths(resets, lengths, length)
    size = min(64, length) if chunk is None else chunk
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"`chunk` must be an integer >= 1, got {chunk!r}.")
    if lengths is None and length % size:
        lengths = jnp.full((), length)

    def chunks(x, fill):
        pad = [(0, 0)] * (x.ndim - 1) + [(0, -length % size)]
        x = jnp.pad(x, pad, constant_values=fill)
        return x.reshape(*x.shape[:-1], -1, size)

    blocks, place = chunks(u, 0), jnp.arange(size)
    num = blocks.shape[-2]
    is_valid = counts = None
    if lengths is not None:
        starts = jnp.arange(num) * size
        counts = jnp.clip(jnp.asarray(lengths)[..., None] - starts, 0, size)
        is_valid = place < counts[..., None]
        blocks = jnp.where(is_valid, blocks, 0)

    # What a chunk adds to the state, and by what it multiplies it.
    kept, power = blocks, exponent[..., None, :]
    segment = None
    if resets is not None:
        is_reset = chunks(jnp.asarray(resets), False)
        if is_valid is not None:
            is_reset = is_reset & is_valid
        segment = jnp.cumsum(is_reset, axis=-1)
        kept = jnp.where(segment == segment[..., -1:], blocks, 0)
    if counts is None:
        power = power * size
    else:
        power = power * counts[..., None]
        source = place - (size - counts[..., None])  # the last valid step goes last
        shape = jnp.broadcast_shapes(source.shape, kept.shape)
        moved = jnp.take_along_axis(
            jnp.broadcast_to(kept, shape),
            jnp.broadcast_to(jnp.maximum(source, 0), shape),
            axis=-1,
        )
        kept = jnp.where(source >= 0, moved, 0)
    factor = jnp.exp(power)
    if segment is not None:
        factor = jnp.where(segment[..., -1:] > 0, 0, factor)
    lags = jnp.arange(size)[:, None] * exponent[..., None, :]
    powers = jnp.exp(lags)  # abar^r, r = 0..T-1
    inward = bbar[..., None, :] * powers[..., ::-1, :]
    added = lax.complex(matmul(kept, inward.real), matmul(kept, inward.imag))

    shape = jnp.broadcast_shapes(
        added.shape,
        factor.shape,
        (*c.shape[:-1], 1, 1),
        () if state is None else (*jnp.shape(state)[:-1], 1, 1),
    )
    factor, added = (jnp.broadcast_to(x, shape) for x in (factor, added))
    carry_shape = (*shape[:-2], shape[-1])
    state = jnp.zeros((), added.dtype) if state is None else jnp.asarray(state)
    state = jnp.broadcast_to(state, carry_shape).astype(added.dtype)
    after, last = kernels.diagonal_scan(
        _pair(factor), _pair(added), _pair(state), implementation=implementation
    )
    before = jnp.concatenate(
        [state[..., None, :], lax.complex(*after)[..., :-1, :]], -2
    )

    outward = jnp.swapaxes(2 * (c * jnp.exp(exponent))[..., None, :] * powers, -1, -2)
    carried = matmul(before.real, outward.real) - matmul(before.imag, outward.imag)
    response = 2 * jnp.sum((c * bbar)[..., None, :] * powers, axis=-1).real
    gap = place - place[:, None]  # of the output's step after the input's
    toeplitz = jnp.where(gap >= 0, response[..., jnp.maximum(gap, 0)], 0)
    if segment is None:
        y = matmul(blocks, toeplitz) + carried
    else:
        carried = jnp.where(segment == 0, carried, 0)
        y = _masked_product(blocks, toeplitz, segment) + carried
    if is_valid is not None:
        y = jnp.where(is_valid, y, 0)
    y = y.reshape(*y.shape[:-2], -1)[..., :length]
    return y.astype(jnp.result_type(u, response)), lax.complex(*last)


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
        system: As `dplr_legs` gives it.
        c: Output vector C of a real system; this multiplies it by V.
        dt: Step.
        length: L. Static.

    Raises:
        ValueError: If a known step is not positive, or for a length below 1.

    References:
        Gu, Goel, Re. "Efficiently Modeling Long Sequences with Structured State
        Spaces". 2021. arXiv:2111.00396.
    """
    if not isinstance(length, int) or length < 1:
        raise ValueError(f"`length` must be an integer >= 1, got {length!r}.")
    if not isinstance(dt, Tracer) and not np.all(np.asarray(dt) > 0):
        raise ValueError(f"`dt` must be positive, got {dt}.")
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
