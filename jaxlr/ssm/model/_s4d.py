"""Layers of one system a feature: S4D, and its start by perturbed diagonalization."""

from typing import Unpack

import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key
import numpy as np

from jaxlr.core import checks, Hyper, signatures
from jaxlr.linalg import matmul
from jaxlr.ssm import sequence
from jaxlr.ssm.discretize import discretize
from jaxlr.ssm.init import even, Kind, s4d
from jaxlr.ssm.model._layer import (
    complex_normal,
    Layer,
    LayerSettings,
    perturbed_legs,
    PTDSettings,
)


class S4D(Layer):
    """Every feature has a system of its own: one input, one output, N representatives.

    A call is a convolution by FFT: 4 H N L flops for the kernel, as a matrix product,
    and O(H L log L); O(H (N sqrt L + L)) memory.

    References:
        Gu, Gupta, Goel, Re. "On the Parameterization and Initialization of Diagonal
        State Space Models". 2022. arXiv:2206.11893.
    """

    @signatures.passes_on(Layer._set)
    def __init__(
        self,
        key: Key[Array, ""],
        num_features: int,
        num_states: int = 64,
        *,
        kind: Kind = "legs",
        seed: int = 0,
        **settings: Unpack[LayerSettings],
    ):
        """Every feature starts from the same eigenvalues.

        Args:
            key: Random key that c, d and dt are drawn from.
            num_features: Number H of features.
            num_states: Number of states of a feature, even; N is half of it.
            kind: Where eigenvalues are, as `s4d` tells.
            seed: Seed of the kind `"random"`; no other uses it.
            **settings: Keywords that every layer takes.

        Raises:
            ValueError: For what `s4d` refuses, unless 0 < dt_min <= dt_max, and for a
                `num_features` below 1.
        """
        lam, b = s4d(even("num_states", num_states), kind, seed=seed)
        num_features = checks.count("num_features", num_features)
        c_key, key = jr.split(key)
        c = complex_normal(c_key, (num_features, lam.size))
        self._set_channels(key, lam, b, c, settings)

    def _set_channels(self, key, lam, b, c, settings):
        lam, b = (np.tile(x, (c.shape[0], 1)) for x in (lam, b))
        self._set((lam, b, c), *jr.split(key), **settings)

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
        """Outputs, and the state after them: see `Layer.scan`."""
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

    References:
        Yu, Nigmetov, Morozov, Mahoney, Erichson. "Robustifying State-space Models for
        Long Sequences via Approximate Diagonalization". 2023. arXiv:2310.01698.
    """

    @signatures.passes_on(perturbed_legs)
    def __init__(
        self,
        key: Key[Array, ""],
        num_features: int,
        num_states: int = 64,
        **settings: Unpack[PTDSettings],
    ):
        """Every feature starts from the same eigenvalues.

        Args:
            key: Random key that c, d and dt are drawn from.
            num_features: Number H of features.
            num_states: Number n of states of a feature, even; N is n/2 for `"rank1"`,
                n else.
            **settings: Keywords of the start, and those that every layer takes.

        Raises:
            ValueError: For what `ptd` refuses, unless 0 < dt_min <= dt_max, and for a
                `num_features` below 1.
        """
        num_states = checks.count("num_states", num_states)
        num_features = checks.count("num_features", num_features)
        lam, b, info, rest = perturbed_legs(num_states, **settings)
        c_key, key = jr.split(key)
        # Drawn for the states of HiPPO-LegS: where V is ill-conditioned, only such
        # output vectors do not see how large its modes are.
        c = matmul(jr.normal(c_key, (num_features, num_states)), jnp.asarray(info.v))
        self._set_channels(key, lam, b, c, rest)
