"""Gaussian processes on a grid of which parts are missing or noisier than the rest.

    K^ = W^-1/2 (x)K_d W^-1/2,  Phi = K^ (K^ + s)^-1,  c^2 = 1 - s W / R,
    G = I - c Phi c = (1 - c^2) + c (I - Phi) c

Letters: N points of the grid; R the variance of the noise, infinite where nothing was
observed; s W a Kronecker product not above R. What was observed has the covariance
A = (K + R)_oo. Between the process and what was observed stands u, the process with
noise s W everywhere; G is the precision, given what was observed, of what R adds to it.
Then u / W^1/2 = y^ + c z with G z = -c (I - Phi) y^, and A^-1 y, log det A and the
posterior follow from u as on a grid without gaps. Spectrum of G: in (0, 1]; of the two
forms the second one does not lose the smallest to rounding.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlr.core.batching import one_by_one
from jaxlr.core.loop import Status
from jaxlr.linalg import (
    cg_steps,
    judge,
    kron_matvec,
    KronEigh,
    outer_product,
    refine,
)


_MOST_REFINEMENTS = 5


class Settings(NamedTuple):
    """What is static.

    Attributes:
        tolerance: Of the relative residual.
        max_steps: Of conjugate gradients.
        max_dense: G of at most so many rows is formed.
        num_probes: Of stochastic traces.
        num_lanczos: Steps from each.
    """

    tolerance: float
    max_steps: int
    max_dense: int
    num_probes: int = 10
    num_lanczos: int = 25


class GridInfo(NamedTuple):
    """How a solve went; it can be used only if it has converged.

    Attributes:
        residual: The true ||A x - y|| / ||y||, of the x returned.
        num_steps: Of conjugate gradients; 0 where the solve is direct.
        status: A `jaxlr.core.loop.Status`: converged if `residual` is within the
            tolerance, or as small as x rounded to its type can make it.
        jitter: What was added to the diagonals of the kernels' matrices, one for each
            axis, relative to the mean diagonal; NaN, as all results, if 1e-4 were too
            little to make it positive semi-definite.
    """

    residual: Float[Array, ""]
    num_steps: Int[Array, ""]
    status: Int[Array, ""]
    jitter: Float[Array, " D"]


class System(NamedTuple):
    """A, ready to be solved with.

    Attributes:
        factors: K_d.
        roots: W^1/2, of each axis.
        eig: Of K^, jitter included.
        shift: s.
        noise: R; anything finite where nothing was observed.
        gain: c.
        observed: Where.
        free: Flat indices of where c may be other than 0.
        missing: Flat indices of what was not observed.
        jitter: See `GridInfo`.
        spread: Of K: the residual that x has by rounding is as large as that of x times
            this.
    """

    factors: tuple[Float[Array, "_ _"], ...]
    roots: tuple[Float[Array, " _"], ...]
    eig: KronEigh
    shift: Float[Array, ""]
    noise: Float[Array, "..."]
    gain: Float[Array, "..."]
    observed: Bool[Array, "..."]
    free: Int[Array, " M"]
    missing: Int[Array, " m"]
    jitter: Float[Array, " D"]
    spread: Float[Array, ""]

    @property
    def root(self) -> Float[Array, "..."]:
        """W^1/2 on the grid."""
        return outer_product(self.roots)

    @property
    def inverse(self) -> Float[Array, "..."]:
        """Eigenvalues of (K^ + s)^-1."""
        return 1 / (self.eig.spectrum + self.shift)

    def rotate(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The grid's array x in the eigenbasis."""
        return kron_matvec([v.T for v in self.eig.vectors], x)

    def back(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The array on the grid that `rotate` takes to x."""
        return kron_matvec(self.eig.vectors, x)

    def rough(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """(I - Phi) x."""
        return self.back(self.shift * self.inverse * self.rotate(x))

    def scatter(self, x: Float[Array, " M"]) -> Float[Array, "..."]:
        """Values at `free`, on a grid that is 0 elsewhere."""
        flat = jnp.zeros(self.gain.size, x.dtype).at[self.free].set(x)
        return flat.reshape(self.gain.shape)

    def gather(self, x: Float[Array, "..."]) -> Float[Array, " M"]:
        """Values at `free`."""
        return x.ravel()[self.free]

    def precision(self, x: Float[Array, " M"]) -> Float[Array, " M"]:
        """G x, at `free`."""
        gain = self.gather(self.gain)
        return (1 - gain**2) * x + gain * self.gather(
            self.rough(self.scatter(gain * x))
        )


def solve_precision(
    system: System, b: Float[Array, "..."], settings: Settings, limit=None
):
    """Solve G z = b on the grid by conjugate gradients, b being 0 where c is.

    A step costs 4 N sum n_d flops. Where a data residual is asked for, A x - y of the x
    that z stands for, it is r c / (1 - c^2) - K^ r / s at what was observed, of the
    residual r of G; it is bounded by what the steps compute anyway, on the whole grid.

    Args:
        system: G.
        b: The right-hand side.
        settings: When to end.
        limit: What the data residual may be at most; None asks instead for
            ||r|| <= tolerance ||b||.

    Returns:
        `(z, info)`, an `IterativeInfo`.
    """
    ratio = system.eig.spectrum / system.shift
    gain = system.gain
    local = jnp.where(
        system.observed, gain * system.noise / (system.shift * system.root**2), 0
    )

    def matvec(x, rotated):
        return (1 - gain**2) * x + gain * system.back(rotated / (1 + ratio))

    def norm(r, _, rotated):
        square = jnp.sum((local * r) ** 2)
        if system.missing.size:
            square += jnp.sum((ratio * rotated) ** 2)
        return jnp.sqrt(square)

    return cg_steps(
        matvec,
        b,
        max_steps=settings.max_steps,
        tolerance=settings.tolerance if limit is None else 0.0,
        floor=0.0 if limit is None else limit,
        seen_fn=lambda x: system.rotate(gain * x),
        norm_fn=None if limit is None else norm,
    )


def fill(system: System, y: Float[Array, "..."], settings: Settings, size: Any = None):
    """The expected u / W^1/2 given y, which is 0 where nothing was observed.

    Args:
        system: A.
        y: The data.
        settings: When to end.
        size: What the tolerance is relative to. None: ||y||.

    Returns:
        `(u, num_steps, status)`.
    """
    white = y / system.root
    if not system.free.size:
        return white, jnp.zeros((), int), jnp.asarray(int(Status.CONVERGED))
    b = -system.gain * system.rough(white)
    size = jnp.linalg.norm(y) if size is None else size
    target = settings.tolerance * size / jnp.max(system.root)
    size = jnp.linalg.norm(b)
    share = target / jnp.where(size > 0, size, 1)

    def matvec(z):
        return (1 - system.gain**2) * z + system.gain * system.rough(system.gain * z)

    def run(_, b):
        limit = share * jnp.linalg.norm(b) / 2  # the rest is for what rounding adds
        return solve_precision(system, b, settings, limit)

    z, info = jax.lax.custom_linear_solve(matvec, b, run, symmetric=True, has_aux=True)
    return white + system.gain * z, info.num_steps, info.status


class Solved(NamedTuple):
    """What y determines.

    Attributes:
        coefficients: (K^ + s)^-1 u / W^1/2 in the eigenbasis: posterior means are
            matrices of each axis times it.
        x: A^-1 y on the grid, 0 where nothing was observed.
        info: How it went.
    """

    coefficients: Float[Array, "..."]
    x: Float[Array, "..."]
    info: GridInfo


def solve(system: System, y: Float[Array, "..."], settings: Settings) -> Solved:
    """A^-1 y: 6 N sum n_d flops, and those of conjugate gradients.

    Where there are gaps, x is refined as long as it leaves more of y than asked for:
    rounding of u where nothing was observed counts 1 / s times in x, though not in
    means, which keep to the first u.

    Args:
        system: A.
        y: 0 where nothing was observed.
        settings: When to end.
    """

    def attempt(y, size):
        u, num_steps, status = fill(system, y, settings, size)
        coefficients = system.inverse * system.rotate(u)
        x = jnp.where(system.observed, system.back(coefficients) / system.root, 0)
        return coefficients, x, num_steps, status

    def product(x):
        return kron_matvec(system.factors, x) + system.noise * x

    def rest(x):
        return jnp.where(system.observed, y - product(x), 0)

    rounding = 10 * jnp.finfo(y.dtype).eps * system.spread

    def allowed(x):
        return settings.tolerance * size + rounding * jnp.linalg.norm(x)

    size = jnp.linalg.norm(y)
    coefficients, x, num_steps, status = attempt(y, size)
    if system.free.size:
        lost = rest(x)
        most, unit = allowed(x), jnp.linalg.norm(lost)
        most, whole = (z / jnp.where(unit > 0, unit, 1) for z in (most, size))
        has_begun = status == Status.CONVERGED

        def refine_rest(matvec_fn, b):
            unit = jnp.linalg.norm(b)
            return refine(
                matvec_fn,
                lambda r: attempt(r, whole * unit)[1:3],
                b,
                max_steps=_MOST_REFINEMENTS,
                target=jnp.where(has_begun, most * unit / 2, jnp.inf),
            )

        change, num_more = jax.lax.custom_linear_solve(
            lambda x: jnp.where(system.observed, product(x), x),
            lost,
            refine_rest,
            symmetric=True,
            has_aux=True,
        )
        x, num_steps = x + change, num_steps + num_more
    unit = jnp.where(size > 0, size, 1)
    residual = jnp.linalg.norm(rest(x)) / unit
    judged = judge(residual, allowed(x) / unit)
    status = jnp.where(status == Status.DIVERGED, status, judged)
    return Solved(coefficients, x, GridInfo(residual, num_steps, status, system.jitter))


def gain_cholesky(system: System) -> Float[Array, "M M"]:
    """The lower Cholesky factor of G at `free`; 2 M N sum n_d + M^3 / 3 flops."""
    weights = system.shift * system.inverse
    places = jnp.unravel_index(system.free, system.gain.shape)
    gain = system.gather(system.gain)

    def column(row):
        place, size = row
        start = outer_product(
            [v[i] for v, i in zip(system.eig.vectors, place, strict=True)]
        )
        return size * gain * system.gather(system.back(weights * start))

    columns = jax.lax.map(column, (places, gain), batch_size=16)
    return one_by_one(jnp.linalg.cholesky)(jnp.diag(1 - gain**2) + columns)


def gain_roots(system: System) -> Float[Array, "M M"]:
    """Rows l_j, at `free`, with sum_j l_j l_j^T = G^-1."""
    low = gain_cholesky(system)

    def invert(low):
        eye = jnp.eye(len(low), dtype=low.dtype)
        return jax.scipy.linalg.solve_triangular(low, eye, lower=True)

    return one_by_one(invert)(low)
