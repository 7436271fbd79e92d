"""Can a photograph be recovered from a share of its pixels, without knowing its rank?

A real photograph, in greyscale, is recovered by asymmetric gradient descent on factors
from a share of its pixels, and from as many Gaussian measurements of its 32-by-32
blocks, all blocks sharing one ensemble. A tenth of the measurements is held out: the
image returned is that of the step at which the error on them is least. No photograph
is of low rank; the reference is the best approximation (Eckart, Young) of the rank r
that m measurements determine with something to spare: the largest with 2.5 times the
r (2 n - r) degrees of freedom at most m.

Claims. (1) More measurements recover more. (2) Columns in excess cost nothing from a
small start, since gradient descent finds the large directions first. What they exceed
is a narrow width near the reference rank: k = 64 against 20 for pixels, whose reference
rank is 13 at 25 % and 27 at 50 %, so that at 50 % the narrow factors are below it; and
k = 16 against 4 for blocks, where it is 1 and 3. (3) From a large start they do: all
directions grow at once. (4) The error is at most twice (6 dB) that of the reference.
(5) Stopping by the held-out error costs at most 0.5 dB.

Falsified if, for any photograph, seed and kind of measurement, a larger share gives a
lower PSNR; wide factors from a small start end below narrow ones, or not above wide
ones from a large start; the wide ones from a small start end more than 6 dB below the
reference; or the step with the least held-out error is more than 0.5 dB below the best.

References:
    Stöger, Soltanolkotabi. "Small random initialization is akin to spectral learning".
    2021. arXiv:2106.15013.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key, UInt8
import numpy as np

from jaxlr import lab, sensing
from jaxlr.core import checks, Claim, Experiment, Hyper, loop, Solver
from jaxlr.data import photograph
from jaxlr.linalg import matmul
from jaxlr.sensing import theory

from ..common import photographs


BLOCK = 32
MEASUREMENTS = ("pixels", "blocks")
EVERY = 10


class HParams(eqx.Module):
    """One cell."""

    photo: str = eqx.field(static=True, default="china")
    """Photograph: china or flower."""
    measurements: str = eqx.field(static=True, default="pixels")
    """What is measured: pixels, or Gaussian measurements of blocks."""
    percent: int = eqx.field(static=True, default=50)
    """Number of measurements per pixel [%]."""
    num_columns: int = eqx.field(static=True, default=64)
    """Number of columns k of the factors."""
    alpha: Hyper = 0.01
    """Initial scale [square root of the estimated spectral norm]."""
    eta: Hyper = 0.25
    """Step size [1 / estimated spectral norm]."""
    size: int = eqx.field(static=True, default=256)
    """Side of the image [pixels]."""
    num_steps: int = eqx.field(static=True, default=1000)
    """Number of steps of gradient descent."""


class Metrics(eqx.Module):
    """Curves over steps, and the images."""

    psnr: Float[Array, " step"]
    """Peak signal-to-noise ratio of the iterate [dB]."""
    held_out: Float[Array, " step"]
    """Root mean square error on the held-out measurements [1]."""
    recovered_psnr: Float[Array, ""]
    """PSNR of the image with the least held-out error [dB]."""
    recovered_error: Float[Array, ""]
    """Its relative error in Frobenius norm [1]."""
    reference_psnr: Float[Array, ""]
    """PSNR of the best approximation of the reference rank [dB]."""
    original: UInt8[Array, "row column"]
    """The photograph [1/255]."""
    observed: UInt8[Array, "row column"]
    """Pixels seen, the others white; or the back-projection A*(y) [1/255]."""
    recovered: UInt8[Array, "row column"]
    """The image with the least held-out error [1/255]."""


def run(key: Key[Array, ""], hparams: HParams) -> Metrics:
    """One cell: pixels are one block of the whole image.

    Raises:
        ValueError: For unknown `measurements` or `photo`, or a `size` that is not a
            multiple of the block's.
    """
    checks.choice("measurements", hparams.measurements, MEASUREMENTS)
    operator_key, solve_key = jr.split(key)
    photo = photograph(hparams.photo, hparams.size)
    is_pixels = hparams.measurements == "pixels"
    side = hparams.size if is_pixels else BLOCK
    if hparams.size % side:
        raise ValueError(f"`size` must be a multiple of {side}, got {hparams.size}.")
    blocks = _split(photo, side)
    num_measurements = hparams.percent * side**2 // 100
    draw = sensing.entry_sampling if is_pixels else sensing.gaussian
    observe, held, _ = photographs.hold_out(
        draw(operator_key, (side, side), num_measurements)
    )
    y, y_held = jax.vmap(observe.apply)(blocks), jax.vmap(held.apply)(blocks)
    ones = observe.apply(jnp.ones((side, side)))
    # The constant image that fits best, and the norm of what is left, as far as seen.
    level = matmul(y, ones) / matmul(ones, ones)
    seen = jax.vmap(observe.adjoint)(y - level[:, None] * ones) / observe.isotropy
    scale = jnp.linalg.norm(seen, ord=2, axis=(1, 2))
    scale = jnp.maximum(scale, 1e-3)  # a block may be flat
    target = (y - level[:, None] * ones) / scale[:, None]

    def solver_of(target):
        return sensing.gd(
            sensing.SensingProblem(observe, target),
            num_columns=hparams.num_columns,
            eta=hparams.eta,
            alpha=hparams.alpha,
        )

    def init(key):
        keys = jr.split(key, len(blocks))
        return jax.vmap(lambda key, target: solver_of(target).init(key))(keys, target)

    def step(key, state):
        keys = jr.split(key, len(blocks))
        step_fn = lambda key, state, y: solver_of(y).step(key, state)  # noqa: E731
        return jax.vmap(step_fn)(keys, state, target)

    def blocks_of(state):
        product = jax.vmap(lambda state: matmul(state.f, state.g.T))(state)
        return level[:, None, None] + scale[:, None, None] * product

    def held_out_error(estimate):
        return jnp.sqrt(jnp.mean((jax.vmap(held.apply)(estimate) - y_held) ** 2))

    def watch(kept):
        estimate = blocks_of(kept.state)
        return sensing.psnr(estimate, blocks), held_out_error(estimate)

    kept, (psnr, held_out) = loop.run(
        solve_key,
        photographs.keep_best(Solver(init, step), blocks_of, held_out_error),
        hparams.num_steps,
        every=EVERY,
        watch_fn=watch,
    )
    best = kept.image
    reference_rank = theory.recoverable_rank((side, side), num_measurements)
    reference = sensing.best_rank(blocks, reference_rank)
    gap = jnp.linalg.norm(best - blocks) / jnp.linalg.norm(blocks)
    if is_pixels:
        mask = observe.adjoint(jnp.ones(observe.measurement_shape))
        observed = jnp.where(mask > 0, photo, 1.0)
    else:
        observed = _join(seen + level[:, None, None], hparams.size)
    return Metrics(
        psnr=psnr,
        held_out=held_out,
        recovered_psnr=sensing.psnr(best, blocks),
        recovered_error=gap,
        reference_psnr=sensing.psnr(reference, blocks),
        original=sensing.to_pixels(photo),
        observed=sensing.to_pixels(observed),
        recovered=sensing.to_pixels(_join(best, hparams.size)),
    )


def _split(image, side):
    """The square blocks of an image, row by row."""
    count = image.shape[0] // side
    return (
        image.reshape(count, side, count, side).swapaxes(1, 2).reshape(-1, side, side)
    )


def _join(blocks, size):
    """The image of which these are the blocks."""
    side = blocks.shape[-1]
    count = size // side
    return blocks.reshape(count, count, side, side).swapaxes(1, 2).reshape(size, size)


AXES = {
    "photo": ("china", "flower"),
    "percent": (25, 50),
    ("measurements", "num_columns", "alpha"): (
        ("pixels", 20, 0.01),
        ("pixels", 64, 0.01),
        ("pixels", 64, 0.1),
        ("blocks", 4, 0.01),
        ("blocks", 16, 0.01),
        ("blocks", 16, 0.1),
    ),
}
SETTING = lab.dimension_name(("measurements", "num_columns", "alpha"))


def _select(results, measurements, *, is_wide, is_small):
    """One setting of width and start, found by its coordinates, never by position."""
    cells = lab.select(results, measurements=measurements)
    columns = cells["num_columns"].values
    cells = lab.select(cells, num_columns=columns.max() if is_wide else columns.min())
    alphas = cells["alpha"].values
    cells = lab.select(cells, alpha=alphas.min() if is_small else alphas.max())
    return cells.squeeze(SETTING)


def claims(results) -> list[Claim]:
    """Shares, width, start, reference and stopping; every photograph and seed."""
    percent = np.sort(results["percent"].values)
    size = lab.hparams(results)["size"]
    made = []
    for kind in MEASUREMENTS:
        narrow = _select(results, kind, is_wide=False, is_small=True)
        wide = _select(results, kind, is_wide=True, is_small=True)
        large = _select(results, kind, is_wide=True, is_small=False)
        psnr = wide["recovered_psnr"]
        side = size if kind == "pixels" else BLOCK
        ranks = ", ".join(
            f"{theory.recoverable_rank((side, side), p * side**2 // 100)} at {p} %"
            for p in percent
        )
        cells = [cell["recovered_psnr"] for cell in (narrow, wide, large)]
        gains = [
            cell.sel(percent=percent[1:]).values - cell.sel(percent=percent[:-1]).values
            for cell in cells
        ]
        made += [
            Claim(f"{kind}: PSNR gained by a larger share [dB]", gains, low=0),
            Claim(
                f"{kind}: PSNR gained by k = {wide['num_columns'].item()} columns over "
                f"{narrow['num_columns'].item()} from a small start [dB] (reference "
                f"rank: {ranks})",
                psnr - narrow["recovered_psnr"],
                low=0,
                source="Stöger, Soltanolkotabi (2021)",
            ),
            Claim(
                f"{kind}: PSNR gained by a small start, wide [dB]",
                psnr - large["recovered_psnr"],
                low=0,
                source="Stöger, Soltanolkotabi (2021)",
            ),
            Claim(
                f"{kind}: PSNR below the best approximation of the rank that the "
                "measurements determine [dB]",
                wide["reference_psnr"] - psnr,
                high=6,
                source="2.5 measurements per degree of freedom",
            ),
            Claim(
                f"{kind}: PSNR lost by stopping where the held-out error is least [dB]",
                wide["psnr"].max("step", skipna=False) - psnr,
                high=0.5,
            ),
        ]
    return made


def figure(results):
    """Original, observed and recovered at the largest share; PSNR against steps."""
    share = results["percent"].values.max()
    shown = results.sel(percent=share).isel(seed=0)
    photos = results["photo"].values
    page, _, rows, curves = photographs.page(photos, 5, 12)
    for row, photo in zip(rows, photos, strict=True):
        pixels, blocks = (
            _select(shown.sel(photo=photo), kind, is_wide=True, is_small=True)
            for kind in MEASUREMENTS
        )
        panels = [("original", pixels["original"])]
        for cell, what in ((pixels, "pixels"), (blocks, "A*(y) of blocks")):
            columns = cell["num_columns"].item()
            got, best = cell["recovered_psnr"].item(), cell["reference_psnr"].item()
            panels += [
                (f"{share} % observed: {what}", cell["observed"]),
                (
                    f"recovered, k = {columns}: {got:.1f} dB\n"
                    f"(best of low rank: {best:.1f} dB)",
                    cell["recovered"],
                ),
            ]
        for axis, (title, image) in zip(row, panels, strict=True):
            photographs.show(axis, image, title)

    axes = curves.subplots(1, 2 * len(photos), sharey=True, squeeze=False)[0]
    panels = [(photo, kind) for photo in photos for kind in MEASUREMENTS]
    for axis, (photo, kind) in zip(axes, panels, strict=True):
        data = results.sel(photo=photo, percent=share)
        for is_wide, is_small, color in (
            (False, True, "#0072B2"),
            (True, True, "#D55E00"),
            (True, False, "#009E73"),
        ):
            cell = _select(data, kind, is_wide=is_wide, is_small=is_small)
            columns, alpha = cell["num_columns"].item(), cell["alpha"].item()
            label = rf"k = {columns}, $\alpha$ = {alpha:g}"
            lab.draw_seeds(axis, cell["psnr"], color=color, label=label)
        reference = cell["reference_psnr"].values.flat[0]
        axis.axhline(reference, color="black", ls="--", lw=1, label="best of low rank")
        axis.set_title(f"{photo}, {share} % {kind}", fontsize=10)
        axis.set_xlabel("step")
        axis.legend(fontsize=8, loc="lower right")
    axes[0].set_ylabel("PSNR [dB]")
    return page


EXPERIMENT = Experiment(
    run=run,
    hparams=HParams(),
    axes=AXES,
    num_seeds=2,
    every=EVERY,
    dims={name: ("row", "column") for name in ("original", "observed", "recovered")},
    smoke={
        "num_seeds": 1,
        "axes": AXES | {"photo": ("china",)},
        "hparams": HParams(size=128, num_steps=400),
    },
    claims=claims,
    figure=figure,
)
