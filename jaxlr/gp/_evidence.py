"""The marginal likelihood of what was observed on a grid, and its derivatives.

Letters: as in `jaxlr.gp._partial`.
"""

import functools as ft
from typing import Any, NamedTuple

import jax
from jax.custom_derivatives import SymbolicZero
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from jaxlr.core.derivatives import refuse
from jaxlr.core.loop import Status
from jaxlr.gp._partial import (
    gain_cholesky,
    gain_roots,
    GridInfo,
    Settings,
    solve,
    solve_precision,
    System,
)
from jaxlr.linalg import (
    Estimate,
    kron_matvec,
    matmul,
    outer_product,
    quadrature_trace,
    stochastic_lanczos,
    total,
)


def log_determinant(system: System, settings: Settings, key) -> Estimate:
    """The log determinant of A: sum log(1 + spectrum / s) + log det G + sum_o log R."""
    value = total(jnp.log1p(system.eig.spectrum / system.shift))
    value += total(jnp.where(system.observed, jnp.log(system.noise), 0))
    size = system.free.size
    if not size:
        return Estimate(value, jnp.zeros_like(value))
    if size <= settings.max_dense:
        diagonal = jnp.diagonal(gain_cholesky(system))
        return Estimate(value + 2 * jnp.sum(jnp.log(diagonal)), jnp.zeros_like(value))
    density = stochastic_lanczos(
        key,
        system.precision,
        size,
        num_probes=settings.num_probes,
        num_steps=min(settings.num_lanczos, size),
        dtype=value.dtype,
    )
    rest = quadrature_trace(jnp.log, density, size)
    return Estimate(value + rest.value, rest.standard_error)


class Evidence(NamedTuple):
    """The marginal likelihood of what was observed.

    Attributes:
        value: Its logarithm, in nats.
        standard_error: Of a stochastic log-determinant's share; 0 of an exact one's.
        info: Of the solve; only the value of a converged one counts.
    """

    value: Float[Array, ""]
    standard_error: Float[Array, ""]
    info: GridInfo


@ft.partial(jax.custom_jvp, nondiff_argnums=(0,))
def evidence(
    settings: Settings, system: System, key: Any, factors, noise, y
) -> Evidence:
    """Evidence of y, which is 0 in gaps; differentiable in factors, noise and y.

    `system` is made of those, without derivatives.
    """
    return _evidence(settings, system, key, y)[0]


def _evidence(settings, system, key, y):
    solved = solve(system, y, settings)
    logdet = log_determinant(system, settings, key)
    quadratic = total(y * solved.x)
    num = y.size - system.missing.size
    value = -(quadratic + logdet.value + num * jnp.log(2 * jnp.pi)) / 2
    return Evidence(value, logdet.standard_error / 2, solved.info), solved


@ft.partial(evidence.defjvp, symbolic_zeros=True)
def _(settings, primals, tangents):
    system, key, factors, noise, y = primals
    _, _, d_factors, d_noise, d_y = tangents
    message = "The marginal likelihood is differentiable once, not twice."
    system = refuse(message, (factors, noise, y), system)
    out, solved = _evidence(settings, system, key, y)
    slope = jnp.zeros_like(out.value)
    if not isinstance(d_y, SymbolicZero):
        slope -= jnp.sum(solved.x * d_y)
    d_factors = [None if isinstance(k, SymbolicZero) else k for k in d_factors]
    d_noise = None if isinstance(d_noise, SymbolicZero) else d_noise
    if d_noise is not None or any(k is not None for k in d_factors):
        outers, diagonal = _inverse_trace(system, settings, key)
        shares = system.eig.values
        for d, k in enumerate(d_factors):
            if k is not None:
                part = _pair(shares, solved.coefficients, solved.coefficients, d)
                v = system.eig.vectors[d] / system.roots[d][:, None]
                slope += jnp.sum((part - outers[d]) * matmul(v.T, matmul(k, v))) / 2
        if d_noise is not None:
            share = jnp.where(system.observed, solved.x**2 - diagonal, 0)
            slope += jnp.sum(share * d_noise) / 2
    zeros = jax.tree.map(
        lambda x: (
            jnp.zeros(x.shape, jax.dtypes.float0)
            if not jnp.issubdtype(x.dtype, jnp.inexact)
            else jnp.zeros_like(x)
        ),
        out,
    )
    return out, zeros._replace(value=slope)


def _pair(shares, a, b, axis):
    """M of a^T ((x) dK) b = <M, dK_axis> in the eigenbasis, the others undisturbed."""
    axes = [e for e in range(a.ndim) if e != axis]
    b = outer_product(shares, without=axis) * b
    return jnp.tensordot(a, b, (axes, axes), precision="highest")


def _inverse_trace(system, settings, key):
    """What makes tr(A^-1 dA): a matrix an axis in the eigenbasis, and diag(A^-1).

    A^-1 = W^-1/2 (K^ + s)^-1 (1 - s c G^-1 c (K^ + s)^-1) W^-1/2.
    """
    shares, inverse = system.eig.values, system.inverse
    ndim = inverse.ndim
    outers = []
    for d in range(ndim):
        axes = tuple(e for e in range(ndim) if e != d)
        share = outer_product(shares, without=d) * inverse
        outers.append(jnp.diag(jnp.sum(share, axes)))
    diagonal = kron_matvec([v**2 for v in system.eig.vectors], inverse)
    diagonal = diagonal / system.root**2
    whole = tuple(outers), diagonal
    if not system.free.size:
        return whole

    def subtract(left, pair):
        a, b = pair
        outers, diagonal = left
        a, b = (
            jnp.sqrt(system.shift) * inverse * system.rotate(system.gain * x)
            for x in (a, b)
        )
        both = system.back(a) * system.back(b) / system.root**2
        return (
            tuple(m - _pair(shares, a, b, d) for d, m in enumerate(outers)),
            diagonal - both,
        )

    if system.free.size <= settings.max_dense:

        def exact(left, row):
            row = system.scatter(row)
            return subtract(left, (row, row)), None

        return jax.lax.scan(exact, whole, gain_roots(system))[0]

    def drawn(left, key):
        z = jr.rademacher(key, system.free.shape, inverse.dtype)
        z = system.scatter(z) / jnp.sqrt(settings.num_probes)
        x, info = solve_precision(system, z, settings)
        x = jnp.where(info.status == Status.CONVERGED, x, jnp.nan)
        return subtract(left, (x, z)), None

    return jax.lax.scan(drawn, whole, jr.split(key, settings.num_probes))[0]
