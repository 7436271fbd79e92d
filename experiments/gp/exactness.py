"""Are Gaussian processes by Kronecker products as exact as one dense Cholesky factor?

On a grid of 12 x 10 x 8 points, and on one of 14 x 12 x 10 of which 30 % have no value,
the log marginal likelihood of a draw from the model, its gradient by the logarithms of
six hyper-parameters (three lengthscales, a rational quadratic's exponent, a variance
and the noise), the log-determinant and the solve are compared with those of the
Cholesky factor of the whole covariance and automatic differentiation through it, in
float64, at variances of the noise from 1e-6 to 1. The variance of the process is 1.

Claims. On the whole grid the relative error of the likelihood is at most 1e-12 at a
noise of 1e-2 or more and 1e-9 at 1e-6, and that of the gradient 1e-11 and 1e-9. With
gaps, filled by conjugate gradients, likelihood and solve are within 1e-10 at 1e-2 or
more, the log-determinant, log |A_oo| = log |A| + log |S|, within 1e-12 at any noise.

Falsified if any of these is missed.

References:
    Saatci. "Scalable Inference for Structured Gaussian Process Models". 2011.
    Gilboa, Saatci, Cunningham. "Scaling Multidimensional Inference for Structured
    Gaussian Processes". 2012. arXiv:1209.4120.
"""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key
import numpy as np

from jaxlr import covariance, gp, lab
from jaxlr.core import checks, Claim, Experiment


SHAPES = {0: (12, 10, 8), 30: (14, 12, 10)}
"""Of the grid, by the percentage of gaps."""


class HParams(eqx.Module):
    """One cell. Static fields fix shapes; all others may be swept without compiling."""

    percent: int = eqx.field(static=True, default=0)
    """Share of points without a value: 0 or 30 [%]."""
    noises: tuple[float, ...] = eqx.field(
        static=True, default=(1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0)
    )
    """Variances of the noise [variance of the process]."""


class Metrics(eqx.Module):
    """Errors relative to the dense results, one for each variance of the noise."""

    likelihood_error: Float[Array, " level"]
    """Error of the log marginal likelihood [1]."""
    gradient_error: Float[Array, " level"]
    """Error of its gradient, in the Euclidean norm [1]."""
    logdet_error: Float[Array, " level"]
    """Error of the log-determinant [1]."""
    solve_error: Float[Array, " level"]
    """Error of the solve, in the Euclidean norm [1]."""
    noise: Float[Array, " level"]
    """Variance of the noise [variance of the process]."""


def _kernels(logs):
    first, second, third, alpha, variance = jnp.exp(logs)
    return (
        covariance.Scaled(variance, covariance.Matern(first)),
        covariance.RationalQuadratic(second, alpha),
        covariance.Matern(third, nu=1.5),
    )


def run(key: Key[Array, ""], hparams: HParams) -> Metrics:
    """One cell.

    Raises:
        ValueError: For another `percent` than those of `SHAPES`; as `GridGP` does.
    """
    checks.choice("percent", hparams.percent, SHAPES)
    shape = SHAPES[hparams.percent]
    grid = [np.linspace(0.0, 1.0, n) for n in shape]
    num = int(np.prod(shape))
    num_gaps = hparams.percent * num // 100
    gaps = np.random.default_rng(0).permutation(num)[:num_gaps]
    mask = np.ones(num, bool)
    mask[gaps] = False
    seen = np.flatnonzero(mask)

    def dense_covariance(logs):
        grams = map(covariance.gram, _kernels(logs[:-1]), grid)
        k = ft.reduce(jnp.kron, grams)[np.ix_(seen, seen)]
        return k + jnp.exp(logs[-1]) * jnp.eye(len(seen))

    def dense(logs, y):
        low = jnp.linalg.cholesky(dense_covariance(logs))
        white = jax.scipy.linalg.solve_triangular(low, y, lower=True)
        logs = jnp.log(2 * jnp.pi * jnp.diagonal(low) ** 2)
        return -(white @ white + jnp.sum(logs)) / 2

    def kronecker(logs, y):
        process = gp.GridGP(
            _kernels(logs[:-1]),
            grid,
            jnp.exp(logs[-1]),
            mask.reshape(shape),
            tolerance=1e-13,
        )
        on_grid = jnp.zeros(num).at[seen].set(y).reshape(shape)
        return process.evidence(on_grid).value  # no NaN, however the solve went

    def parts(likelihood, logs, y):
        """Likelihood, gradient, log-determinant and solve."""
        value, (slope, slope_y) = jax.value_and_grad(likelihood, (0, 1))(logs, y)
        logdet = -2 * value + y @ slope_y - len(seen) * jnp.log(2 * jnp.pi)
        return value, slope, logdet, -slope_y

    def errors_at(noise):
        logs = jnp.log(jnp.array([0.2, 0.3, 0.4, 1.0, 1.0, noise]))
        y = jnp.linalg.cholesky(dense_covariance(logs)) @ jr.normal(key, seen.shape)
        pairs = zip(parts(kronecker, logs, y), parts(dense, logs, y), strict=True)
        return [jnp.linalg.norm(a - b) / jnp.linalg.norm(b) for a, b in pairs]

    # One after the other: jaxlib's LAPACK calls on batches wait inside its pool of
    # threads for that pool, so that two of them at once can lock up two cores.
    noises = jnp.array(hparams.noises)
    return Metrics(*jax.lax.map(errors_at, noises), noise=noises)


def claims(results) -> list[Claim]:
    """The dense results to rounding, and what conjugate gradients leave."""
    whole, partial = (lab.select(results, percent=percent) for percent in SHAPES)
    least = whole.isel(level=0)
    whole, large = (x.where(~(x["noise"] < 1e-2), drop=True) for x in (whole, partial))
    wanted = (
        ("whole grid, noise >= 1e-2: error of the likelihood", whole, 1e-12),
        ("whole grid, noise >= 1e-2: error of the gradient", whole, 1e-11),
        ("whole grid, noise 1e-6: error of the likelihood", least, 1e-9),
        ("whole grid, noise 1e-6: error of the gradient", least, 1e-9),
        ("gaps, noise >= 1e-2: error of the likelihood", large, 1e-10),
        ("gaps, noise >= 1e-2: error of the solve", large, 1e-10),
        ("gaps, any noise: error of the logdet", partial, 1e-12),
    )
    return [
        Claim(statement, cells[f"{statement.split()[-1]}_error"], high=most)
        for statement, cells, most in wanted
    ]


NAMES = {
    "likelihood_error": "log marginal likelihood",
    "gradient_error": "its gradient",
    "logdet_error": "log-determinant",
    "solve_error": "solve",
}


def figure(results):
    """Errors over the noise, a panel for each grid."""
    page, panels = lab.panels(1, len(SHAPES), has_shared_y=True, size=(11, 4.4))
    for axis, (percent, shape) in zip(panels, SHAPES.items(), strict=True):
        cells = lab.select(results, percent=percent).squeeze("percent")
        for i, (name, label) in enumerate(NAMES.items()):
            noise, error = (cells[x].isel(seed=0) for x in ("noise", name))
            error = np.maximum(error, 1e-16)  # none at all is rounding's size here
            axis.plot(noise, error, "o-", color=f"C{i}", label=label)
        axis.set(xscale="log", yscale="log")
        axis.set(xlabel="variance of the noise [variance of the process]")
        axis.set_title(
            f"{' x '.join(map(str, shape))} points, {percent} % of them gaps"
        )
    panels[0].set_ylabel("relative error [1]")
    panels[0].legend(fontsize=8)
    page.suptitle("Kronecker products against dense Cholesky factors")
    return page


EXPERIMENT = Experiment(
    run=run,
    hparams=HParams(),
    axes={"percent": tuple(SHAPES)},
    num_seeds=1,
    x64=True,
    dims=dict.fromkeys((*NAMES, "noise"), ("level",)),
    smoke={"hparams": HParams(noises=(1e-6, 1e-2))},
    claims=claims,
    figure=figure,
)
