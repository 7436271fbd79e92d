"""What a Gaussian process on a grid knows after its observations.

Letters: as in `jaxlr.gp.grid`.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, ArrayLike, Float, Key, Num

from jaxlr.core import checks
from jaxlr.core.loop import Status
from jaxlr.gp import _partial
from jaxlr.gp._host import as_known, covariance, on_host, variance
from jaxlr.gp._partial import GridInfo, System
from jaxlr.linalg import (
    Estimate,
    kron_eigh,
    kron_matvec,
    map_draws,
    matmul,
    outer_product,
)


class Prediction(NamedTuple):
    """The posterior at P points.

    Attributes:
        mean: Mean of the process, in the units of y.
        variance: Variance of the process, without noise, in their squares; NaN where
            conjugate gradients did not converge.
    """

    mean: Float[Array, " P"]
    variance: Float[Array, " P"]


class Posterior(eqx.Module):
    """The process of a `GridGP` given y; what `GridGP.posterior` returns.

    Attributes:
        gp: The `GridGP` that was conditioned.
        system: The covariance of what was observed, ready to be solved with.
        maps: Matrices, one for each axis, from values of the kernel to the eigenbasis.
        coefficients: Coefficients of the mean, in the eigenbasis.
        info: How the solve went: nothing below counts unless it has converged.
    """

    gp: Any
    system: System
    maps: tuple[Float[ArrayLike, "_ _"], ...]
    coefficients: Float[Array, "..."]
    info: GridInfo

    @property
    def mean(self) -> Float[Array, "..."]:
        """The mean of the process on the whole grid; 2 N sum n_d flops.

        A filter of the spectrum of what was observed, its gaps filled, which is
        accurate in float32 where the product of K and A^-1 y is not.
        """
        return kron_matvec(self._rows(), self.coefficients)

    @property
    def variance(self) -> Float[Array, "..."]:
        """The variance of the process on the whole grid, without noise.

        2 N sum n_d flops without gaps; 8 M N sum n_d + M^3 / 3 and M^2 memory with.

        Raises:
            ValueError: With more than `max_dense` gaps; see `estimate_variance`.
        """
        system, gp = self.system, self.gp
        if system.free.size > gp.max_dense:
            raise ValueError(
                f"The exact variance around {system.free.size} gaps is dense, more "
                f"than `max_dense` {gp.max_dense}: use `estimate_variance`."
            )
        base = self._whole_variance()
        if not system.free.size:
            return base

        def add(total, row):
            return total + self._shift_of(system.gain * system.scatter(row)) ** 2, None

        return jax.lax.scan(add, base, _partial.gain_roots(system))[0]

    def estimate_variance(
        self, key: Key[Array, ""], *, num_samples: int = 64, batch_size: int = 1
    ) -> Estimate:
        """The variance on the grid, what the gaps add to it by sampling.

        What a grid without gaps would leave is exact; the rest, the larger part in
        gaps alone, has a relative standard error of (2 / num_samples)^1/2.

        Args:
            key: Draws the samples.
            num_samples: Number of samples, >= 2; each costs a solve. Static.
            batch_size: Number of samples that are solved for at once. Static.

        Returns:
            Value and standard error, grids each; NaN if conjugate gradients did not
            converge in every sample.

        Raises:
            ValueError: If `num_samples` is below 2 or `batch_size` below 1.
        """
        system, settings = self.system, self.gp.settings
        num_samples = checks.count("num_samples", num_samples, least=2)
        batch_size = checks.count("batch_size", batch_size)

        def draw(key):
            keys = jr.split(key)
            shape, dtype = self.coefficients.shape, self.coefficients.dtype
            z = jr.normal(keys[0], shape, dtype)
            u = system.back(jnp.sqrt(system.eig.spectrum + system.shift) * z)
            extra = system.noise / system.root**2 - system.shift
            extra = jnp.maximum(extra, 0)
            seen = u + jnp.sqrt(extra) * jr.normal(keys[1], shape, dtype)
            y = jnp.where(system.observed, system.root * seen, 0)
            filled, _, status = _partial.fill(system, y, settings)
            square = self._shift_of((u - filled) / jnp.sqrt(system.shift)) ** 2
            return jnp.where(status == Status.CONVERGED, square, jnp.nan)

        squares = map_draws(draw, key, num_samples, "num_samples", batch_size)
        error = jnp.std(squares, 0, ddof=1) / jnp.sqrt(num_samples)
        return Estimate(self._whole_variance() + jnp.mean(squares, 0), error)

    def sample(
        self, key: Key[Array, ""], num_samples: int, *, batch_size: int = 1
    ) -> Float[Array, "num_samples ..."]:
        """Draws of the process on the whole grid, by Matheron's rule.

        A draw of the prior, moved by the mean of what it misses of y: 8 N sum n_d flops
        each and a solve.

        Args:
            key: Draws the samples.
            num_samples: Number of samples. Static.
            batch_size: Number of samples that are solved for at once. Static.

        Returns:
            Samples, one after the other; one is NaN if its conjugate gradients did not
            converge.

        Raises:
            ValueError: If `num_samples` or `batch_size` is below 1.

        References:
            Wilson, Borovitskiy, Terenin, Mostowsky, Deisenroth. "Efficiently Sampling
            Functions from Gaussian Process Posteriors". 2020. arXiv:2002.09309.
        """
        num_samples = checks.count("num_samples", num_samples)
        batch_size = checks.count("batch_size", batch_size)
        system, gp = self.system, self.gp
        rows = self._rows()
        halves = tuple(map(self._half, range(len(rows))))

        def draw(key):
            keys = jr.split(key)
            dtype = self.coefficients.dtype
            z = jr.normal(keys[0], [k.shape[1] for k in halves], dtype)
            prior = kron_matvec(halves, z)
            noise = jr.normal(keys[1], system.noise.shape, dtype)
            seen = gp.take(prior) + jnp.sqrt(system.noise) * noise
            seen = jnp.where(system.observed, seen, 0)
            filled, _, status = _partial.fill(system, seen, gp.settings)
            change = self.coefficients - system.inverse * system.rotate(filled)
            sample = prior + kron_matvec(rows, change)
            return jnp.where(status == Status.CONVERGED, sample, jnp.nan)

        return map_draws(draw, key, num_samples, "num_samples", batch_size)

    def predict(
        self, points: Num[ArrayLike, "P D"], *, batch_size: int = 64
    ) -> Prediction:
        """The process at points off the grid.

        Args:
            points: Points, one in each row; whole numbers where the axis is one of
                outputs.
            batch_size: Number of points at once, and memory of so many grids. Static.

        Returns:
            Mean and variance. 4 N flops a point, and with gaps another solve each. The
            variance is a difference: its rounding is that of the prior's.

        Raises:
            ValueError: Unless `points` has D columns and `batch_size` is >= 1.
        """
        batch_size = checks.count("batch_size", batch_size)
        system, gp = self.system, self.gp
        ndim = len(gp.grid)
        if jnp.ndim(points) != 2 or jnp.shape(points)[1] != ndim:
            raise ValueError(
                f"`points` must have shape (P, {ndim}), got {jnp.shape(points)}."
            )
        columns = list(as_known(points).T)
        rows = tuple(jnp.asarray(self._cross(d, x)) for d, x in enumerate(columns))
        prior = [
            jnp.asarray(on_host(variance, k, x))
            for k, x in zip(gp.kernels, columns, strict=True)
        ]

        def product(rows, x):
            for row in rows:
                x = jnp.tensordot(row, x, 1, precision="highest")
            return x

        def at(rows):
            taken = product([row**2 for row in rows], system.inverse)
            mean = product(rows, self.coefficients)
            if not system.free.size:
                return mean, -taken
            b = system.back(outer_product(rows) * system.inverse)
            b = jnp.sqrt(system.shift) * system.gain * b
            z, info = _partial.solve_precision(system, b, gp.settings)
            added = jnp.where(info.status == Status.CONVERGED, jnp.sum(b * z), jnp.nan)
            return mean, added - taken

        mean, change = jax.lax.map(at, rows, batch_size=batch_size)
        return Prediction(mean, jnp.maximum(jnp.prod(jnp.stack(prior), 0) + change, 0))

    def _is_whole(self, d):
        return len(self.gp.kept[d]) == len(self.gp.grid[d])

    def _cross(self, d, x):
        """Covariances with kept points, in the eigenbasis."""

        def cross(kernel, x, axis, v):
            return matmul(covariance(kernel, x, axis), v)

        return on_host(cross, self.gp.kernels[d], x, self.gp.axis(d), self.maps[d])

    def _rows(self):
        """Matrices that take `coefficients` to the mean on the whole grid."""
        system, gp = self.system, self.gp
        rows = []
        for d, axis in enumerate(gp.grid):
            row = system.roots[d][:, None] * system.eig.vectors[d]
            row = row * system.eig.values[d]
            if not self._is_whole(d):
                row = jnp.asarray(self._cross(d, axis)).at[gp.kept[d]].set(row)
            rows.append(row)
        return tuple(rows)

    def _half(self, d):
        """A root of the prior's covariance on a whole axis."""
        system, gp = self.system, self.gp
        if self._is_whole(d):
            half = system.eig.vectors[d] * jnp.sqrt(system.eig.values[d])
            return system.roots[d][:, None] * half

        def half(kernel, axis):
            eig = kron_eigh([covariance(kernel, axis, axis)])
            return eig.vectors[0] * jnp.sqrt(jnp.maximum(eig.values[0], 0))

        return jnp.asarray(on_host(half, gp.kernels[d], gp.grid[d]))

    def _whole_variance(self):
        """The variance that is left if u is known at all kept rows."""
        system, gp = self.system, self.gp
        squares = [
            (r[:, None] * v) ** 2
            for r, v in zip(system.roots, system.eig.vectors, strict=True)
        ]
        weights = system.shift * system.eig.spectrum * system.inverse
        kept = kron_matvec(squares, weights)
        if kept.shape == gp.shape:
            return kept
        prior = outer_product(
            [on_host(variance, k, x) for k, x in zip(gp.kernels, gp.grid, strict=True)]
        )
        taken = kron_matvec([row**2 for row in self._rows()], system.inverse)
        return jnp.maximum(prior - taken, 0).at[jnp.ix_(*gp.kept)].set(kept)

    def _shift_of(self, x):
        """How the mean on the grid answers to a change s^1/2 x of u / W^1/2."""
        system = self.system
        change = jnp.sqrt(system.shift) * system.inverse * system.rotate(x)
        return kron_matvec(self._rows(), change)
