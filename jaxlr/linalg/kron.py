"""Kronecker products of small factors, on grids: products, filters, Gaussian terms.

Letters: a grid has D axes of n_1, ..., n_D points, N in all; K_d is the factor of axis
d, (x) the Kronecker product. An N x N matrix is never formed.
"""

from collections.abc import Callable, Sequence
import functools as ft
from typing import NamedTuple, TypeAlias

import jax
from jax.custom_derivatives import SymbolicZero
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Inexact, Real
import numpy as np

from jaxlr.core import checks
from jaxlr.core.batching import one_by_one
from jaxlr.core.derivatives import refuse
from jaxlr.kernels.mode_product import mode_product as mode_product
from jaxlr.linalg.dense import matmul, total


Factors: TypeAlias = Sequence[Real[ArrayLike, "_ _"]]
"""One matrix a grid axis."""

_NOT_DIFFERENTIATED = (
    "Eigendecompositions of `factors` are not differentiated: use `kron_solve` or "
    "`kron_gaussian`, which are differentiable once with respect to `factors`."
)


class KronEigh(NamedTuple):
    """V with V^T ((x)K_d) V diagonal, as a Kronecker product itself.

    Attributes:
        values: Eigenvalues of every axis, ascending; their products are the spectrum.
        vectors: The V_d, in columns: orthonormal, or V_d^T B_d V_d = I of a pencil.
    """

    values: tuple[Float[Array, " _"], ...]
    vectors: tuple[Float[Array, "_ _"], ...]

    @property
    def spectrum(self) -> Float[Array, "..."]:
        """The eigenvalues on the grid, shape (n_1, ..., n_D)."""
        return outer_product(self.values)


def outer_product(
    vectors: Sequence[Float[ArrayLike, " _"]], *, without: int | None = None
) -> Float[Array, "..."]:
    """The outer product of one vector an axis, shape (n_1, ..., n_D).

    Args:
        vectors: One vector of n_d entries for each axis.
        without: An axis whose vector counts as a single 1. None: there is none. Static.

    Raises:
        ValueError: If `without` is not an axis.
    """
    found = [jnp.asarray(v) for v in vectors]
    if without is not None:
        num = len(found)
        without = checks.count("without", without, least=-num, most=num - 1)
        found[without] = jnp.ones_like(found[without][:1])
    return ft.reduce(lambda a, b: a[..., None] * b, found)


def kron_matvec(
    factors: Sequence[Inexact[ArrayLike, "_ _"]], x: Inexact[ArrayLike, "..."]
) -> Inexact[Array, "..."]:
    """(K_1 (x) ... (x) K_D) x: D mode products.

    Args:
        factors: The K_d, of shapes (m_d, n_d).
        x: What they multiply, of shape (n_1, ..., n_D).

    Returns:
        Shape (m_1, ..., m_D); 2 N sum n_d flops where factors are square, two arrays
        of the grid in memory.

    Raises:
        ValueError: If shapes do not fit.
    """
    factors, x = tuple(map(jnp.asarray, factors)), jnp.asarray(x)
    _check(factors, x, "x")
    for axis, k in enumerate(factors):
        x = mode_product(k, x, axis)
    return x


def kron_eigh(factors: Factors) -> KronEigh:
    """Eigendecomposition of (x)K_d, of D small ones: 9 sum n_d^3 flops.

    Factors that are known while tracing are decomposed by NumPy in float64, whatever
    the type of the result: given as float64 arrays of NumPy they lose nothing before a
    filter in float32. Traced ones are decomposed in their own type. Negative values no
    larger than rounding errors, n eps max |values|, become 0, so that a positive shift
    keeps products of semi-definite factors positive.

    Args:
        factors: The K_d, all symmetric.

    Returns:
        Values and vectors. Not differentiable (eigenvectors are not, where eigenvalues
        coincide): `kron_solve` and `kron_gaussian` are.

    Raises:
        ValueError: If a factor is not square; if it is known, and not finite or not
            symmetric to the square root of its type's machine epsilon (what was made in
            float32 belongs in a float32 array); or if differentiated.
    """
    return kron_pencil(factors, None)


def kron_pencil(factors: Factors, others: Factors | None) -> KronEigh:
    """V that makes (x)A_d diagonal and (x)B_d the identity, both at once.

    Then a (x)A_d + b (x)B_d = V^-T (a spectrum + b) V^-1: sums of two Kronecker terms,
    and noise with a Kronecker structure. `spectral_filter` of
    `lambda s: 1 / (a s + b)` solves with it. See `kron_eigh` for precision; 14 sum
    n_d^3 flops.

    Args:
        factors: The A_d, all symmetric.
        others: The B_d, symmetric and positive definite. None: the identity.

    Returns:
        Values and vectors; the vectors of a B that is not definite are NaN if traced.
        Not differentiable, as `kron_eigh`.

    Raises:
        ValueError: As `kron_eigh`; if shapes differ; or if a known B_d is not positive
            definite.
    """
    shapes = [np.shape(k) for k in factors]
    for name, matrices in (
        ("factors", factors),
        ("others", factors if others is None else others),
    ):
        got = [np.shape(k) for k in matrices]
        if not got or got != [(*shape, 0)[:1] * 2 for shape in shapes]:
            raise ValueError(
                f"`{name}` must be square matrices, as many and as large as `factors`, "
                f"got shapes {got}; those of `factors` are {shapes}."
            )
    found = [
        _diagonalize(d, k, None if others is None else others[d])
        for d, k in enumerate(factors)
    ]
    values, vectors = zip(*found, strict=True)
    return KronEigh(values, vectors)


def spectral_filter(
    eig: KronEigh,
    spectrum_fn: Callable[[Float[Array, "..."]], Float[Array, "..."]],
    y: Float[ArrayLike, "..."],
) -> Float[Array, "..."]:
    """V f(spectrum) V^T y: a function f of (x)K_d times y, for orthonormal V.

    The posterior mean of a Gaussian process under noise s2 is `lambda s: s / (s + s2)`.

    Args:
        eig: Result of `kron_eigh`; or of `kron_pencil`, where f must be of an inverse's
            kind, 1 / (s + b).
        spectrum_fn: The function f, elementwise.
        y: What f((x)K_d) multiplies, of shape (n_1, ..., n_D).

    Returns:
        The shape of y; 4 N sum n_d flops.

    Raises:
        ValueError: If shapes do not fit.
    """
    y = _rotate(eig, jnp.asarray(y))
    return kron_matvec(eig.vectors, spectrum_fn(eig.spectrum) * y)


def kron_solve(
    factors: Factors,
    shift: Float[ArrayLike, ""],
    y: Float[ArrayLike, "..."],
    others: Factors | None = None,
) -> Float[Array, "..."]:
    """Solve ((x)K_d + shift (x)B_d) x = y.

    Differentiable once with respect to factors and others, in forward and reverse mode,
    and any number of times in shift and y: `eigh` is not differentiated, so that
    repeated eigenvalues do no harm. The posterior mean is `y - shift kron_solve(...)`.

    Args:
        factors: The K_d, all symmetric. See `kron_eigh` for precision.
        shift: Weight of (x)B_d, in the units of the product of factors over that of
            others.
        y: Data on the grid, of shape (n_1, ..., n_D).
        others: The B_d, symmetric and positive definite. None: the identity.

    Returns:
        The shape of y; 4 N sum n_d flops, a gradient about twice as many.

    Raises:
        ValueError: As `kron_pencil`; if shapes do not fit; or if differentiated twice
            with respect to factors or others.
    """
    return _solve(*_prepare(factors, shift, y, others))


def kron_gaussian(
    factors: Factors,
    shift: Float[ArrayLike, ""],
    y: Float[ArrayLike, "..."],
    others: Factors | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """y^T A^-1 y and log det A of A = (x)K_d + shift (x)B_d: the terms of a Gaussian.

    With one decomposition for both and their gradients; differentiable as `kron_solve`.

    Args:
        factors: The K_d, all symmetric. See `kron_eigh` for precision.
        shift: Weight of (x)B_d, in the units of the product of factors over that of
            others.
        y: Data on the grid, of shape (n_1, ..., n_D).
        others: The B_d, symmetric and positive definite. None: the identity.

    Returns:
        `(quadratic, logdet)`; 2 N sum n_d flops, gradients in factors as many again and
        in y too. The log-determinant is NaN where A is not positive definite.

    Raises:
        ValueError: As `kron_solve`.
    """
    return _gaussian(*_prepare(factors, shift, y, others))


def _prepare(factors, shift, y, others):
    """Decomposed before any array of the caller's is rounded to the default type."""
    y, shift = jnp.asarray(y), jnp.asarray(shift)
    if shift.ndim:
        raise ValueError(f"`shift` must be a number, got shape {shift.shape}.")
    eig = kron_pencil(*jax.tree.map(_still, (tuple(factors), others)))
    _check(eig.vectors, y, "y")
    return eig, *jax.tree.map(jnp.asarray, (tuple(factors), others)), shift, y


def _check(factors, x, name):
    if not factors or any(k.ndim != 2 for k in factors):
        raise ValueError(
            "`factors` must be matrices, one or more, got shapes "
            f"{[k.shape for k in factors]}."
        )
    shape = tuple(k.shape[1] for k in factors)
    if x.shape != shape:
        raise ValueError(f"`{name}` must have shape {shape}, got {x.shape}.")


def _still(k):
    return k if checks.known(k) else jax.lax.stop_gradient(k)


def _rotate(eig, y):
    return kron_matvec([v.T for v in eig.vectors], y)


def _known(k, name, is_traced):
    """A tracer that refuses derivatives; or a float64 array of the host, checked."""
    if jnp.issubdtype(jnp.result_type(k), jnp.complexfloating):
        raise ValueError(f"`{name}` must be real, got {jnp.result_type(k)}.")
    if checks.known(k):
        given = np.asarray(k)
        wide = given.astype(np.float64)
        rounding = np.sqrt(np.finfo(np.result_type(given, np.float32)).eps)
        if not np.abs(wide - wide.T).max() <= rounding * np.abs(wide).max():
            raise ValueError(
                f"`{name}` must be finite and symmetric, to {rounding:.0e}."
            )
        k = jnp.asarray(k) if is_traced else wide
    return refuse(_NOT_DIFFERENTIATED, k, k) if is_traced else k


def _diagonalize(axis, k, b):
    is_traced = not checks.known(k, b)
    lib = jnp if is_traced else np
    dtype = jnp.result_type(k, float if b is None else b, float)
    k = _known(k, f"factors[{axis}]", is_traced)
    if b is not None:
        b = _known(b, f"others[{axis}]", is_traced)

    def decompose(k, b=None):
        if b is None:
            return tuple(lib.linalg.eigh(k))
        low = lib.linalg.cholesky(b)
        half = lib.linalg.solve(low, k)
        values, vectors = lib.linalg.eigh(lib.linalg.solve(low, half.T))
        return values, lib.linalg.solve(low.T, vectors)

    matrices = (k,) if b is None else (k, b)
    try:
        values, vectors = (one_by_one(decompose) if is_traced else decompose)(*matrices)
    except np.linalg.LinAlgError as error:
        raise ValueError(f"`others[{axis}]` must be positive definite.") from error
    least = -len(values) * np.finfo(dtype).eps * lib.abs(values).max()
    values = lib.where((least <= values) & (values < 0), 0, values)
    return jnp.asarray(values, dtype), jnp.asarray(vectors, dtype)


@jax.custom_jvp
def _solve(eig, factors, others, shift, y):
    return spectral_filter(eig, lambda s: 1 / (s + shift), y)


def _parts(eig, shift, d_factors, d_others):
    """(d, weight, V^T dM V): the parts of V^T dA V, each weight (x) V^T dM V."""
    for is_other, tangents in enumerate(filter(None, (d_factors, d_others))):
        for d, (tangent, v) in enumerate(zip(tangents, eig.vectors, strict=True)):
            if not isinstance(tangent, SymbolicZero):
                weight = shift if is_other else outer_product(eig.values, without=d)
                yield d, weight, matmul(v.T, matmul(tangent, v))


@ft.partial(_solve.defjvp, symbolic_zeros=True)
def _(primals, tangents):
    eig, factors, others, shift, y = primals
    _, d_factors, d_others, d_shift, d_y = tangents
    eig = refuse(_NOT_DIFFERENTIATED, (factors, others), eig)
    inverse = 1 / (eig.spectrum + shift)
    x = inverse * _rotate(eig, y)
    rest = jnp.zeros_like(x)
    if not isinstance(d_y, SymbolicZero):
        rest += _rotate(eig, d_y)
    if not isinstance(d_shift, SymbolicZero):
        rest -= d_shift * x
    for d, weight, part in _parts(eig, shift, d_factors, d_others):
        rest -= mode_product(part, weight * x, d)
    return kron_matvec(eig.vectors, x), kron_matvec(eig.vectors, inverse * rest)


@jax.custom_jvp
def _gaussian(eig, factors, others, shift, y):
    y = _rotate(eig, y)
    spectrum = eig.spectrum + shift
    logdet = total(jnp.log(spectrum))
    if others is not None:
        for v in eig.vectors:
            logdet -= 2 * (y.size // len(v)) * jnp.linalg.slogdet(v)[1]
    return total(y**2 / spectrum), logdet


@ft.partial(_gaussian.defjvp, symbolic_zeros=True)
def _(primals, tangents):
    eig, factors, others, shift, y = primals
    _, d_factors, d_others, d_shift, d_y = tangents
    out = _gaussian(*primals)
    eig = refuse(_NOT_DIFFERENTIATED, (factors, others), eig)
    inverse = 1 / (eig.spectrum + shift)
    x = inverse * _rotate(eig, y)
    d_quadratic, d_logdet = jnp.zeros_like(out[0]), jnp.zeros_like(out[1])
    if not isinstance(d_y, SymbolicZero):
        d_quadratic += 2 * jnp.sum(kron_matvec(eig.vectors, x) * d_y)
    if not isinstance(d_shift, SymbolicZero):
        d_quadratic -= d_shift * jnp.sum(x**2)
        d_logdet += d_shift * jnp.sum(inverse)
    for d, weight, part in _parts(eig, shift, d_factors, d_others):
        axes = [e for e in range(x.ndim) if e != d]
        outer = jnp.tensordot(x, weight * x, (axes, axes), precision="highest")
        d_quadratic -= jnp.sum(outer * part)
        d_logdet += jnp.sum(jnp.sum(weight * inverse, axes) * jnp.diagonal(part))
    return out, (d_quadratic, d_logdet)
