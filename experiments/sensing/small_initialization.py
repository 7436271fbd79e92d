"""How small must a start be?

Symmetric gradient descent starts at alpha times a random factor with more columns than
the truth of rank 1 has. The matrix that it seeks grows from alpha^2 to 1; what else is
in the factor grows only as far as the measurements mistake it for signal, and what it
has grown to by then is the error that remains for long: the least error of the run.

Claims. That error is a power of alpha, the one of `theory.small_init_exponent`: 2 if
the matrix is fully observed, less the fewer measurements there are; it is the same
power for any number of superfluous columns, a factor of n columns included. So a start
ten times smaller gains up to two digits, for a fixed number of further steps.

Falsified if the slope of log error against log alpha leaves 2 by 0.05 for any seed with
all entries; if, from Gaussian measurements, it leaves the prediction by 0.15 in the
median over seeds, or by 0.3 for any seed; or if the median slope with most measurements
is not 2 % above that with fewest.

References:
    Stöger, Soltanolkotabi. "Small random initialization is akin to spectral learning".
    2021. arXiv:2106.15013.
"""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key
import numpy as np

from jaxlr import lab, sensing
from jaxlr.core import Claim, Experiment, Hyper, loop
from jaxlr.sensing import theory


class HParams(eqx.Module):
    """One cell. Static fields fix shapes; all others may be swept without compiling."""

    alpha: Hyper = 1e-3
    """Scale of the start [sqrt(||M||)]."""
    num_columns: int = eqx.field(static=True, default=10)
    """Number of columns k of the factor."""
    num_measurements: int = eqx.field(static=True, default=3000)
    """Number of Gaussian measurements m; 0 for all entries of the matrix."""
    eta: Hyper = 0.1
    """Step size [1/||M||]."""
    num_steps: int = eqx.field(static=True, default=500)
    """Number of steps of gradient descent."""
    n: int = eqx.field(static=True, default=30)
    """Side of the matrix."""


class Metrics(eqx.Module):
    """The error over steps, its least value, and the predicted power of alpha."""

    error: Float[Array, " step"]
    """Relative error ||X X^T - M||_F / ||M||_F [1]."""
    least: Float[Array, ""]
    """Its least value over the steps [1]."""
    exponent: Float[Array, ""]
    """Predicted power of alpha [1]."""


def run(key: Key[Array, ""], hparams: HParams) -> Metrics:
    """One cell.

    Raises:
        ValueError: As the operator and the solver do.
    """
    shape, m = (hparams.n, hparams.n), hparams.num_measurements
    truth_key, operator_key, solve_key = jr.split(key, 3)
    truth = sensing.low_rank(truth_key, shape, 1, is_psd=True)
    operator = (
        sensing.symmetric_gaussian(operator_key, shape, m)
        if m
        else sensing.identity(shape)
    )
    problem = sensing.measure(operator, truth)
    solver = sensing.gd(
        problem,
        num_columns=hparams.num_columns,
        alpha=hparams.alpha,
        eta=hparams.eta,
        is_symmetric=True,
    )
    error = loop.run(solve_key, solver, hparams.num_steps)[1].relative_error
    observed = operator.adjoint(problem.y) / operator.isotropy
    return Metrics(
        error=error,
        least=jnp.min(error),
        exponent=theory.small_init_exponent(truth, observed, 1),
    )


def _slope(results):
    """The slope of log least error against log alpha, by least squares."""
    logs = np.log(results["least"]).assign_coords(alpha=np.log(results["alpha"]))
    return logs.polyfit("alpha", 1, skipna=False)["polyfit_coefficients"].sel(
        degree=1, drop=True
    )


def claims(results) -> list[Claim]:
    """The error falls as the predicted power of alpha, for any number of columns."""
    slope, exponent = _slope(results), results["exponent"].isel(alpha=0)
    sampled = results["num_measurements"].values
    fewest, most = (pick(sampled[sampled > 0]) for pick in (min, max))
    excess = (slope - exponent).sel(num_measurements=sampled > 0)
    median = slope.median("seed", skipna=False)
    source = "Stöger, Soltanolkotabi (2021)"
    return [
        Claim(
            "all entries: power of alpha is 2",
            slope.sel(num_measurements=0),
            low=1.95,
            high=2.05,
            source=source,
        ),
        Claim(
            "Gaussian: power less theory.small_init_exponent is 0 (median)",
            excess.median("seed", skipna=False),
            low=-0.15,
            high=0.15,
            source=source,
        ),
        Claim("the same, every seed", excess, low=-0.3, high=0.3, source=source),
        Claim(
            f"power with m = {most} over that with m = {fewest} (median)",
            median.sel(num_measurements=most) / median.sel(num_measurements=fewest),
            low=1.02,
        ),
    ]


def figure(results):
    """Error over steps; its least value against alpha, beside the predicted power."""
    from matplotlib import colormaps

    page, (left, right) = lab.panels(1, 2, size=(11, 4.4))
    alphas = np.sort(results["alpha"].values)
    counts = results["num_measurements"].values
    wide = results.isel(num_columns=-1)
    shades = colormaps["viridis"](np.linspace(0, 0.85, len(alphas)))
    for alpha, color in zip(alphas, shades, strict=True):
        cell = wide.sel(alpha=alpha, num_measurements=counts[-1])
        lab.draw_seeds(left, cell["error"], color=color, label=f"{alpha:g}")
    left.set(yscale="log", xlabel="step", title=f"m = {counts[-1]}, a wide factor")
    left.set_ylabel(r"$\|XX^T - M\|_F\,/\,\|M\|_F$ [1]")
    left.legend(title=r"$\alpha$", fontsize=8)
    for count, color in zip(counts, ("#000000", "#0072B2", "#D55E00"), strict=False):
        for columns, marker in zip(results["num_columns"].values, "os^", strict=False):
            cell = results.sel(num_measurements=count, num_columns=columns)
            median = cell["least"].median("seed").sel(alpha=alphas)
            name = f"m = {count}" if count else "all entries"
            right.plot(
                alphas, median, marker, color=color, label=f"{name}, k = {columns}"
            )
            power = cell["exponent"].isel(alpha=0).median("seed").item()
            line = median[-1].item() * (alphas / alphas[-1]) ** power
            right.plot(alphas, line, "--", color=color, lw=1)
    right.set(xscale="log", yscale="log", title="dashed: the predicted power")
    right.set(xlabel=r"$\alpha$ [$\sqrt{\|M\|}$]", ylabel="least relative error [1]")
    right.legend(fontsize=8)
    page.suptitle("The smaller the start, the less is learnt that is not signal")
    return page


EXPERIMENT = Experiment(
    run=run,
    hparams=HParams(),
    axes={
        "alpha": (1e-2, 1e-3, 1e-4, 1e-5),
        "num_measurements": (0, 3000, 1000),
        "num_columns": (2, 10, 30),
    },
    num_seeds=5,
    x64=True,
    smoke={
        "num_seeds": 3,
        "axes": {
            "alpha": (1e-3, 1e-5),
            "num_measurements": (0, 1600, 500),
            "num_columns": (8,),
        },
        "hparams": HParams(n=20),
    },
    claims=claims,
    figure=figure,
)
