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
    kron_matvec,
    KronEigh,
    outer_product,
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
        """To the eigenbasis."""
        return kron_matvec([v.T for v in self.eig.vectors], x)

    def back(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """From the eigenbasis."""
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


def conjugate_gradients(
    system: System, b: Float[Array, "..."], settings: Settings, target=None
):
    """Solve G z = b on the grid, b being 0 where c is.

    A step costs 4 N sum n_d flops. Where a data residual is asked for, A x - y of the x
    that z stands for, it is r c / (1 - c^2) - K^ r / s at what was observed, of the
    residual r of G; it is bounded by what the steps compute anyway, on the whole grid.

    Args:
        system: G.
        b: The right-hand side.
        settings: When to end.
        target: What the data residual may be at most; None asks instead for
            ||r|| <= tolerance ||b||.

    Returns:
        `(z, num_steps, status)`.
    """
    ratio = system.eig.spectrum / system.shift
    gain = system.gain
    local = jnp.where(
        system.observed, gain * system.noise / (system.shift * system.root**2), 0
    )
    if target is None:
        limit = settings.tolerance * jnp.linalg.norm(b)
    else:
        limit = target

    def is_going(state):
        return (state[-2] > limit) & (state[-1] < settings.max_steps)

    def step(state):
        z, r, direction, hat, beta, square, _, count = state
        new_hat = system.rotate(gain * direction)
        size = square
        if target is not None:
            size = jnp.sum((local * r) ** 2)
            if system.missing.size:
                size += jnp.sum((ratio * (new_hat - beta * hat)) ** 2)
        image = gain * system.back(new_hat / (1 + ratio))
        image += (1 - gain**2) * direction
        curvature = jnp.sum(direction * image)
        alpha = jnp.where(square > 0, square / curvature, 0)
        z, r = z + alpha * direction, r - alpha * image
        new = jnp.sum(r**2)
        beta = jnp.where(square > 0, new / square, 0)
        size = jnp.sqrt(size)
        return z, r, r + beta * direction, new_hat, beta, new, size, count + 1

    zero = jnp.zeros((), b.dtype)
    start = (
        jnp.zeros_like(b),
        b,
        b,
        jnp.zeros_like(b),
        zero,
        jnp.sum(b**2),
        jnp.full((), jnp.inf, b.dtype),
        jnp.zeros((), int),
    )
    z, *_, size, count = jax.lax.while_loop(is_going, step, start)
    return z, count, _status(size, limit)


def _status(size, limit):
    status = jnp.where(size <= limit, Status.CONVERGED, Status.MAX_STEPS)
    return jnp.where(jnp.isfinite(size), status, Status.DIVERGED)


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
        limit = share * jnp.linalg.norm(b)
        z, *info = conjugate_gradients(system, b, settings, limit)
        return z, info

    z, (num_steps, status) = jax.lax.custom_linear_solve(
        matvec, b, run, symmetric=True, has_aux=True
    )
    return white + system.gain * z, num_steps, status


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

        def refine(_, b):
            unit = jnp.linalg.norm(b)

            def goes_on(carry):
                _, r, is_better, num, _ = carry
                is_large = jnp.linalg.norm(r) > most * unit / 2
                return has_begun & is_better & is_large & (num < _MOST_REFINEMENTS)

            def body(carry):
                x, r, _, num, num_steps = carry
                _, change, num_more, _ = attempt(r, whole * unit)
                new = r - jnp.where(system.observed, product(change), 0)
                is_better = jnp.linalg.norm(new) < jnp.linalg.norm(r)
                x, r = (jnp.where(is_better, *p) for p in ((x + change, x), (new, r)))
                return x, r, is_better, num + 1, num_steps + num_more

            zero = jnp.zeros((), int)
            start = jnp.zeros_like(b), b, jnp.asarray(True), zero, zero
            x, *_, num_steps = jax.lax.while_loop(goes_on, body, start)
            return x, num_steps

        change, num_more = jax.lax.custom_linear_solve(
            lambda x: jnp.where(system.observed, product(x), x),
            lost,
            refine,
            symmetric=True,
            has_aux=True,
        )
        x, num_steps = x + change, num_steps + num_more
    unit = jnp.where(size > 0, size, 1)
    residual = jnp.linalg.norm(rest(x)) / unit
    judged = _status(residual, allowed(x) / unit)
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
