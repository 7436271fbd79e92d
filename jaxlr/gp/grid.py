"""Gaussian processes on grids of several axes, whole or with gaps.

Letters: a grid has D axes of n_1, ..., n_D points, N in all, M of them without a value;
K_d is the kernel's matrix of axis d, R the variance of the noise, P points anywhere.
"""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Key, Num
import numpy as np

from jaxlr.core import checks
from jaxlr.core.derivatives import refuse
from jaxlr.core.loop import Status
from jaxlr.covariance import Kernel
from jaxlr.gp import _partial
from jaxlr.gp._evidence import Evidence, evidence
from jaxlr.gp._host import as_known, covariance, on_host
from jaxlr.gp._partial import GridInfo, Settings, System
from jaxlr.gp.coregionalization import Coregionalization
from jaxlr.gp.posterior import Posterior
from jaxlr.linalg import kron_eigh, outer_product


_MOST_JITTER = 1e-4
_ONLY_EVIDENCE = (
    "`solve` and `posterior` are not differentiable in kernels and noise, as "
    "`log_marginal_likelihood` is: give them `jax.lax.stop_gradient` of those."
)


class GridGP(eqx.Module):
    """A Gaussian process of zero mean, a product of kernels, seen on a grid with noise.

    Wherever kernels, axes and noise are known, not traced, matrices are made and
    decomposed on the host in float64, whatever the type of the rest: a posterior mean
    in float32 is then within 1e-6. Traced ones are decomposed in their own type, with
    negative eigenvalues as large as rounding set to 0.

    An axis none of whose rows was observed at some point does not cost anything there.
    All other gaps are filled by conjugate gradients, which are judged by the residual
    of what was observed and return a status.

    Attributes:
        kernels: Kernels, one for each axis; `Coregionalization` for one of outputs.
        grid: The points of each axis, all different, in its units.
        noise: Variances, > 0, in the square of the units of y: a number; a tuple of
            vectors, one an axis, which multiply; or an array of the grid's shape, which
            may be anything where nothing was observed.
        kept: The rows of each axis that have an observation.
        missing: Flat indices of gaps in the grid of those rows.
        tolerance: Bound on ||A x - y|| / ||y||, A the covariance of what was observed.
            None stands for 1e-10 in float64 and 1e-5 in float32. Static.
        max_steps: Bound on the steps of conjugate gradients. Static.
        max_dense: Number of points up to which traces and determinants are exact: the
            gaps; with an array of noise all points of the grid. Static.

    References:
        Saatci. "Scalable Inference for Structured Gaussian Process Models". 2011.
        Gilboa, Saatci, Cunningham. "Scaling Multidimensional Inference for Structured
        Gaussian Processes". 2012. arXiv:1209.4120.
        Wilson, Borovitskiy, Terenin, Mostowsky, Deisenroth. "Efficiently Sampling
        Functions from Gaussian Process Posteriors". 2020. arXiv:2002.09309.
    """

    kernels: tuple[Kernel | Coregionalization, ...]
    grid: tuple[Any, ...]
    noise: Any
    kept: tuple[Any, ...]
    missing: Any
    tolerance: float | None = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)
    max_dense: int = eqx.field(static=True)

    def __init__(
        self,
        kernels: Sequence[Kernel | Coregionalization],
        grid: Sequence[ArrayLike],
        noise: Any,
        mask: Bool[ArrayLike, "..."] | None = None,
        *,
        tolerance: float | None = None,
        max_steps: int = 1000,
        max_dense: int = 1024,
    ):
        """Checks what is known, and finds the gaps.

        Args:
            kernels: Kernels, one for each axis, as the class has them.
            grid: The points of each axis, all different, in its units.
            noise: Variances of the noise, in one of the three forms of the class.
            mask: True where y is observed; known, not traced, since the number of gaps
                is a shape. None stands for everywhere.
            tolerance: Bound on the relative residual, as the class has it, or None.
            max_steps: Bound on the steps of conjugate gradients. Static.
            max_dense: Number of points up to which the class works exactly. Static.

        Raises:
            ValueError: If kernels and axes are not as many; if points repeat; on noise
                that is not positive or of another shape; on a mask that is traced, not
                boolean, of another shape, or nowhere true; on a tolerance or bounds
                that are not positive.
        """
        self.kernels = tuple(kernels)
        self.grid = tuple(map(as_known, grid))
        if not self.kernels or len(self.kernels) != len(self.grid):
            raise ValueError(
                "`kernels` must be as many as the axes of `grid`, one or more, got "
                f"{len(self.kernels)} and {len(self.grid)}."
            )
        for d, axis in enumerate(self.grid):
            _check_axis(d, axis, self.kernels[d])
        self.kept, self.missing = _gaps(mask, self.shape)
        _check_noise(noise, self.shape, mask)
        self.noise = jax.tree.map(as_known, noise)
        self.max_steps = checks.count("max_steps", max_steps, least=0)
        self.max_dense = checks.count("max_dense", max_dense, least=0)
        if tolerance is not None:
            checks.positive("tolerance", tolerance)
        self.tolerance = tolerance

    @property
    def shape(self) -> tuple[int, ...]:
        """(n_1, ..., n_D)."""
        return tuple(map(len, self.grid))

    def solve(self, y: Float[ArrayLike, "..."]) -> tuple[Float[Array, "..."], GridInfo]:
        """A^-1 y, A the covariance of what was observed.

        Args:
            y: Data on the grid; anything, NaN too, where nothing was observed.

        Returns:
            `(x, info)`: x on the grid, 0 where nothing was observed, and how it went,
            which is for the caller to see. Direct on a grid without gaps unless the
            noise is an array; 6 N sum n_d flops, and 4 N sum n_d a step. In float32 the
            residual of any x is as large as its rounding makes it, though means are
            accurate; the status allows for that. Differentiable in y.

        Raises:
            ValueError: If y has another shape; if differentiated in kernels or noise,
                as `log_marginal_likelihood` can be.
        """
        system, _ = self._refusing()._system()
        y = self._observed(y, system)
        _, x, info = _partial.solve(system, y, self.settings)
        if x.shape != self.shape:
            x = jnp.zeros(self.shape, x.dtype).at[jnp.ix_(*self.kept)].set(x)
        return x, info

    def log_marginal_likelihood(
        self, y: Float[ArrayLike, "..."], *, key: Key[Array, ""] | None = None
    ) -> Float[Array, ""]:
        """The log-density of y in nats, differentiable once in kernels, noise and y.

        Args:
            y: Data on the grid; anything where nothing was observed.
            key: Draws the probes of a stochastic log-determinant; see `evidence`.

        Returns:
            The value, NaN where `evidence` has not converged.

        Raises:
            ValueError: As `evidence`.
        """
        found = self.evidence(y, key=key)
        is_good = found.info.status == Status.CONVERGED
        return found.value * jnp.where(is_good, 1, jnp.nan)  # derivatives too

    def evidence(
        self,
        y: Float[ArrayLike, "..."],
        *,
        key: Key[Array, ""] | None = None,
        num_probes: int = 10,
        num_steps: int = 25,
    ) -> Evidence:
        """The log-density of y with its standard error, and how it went.

        The log-determinant is exact with at most `max_dense` gaps, in 2 M N sum n_d
        + M^3 / 3 flops and M^2 memory; with more of them, stochastic Lanczos in
        4 N sum n_d flops and M memory a step. With an array of noise every point of the
        grid counts as a gap. Gradients cost twice as much, and are unbiased estimates
        where the value is one.

        Args:
            y: Data on the grid; anything where nothing was observed.
            key: Draws the probes. None will do for an exact log-determinant.
            num_probes: Number of probes p >= 2; the error falls as p^-1/2. Static.
            num_steps: Number of Lanczos steps from each probe. Static.

        Raises:
            ValueError: If y has another shape, or without a key where one is needed.

        References:
            Ubaru, Chen, Saad. "Fast Estimation of tr(f(A)) via Stochastic Lanczos
            Quadrature". 2017. SIAM Journal on Matrix Analysis and Applications.
        """
        factors, noise = self._factors(), self._grid_noise()
        system, _ = self._system()
        if system.free.size > self.max_dense and key is None:
            raise ValueError(
                f"`key` is needed: {system.free.size} gaps are more than `max_dense` "
                f"{self.max_dense}, and their log-determinant is stochastic."
            )
        settings = self.settings._replace(
            num_probes=checks.count("num_probes", num_probes, least=2),
            num_lanczos=checks.count("num_steps", num_steps),
        )
        y = self._observed(y, system)
        factors = tuple(map(jnp.asarray, factors))
        return evidence(settings, system, key, factors, noise, y)

    def posterior(self, y: Float[ArrayLike, "..."]) -> Posterior:
        """The process given y.

        Args:
            y: Data on the grid; anything where nothing was observed.

        Returns:
            Its mean is differentiable in y, and with its variance in the points of
            predictions.

        Raises:
            ValueError: If y has another shape; if differentiated in kernels or noise.
        """
        gp = self._refusing()
        system, maps = gp._system()
        y = self._observed(y, system)
        solved = _partial.solve(system, y, self.settings)
        return Posterior(gp, system, maps, solved.coefficients, solved.info)

    @property
    def settings(self) -> Settings:
        """What ends iterations."""
        tolerance = self.tolerance
        if tolerance is None:
            is_wide = jnp.zeros(()).dtype == jnp.float64
            tolerance = 1e-10 if is_wide else 1e-5
        return Settings(tolerance, self.max_steps, self.max_dense)

    def axis(self, d: int) -> Num[ArrayLike, " _"]:
        """The points of one axis that are kept.

        Args:
            d: Number of the axis, counted from 0.
        """
        d = checks.count("d", d, least=0, most=len(self.grid) - 1)
        axis, kept = self.grid[d], self.kept[d]
        return axis if len(kept) == len(axis) else axis[kept]

    def take(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The part of an array on kept rows.

        Args:
            x: Array on the grid, or one that is on kept rows already.
        """
        is_whole = x.shape == tuple(map(len, self.kept))
        return x if is_whole else x[jnp.ix_(*self.kept)]

    def _refusing(self):
        """The same, of which nothing can be differentiated in kernels and noise."""
        return jax.tree.map(
            lambda x: x if checks.known(x) else refuse(_ONLY_EVIDENCE, x, x), self
        )

    def _observed(self, y, system):
        """Values on kept rows, 0 where nothing was observed."""
        y = jnp.asarray(y, float)
        if y.shape != self.shape:
            raise ValueError(f"`y` must have shape {self.shape}, got {y.shape}.")
        return jnp.where(system.observed, self.take(y), 0)

    def _factors(self):
        return tuple(
            on_host(covariance, kernel, self.axis(d), self.axis(d))
            for d, kernel in enumerate(self.kernels)
        )

    def _grid_noise(self):
        """R on kept rows."""
        if isinstance(self.noise, tuple):
            pairs = zip(self.noise, self.kept, strict=True)
            return jnp.asarray(outer_product([w[kept] for w, kept in pairs]), float)
        noise = jnp.asarray(self.noise, float)
        shape = tuple(map(len, self.kept))
        return self.take(noise) if noise.ndim else jnp.full(shape, noise)

    def _system(self):
        """The system, without derivatives, and `Posterior.maps`."""
        if isinstance(self.noise, tuple):
            pairs = zip(self.noise, self.kept, strict=True)
            roots = tuple(w[kept] ** 0.5 for w, kept in pairs)
        else:
            roots = tuple(np.ones(len(kept)) for kept in self.kept)
        factors, roots, noise = jax.tree.map(
            _still, (self._factors(), roots, self._grid_noise())
        )
        factors, eig, maps, least, jitter = on_host(_decompose, factors, roots)
        is_traced = not checks.known(jitter)
        if not is_traced and np.isnan(jitter).any():
            d = int(np.isnan(jitter).argmax())
            raise ValueError(
                f"`kernels[{d}]` is not positive semi-definite on its axis: its least "
                f"eigenvalue is {least[d]:.1e} of the mean diagonal, which a jitter of "
                f"{_MOST_JITTER} does not mend."
            )
        factors, roots, eig, jitter = jax.tree.map(
            jnp.asarray, (factors, roots, eig, jitter)
        )
        missing = jnp.asarray(self.missing)
        observed = jnp.ones(noise.size, bool).at[missing].set(False)
        observed = observed.reshape(noise.shape)
        if isinstance(self.noise, tuple) or not jnp.ndim(self.noise):
            shift = 1 if isinstance(self.noise, tuple) else _still(self.noise)
            shift = jnp.asarray(shift, noise.dtype)
            gain, free = jnp.where(observed, 0, jnp.ones_like(noise)), missing
        else:
            shift = jnp.min(jnp.where(observed, noise, jnp.inf))
            noise = jnp.where(observed, noise, shift)
            gain = jnp.sqrt(jnp.where(observed, 1 - shift / noise, 1))
            free = jnp.arange(noise.size)
        # Rounding x is an error in all directions alike, a decomposition in x's own
        # type one of the size of the largest eigenvalue.
        spread = jnp.ones((), noise.dtype)
        for v, root in zip(eig.values, roots, strict=True):
            size = jnp.max(v) if is_traced else jnp.sqrt(jnp.mean(v**2))
            spread *= size * jnp.max(root) ** 2
        system = System(
            *(factors, roots, eig, shift, noise, gain, observed, free, missing, jitter),
            spread,
        )
        return system, maps


def _still(x):
    return x if checks.known(x) else jax.lax.stop_gradient(x)


def _decompose(factors, roots):
    """K_d and K^_d's eigenvectors with jitter, maps, least eigenvalues, jitter."""
    white = [k / r / r[:, None] for k, r in zip(factors, roots, strict=True)]
    eig = kron_eigh(white)
    scales = [jnp.mean(jnp.diagonal(k)) for k in white]
    pairs = zip(eig.values, scales, strict=True)
    least = jnp.stack([jnp.min(v) / scale for v, scale in pairs])
    first = 1e-12 if least.dtype == jnp.float64 else 1e-6
    # A tenfold of the first until it is enough.
    needed = jnp.where(least < 0, -least, first)
    jitter = 10.0 ** jnp.ceil(jnp.log10(jnp.maximum(needed, first)) - 1e-6)
    jitter = jnp.where(least < 0, jitter, 0)
    jitter = jnp.where(jitter <= 1.001 * _MOST_JITTER, jitter, jnp.nan)
    added = [j * scale for j, scale in zip(jitter, scales, strict=True)]
    values = tuple(v + a for v, a in zip(eig.values, added, strict=True))
    factors = tuple(
        k + jnp.diag(a * r**2) for k, a, r in zip(factors, added, roots, strict=True)
    )
    maps = tuple(v / r[:, None] for v, r in zip(eig.vectors, roots, strict=True))
    return factors, eig._replace(values=values), maps, least, jitter


def _check_axis(d, axis, kernel):
    if jnp.ndim(axis) != 1 or not jnp.size(axis):
        raise ValueError(
            f"`grid[{d}]` must be a vector of points, got shape {jnp.shape(axis)}."
        )
    if not checks.known(axis):
        return
    points = np.asarray(axis)
    if len(np.unique(points)) < len(points) or not np.isfinite(points).all():
        raise ValueError(f"`grid[{d}]` must have finite points, none of them twice.")
    if isinstance(kernel, Coregionalization):
        num = np.size(kernel.diagonal)
        if points.dtype.kind not in "iu" or points.min() < 0 or points.max() >= num:
            raise ValueError(
                f"`grid[{d}]` must be whole numbers in 0..{num - 1}, the outputs of "
                f"its kernel, got {points.dtype} from {points.min()} to {points.max()}."
            )


def _check_noise(noise, shape, mask):
    if isinstance(noise, tuple):
        fits = [jnp.shape(w) for w in noise] == [(n,) for n in shape]
    else:
        fits = jnp.shape(noise) in ((), shape)
    if not fits:
        raise ValueError(
            "`noise` must be a number, a tuple of a vector for each axis, or an array, "
            f"for a grid of shape {shape}; got shapes "
            f"{jax.tree.map(jnp.shape, noise)}."
        )
    for w in jax.tree.leaves(noise):
        if not isinstance(noise, tuple) and jnp.ndim(w) and mask is not None:
            w = np.asarray(w)[np.asarray(mask)] if checks.known(w) else w
        checks.positive("noise", w)


def _gaps(mask, shape):
    """Rows of each axis with an observation, and the gaps in their grid."""
    if mask is None:
        return tuple(map(np.arange, shape)), np.zeros(0, int)
    if not checks.known(mask):
        raise ValueError("`mask` must be known, not traced: its gaps fix shapes.")
    mask = np.asarray(mask)
    if mask.shape != shape or mask.dtype != bool or not mask.any():
        raise ValueError(
            f"`mask` must be boolean of shape {shape} and true somewhere, got "
            f"{mask.dtype} of shape {mask.shape}, {mask.sum()} of it true."
        )
    kept = []
    for d in range(mask.ndim):
        others = tuple(e for e in range(mask.ndim) if e != d)
        kept.append(np.flatnonzero(mask.any(others)))
    return tuple(kept), np.flatnonzero(~mask[np.ix_(*kept)])
