"""How many levels does a measurement need?

A matrix of rank 1 (n = 20) is recovered from m = 100 d Gaussian measurements, d = 39
its degrees of freedom, each seen through Gaussian noise and one of L levels, equally
likely ones: log2(L) bits a measurement. Gradient descent fits the levels by their
likelihood, or, for comparison, takes each level for the mean of the numbers that it
stands for.

Claims. The likelihood loses what the levels lose of the Fisher information and no more:
its mean squared error is that of least squares on the numbers themselves, `floor`, over
`theory.quantization_efficiency`. (Under noise as large as the signal that is 1.3 for
two bits, 2.1 for one.) Means of levels are biased, for any m:
they recover the matrix times the share of the numbers' variance that is theirs, 2 / pi
with one bit. (Where noise leaves a larger error than that, the bias does no harm.)

Falsified if the mean over seeds of the squared error of the likelihood leaves the
formula by a quarter for any number of levels and any noise; or if, in the mean over
seeds, the scale of the matrix leaves 1 by a tenth by the likelihood, or the share of
the variance by the means.

References:
    Davenport, Plan, van den Berg, Wootters. "1-Bit Matrix Completion". 2014.
    arXiv:1209.3672.
    Plan, Vershynin. "The generalized Lasso with non-linear observations". 2015.
    arXiv:1502.04071.
"""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jax.scipy import stats
from jaxtyping import Array, Float, Key
import numpy as np

from jaxlr import lab, sensing
from jaxlr.core import Claim, Experiment, Hyper, loop
from jaxlr.sensing import theory


class HParams(eqx.Module):
    """One cell. Static fields fix shapes; all others may be swept without compiling."""

    num_levels: int = eqx.field(static=True, default=4)
    """Number of levels L that a measurement may have."""
    noise: Hyper = 1.0
    """Standard deviation of the noise over that of A(M) [1]."""
    eta: Hyper = 0.3
    """Step size [1/||M||], in units of the likelihood's mean curvature."""
    num_steps: int = eqx.field(static=True, default=200)
    """Number of steps of gradient descent."""
    n: int = eqx.field(static=True, default=20)
    """Side of the matrix."""
    oversampling: int = eqx.field(static=True, default=100)
    """Number of measurements per degree of freedom [1]."""


class Metrics(eqx.Module):
    """The two errors over steps, and the formula."""

    error: Float[Array, " step"]
    """Relative error ||F G^T - M||_F / ||M||_F of the likelihood [1]."""
    means_error: Float[Array, " step"]
    """Relative error of least squares on the levels' means [1]."""
    floor: Float[Array, ""]
    """Mean of the squared error of least squares on the noisy numbers [1]."""
    efficiency: Float[Array, ""]
    """Share of the information that the levels keep [1]."""
    scale: Float[Array, ""]
    """<F G^T, M> / ||M||_F^2 after the last step of the likelihood [1]."""
    means_scale: Float[Array, ""]
    """<F G^T, M> / ||M||_F^2 of least squares on the levels' means [1]."""
    means_share: Float[Array, ""]
    """Share of the variance of the noisy numbers that the levels' means have [1]."""


def run(key: Key[Array, ""], hparams: HParams) -> Metrics:
    """One cell.

    Raises:
        ValueError: If `num_levels < 2`, or as the solver does.
    """
    if hparams.num_levels < 2:
        raise ValueError(f"`num_levels` must be >= 2, got {hparams.num_levels}.")
    shape = (hparams.n, hparams.n)
    m = hparams.oversampling * theory.degrees_of_freedom(shape, 1)
    truth_key, operator_key, level_key, solve_key = jr.split(key, 4)
    truth = sensing.low_rank(truth_key, shape, 1)
    operator = sensing.gaussian(operator_key, shape, m)
    std = m**-0.5  # of A(M)
    scale = hparams.noise * std
    total = jnp.hypot(std, scale)

    cuts = stats.norm.ppf(jnp.arange(1, hparams.num_levels) / hparams.num_levels)
    quantizer = sensing.Quantizer(cuts * total, scale)
    problem = sensing.measure(operator, truth)
    levels = sensing.quantize(level_key, problem, quantizer)
    efficiency = theory.quantization_efficiency(quantizer, std)

    # Of a normal variable between two cuts: the difference of its density at them.
    density = jnp.pad(stats.norm.pdf(cuts), 1)
    means = -jnp.diff(density) * hparams.num_levels * total
    numbers = sensing.SensingProblem(operator, means[levels.y.astype(int)], truth)

    def solve(problem, eta):
        solver = sensing.gd(problem, num_columns=1, eta=eta, imbalance=1.0)
        state, infos = loop.run(solve_key, solver, hparams.num_steps)
        f, g = state.factors
        return infos.relative_error, jnp.vdot(f, truth @ g) / jnp.vdot(truth, truth)

    error, found_scale = solve(levels, hparams.eta * scale**2 / efficiency)
    means_error, means_scale = solve(numbers, hparams.eta)
    return Metrics(
        error=error,
        means_error=means_error,
        floor=theory.noise_floor(shape, 1, m, std=scale),
        efficiency=efficiency,
        scale=found_scale,
        means_scale=means_scale,
        means_share=jnp.mean(means**2) / total**2,
    )


def claims(results) -> list[Claim]:
    """Levels cost what they lose of the information; their means are biased."""
    ended = results.isel(step=-1)
    ratios = {
        "squared error x efficiency / floor": (
            ended["error"] ** 2 * ended["efficiency"] / ended["floor"],
            0.25,
            "theory.quantization_efficiency",
        ),
        "scale of the matrix by the likelihood": (ended["scale"], 0.1, ""),
        "scale by the levels' means / share of the variance": (
            ended["means_scale"] / ended["means_share"],
            0.1,
            "Plan, Vershynin (2015)",
        ),
    }
    return [
        Claim(
            f"{name} is 1 (mean)",
            ratio.mean("seed", skipna=False),
            low=1 - tolerance,
            high=1 + tolerance,
            source=source,
        )
        for name, (ratio, tolerance, source) in ratios.items()
    ]


def figure(results):
    """Final error against levels, a panel for each noise, beside the formula."""
    noises = results["noise"].values
    page, axes = lab.panels(
        1, len(noises), has_shared_y=True, size=(4.8 * len(noises), 4.2)
    )
    levels = results["num_levels"].values
    for axis, noise in zip(axes, noises, strict=True):
        cells = results.sel(noise=noise).isel(step=-1)
        for name, label, color in (
            ("means_error", "least squares on the levels' means", "#E69F00"),
            ("error", "likelihood of the levels", "#0072B2"),
        ):
            style = {"color": color, "marker": "o", "label": label}
            lab.draw_seeds(axis, cells[name], "num_levels", **style)
        floor = np.sqrt(cells["floor"].isel(seed=0))
        formula = floor / np.sqrt(cells["efficiency"].isel(seed=0))
        axis.plot(levels, formula, "k--", label="formula")
        axis.axhline(
            floor.values.flat[0], color="gray", ls=":", label="numbers, not levels"
        )
        axis.set_xscale("log", base=2)
        axis.set(
            yscale="log", xlabel="levels L [1]", title=f"noise / signal = {noise:g}"
        )
    axes[0].set_ylabel(r"$\|FG^T - M\|_F\,/\,\|M\|_F$ [1]")
    axes[0].legend(fontsize=9)
    page.suptitle("Levels cost what they lose of the information, no more")
    return page


EXPERIMENT = Experiment(
    run=run,
    hparams=HParams(),
    axes={"num_levels": (2, 4, 8, 16), "noise": (0.5, 1.0, 2.0)},
    num_seeds=20,
    smoke={
        "axes": {"num_levels": (2, 16), "noise": (1.0,)},
        "hparams": HParams(n=10),
    },
    claims=claims,
    figure=figure,
)
