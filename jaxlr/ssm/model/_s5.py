"""Layers of one system for all features: S5, and its start from PTD."""

import math
from typing import Unpack

from jax import lax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, ArrayLike, Bool, Complex, Float, Int, Key
import numpy as np

from jaxlr import kernels
from jaxlr.core import checks, Hyper, signatures
from jaxlr.linalg import matmul
from jaxlr.ssm.discretize import discretize
from jaxlr.ssm.init import dplr_legs
from jaxlr.ssm.model._layer import Layer, LayerSettings, perturbed_legs, PTDSettings


class S5(Layer):
    """One system of many inputs and outputs, with a step of its own for every state.

    A call is a recurrence by chunks: O(L H N) flops, O(L (H + N)) memory.

    References:
        Smith, Warrington, Linderman. "Simplified State Space Layers for Sequence
        Modeling". 2022. arXiv:2208.04933.
    """

    @signatures.passes_on(Layer._set)
    def __init__(
        self,
        key: Key[Array, ""],
        num_features: int,
        num_states: int = 64,
        *,
        num_blocks: int = 1,
        **settings: Unpack[LayerSettings],
    ):
        """Every block starts from the eigenvalues of HiPPO-LegS's normal part.

        Args:
            key: Random key that b, c, d and dt are drawn from.
            num_features: Number H of features.
            num_states: Number of states in all; N is half of it.
            num_blocks: Number of equal blocks.
            **settings: Keywords that every layer takes.

        Raises:
            ValueError: Unless num_blocks divides num_states into even parts,
                0 < dt_min <= dt_max, and num_features >= 1.
        """
        n = _block_size(num_states, num_blocks)
        legs = dplr_legs(n)
        v = legs.v[:, n // 2 :]
        modes = legs.lam[n // 2 :], v, v.conj().T
        self._set_blocks(key, num_features, num_blocks, modes, settings)

    def _set_blocks(self, key, num_features, num_blocks, modes, settings):
        num_features = checks.count("num_features", num_features)
        lam, v, v_inv = modes
        n = len(v)
        b_key, c_key, *keys = jr.split(key, 4)
        b = jr.normal(b_key, (num_blocks, n, num_features)) / math.sqrt(num_features)
        c = jr.normal(c_key, (num_features, num_blocks, n)) / math.sqrt(num_blocks * n)
        b = matmul(jnp.asarray(v_inv), b).reshape(-1, num_features)
        c = matmul(c, jnp.asarray(v)).reshape(num_features, -1)
        self._set((np.tile(lam, num_blocks), b, c), *keys, **settings)

    def scan(
        self,
        u: Float[Array, "L H"],
        state: Complex[Array, " N"] | None = None,
        *,
        resets: Bool[ArrayLike, " L"] | None = None,
        length: Int[ArrayLike, ""] | None = None,
        dt_scale: Hyper | Float[Array, " L"] = 1.0,
    ) -> tuple[Float[Array, "L H"], Complex[Array, " N"]]:
        """Outputs, and the state after them: see `Layer.scan`.

        With dt_scale of shape (L,) every step has its own length: irregular samples.

        Raises:
            ValueError: For what `Layer.scan` refuses, and for a dt_scale of another
                shape.
        """
        u = self._masked(u, length)
        if jnp.shape(dt_scale) not in ((), u.shape[:1]):
            raise ValueError(
                f"`dt_scale` must be a number or have shape {u.shape[:1]}, got shape "
                f"{jnp.shape(dt_scale)}."
            )
        if jnp.ndim(dt_scale) and length is not None:  # beyond it none counts
            dt_scale = jnp.where(jnp.arange(u.shape[0]) < length, dt_scale, 1)
        checks.positive("dt_scale", dt_scale)
        if jnp.ndim(dt_scale):
            dt_scale = jnp.asarray(dt_scale)[:, None]
        lam, b, c, dt = self.system()
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
            implementation=self.implementation,
        )
        y = 2 * (matmul(x[0], c.real.T) - matmul(x[1], c.imag.T))
        return y + self.d * u, lax.complex(*last)

    def step(self, u, state, *, dt_scale=1.0):
        """`(y_l, x_l)` from u_l and x_{l-1}: `discretize` and 8 H N flops."""
        lam, b, c, dt = self.system(dt_scale)
        abar, gain = discretize(lam, jnp.ones(()), dt, self.method)
        state = abar * state + gain * lax.complex(matmul(b.real, u), matmul(b.imag, u))
        y = 2 * (matmul(c.real, state.real) - matmul(c.imag, state.imag))
        return y + self.d * u, state


class S5PTD(S5):
    """S5 that starts from HiPPO-LegS perturbed, then diagonalized, in blocks.

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
        *,
        num_blocks: int = 1,
        **settings: Unpack[PTDSettings],
    ):
        """Every block starts from the same eigenvalues.

        Args:
            key: Random key that b, c, d and dt are drawn from.
            num_features: Number H of features.
            num_states: Number of states in all; N is half of it for `"rank1"`, all of
                it else.
            num_blocks: Number of equal blocks.
            **settings: Keywords of the start, and those that every layer takes.

        Raises:
            ValueError: For what `ptd` and `S5` refuse.
        """
        n = _block_size(num_states, num_blocks)
        lam, _, info, rest = perturbed_legs(n, **settings)
        modes = lam, info.v, info.v_inv
        self._set_blocks(key, num_features, num_blocks, modes, rest)


def _block_size(num_states, num_blocks):
    num_states = checks.count("num_states", num_states, least=2)
    num_blocks = checks.count("num_blocks", num_blocks)
    if num_states % (2 * num_blocks):
        raise ValueError(
            "`num_blocks` must divide `num_states` into even parts, got "
            f"{num_blocks} and {num_states}."
        )
    return num_states // num_blocks
