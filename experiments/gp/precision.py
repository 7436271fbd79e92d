"""Is single precision enough for Gaussian processes on large grids?

The posterior mean and the log marginal likelihood on a grid of 100^3 points (Matern
5/2, lengthscales .2, .3 and .4 of the side, variance 1) in float32 are compared with
float64's for the same draws from the model, over the variance of the noise. "policy" is
what `GridGP` does with kernels that are known: their small matrices are decomposed in
float64 on the host, grids filtered in float32. "traced" is what it does with traced
hyper-parameters: decompositions in float32, negative eigenvalues as small as rounding
set to 0. "plain" uses the eigenvalues as they come. "product" takes the mean as the
product of K and the solve, with the policy's decomposition.

Claims. With the policy mean and likelihood are within 1e-6 at every noise from 1e-4 to
0.1. At 1e-4 the mean of "traced" and "plain" is at least 10 times as far off, that of
"product" 1e3 times. Neither "policy" nor "traced" is ever NaN.

Falsified if any seed misses one of these.

References:
    Saatci. "Scalable Inference for Structured Gaussian Process Models". 2011.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key
import numpy as np

from jaxlr import covariance, gp, lab, linalg
from jaxlr.core import Claim, compat, Experiment, Hyper


ARITHMETICS = ("policy", "traced", "plain", "product")
LENGTHSCALES = (0.2, 0.3, 0.4)


class HParams(eqx.Module):
    """One cell. Static fields fix shapes; all others may be swept without compiling."""

    noise: Hyper = 1e-4
    """Variance of the noise [variance of the process]."""
    side: int = eqx.field(static=True, default=100)
    """Number of points of each of the three axes."""


class Metrics(eqx.Module):
    """One number for each of ARITHMETICS; errors are 1 where larger or not a number."""

    mean_error: Float[Array, " arithmetic"]
    """Relative error of the posterior mean, in the Euclidean norm [1]."""
    likelihood_error: Float[Array, " arithmetic"]
    """Relative error of the log marginal likelihood [1]."""
    is_finite: Float[Array, " arithmetic"]
    """1 if mean and likelihood are, else 0 [1]."""


def run(key: Key[Array, ""], hparams: HParams) -> Metrics:
    """One cell.

    Raises:
        ValueError: As `GridGP` does.
    """
    axis = np.linspace(0.0, 1.0, hparams.side)
    kernels = [covariance.Matern(lengthscale) for lengthscale in LENGTHSCALES]
    grid, shape = [axis] * 3, (hparams.side,) * 3
    noise = jnp.asarray(hparams.noise, float)
    keys = jr.split(key)
    with jax.ensure_compile_time_eval():
        factors = [np.asarray(covariance.gram(kernel, axis)) for kernel in kernels]
        eig = linalg.kron_eigh(factors)
    smooth = linalg.spectral_filter(eig, jnp.sqrt, jr.normal(keys[0], shape))
    y = smooth + jnp.sqrt(noise) * jr.normal(keys[1], shape)
    exact = _process(kernels, grid, noise, y)
    single = [x.astype(jnp.float32) for x in (noise, y)]
    with compat.x64(False):
        policy = _process(kernels, grid, *single)
        traced = jax.jit(_process)(kernels, grid, *single)
        plain = _plain(kernels, grid, *single)
        x, _ = gp.GridGP(kernels, grid, single[0]).solve(single[1])
        product = linalg.kron_matvec(factors, x), policy[1]
    found = policy, traced, plain, product

    def error(got, want):
        gap = jnp.linalg.norm(got - want) / jnp.linalg.norm(want)
        return jnp.where(gap < 1, gap, 1.0)

    is_finite = [jnp.all(jnp.isfinite(m)) & jnp.isfinite(l) for m, l in found]
    return Metrics(
        mean_error=jnp.stack([error(mean, exact[0]) for mean, _ in found]),
        likelihood_error=jnp.stack([error(value, exact[1]) for _, value in found]),
        is_finite=jnp.where(jnp.stack(is_finite), 1.0, 0.0),
    )


def _process(kernels, grid, noise, y):
    """Mean and log marginal likelihood as the library has them."""
    process = gp.GridGP(kernels, grid, noise)
    return process.posterior(y).mean, process.log_marginal_likelihood(y)


def _plain(kernels, grid, noise, y):
    """The same by eigenvalues as they come."""
    grid = [jnp.asarray(x, y.dtype) for x in grid]
    pairs = [
        jnp.linalg.eigh(covariance.gram(k, x))
        for k, x in zip(kernels, grid, strict=True)
    ]
    values, vectors = zip(*pairs, strict=True)
    eig = linalg.KronEigh(values, vectors)
    white = linalg.kron_matvec([v.T for v in vectors], y)
    mean = linalg.spectral_filter(eig, lambda s: s / (s + noise), y)
    spectrum = eig.spectrum + noise
    logs = jnp.log(2 * jnp.pi * spectrum)
    return mean, -jnp.sum(white**2 / spectrum + logs) / 2


def claims(results) -> list[Claim]:
    """What each method loses."""
    policy, traced, *_ = (results.isel(arithmetic=i) for i in range(len(ARITHMETICS)))
    error = lab.select(results, noise=1e-4)["mean_error"]
    ratio = error / error.isel(arithmetic=0)
    return [
        Claim(
            "policy: error of the mean, every noise", policy["mean_error"], high=1e-6
        ),
        Claim(
            "policy: error of the likelihood, every noise",
            policy["likelihood_error"],
            high=1e-6,
        ),
        Claim(
            "policy and traced: all is finite",
            [policy["is_finite"], traced["is_finite"]],
            low=1,
        ),
    ] + [
        Claim(
            f"{name}, noise 1e-4: error of the mean over that of the policy",
            ratio.isel(arithmetic=ARITHMETICS.index(name)),
            low=least,
        )
        for name, least in (("traced", 10), ("plain", 10), ("product", 1e3))
    ]


def figure(results):
    """Errors of mean and likelihood over the noise."""
    page, panels = lab.panels(1, 2, size=(11, 4.4))
    names = {"mean_error": "mean", "likelihood_error": "log marginal likelihood"}
    for axis, (name, label) in zip(panels, names.items(), strict=True):
        for i, arithmetic in enumerate(ARITHMETICS):
            style = {"color": f"C{i}", "marker": "os^v"[i], "label": arithmetic}
            cell = results[name].isel(arithmetic=i)
            lab.draw_seeds(axis, cell, "noise", **style)
        axis.axhline(1e-6, color="k", ls=":", lw=1)
        axis.set(xscale="log", yscale="log", ylabel=f"relative error: {label} [1]")
        axis.set_xlabel("variance of the noise [variance of the process]")
    panels[0].legend(fontsize=8)
    page.suptitle("float32 against float64; 1 stands for NaN too")
    return page


EXPERIMENT = Experiment(
    run=run,
    hparams=HParams(),
    axes={"noise": (1e-4, 1e-3, 1e-2, 0.1)},
    num_seeds=1,
    x64=True,
    smoke={
        "axes": {"noise": (1e-4, 0.1)},
        "hparams": HParams(side=32),
    },
    dims=dict.fromkeys(
        ("mean_error", "likelihood_error", "is_finite"), ("arithmetic",)
    ),
    claims=claims,
    figure=figure,
)
