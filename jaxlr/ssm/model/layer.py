"""Layers: sequences of features to sequences of features, by diagonal systems.

Letters: L steps, H features, N representatives of states. Every layer is one function
in several forms: a call on a whole sequence, `scan` from a state to a state, `step`.
"""

import abc
import math

import equinox as eqx
from jax import lax
from jax.core import Tracer
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Complex, Float, Int, Key
import numpy as np

from jaxlr import kernels
from jaxlr.core import Hyper
from jaxlr.linalg import matmul
from jaxlr.ssm import sequence
from jaxlr.ssm.discretize import check_method, Discretization, discretize
from jaxlr.ssm.init import dplr_legs, hippo_legs, Kind, s4d
from jaxlr.ssm.ptd import Method, ptd


class Layer(eqx.Module):
    """A layer of diagonal systems: y of shape (L, H) from u of shape (L, H).

    Attributes:
        log_decay: Eigenvalues are -exp(log_decay) + i frequency, always stable
            [log of 1 / time].
        frequency: See there [radians / time].
        b: Input weights, real and imaginary parts last.
        c: Output weights, likewise.
        d: Weights of the input in the output, one a feature [1].
        log_dt: Logarithm of the step [log of time].
        method: As `discretize`. Static.
    """

    log_decay: Float[Array, "..."]
    frequency: Float[Array, "..."]
    b: Float[Array, "... 2"]
    c: Float[Array, "... 2"]
    d: Float[Array, " H"]
    log_dt: Float[Array, "..."]
    method: Discretization = eqx.field(static=True)

    def system(self, dt_scale: Hyper = 1.0) -> tuple[Array, Array, Array, Array]:
        """`(lam, b, c, dt)`, complex but for dt; dt_scale multiplies the step.

        Raises:
            ValueError: For a dt_scale with an axis, or one that is not positive where
                it is known while tracing.
        """
        if jnp.ndim(dt_scale):
            raise ValueError(
                f"`dt_scale` must be a number here, got shape {jnp.shape(dt_scale)}."
            )
        check_dt_scale(dt_scale)
        lam = lax.complex(-jnp.exp(self.log_decay), self.frequency)
        b, c = (lax.complex(x[..., 0], x[..., 1]) for x in (self.b, self.c))
        return lam, b, c, dt_scale * jnp.exp(self.log_dt)

    def init_state(self) -> Complex[Array, "..."]:
        """Zeros, where every sequence starts."""
        return jnp.zeros(
            self.frequency.shape, jnp.result_type(self.frequency, jnp.complex64)
        )

    def _masked(self, u, length=None):
        """What lies beyond the length must not reach a derivative, if it is NaN."""
        if u.shape[-1:] != self.d.shape:
            raise ValueError(
                f"`u` must have {self.d.size} features, got shape {u.shape}."
            )
        if length is None:
            return u
        return jnp.where(jnp.arange(u.shape[0])[:, None] < length, u, 0)

    def _set(self, lam, b, c, d, log_dt, method):
        check_method(method)
        self.log_decay = jnp.asarray(np.log(-lam.real))
        self.frequency = jnp.asarray(lam.imag)
        self.b, self.c = (jnp.stack([x.real, x.imag], axis=-1) for x in (b, c))
        self.d, self.log_dt, self.method = d, log_dt, method

    @abc.abstractmethod
    def __call__(
        self, u: Float[Array, "L H"], *, dt_scale: Hyper = 1.0
    ) -> Float[Array, "L H"]:
        """The whole sequence from a state of zero."""

    @abc.abstractmethod
    def scan(
        self,
        u: Float[Array, "L H"],
        state: Complex[Array, "..."] | None = None,
        *,
        resets: Bool[Array, " L"] | None = None,
        length: Int[Array, ""] | None = None,
        dt_scale: Hyper = 1.0,
    ) -> tuple[Float[Array, "L H"], Complex[Array, "..."]]:
        """From a state to a state.

        Args:
            u: Input.
            state: Before the first step; None for zeros.
            resets: Where true, what came before that step is forgotten, unless it is
                infinite or NaN.
            length: Steps that count; the state stays beyond. None: all.
            dt_scale: Multiplies the step: 1/2 for data sampled twice as often.

        Returns:
            `(y, last_state)`; y beyond the length means nothing.

        Raises:
            ValueError: For u of other features; for resets that are not boolean or not
                of L steps; for a length that is known while tracing and not in 0..L.
        """

    @abc.abstractmethod
    def step(
        self,
        u: Float[Array, " H"],
        state: Complex[Array, "..."],
        *,
        dt_scale: Hyper = 1.0,
    ) -> tuple[Float[Array, " H"], Complex[Array, "..."]]:
        """One step: `(y_l, x_l)` from u_l and x_{l-1}."""


class S4D(Layer):
    """Every feature has a system of its own: one input, one output, N representatives.

    A call is a convolution by FFT: 4 H N L flops for the kernel, as a matrix product,
    and O(H L log L); O(H (N sqrt L + L)) memory.

    Args:
        key: Source of c, d and dt.
        num_features: H.
        num_states: States a feature, even; N is half of it.
        kind: As `s4d`.
        seed: As `s4d`.
        dt_min: The smallest step; steps are log-uniform.
        dt_max: The largest.
        method: As `discretize`.

    Raises:
        ValueError: As `s4d`; unless 0 < dt_min <= dt_max, and num_features >= 1.

    References:
        Gu, Gupta, Goel, Re. "On the Parameterization and Initialization of Diagonal
        State Space Models". 2022. arXiv:2206.11893.
    """

    def __init__(
        self,
        key: Key[Array, ""],
        num_features: int,
        num_states: int = 64,
        *,
        kind: Kind = "legs",
        seed: int = 0,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        method: Discretization = "zoh",
    ):
        lam, b = s4d(num_states, kind, seed=seed)
        _check_features(num_features)
        c_key, key = jr.split(key)
        c = _complex_normal(c_key, (num_features, lam.size))
        self._set_channels(key, lam, b, c, dt_min, dt_max, method)

    def _set_channels(self, key, lam, b, c, dt_min, dt_max, method):
        d_key, dt_key = jr.split(key)
        num_features = c.shape[0]
        lam, b = (np.tile(x, (num_features, 1)) for x in (lam, b))
        d = jr.normal(d_key, (num_features,))
        log_dt = _log_uniform(dt_key, num_features, dt_min, dt_max)
        self._set(lam, b, c, d, log_dt, method)

    def __call__(
        self, u: Float[Array, "L H"], *, dt_scale: Hyper = 1.0
    ) -> Float[Array, "L H"]:
        """The whole sequence from a state of zero, as a convolution."""
        u = self._masked(u)
        k = sequence.kernel(*self.system(dt_scale), u.shape[0], method=self.method)
        return sequence.fft_conv(u.T, k).T + self.d * u

    def scan(self, u, state=None, *, resets=None, length=None, dt_scale=1.0):
        """From a state to a state: see `Layer.scan`."""
        u = self._masked(u, length)
        y, state = sequence.scan(
            *self.system(dt_scale),
            u.T,
            state,
            resets=resets,
            lengths=length,
            method=self.method,
        )
        return y.T + self.d * u, state

    def step(self, u, state, *, dt_scale=1.0):
        """One step: `(y_l, x_l)` from u_l and x_{l-1}; 14 H N flops."""
        lam, b, c, dt = self.system(dt_scale)
        abar, bbar = discretize(lam, b, dt[:, None], self.method)
        y, state = sequence.step(abar, bbar, c, state, u)
        return y + self.d * u, state


class S4DPTD(S4D):
    """S4D that starts from HiPPO-LegS perturbed, then diagonalized.

    Args:
        key: Source of c, d and dt.
        num_features: H.
        num_states: n, states a feature; even. N is n/2 for `"rank1"`, n else.
        ptd_method: The `method` of `ptd`.
        t: As `ptd`.
        eps: As `ptd`; smaller here, where n is larger.
        gamma: As `ptd`.
        seed: As `ptd`.
        dt_min: The smallest step; steps are log-uniform.
        dt_max: The largest.
        method: As `discretize`.

    Raises:
        ValueError: As `ptd`; unless 0 < dt_min <= dt_max, and num_features >= 1.

    References:
        Yu, Nigmetov, Morozov, Mahoney, Erichson. "Robustifying State-space Models for
        Long Sequences via Approximate Diagonalization". 2023. arXiv:2310.01698.
    """

    def __init__(
        self,
        key: Key[Array, ""],
        num_features: int,
        num_states: int = 64,
        *,
        ptd_method: Method = "rank1",
        t: float = 0.5,
        eps: float = 1e-4,
        gamma: float = 1.0,
        seed: int = 0,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        method: Discretization = "zoh",
    ):
        lam, b, info = ptd(
            *hippo_legs(num_states),
            method=ptd_method,
            t=t,
            eps=eps,
            gamma=gamma,
            seed=seed,
        )
        _check_features(num_features)
        c_key, key = jr.split(key)
        # Drawn for the states of HiPPO-LegS: where V is ill-conditioned, only such
        # output vectors do not see how large its modes are.
        c = matmul(jr.normal(c_key, (num_features, num_states)), jnp.asarray(info.v))
        self._set_channels(key, lam, b, c, dt_min, dt_max, method)


class S5(Layer):
    """One system of many inputs and outputs, with a step of its own for every state.

    A call is a recurrence by chunks: O(L H N) flops, O(L (H + N)) memory.

    Args:
        key: Source of b, c, d and dt.
        num_features: H.
        num_states: States in all; N is half of it.
        num_blocks: Equal blocks, each with the eigenvalues of HiPPO-LegS's normal part.
        dt_min: The smallest step; steps are log-uniform.
        dt_max: The largest.
        method: As `discretize`.

    Raises:
        ValueError: Unless num_blocks divides num_states into even parts,
            0 < dt_min <= dt_max, and num_features >= 1.

    References:
        Smith, Warrington, Linderman. "Simplified State Space Layers for Sequence
        Modeling". 2022. arXiv:2208.04933.
    """

    def __init__(
        self,
        key: Key[Array, ""],
        num_features: int,
        num_states: int = 64,
        *,
        num_blocks: int = 1,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        method: Discretization = "zoh",
    ):
        n = _block_size(num_states, num_blocks)
        legs = dplr_legs(n)
        v = legs.v[:, n // 2 :]
        self._set_blocks(
            key,
            num_features,
            num_blocks,
            (legs.lam[n // 2 :], v, v.conj().T),
            (dt_min, dt_max),
            method,
        )

    def _set_blocks(self, key, num_features, num_blocks, modes, dts, method):
        _check_features(num_features)
        lam, v, v_inv = modes
        n, k = v.shape
        b_key, c_key, d_key, dt_key = jr.split(key, 4)
        b = jr.normal(b_key, (num_blocks, n, num_features)) / math.sqrt(num_features)
        c = jr.normal(c_key, (num_features, num_blocks, n)) / math.sqrt(num_blocks * n)
        b = matmul(jnp.asarray(v_inv), b).reshape(-1, num_features)
        c = matmul(c, jnp.asarray(v)).reshape(num_features, -1)
        d = jr.normal(d_key, (num_features,))
        log_dt = _log_uniform(dt_key, num_blocks * k, *dts)
        self._set(np.tile(lam, num_blocks), b, c, d, log_dt, method)

    def __call__(
        self,
        u: Float[Array, "L H"],
        *,
        dt_scale: Hyper | Float[Array, " L"] = 1.0,
    ) -> Float[Array, "L H"]:
        """The whole sequence from a state of zero."""
        return self.scan(u, dt_scale=dt_scale)[0]

    def scan(
        self,
        u: Float[Array, "L H"],
        state: Complex[Array, " N"] | None = None,
        *,
        resets: Bool[Array, " L"] | None = None,
        length: Int[Array, ""] | None = None,
        dt_scale: Hyper | Float[Array, " L"] = 1.0,
    ) -> tuple[Float[Array, "L H"], Complex[Array, " N"]]:
        """From a state to a state: see `Layer.scan`.

        With dt_scale of shape (L,) every step has its own length: irregular samples.

        Raises:
            ValueError: As `Layer.scan`.
        """
        u = self._masked(u, length)
        check_dt_scale(dt_scale)
        lam, b, c, dt = self.system()
        if jnp.ndim(dt_scale):
            dt_scale = jnp.reshape(dt_scale, (u.shape[0], 1))
        abar, gain = discretize(lam, jnp.ones(()), dt_scale * dt, self.method)
        into = matmul(u, b.real.T), matmul(u, b.imag.T)
        driven = lax.complex(*into) * gain
        state = self.init_state() if state is None else state
        x, last = kernels.diagonal_scan(
            (abar.real, abar.imag),
            (driven.real, driven.imag),
            (state.real, state.imag),
            resets=resets,
            lengths=length,
        )
        y = 2 * (matmul(x[0], c.real.T) - matmul(x[1], c.imag.T))
        return y + self.d * u, lax.complex(*last)

    def step(self, u, state, *, dt_scale=1.0):
        """One step: `(y_l, x_l)` from u_l and x_{l-1}; 8 H N flops."""
        lam, b, c, dt = self.system(dt_scale)
        abar, gain = discretize(lam, jnp.ones(()), dt, self.method)
        state = abar * state + gain * lax.complex(matmul(b.real, u), matmul(b.imag, u))
        y = 2 * (matmul(c.real, state.real) - matmul(c.imag, state.imag))
        return y + self.d * u, state


class S5PTD(S5):
    """S5 that starts from HiPPO-LegS perturbed, then diagonalized, in blocks.

    Args:
        key: Source of b, c, d and dt.
        num_features: H.
        num_states: States in all; N is half of it for `"rank1"`, all of it else.
        num_blocks: Equal blocks.
        ptd_method: The `method` of `ptd`.
        t: As `ptd`.
        eps: As `ptd`; smaller here, where n is larger.
        gamma: As `ptd`.
        seed: As `ptd`.
        dt_min: The smallest step; steps are log-uniform.
        dt_max: The largest.
        method: As `discretize`.

    Raises:
        ValueError: As `ptd` and `S5`.

    References:
        Yu, Nigmetov, Morozov, Mahoney, Erichson. "Robustifying State-space Models for
        Long Sequences via Approximate Diagonalization". 2023. arXiv:2310.01698.
    """

    def __init__(
        self,
        key: Key[Array, ""],
        num_features: int,
        num_states: int = 64,
        *,
        num_blocks: int = 1,
        ptd_method: Method = "rank1",
        t: float = 0.5,
        eps: float = 1e-4,
        gamma: float = 1.0,
        seed: int = 0,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        method: Discretization = "zoh",
    ):
        n = _block_size(num_states, num_blocks)
        lam, _, info = ptd(
            *hippo_legs(n), method=ptd_method, t=t, eps=eps, gamma=gamma, seed=seed
        )
        self._set_blocks(
            key,
            num_features,
            num_blocks,
            (lam, info.v, info.v_inv),
            (dt_min, dt_max),
            method,
        )


def check_dt_scale(dt_scale: Hyper | Float[Array, " L"]) -> None:
    """Refuse known factors of steps that are no lengths.

    Raises:
        ValueError: Unless all are traced, or positive.
    """
    if not isinstance(dt_scale, Tracer) and not np.all(np.asarray(dt_scale) > 0):
        raise ValueError(f"`dt_scale` must be positive, got {dt_scale}.")


def _complex_normal(key, shape):
    parts = jr.normal(key, (*shape, 2)) * 0.5**0.5
    return lax.complex(parts[..., 0], parts[..., 1])


def _log_uniform(key, num, dt_min, dt_max):
    if not 0 < dt_min <= dt_max:
        raise ValueError(
            f"`dt_min` and `dt_max` must be 0 < dt_min <= dt_max, got {dt_min!r} and "
            f"{dt_max!r}."
        )
    low, high = math.log(dt_min), math.log(dt_max)
    return low + (high - low) * jr.uniform(key, (num,))


def _check_features(num_features):
    if not isinstance(num_features, int) or num_features < 1:
        raise ValueError(
            f"`num_features` must be an integer >= 1, got {num_features!r}."
        )


def _block_size(num_states, num_blocks):
    if num_blocks < 1 or num_states < 2 or num_states % (2 * num_blocks):
        raise ValueError(
            "`num_blocks` must divide `num_states` into even parts, got "
            f"{num_blocks!r} and {num_states!r}."
        )
    return num_states // num_blocks
