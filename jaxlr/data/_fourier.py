"""Sequences made of Fourier modes."""

from typing import NamedTuple

import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key

from jaxlr.core import checks, Hyper


class FourierModes(NamedTuple):
    """Signals, and what they are `horizon` steps later.

    Attributes:
        x: Signals of variance 1 at every step.
        target: `target[:, l]` is the signal at step l + horizon.
    """

    x: Float[Array, "num L 1"]
    target: Float[Array, "num L 1"]


def _radians(frequency: Float[Array, "*#modes"], length: int) -> Float[Array, "..."]:
    """2 pi f l, less whole turns. `frequency` broadcasts against steps (length,)."""
    steps = jnp.arange(length, dtype=frequency.dtype)
    # A rounded f l has the rounding of thousands of turns: the part of f in 1/1024ths
    # counts them exactly, to 2^14 steps in float32, and the rest counts few.
    coarse = jnp.round(frequency * 1024) / 1024
    return 2 * jnp.pi * (coarse * steps % 1 + (frequency - coarse) * steps)


def fourier_noise(
    x: Float[Array, "*batch L channels"],
    frequency: Hyper,
    amplitude: Hyper,
    phase: Hyper = 0.0,
) -> Float[Array, "*batch L channels"]:
    """Adds amplitude sin(2 pi f l + phase) to step l of every sequence and channel.

    An eigenfrequency w [rad per unit of time] of a layer with step dt is the frequency
    f = w dt / (2 pi).

    Args:
        x: Sequences; the axis before the last is the length.
        frequency: Frequency f of the sine [cycles per step], 0 to 0.5.
        amplitude: Amplitude of the sine, in the units of `x`.
        phase: Phase of the sine at step 0, in radians.

    Returns:
        Like `x`, in its dtype; O(size of x).

    Raises:
        ValueError: If `x` is not floating-point of two axes or more, a hyper-parameter
            is no scalar, or, where it is known while tracing, `frequency` is outside
            of 0..0.5.

    References:
        Annan Yu, Arnur Nigmetov, Dmitriy Morozov, Michael W. Mahoney, N. Benjamin
        Erichson, *Robustifying State-space Models for Long Sequences via Approximate
        Diagonalization*, 2023, arXiv:2310.01698.
    """
    if jnp.ndim(x) < 2 or not jnp.issubdtype(jnp.result_type(x), jnp.floating):
        raise ValueError(
            "`x` must be floating-point sequences (..., L, channels), got shape "
            f"{jnp.shape(x)}, {jnp.result_type(x)}."
        )
    for name, value in (
        ("frequency", frequency),
        ("amplitude", amplitude),
        ("phase", phase),
    ):
        if jnp.ndim(value):
            raise ValueError(f"`{name}` must be a scalar, got {jnp.shape(value)}.")
    checks.within("frequency", frequency, 0, 0.5)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    angle = _radians(jnp.asarray(frequency, dtype), x.shape[-2]) + phase
    return x + (amplitude * jnp.sin(angle)).astype(x.dtype)[:, None]


def fourier_modes(
    key: Key[Array, ""],
    num: int,
    length: int,
    modes: Float[Array, " J"],
    *,
    horizon: int = 1,
) -> FourierModes:
    """The Fourier-mode extrapolation task: mixtures of modes, to be told ahead.

    u_l = J^{-1/2} sum_j (p_j cos 2 pi f_j l + q_j sin 2 pi f_j l) with p, q standard
    normal, different in every signal: amplitudes and phases are random, the
    frequencies f are not. At each step a model has seen u up to there and says
    u_{l + horizon}. Trained on the modes of one band and tested on those of another,
    it shows whether it learnt the signals or their frequencies.

    Args:
        key: Draws p and q, whatever the modes: other modes with the same key differ in
            frequency alone.
        num: Number of signals. Static.
        length: Number of steps L of each signal. Static.
        modes: Frequencies [cycles per step], 0 to 0.5.
        horizon: How many steps ahead the target is, at least 1. Static.

    Returns:
        Inputs and targets; O(num L J) flops, O((num + J) L) memory.

    Raises:
        ValueError: If a number is less than 1, `modes` is no vector with at least one
            entry or, where it is known while tracing, has one outside of 0..0.5.
    """
    num, length = checks.count("num", num), checks.count("length", length)
    horizon = checks.count("horizon", horizon)
    checks.within("modes", modes, 0, 0.5)
    f = jnp.asarray(modes, float)
    if f.ndim != 1 or not f.size:
        raise ValueError(f"`modes` must be a vector, got shape {f.shape}.")
    angle = _radians(f[:, None], length + horizon)
    basis = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)]) / f.size**0.5
    weights = jr.normal(key, (num, len(basis)), basis.dtype)
    signal = jnp.matmul(weights, basis, precision="highest")[..., None]
    return FourierModes(signal[:, :length], signal[:, horizon:])
