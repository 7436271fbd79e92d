"""Which gaps in a grid can a Gaussian process afford?

The product form of a covariance ends where points have no value. Conjugate gradients
can work on the covariance of what was observed ("masked"), or on the Schur complement
of what is missing, S = [A^-1]_mm, which `GridGP` does; both cost two products with
Kronecker factors a step at most. Gaps are scattered, slabs (whole planes of the grid,
which drop out exactly) or a block along one whole axis. Matern 5/2, lengthscales .2, .3
and .4 of the side ("long") or a quarter of them; values are drawn from the model.
"Steps" are those to a relative residual of what was observed of 1e-6, the true one at
the end.

Claims. Every solve of `GridGP` has a true residual of at most 1e-6 within 10,000 steps,
at any gaps, noise and lengthscale here. (1) Scattered gaps, a fifth of all points, take
at most 15 steps at a noise of 1e-2 and the long lengthscales on 32^3 points and more
(20 on 16^3), and the masked form at least 20 times as many. (2) A slab takes no step at
all. (3) Blocks are the hard case: they take more steps than as many scattered gaps in
every setting, (4) though fewer than the masked form at the long lengthscales.

Falsified if any cell or seed misses one of these.

References:
    Gilboa, Saatci, Cunningham. "Scaling Multidimensional Inference for Structured
    Gaussian Processes". 2012. arXiv:1209.4120.
    Lin, Ament, Balandat, Eriksson, Hernandez-Lobato, Bakshy. "Scalable Gaussian
    Processes with Latent Kronecker Structure". 2025. arXiv:2506.06895.
"""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key
import numpy as np

from jaxlr import covariance, gp, lab, linalg
from jaxlr.core import Axis, checks, Claim, Experiment, Hyper
from jaxlr.core.loop import Status


PATTERNS = ("scattered", "slab", "block")
TOLERANCE = 1e-6
MAX_STEPS = 10_000


class HParams(eqx.Module):
    """One cell. Static fields fix shapes; all others may be swept without compiling."""

    pattern: str = eqx.field(static=True, default="scattered")
    """Pattern of the gaps: scattered, slab or block."""
    percent: int = eqx.field(static=True, default=20)
    """Share of points without a value, about [%]."""
    side: int = eqx.field(static=True, default=40)
    """Number n of points of each of the three axes."""
    noise: Hyper = 1e-2
    """Variance of the noise [variance of the process]."""
    lengthscale: int = eqx.field(static=True, default=100)
    """Lengthscales of the process [.2, .3 and .4 % of the side]."""
    megapoints: int = eqx.field(static=True, default=330)
    """Bound on steps times points of the masked form, which gives up then [1e6]."""


class Metrics(eqx.Module):
    """How both solves went."""

    num_steps: Float[Array, ""]
    """Number of steps on the Schur complement of the gaps [1]."""
    residual: Float[Array, ""]
    """True relative residual then [1]."""
    has_converged: Float[Array, ""]
    """1 if the solve says so, else 0 [1]."""
    masked_steps: Float[Array, ""]
    """Number of steps of the masked form, those of its budget if it gave up [1]."""
    masked_residual: Float[Array, ""]
    """True relative residual then [1]."""


def mask(pattern: str, percent: int, side: int) -> np.ndarray:
    """True where observed, shape (side, side, side).

    Raises:
        ValueError: For an unknown `pattern`.
    """
    seen = np.ones((side,) * 3, bool)
    middle = (np.arange(side) + 0.5) / side - 0.5
    match checks.choice("pattern", pattern, PATTERNS):
        case "scattered":
            gaps = np.random.default_rng(0).permutation(seen.size)
            seen.flat[gaps[: percent * seen.size // 100]] = False
        case "slab":
            seen[:, np.abs(middle) < percent / 200] = False
        case _:
            is_in = np.abs(middle) < (percent / 100) ** 0.5 / 2
            seen[:, is_in[:, None] & is_in] = False
    return seen


def run(key: Key[Array, ""], hparams: HParams) -> Metrics:
    """One cell.

    Raises:
        ValueError: For an unknown `pattern`; as `GridGP` does.
    """
    side = hparams.side
    seen = mask(hparams.pattern, hparams.percent, side)
    axis, noise = np.linspace(0.0, 1.0, side), hparams.noise
    kernels = [
        covariance.Matern(x * hparams.lengthscale / 100) for x in (0.2, 0.3, 0.4)
    ]
    factors = [covariance.gram(kernel, axis) for kernel in kernels]
    smooth_key, noise_key = jr.split(key)
    y = linalg.spectral_filter(
        linalg.kron_eigh(factors), jnp.sqrt, jr.normal(smooth_key, seen.shape)
    )
    y = jnp.where(seen, y + jnp.sqrt(noise) * jr.normal(noise_key, seen.shape), 0)

    process = gp.GridGP(
        kernels, [axis] * 3, noise, seen, tolerance=TOLERANCE, max_steps=MAX_STEPS
    )
    _, info = process.solve(y)
    _, masked = linalg.cg(
        lambda x: jnp.where(seen, linalg.kron_matvec(factors, x) + noise * x, 0),
        y,
        tolerance=TOLERANCE,
        max_steps=max(hparams.megapoints * 10**6 // seen.size, 1),
    )
    has_converged = info.status == Status.CONVERGED
    return Metrics(
        num_steps=jnp.asarray(info.num_steps, float),
        residual=info.residual,
        has_converged=jnp.where(has_converged, 1.0, 0.0),
        masked_steps=jnp.asarray(masked.num_steps, float),
        masked_residual=masked.residual,
    )


DIM = lab.dimension_name(("pattern", "percent", "side", "lengthscale"))


def claims(results) -> list[Claim]:
    """True residuals of all; steps by pattern."""
    scattered, block = (
        lab.select(results, pattern=pattern, percent=20) for pattern in PATTERNS[::2]
    )
    least = scattered["side"].values.min()
    scales = block["lengthscale"].values
    like = [
        lab.select(scattered, side=least, lengthscale=s).squeeze(DIM) for s in scales
    ]
    both = [lab.select(block, lengthscale=s).squeeze(DIM) for s in scales]
    easy = lab.select(scattered, noise=1e-2, lengthscale=100)
    masked, long = lab.select(easy, side=least), lab.select(block, lengthscale=100)
    return [
        Claim("every cell: true residual", results["residual"], high=TOLERANCE),
        Claim("every cell: the status is converged", results["has_converged"], low=1),
        Claim(
            "scattered, 20 %, noise 1e-2, long: steps",
            easy["num_steps"],
            low=1,
            high=15 if least >= 32 else 20,
        ),
        Claim(
            "scattered, 20 %, noise 1e-2, long: steps of the masked form, over those",
            masked["masked_steps"] / masked["num_steps"],
            low=20,
        ),
        Claim("slab: steps", lab.select(results, pattern="slab")["num_steps"], high=0),
        Claim(
            "block, 20 %: steps over those of scattered gaps",
            [a["num_steps"] / b["num_steps"] for a, b in zip(both, like, strict=True)],
            low=1.1,
        ),
        Claim(
            "block, 20 %, long: steps of the masked form, over those",
            long["masked_steps"] / long["num_steps"],
            low=1.1,
        ),
    ]


def figure(results):
    """Steps of both forms over patterns."""
    page, (axis,) = lab.panels(size=(10, 5.6))
    names = ("pattern", "percent", "side", "lengthscale")
    labels = [
        f"{pattern}\n{percent} %, {side}$^3$\nlengths {scale} %"
        for pattern, percent, side, scale in zip(
            *(results[name].values for name in names), strict=True
        )
    ]
    places = np.arange(len(labels))
    for i, noise in enumerate(results["noise"].values):
        cell = results.sel(noise=noise).median("seed")
        color = f"C{i}"
        axis.plot(places, cell["num_steps"], "o", color=color, label=f"noise {noise:g}")
        has_met = cell["masked_residual"].values <= TOLERANCE
        for kept, marker in ((has_met, "s"), (~has_met, "^")):
            steps = cell["masked_steps"].values[kept]
            axis.plot(places[kept], steps, marker, color=color, mfc="none")
    for style, label in (
        ("ko", "gaps filled"),
        ("ks", "masked"),
        ("k^", "masked, gave up"),
    ):
        axis.plot([], [], style, mfc="k" if style == "ko" else "none", label=label)
    axis.set_yscale("symlog", linthresh=1)
    axis.set_xticks(places, labels, fontsize=8)
    axis.set_xlabel("gaps, grid, lengthscales")
    axis.set_ylabel(f"steps to a relative residual of {TOLERANCE:g} [1]")
    axis.legend(fontsize=8)
    axis.set_title("Conjugate gradients on grids with gaps: medians of seeds")
    return page


def _axes(cells):
    names = ("pattern", "percent", "side", "lengthscale")
    return Axis(names, cells), Axis("noise", (1e-4, 1e-2))


EXPERIMENT = Experiment(
    run=run,
    hparams=HParams(),
    axes=_axes(
        (
            *(("scattered", percent, 32, 100) for percent in (5, 20, 50)),
            ("scattered", 20, 32, 25),
            ("slab", 20, 32, 100),
            ("block", 5, 32, 100),
            *(("block", 20, 32, scale) for scale in (25, 100)),
            *(("scattered", 20, side, 100) for side in (40, 100)),
        )
    ),
    num_seeds=1,
    x64=True,
    smoke={"axes": _axes(tuple((pattern, 20, 16, 100) for pattern in PATTERNS))},
    claims=claims,
    figure=figure,
)
