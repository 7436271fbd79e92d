"""How many random starts do a Gaussian process's hyper-parameters need?

Values at regular times are drawn from a process whose covariance is known: a cycle of
0.2 units of time that changes shape slowly, and noise. Five hyper-parameters (period,
roughness of the cycle, lengthscale, variance, noise) are fitted by L-BFGS from random
starts. The marginal likelihood has local maxima near multiples and fractions of the
period, and one without any cycle. All starts train in one program, as do all
noises and draws.

Claims. (1) The best of all starts is at least as likely as the truth, (2) and has its
period to 5 %. (3) One start reaches the best, within 2 nats, with probability 0.05 to
0.7: one is not enough. (4) The best of eight reaches it with probability at least 0.4.
(5) The median start ends 5 nats or more below the best.

Falsified if any draw misses (1), (2) or (4), or the means over draws miss (3) or (5),
at any noise.

References:
    Rasmussen, Williams. "Gaussian Processes for Machine Learning", section 5.4.1. 2006.
    Liu, Nocedal. "On the Limited Memory BFGS Method for Large Scale Optimization".
    1989. Mathematical Programming.
"""

import math

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key
import numpy as np

from jaxlr import covariance, gp, lab, linalg
from jaxlr.core import Claim, Experiment, Hyper, lbfgs, multistart


TRUTH = {
    "period": 0.2,
    "roughness": 1.0,
    "lengthscale": 0.8,
    "variance": 1.0,
}
RANGES = {
    "period": (0.04, 1.0),
    "roughness": (0.3, 3.0),
    "lengthscale": (0.1, 3.0),
    "variance": (0.1, 10.0),
    "noise": (0.01, 1.0),
}
"""Of starts, uniform in the logarithm."""


class HParams(eqx.Module):
    """One cell. Static fields fix shapes; all others may be swept without compiling."""

    noise: Hyper = 0.1
    """Variance of the noise [variance of the process]."""
    num_starts: int = eqx.field(static=True, default=64)
    """Number of random starts."""
    num_times: int = eqx.field(static=True, default=128)
    """Number of points in time, on [0, 1]."""
    max_steps: int = eqx.field(static=True, default=60)
    """Bound on the steps of L-BFGS."""


class Metrics(eqx.Module):
    """Where L-BFGS ends from each start."""

    final: Float[Array, " start"]
    """Log marginal likelihood above that of the truth [nat]."""
    steps_taken: Float[Array, " start"]
    """Number of steps that L-BFGS took [1]."""
    period: Float[Array, ""]
    """Period of the best [unit of time]."""


def run(key: Key[Array, ""], hparams: HParams) -> Metrics:
    """One cell."""
    data_key, noise_key, start_key = jr.split(key, 3)
    grid = [np.linspace(0.0, 1.0, hparams.num_times)]

    def kernel(values):
        cycle = covariance.Periodic(values["period"], values["roughness"])
        return values["variance"] * (covariance.Matern(values["lengthscale"]) * cycle)

    truth = gp.GridGP([kernel(TRUTH)], grid, hparams.noise)
    eig = linalg.kron_eigh([covariance.gram(kernel(TRUTH), grid[0])])
    smooth = linalg.spectral_filter(eig, jnp.sqrt, jr.normal(data_key, truth.shape))
    y = smooth + hparams.noise**0.5 * jr.normal(noise_key, truth.shape)

    def loss(logs):
        values = {name: jnp.exp(x) for name, x in logs.items()}
        process = gp.GridGP([kernel(values)], grid, values["noise"] + FLOOR)
        return -process.log_marginal_likelihood(y)

    shares = jr.uniform(start_key, (len(RANGES), hparams.num_starts))
    starts = {
        name: math.log(low) + share * math.log(high / low)
        for share, (name, (low, high)) in zip(shares, RANGES.items(), strict=True)
    }
    fitted = multistart(lbfgs(loss, max_steps=hparams.max_steps), starts)
    return Metrics(
        final=-jnp.minimum(fitted.losses, 1e6) - truth.log_marginal_likelihood(y),
        steps_taken=jnp.asarray(fitted.num_steps, float),
        period=jnp.exp(fitted.params["period"]),
    )


FLOOR = 1e-6
"""Of the noise, so that covariances stay definite [variance of the process]."""


def _success(results, num):
    """Probability that the best of so many starts, of those tried, is within 2 nats."""
    final = results["final"]
    total = final.sizes["start"]
    good = (final >= final.max("start", skipna=False) - 2).sum("start").values
    missed = [math.comb(total - n, num) / math.comb(total, num) for n in good.flat]
    is_known = np.isfinite(final).all("start").values
    return np.where(is_known, 1 - np.reshape(missed, good.shape), np.nan)


def claims(results) -> list[Claim]:
    """The best of all, and what fewer starts find."""
    final = results["final"]
    best = final.max("start", skipna=False)
    return [
        Claim("best of all starts: likelihood above the truth's [nat]", best, low=0),
        Claim(
            "best of all starts: period over the truth's",
            results["period"] / TRUTH["period"],
            low=0.95,
            high=1.05,
        ),
        Claim(
            "one start: probability to reach it (mean over draws)",
            _success(results, 1).mean(1),
            low=0.05,
            high=0.7,
        ),
        Claim("eight starts: probability to reach it", _success(results, 8), low=0.4),
        Claim(
            "median start: likelihood below the best's (mean over draws) [nat]",
            (best - final.median("start", skipna=False)).mean("seed", skipna=False),
            low=5,
        ),
    ]


def figure(results):
    """Likelihoods of all starts, in order; success over their number."""
    page, (ends, shares) = lab.panels(1, 2, size=(11, 4.4))
    final = results["final"].transpose("noise", "seed", "start").values
    ranks = np.arange(1, final.shape[-1] + 1)
    success = np.array([_success(results, int(num)) for num in ranks])
    for i, noise in enumerate(results["noise"].values):
        ordered = -np.sort(-final[i], -1)
        color, label = f"C{i}", f"noise {noise:g}"
        ends.plot(ranks, ordered.T, color=color, lw=1, alpha=0.4)
        ends.plot(ranks, np.median(ordered, 0), color=color, lw=2, label=label)
        shares.plot(ranks, success[:, i], color=color, lw=1, alpha=0.4)
        shares.plot(ranks, success[:, i].mean(-1), color=color, lw=2, label=label)
    ends.axhline(0, color="k", ls=":", lw=1)
    low = np.quantile(final, 0.02)
    ends.set(xlabel="start, best first", ylim=(low, final.max() + 5))
    ends.set(ylabel="log marginal likelihood over the truth's [nat]")
    ends.set_title("draws, and their median")
    shares.set(xscale="log", ylim=(0, 1.02), xlabel="random starts [1]")
    shares.set_ylabel("probability that the best is within 2 nats [1]")
    shares.set_title("draws, and their mean")
    for axis in (ends, shares):
        axis.legend(fontsize=8)
    return page


EXPERIMENT = Experiment(
    run=run,
    hparams=HParams(),
    axes={"noise": (0.1, 0.5)},
    num_seeds=8,
    x64=True,
    dims={"final": ("start",), "steps_taken": ("start",)},
    smoke={
        "num_seeds": 2,
        "axes": {"noise": (0.1,)},
        "hparams": HParams(num_starts=24, num_times=48, max_steps=40),
    },
    claims=claims,
    figure=figure,
)
