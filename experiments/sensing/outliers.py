"""Does the subgradient method notice over-parameterization or gross outliers?

A positive semi-definite matrix of rank r is recovered from Gaussian measurements, a
share p of which has errors ten times their size, on factors U of k >= r columns. The
subgradient method minimizes the absolute residuals (SubGM, geometric steps, a start of
scale 1e-6); beside it, on the same data, gradient descent from a start of scale 0.1
minimizes the squared ones, and the Huber loss, which is quadratic up to a tenth of the
measurements' own scale.

Claims. SubGM ends at the same small error at every width and share: the median over
seeds is 5e-7 at most, none of five seeds is above 1e-6, and k = n columns do as well as
a quarter of them. (What is left at k > r is what the start, of scale alpha, has grown
to. At m = 800 and p = 0.3, 4 of 24 other seeds end above 1e-6, at up to 1.4e-5; with
alpha = 1e-7 none does; with 1e-8 the steps have shrunk before the signal has grown.)
Squares notice both: outliers leave an error of the order of M itself, and without any,
more columns than r make them sublinear. Huber lies between: outliers leave an error of
the order of its threshold, which no number of steps removes. The reason is that signs
point home unless all measurements are outliers: the scale of A*(sign(A(X) - s)) along X
falls only as 1 - p, as theory says.

Falsified if SubGM misses either bound in any of the 18 cells, or if its median error
at the largest width and at the next differ by a factor of 2; if, for any seed and cell,
squares with outliers come nearer than 0.3, or Huber with outliers nearer than 1e-3, or
not within 0.2; if, without outliers, squares with k > r reach 1e-3, or with k = r do
not reach 1e-12; or if the scale of signs, in the mean over seeds, leaves theory by 8 %.

References:
    Ma, Fattahi. "Global Convergence of Sub-gradient Method for Robust Matrix Recovery:
    Small Initialization, Noisy Measurements, and Over-parameterization". 2022.
    arXiv:2202.08788.
"""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key
import numpy as np

from jaxlr import lab, sensing
from jaxlr.core import Claim, Experiment, Hyper, loop
from jaxlr.linalg import matmul
from jaxlr.sensing import theory


METHODS = ("subgm", "huber", "l2")
EVERY = 10


class HParams(eqx.Module):
    """One cell. Static fields fix shapes; all others may be swept without compiling."""

    num_measurements: int = eqx.field(static=True, default=800)
    """Number of measurements m."""
    num_columns: Hyper = 20
    """Number of columns k of the factor in use, at most n."""
    outlier_share: Hyper = 0.1
    """Share p of the measurements with outliers [1]."""
    outlier_scale: Hyper = 10.0
    """Standard deviation of the outliers [||M|| / sqrt(m)]."""
    alpha: Hyper = 1e-6
    """Initial scale of SubGM [sqrt(||M||)]."""
    eta: Hyper = 0.1
    """First step size of SubGM [1]."""
    decay: Hyper = 0.994
    """Ratio rho of its successive step sizes [1]."""
    gd_alpha: Hyper = 0.1
    """Initial scale of gradient descent [sqrt(||M||)]."""
    l2_eta: Hyper = 0.1
    """Its step size on squares [1/||M||]."""
    huber_eta: Hyper = 0.5
    """Its step size on the Huber loss [1/||M||]."""
    huber_delta: Hyper = 0.1
    """Residual at which the Huber loss turns linear [||M|| / sqrt(m)]."""
    n: int = eqx.field(static=True, default=20)
    """Side of the matrix."""
    rank: int = eqx.field(static=True, default=2)
    """Rank r of the truth."""
    num_steps: int = eqx.field(static=True, default=2500)
    """Number of steps T of each method."""


class Metrics(eqx.Module):
    """Errors of three methods on the same data, and how far signs point home."""

    subgm_error: Float[Array, " step"]
    """SubGM: error ||U U^T - M||_F [||M||]."""
    huber_error: Float[Array, " step"]
    """Gradient descent on the Huber loss: error [||M||]."""
    l2_error: Float[Array, " step"]
    """Gradient descent on squares: error [||M||]."""
    subgm_final: Float[Array, ""]
    """SubGM: error after the last step [||M||]."""
    huber_final: Float[Array, ""]
    """Gradient descent on the Huber loss: error after the last step [||M||]."""
    l2_final: Float[Array, ""]
    """Gradient descent on squares: error after the last step [||M||]."""
    sign_scale: Float[Array, ""]
    """<A*(sign(A(X) - s)), X> / (sqrt(m) ||X||_F) at X = -M, where U = 0 [1]."""
    predicted_sign_scale: Float[Array, ""]
    """What theory expects sign_scale to be [1]."""


def run(key: Key[Array, ""], hparams: HParams) -> Metrics:
    """One cell.

    Raises:
        ValueError: As the solvers do.
    """
    n, scale = hparams.n, hparams.num_measurements**-0.5
    truth_key, operator_key, outlier_key, solve_key = jr.split(key, 4)
    truth = sensing.low_rank(truth_key, (n, n), hparams.rank, is_psd=True)
    operator = sensing.symmetric_gaussian(
        operator_key, (n, n), hparams.num_measurements
    )
    problem = sensing.add_outliers(
        outlier_key,
        sensing.measure(operator, truth),
        hparams.outlier_share,
        hparams.outlier_scale * scale,
    )
    width = {"num_columns": n, "num_active": hparams.num_columns}
    gd = width | {"alpha": hparams.gd_alpha, "is_symmetric": True}
    solvers = {
        "subgm": sensing.subgm(
            problem,
            eta=hparams.eta,
            decay=hparams.decay,
            alpha=hparams.alpha,
            **width,
        ),
        "huber": sensing.gd(
            problem,
            eta=hparams.huber_eta,
            loss="huber",
            huber_delta=hparams.huber_delta * scale,
            **gd,
        ),
        "l2": sensing.gd(problem, eta=hparams.l2_eta, **gd),
    }
    norm = jnp.linalg.norm(truth)
    errors = {}
    for name, solver in solvers.items():
        state, infos = loop.run(solve_key, solver, hparams.num_steps, every=EVERY)
        errors[f"{name}_error"] = norm * infos.relative_error
        errors[f"{name}_final"] = jnp.linalg.norm(matmul(state.f, state.f.T) - truth)
    # At U = 0 the residual is -y: -M in place of A's error, the outliers s apart.
    signs = operator.adjoint(jnp.sign(problem.y))
    return Metrics(
        **errors,
        sign_scale=scale * jnp.sum(signs * truth) / norm,
        predicted_sign_scale=theory.sign_rip_scale(
            norm,
            outlier_share=hparams.outlier_share,
            outlier_scale=hparams.outlier_scale,
        ),
    )


AXES = {
    "num_measurements": (800, 1600),
    "num_columns": (2, 5, 20),
    "outlier_share": (0.0, 0.1, 0.3),
}


def claims(results) -> list[Claim]:
    """The target in all cells, what other losses do there, and the scale of signs."""
    paper = "Ma, Fattahi (2022)"
    rank = lab.hparams(results)["rank"]
    subgm = results["subgm_final"]
    spoilt = results.isel(outlier_share=results["outlier_share"].values > 0)
    clean = results.sel(outlier_share=0.0)
    wide = clean.isel(num_columns=clean["num_columns"].values > rank)
    ratio = results["sign_scale"] / results["predicted_sign_scale"]
    medians = subgm.median("seed", skipna=False)
    next_widest, widest = np.sort(results["num_columns"].values)[-2:]
    return [
        Claim(
            "SubGM: error, median over seeds, at every width and share",
            medians,
            high=5e-7,
            source=paper,
        ),
        Claim(
            "SubGM: error of every seed, at every width and share",
            subgm,
            high=1e-6,
            source=paper,
        ),
        Claim(
            f"SubGM: median error with k = {widest} over that with k = {next_widest}",
            medians.sel(num_columns=widest) / medians.sel(num_columns=next_widest),
            low=0.5,
            high=2,
            source=paper,
        ),
        Claim("squares, with outliers: error", spoilt["l2_final"], low=0.3),
        Claim(
            "squares, no outliers, k = r: error (linear)",
            clean["l2_final"].sel(num_columns=rank),
            high=1e-12,
        ),
        Claim(
            "squares, no outliers, k > r: error (sublinear)",
            wide["l2_final"],
            low=1e-3,
            source="Xiong, Ding, Du (2023)",
        ),
        Claim("Huber, with outliers: error", spoilt["huber_final"], low=1e-3, high=0.2),
        Claim(
            "scale of signs at the start / predicted, mean over seeds",
            ratio.mean("seed", skipna=False),
            low=0.92,
            high=1.08,
            source=f"{paper}: Sign-RIP",
        ),
    ]


_COLORS = {"subgm": "#0072B2", "huber": "#009E73", "l2": "#D55E00"}
_LABELS = {"subgm": "SubGM (absolute)", "huber": "GD, Huber", "l2": "GD, squares"}


def figure(results):
    """Errors against steps: one panel a width and share, at the fewest measurements."""
    from matplotlib.figure import Figure

    least = results["num_measurements"].values.min()
    shown = results.sel(num_measurements=least)
    widths, shares = shown["num_columns"].values, shown["outlier_share"].values
    page = Figure(
        figsize=(3.4 * len(shares), 2.5 * len(widths) + 0.6), layout="constrained"
    )
    panels = page.subplots(
        len(widths), len(shares), sharex=True, sharey=True, squeeze=False
    )
    for row, width in zip(panels, widths, strict=True):
        for axis, share in zip(row, shares, strict=True):
            cell = shown.sel(num_columns=width, outlier_share=share)
            for name in METHODS:
                style = {"color": _COLORS[name], "label": _LABELS[name]}
                lab.draw_seeds(axis, cell[f"{name}_error"], **style)
            axis.axhline(1e-6, color="black", ls="--", lw=1, label="claimed")
            axis.set(yscale="log", ylim=(1e-9, 10))
            axis.set_title(f"k = {width}, {100 * share:g} % outliers", fontsize=10)
        row[0].set_ylabel(r"error $\|UU^T - M\|_F$ $[\|M\|]$")
    for axis in panels[-1]:
        axis.set_xlabel("step")
    panels[0, 0].legend(fontsize=8)
    rank = lab.hparams(results)["rank"]
    page.suptitle(
        f"Rank r = {rank} from {least} measurements: medians and ranges of seeds"
    )
    return page


EXPERIMENT = Experiment(
    run=run,
    hparams=HParams(),
    axes=AXES,
    num_seeds=5,
    x64=True,
    every=EVERY,
    smoke={
        "num_seeds": 2,
        "axes": AXES
        | {
            "num_measurements": (600,),
            "num_columns": (2, 12),
            "outlier_share": (0.0, 0.3),
        },
        "hparams": HParams(num_columns=12, n=12),
    },
    claims=claims,
    figure=figure,
)
