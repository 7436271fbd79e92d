"""Layers: sequences of features to sequences of features, by diagonal systems.

Letters: L steps, H features, N representatives of states. Every layer is one function
in several forms: a call on a whole sequence, `scan` from a state to a state, `step`.
"""

import abc
import math
from typing import get_args, TypedDict, Unpack

import equinox as eqx
from jax import lax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, ArrayLike, Bool, Complex, Float, Int, Key
import numpy as np

from jaxlr import kernels
from jaxlr.core import checks, Hyper, signatures
from jaxlr.ssm.discretize import Discretization
from jaxlr.ssm.init import hippo_legs
from jaxlr.ssm.ptd import Method, ptd, PTDInfo


class LayerSettings(TypedDict, total=False):
    """Keywords that every layer takes."""

    dt_min: float
    dt_max: float
    method: Discretization
    implementation: kernels.Implementation | None


class PTDSettings(LayerSettings, total=False):
    """Keywords of layers that start from perturbed HiPPO-LegS, diagonalized."""

    ptd_method: Method
    t: float
    eps: float
    gamma: float
    seed: int


class Layer(eqx.Module):
    """A layer of diagonal systems: y of shape (L, H) from u of shape (L, H).

    Attributes:
        log_decay: Logarithm of minus the real part of eigenvalues, which thus are
            stable [log of 1 / time].
        frequency: Imaginary part of eigenvalues [radians / time].
        b: Input weights, real and imaginary parts last.
        c: Output weights, real and imaginary parts last.
        d: Weights of the input in the output, one a feature [1].
        log_dt: Logarithm of the step [log of time].
        method: How time is cut, as `discretize` tells. Static.
        implementation: Which of those of `kernels.vandermonde` and of
            `kernels.diagonal_scan` to use; None for the best on the device. Static.
    """

    log_decay: Float[Array, "..."]
    frequency: Float[Array, "..."]
    b: Float[Array, "... 2"]
    c: Float[Array, "... 2"]
    d: Float[Array, " H"]
    log_dt: Float[Array, "..."]
    method: Discretization = eqx.field(static=True)
    implementation: kernels.Implementation | None = eqx.field(static=True)

    def system(
        self, dt_scale: Hyper | Float[Array, " L"] = 1.0
    ) -> tuple[Array, Array, Array, Array]:
        """`(lam, b, c, dt)`, complex but for dt.

        Args:
            dt_scale: Number that multiplies the step.

        Raises:
            ValueError: For a dt_scale with an axis, or one that is not positive where
                it is known while tracing.
        """
        if jnp.ndim(dt_scale):
            raise ValueError(
                f"`dt_scale` must be a number here, got shape {jnp.shape(dt_scale)}."
            )
        checks.positive("dt_scale", dt_scale)
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

    def _set(
        self,
        system,
        d_key,
        dt_key,
        *,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        method: Discretization = "zoh",
        implementation: kernels.Implementation | None = None,
    ):
        """Start from a system, its steps and weights of the input drawn.

        Args:
            system: Eigenvalues, input weights and output weights of all features.
            d_key: Random key that weights of the input are drawn from.
            dt_key: Random key that steps are drawn from.
            dt_min: The smallest step; steps are log-uniform from it to the largest.
            dt_max: The largest step.
            method: How time is cut: `"zoh"` or `"bilinear"`, as `discretize` tells.
            implementation: Which of those of `kernels.vandermonde` and of
                `kernels.diagonal_scan` to use; None for the best on the device.
        """
        lam, b, c = system
        self.method = checks.choice("method", method, get_args(Discretization))
        self.implementation = implementation
        self.log_decay = jnp.asarray(np.log(-lam.real))
        self.frequency = jnp.asarray(lam.imag)
        self.b, self.c = (jnp.stack([x.real, x.imag], axis=-1) for x in (b, c))
        self.d = jr.normal(d_key, c.shape[:1])
        self.log_dt = log_uniform(dt_key, lam.shape[0], dt_min, dt_max)

    def __call__(
        self, u: Float[Array, "L H"], *, dt_scale: Hyper | Float[Array, " L"] = 1.0
    ) -> Float[Array, "L H"]:
        """The whole sequence from a state of zero.

        Args:
            u: Input, the features of every step.
            dt_scale: Number that multiplies the step, as in `scan`.
        """
        return self.scan(u, dt_scale=dt_scale)[0]

    @abc.abstractmethod
    def scan(
        self,
        u: Float[Array, "L H"],
        state: Complex[Array, "..."] | None = None,
        *,
        resets: Bool[ArrayLike, " L"] | None = None,
        length: Int[ArrayLike, ""] | None = None,
        dt_scale: Hyper | Float[Array, " L"] = 1.0,
    ) -> tuple[Float[Array, "L H"], Complex[Array, "..."]]:
        """The outputs from one state on, and the state after them.

        Args:
            u: Input, the features of every step.
            state: State before the first step; None for zeros.
            resets: Where true, what came before that step is forgotten, unless it is
                infinite or NaN. None for nowhere.
            length: Number of steps that count; the state stays beyond. None for all.
            dt_scale: Number that multiplies the step: 1/2 for data sampled twice as
                often. S5's layers take a factor for every step too.

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
        """One step: `(y_l, x_l)`, the output and the state after it.

        Args:
            u: Input u_l, the features of the step.
            state: State x_{l-1} before the step; `init_state()` to begin with.
            dt_scale: Number that multiplies the step.
        """


def complex_normal(key: Key[Array, ""], shape: tuple[int, ...]) -> Array:
    """Normal draws of mean 0 and E|z|^2 = 1."""
    parts = jr.normal(key, (*shape, 2)) * 0.5**0.5
    return lax.complex(parts[..., 0], parts[..., 1])


def log_uniform(
    key: Key[Array, ""], num: int, dt_min: float, dt_max: float
) -> Float[Array, " num"]:
    """Logarithms of steps, uniform from that of dt_min to that of dt_max.

    Raises:
        ValueError: Unless 0 < dt_min <= dt_max.
    """
    if not 0 < dt_min <= dt_max:
        raise ValueError(
            f"`dt_min` and `dt_max` must be 0 < dt_min <= dt_max, got {dt_min!r} and "
            f"{dt_max!r}."
        )
    low, high = math.log(dt_min), math.log(dt_max)
    return low + (high - low) * jr.uniform(key, (num,))


@signatures.passes_on(Layer._set)
def perturbed_legs(
    num_states: int,
    *,
    ptd_method: Method = "rank1",
    t: float = 0.5,
    eps: float = 1e-4,
    gamma: float = 1.0,
    seed: int = 0,
    **settings: Unpack[LayerSettings],
) -> tuple[np.ndarray, np.ndarray, PTDInfo, LayerSettings]:
    """HiPPO-LegS perturbed, then diagonalized: eigenvalues, inputs, and how it went.

    Args:
        num_states: Number of states of HiPPO-LegS.
        ptd_method: How it is perturbed: the `method` of `ptd`.
        t: Size of the perturbation of `"rank1"`, in (0, 2).
        eps: Size ||E|| / ||A|| of the perturbation of `"random"` and of the start of
            `"optimized"`; smaller than in `ptd`, as n is larger.
        gamma: Price of the perturbation's norm beside the condition, for `"optimized"`.
        seed: Seed of the perturbation of `"random"` and of `"optimized"`.
        **settings: Keywords that every layer takes, handed back.
    """
    found = ptd(
        *hippo_legs(num_states), method=ptd_method, t=t, eps=eps, gamma=gamma, seed=seed
    )
    return *found, settings
