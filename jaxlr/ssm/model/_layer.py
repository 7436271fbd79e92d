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
from jaxtyping import Array, ArrayLike, Bool, Complex, Float, Int, Key
import numpy as np

from jaxlr import kernels
from jaxlr.core import Hyper
from jaxlr.ssm.discretize import check_method, Discretization


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
        implementation: Of `kernels.vandermonde` and `kernels.diagonal_scan`. Static.
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

    def _set(self, lam, b, c, d, log_dt, method, implementation):
        check_method(method)
        self.log_decay = jnp.asarray(np.log(-lam.real))
        self.frequency = jnp.asarray(lam.imag)
        self.b, self.c = (jnp.stack([x.real, x.imag], axis=-1) for x in (b, c))
        self.d, self.log_dt = d, log_dt
        self.method, self.implementation = method, implementation

    @abc.abstractmethod
    def __call__(
        self, u: Float[Array, "L H"], *, dt_scale: Hyper | Float[Array, " L"] = 1.0
    ) -> Float[Array, "L H"]:
        """The whole sequence from a state of zero."""

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
        """From a state to a state.

        Args:
            u: Input.
            state: Before the first step; None for zeros.
            resets: Where true, what came before that step is forgotten, unless it is
                infinite or NaN.
            length: Steps that count; the state stays beyond. None: all.
            dt_scale: Multiplies the step: 1/2 for data sampled twice as often. S5's
                layers take a factor for every step too.

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


def check_dt_scale(dt_scale: Hyper | Float[Array, " L"]) -> None:
    """Refuse known factors of steps that are no lengths.

    Raises:
        ValueError: Unless all are traced, or positive.
    """
    if not isinstance(dt_scale, Tracer) and not np.all(np.asarray(dt_scale) > 0):
        raise ValueError(f"`dt_scale` must be positive, got {dt_scale}.")


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


def check_features(num_features: int) -> None:
    """Refuse numbers of features that are no size.

    Raises:
        ValueError: Unless it is an integer of at least 1.
    """
    if not isinstance(num_features, int) or num_features < 1:
        raise ValueError(
            f"`num_features` must be an integer >= 1, got {num_features!r}."
        )
