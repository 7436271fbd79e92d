"""Layers of one system a feature: S4D, and its start by perturbed diagonalization."""

import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key
import numpy as np

from jaxlr import kernels
from jaxlr.core import Hyper
from jaxlr.linalg import matmul
from jaxlr.ssm import sequence
from jaxlr.ssm.discretize import Discretization, discretize
from jaxlr.ssm.init import hippo_legs, Kind, s4d
from jaxlr.ssm.model._layer import check_features, complex_normal, Layer, log_uniform
from jaxlr.ssm.ptd import Method, ptd


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
        implementation: As `kernels.vandermonde`.

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
        implementation: kernels.Implementation | None = None,
    ):
        lam, b = s4d(num_states, kind, seed=seed)
        check_features(num_features)
        c_key, key = jr.split(key)
        c = complex_normal(c_key, (num_features, lam.size))
        self._set_channels(key, lam, b, c, (dt_min, dt_max), method, implementation)

    def _set_channels(self, key, lam, b, c, dts, method, implementation):
        d_key, dt_key = jr.split(key)
        num_features = c.shape[0]
        lam, b = (np.tile(x, (num_features, 1)) for x in (lam, b))
        d = jr.normal(d_key, (num_features,))
        log_dt = log_uniform(dt_key, num_features, *dts)
        self._set(lam, b, c, d, log_dt, method, implementation)

    def __call__(
        self, u: Float[Array, "L H"], *, dt_scale: Hyper | Float[Array, " L"] = 1.0
    ) -> Float[Array, "L H"]:
        """The whole sequence from a state of zero, as a convolution."""
        u = self._masked(u)
        k = sequence.kernel(
            *self.system(dt_scale),
            u.shape[0],
            method=self.method,
            implementation=self.implementation,
        )
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
            implementation=self.implementation,
        )
        return y.T + self.d * u, state

    def step(self, u, state, *, dt_scale=1.0):
        """`(y_l, x_l)` from u_l and x_{l-1}: `discretize` and 14 H N flops."""
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
        implementation: As `kernels.vandermonde`.

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
        implementation: kernels.Implementation | None = None,
    ):
        lam, b, info = ptd(
            *hippo_legs(num_states),
            method=ptd_method,
            t=t,
            eps=eps,
            gamma=gamma,
            seed=seed,
        )
        check_features(num_features)
        c_key, key = jr.split(key)
        # Drawn for the states of HiPPO-LegS: where V is ill-conditioned, only such
        # output vectors do not see how large its modes are.
        c = matmul(jr.normal(c_key, (num_features, num_states)), jnp.asarray(info.v))
        self._set_channels(key, lam, b, c, (dt_min, dt_max), method, implementation)
