"""Does a Gaussian process fill the gaps of the Mauna Loa record of carbon dioxide?

Weekly averages from March 1958 to December 2001, as statsmodels bundles them, make a
grid of 44 years by 53 weeks of the year. A tenth of the entries is held out: weeks at
random, or outages of 26 weeks in years at random. The real gaps (59 weeks without a
value, and places of the grid without a Saturday) stay gaps. After a quadratic trend,
the covariance is a product: over years, a slow kernel (squared exponential) and a
faster one (Matern 3/2); over weeks, a periodic one and a Matern 3/2. L-BFGS trains its
eight hyper-parameters on the marginal likelihood of what is not held out, from a random
start. It is compared with a climatology (the trend and the mean of each week), with the
same week of the year before plus the trend's step (seasonal naive), and with linear
interpolation in time, the last of which weeks at random favor.

Claims. (1) In outages the error is at most 0.9 times climatology's, (2) 0.8 times
seasonal naive's and (3) 0.4 times linear interpolation's. (4) At weeks at random it is
at most 1.1 times linear interpolation's, whose neighbors are a week away. (5) Intervals
of 80 % hold 70 to 95 % of the entries held out.

Falsified if any of these fails for a draw of what is held out.

References:
    Rasmussen, Williams. "Gaussian Processes for Machine Learning", section 5.4.3. 2006.
    Keeling, Whorf. "Atmospheric Carbon Dioxide Concentrations from Air Samples
    Collected at Mauna Loa Observatory, Hawaii". 2004. Carbon Dioxide Information
    Analysis Center.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key
import numpy as np

from jaxlr import covariance, gp, lab
from jaxlr.core import Axis, checks, Claim, Experiment, lbfgs, multistart
from jaxlr.data import carbon_dioxide


PATTERNS = ("weeks", "outages")
METHODS = ("process", "climatology", "seasonal naive", "interpolation")
LEVELS = (0.5, 0.8, 0.9, 0.95, 0.99)
FLOOR = 1e-4
"""Of the noise's variance [ppm^2]."""
START = {
    "slow": 10.0,
    "fast": 1.0,
    "fast_variance": 0.1,
    "roughness": 1.0,
    "week": 8.0,
    "week_variance": 0.1,
    "variance": 4.0,
    "noise": 0.1,
}
"""Lengthscales in years and weeks; variances, but for the last two, over the others."""


class HParams(eqx.Module):
    """One cell."""

    pattern: str = eqx.field(static=True, default="outages")
    """What is held out: weeks or outages."""
    draw: int = eqx.field(static=True, default=0)
    """Number of the draw of what is held out [1]."""
    num_years: int = eqx.field(static=True, default=44)
    """Number of years of the record, from 1958 on, at most 44."""
    max_steps: int = eqx.field(static=True, default=40)
    """Bound on the steps of L-BFGS."""
    num_starts: int = eqx.field(static=True, default=1)
    """Number of random starts of the training."""


class Metrics(eqx.Module):
    """Errors and coverage on what is held out, the training, and the record."""

    rmse: Float[Array, " method"]
    """Root mean square error on entries held out [ppm]."""
    coverage: Float[Array, " interval"]
    """Share of entries held out in the interval of each level [1]."""
    likelihood: Float[Array, " start"]
    """Log marginal likelihood at the end of the training from each start [nat]."""
    values: Float[Array, " name"]
    """Hyper-parameters at the end, in the order of START."""
    residual: Float[Array, ""]
    """Relative residual of the solve [1]."""
    record: Float[Array, "year week"]
    """What was measured, 0 in gaps [ppm]."""
    is_held: Float[Array, "year week"]
    """1 where held out, else 0 [1]."""
    mean: Float[Array, "year week"]
    """The posterior mean with its trend [ppm]."""
    deviation: Float[Array, "year week"]
    """Standard deviation of a new entry [ppm]."""


def held_out(pattern: str, draw: int, values: np.ndarray) -> np.ndarray:
    """True at about a tenth of the entries that are known.

    Raises:
        ValueError: For an unknown `pattern`.
    """
    checks.choice("pattern", pattern, PATTERNS)
    rng = np.random.default_rng(draw)
    known = np.isfinite(values)
    chosen = np.zeros_like(known)
    if pattern == "weeks":
        index = rng.permutation(np.flatnonzero(known))
        chosen.flat[index[: len(index) // 10]] = True
    else:
        for year in 1 + rng.permutation(len(values) - 2)[: len(values) // 5]:
            start = year * values.shape[1] + rng.integers(values.shape[1])
            chosen.flat[start : start + 26] = True
    return chosen & known


def _baselines(values, times, seen):
    """Climatology, seasonal naive and interpolation on the grid, and the trend."""
    trend = np.polynomial.Polynomial.fit(times[seen], values[seen], 2)(times)
    rest = np.where(seen, values - trend, np.nan)
    mean = np.array([np.nanmean(rest[:, [w % 52, w]]) for w in range(rest.shape[1])])
    climatology = np.broadcast_to(mean, rest.shape)
    before = climatology.copy()  # the last year seen before; climatology without one
    for year in range(1, len(rest)):
        last = rest[year - 1]
        before[year] = np.where(np.isnan(last), before[year - 1], last)
    line = np.interp(times.ravel(), times[seen], values[seen]).reshape(times.shape)
    return (trend + climatology, trend + before, line), trend


def run(key: Key[Array, ""], hparams: HParams) -> Metrics:
    """One cell; the key draws the start.

    Raises:
        ValueError: For an unknown `pattern`; as `GridGP` does.
    """
    from scipy.stats import norm

    values, times = (x[: hparams.num_years] for x in carbon_dioxide())
    held = held_out(hparams.pattern, hparams.draw, values)
    seen = np.isfinite(values) & ~held
    guesses, trend = _baselines(values, times, seen)
    y = np.where(seen, values - trend, 0)

    def process(logs):
        at = {name: jnp.exp(x) for name, x in zip(START, logs, strict=True)}
        years = covariance.SquaredExponential(at["slow"]) + covariance.Scaled(
            at["fast_variance"], covariance.Matern(at["fast"], nu=1.5)
        )
        weeks = covariance.Periodic(365.25 / 7, at["roughness"]) + covariance.Scaled(
            at["week_variance"], covariance.Matern(at["week"], nu=1.5)
        )
        grid = [np.arange(float(n)) for n in values.shape]
        kernels = [covariance.Scaled(at["variance"], years), weeks]
        return gp.GridGP(kernels, grid, at["noise"] + FLOOR, seen)

    @jax.jit  # traced once, for the search along lines too
    def loss(logs):
        return -process(logs).log_marginal_likelihood(y) / seen.sum()

    change = jr.normal(key, (hparams.num_starts, len(START)))
    starts = jnp.log(jnp.array(list(START.values()))) + 0.5 * change
    fitted = multistart(lbfgs(loss, max_steps=hparams.max_steps), starts)
    posterior = process(fitted.params).posterior(y)
    noise = jnp.exp(fitted.params[list(START).index("noise")]) + FLOOR
    mean, deviation = trend + posterior.mean, jnp.sqrt(posterior.variance + noise)
    bounds = jnp.asarray(norm.ppf((1 + np.array(LEVELS)) / 2))
    error = jnp.abs(mean - values)[held]
    return Metrics(
        rmse=jnp.stack(
            [jnp.sqrt(jnp.mean((x - values)[held] ** 2)) for x in (mean, *guesses)]
        ),
        coverage=jnp.mean(error <= bounds[:, None] * deviation[held], 1),
        likelihood=-fitted.losses * seen.sum(),
        values=jnp.exp(fitted.params),
        residual=posterior.info.residual,
        record=jnp.asarray(np.nan_to_num(values)),
        is_held=jnp.asarray(held, float),
        mean=mean,
        deviation=deviation,
    )


def claims(results) -> list[Claim]:
    """Errors against the baselines, and coverage."""

    def ratio(pattern, other):
        rmse = lab.select(results, pattern=pattern)["rmse"]
        return rmse.isel(method=0) / rmse.isel(method=METHODS.index(other))

    return [
        Claim(
            "outages: error over climatology's",
            ratio("outages", "climatology"),
            high=0.9,
        ),
        Claim(
            "outages: error over seasonal naive's",
            ratio("outages", "seasonal naive"),
            high=0.8,
        ),
        Claim(
            "outages: error over interpolation's",
            ratio("outages", "interpolation"),
            high=0.4,
        ),
        Claim(
            "weeks: error over interpolation's",
            ratio("weeks", "interpolation"),
            high=1.1,
        ),
        Claim(
            "intervals of 80 %: coverage",
            results["coverage"].isel(interval=LEVELS.index(0.8)),
            low=0.7,
            high=0.95,
        ),
    ]


def figure(results):
    """The record with outages filled; errors; coverage."""
    from matplotlib.figure import Figure

    page = Figure(figsize=(14, 8), layout="constrained")
    above, below = page.subfigures(2, 1, squeeze=False)[:, 0]
    axis, (errors_axis, shares) = above.subplots(), below.subplots(1, 2)
    cell = lab.select(results, pattern="outages").isel(seed=0)
    cell = cell.isel({dim: 0 for dim in ("pattern", "draw") if dim in cell.dims})
    is_held = cell["is_held"].values.ravel() > 0
    known = cell["record"].values.ravel() > 0
    times = 1958 + np.arange(known.size) / cell.sizes["week"]
    years = np.flatnonzero(is_held.reshape(-1, cell.sizes["week"]).any(1))[:8]
    window = (times >= 1958 + years[0] - 1) & (times <= 1958 + years[-1] + 2)
    mean, deviation = (cell[x].values.ravel() for x in ("mean", "deviation"))
    record = cell["record"].values.ravel()
    axis.fill_between(
        times[window],
        (mean - 1.96 * deviation)[window],
        (mean + 1.96 * deviation)[window],
        color="C0",
        alpha=0.3,
        lw=0,
        label="95 % interval",
    )
    for kept, color, label in (
        (known & ~is_held, "k", "seen"),
        (is_held, "C3", "held out"),
    ):
        kept = kept & window
        axis.plot(times[kept], record[kept], ".", ms=3, color=color, label=label)
    axis.set(xlabel="year", ylabel="carbon dioxide [ppm]")
    axis.legend(fontsize=8)
    places = np.arange(len(METHODS))
    for i, pattern in enumerate(results["pattern"].values):
        here = results.sel(pattern=pattern)
        rmse = here["rmse"].median(["draw", "seed"])
        errors_axis.bar(places + 0.4 * i, rmse, 0.4, label=pattern)
        coverage = here["coverage"].median(["draw", "seed"])
        shares.plot(LEVELS, coverage, "o-", label=pattern)
    errors_axis.set_xticks(places + 0.2, METHODS)
    errors_axis.set(ylabel="root mean square error [ppm]", xlabel="held out, filled by")
    shares.plot(LEVELS, LEVELS, "k:", label="Gaussian")
    shares.set(xlabel="level of the interval [1]")
    shares.set_ylabel("share of what is held out in it [1]")
    for axis in (errors_axis, shares):
        axis.legend(fontsize=8)
        axis.set_title("medians of draws", fontsize=9)
    return page


EXPERIMENT = Experiment(
    run=run,
    hparams=HParams(),
    axes=(Axis("pattern", PATTERNS), Axis("draw", (0, 1, 2))),
    num_seeds=1,
    x64=True,
    dims={
        "rmse": ("method",),
        "coverage": ("interval",),
        "values": ("name",),
        "likelihood": ("start",),
    }
    | {name: ("year", "week") for name in ("record", "is_held", "mean", "deviation")},
    smoke={
        "axes": (Axis("pattern", PATTERNS), Axis("draw", (0,))),
        "hparams": HParams(num_years=16, max_steps=12),
    },
    claims=claims,
    figure=figure,
)
