"""Can a photograph be recovered where some of its pixels are grossly wrong?

A real photograph, in greyscale, of which 80 % of the pixels are seen, a share p of
these replaced by black or white at random (salt and pepper), and nobody says which. It
is recovered by asymmetric gradient descent from a small start on factors of k = 64
columns, more than the rank that the pixels determine, on the squared residuals and on
their Huber loss, which is linear beyond a tenth of white. A tenth of what is seen,
wrong pixels included, is held out: the image returned is that of the step at which the
Huber loss on them is least, for both. No photograph is of low rank; the reference is
the best approximation (Eckart, Young) of the largest rank r with 2.5 times its
r (2 n - r) degrees of freedom among the pixels seen. Neither method knows that
neighbors are alike.

Claims. (1) With wrong pixels, Huber recovers an image at least 2 dB better than squares
do, at every share from 10 to 30 %. (2) Three times as many of them do less harm to it:
Huber at 30 % is above squares at 10 %. (3) Without any it costs at most 0.5 dB, and is
at most 4 dB below the reference. (4) It is not immune, as SubGM is where the matrix is
of low rank (`sensing.outliers`): each further share costs something, though at 30 % no
more than three quarters of what it costs squares [dB]. (5) Stopping by the held-out
pixels, wrong ones among them, costs at most 1.5 dB; (6) not stopping, with wrong
pixels, at least 1 dB: the columns in excess fit them.

Falsified if any of these fails for any photograph, seed and share.

References:
    Huber. "Robust Estimation of a Location Parameter". Annals of Mathematical
    Statistics, 1964.
    Candès, Li, Ma, Wright. "Robust Principal Component Analysis?". 2009.
    arXiv:0912.3599.
"""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key, UInt8
import numpy as np

from jaxlr import sensing
from jaxlr.core import Claim, Experiment, Hyper, loop
from jaxlr.data import photograph
from jaxlr.kernels import loss_value
from jaxlr.linalg import matmul
from jaxlr.sensing import theory

from ..common import photographs


LOSSES = ("l2", "huber")
EVERY = 10


class HParams(eqx.Module):
    """One cell."""

    photo: str = eqx.field(static=True, default="china")
    """Photograph: china or flower."""
    outlier_share: Hyper = 0.1
    """Share p of the seen pixels that are black or white at random [1]."""
    percent: int = eqx.field(static=True, default=80)
    """Share of the pixels that is seen [%]."""
    num_columns: int = eqx.field(static=True, default=64)
    """Number of columns k of the factors."""
    alpha: Hyper = 0.01
    """Initial scale [square root of the estimated spectral norm]."""
    eta: Hyper = 0.5
    """Step size [1 / estimated spectral norm]."""
    huber_delta: Hyper = 0.1
    """Residual at which the Huber loss turns linear [white]."""
    size: int = eqx.field(static=True, default=256)
    """Side of the image [pixels]."""
    num_steps: int = eqx.field(static=True, default=600)
    """Number of steps of gradient descent."""


class Metrics(eqx.Module):
    """Curves over steps, what is returned, and the images."""

    l2_psnr: Float[Array, " step"]
    """Squares: peak signal-to-noise ratio of the iterate [dB]."""
    huber_psnr: Float[Array, " step"]
    """Huber: peak signal-to-noise ratio of the iterate [dB]."""
    l2_recovered_psnr: Float[Array, ""]
    """Squares: PSNR of the image returned [dB]."""
    huber_recovered_psnr: Float[Array, ""]
    """Huber: PSNR of the image returned [dB]."""
    reference_psnr: Float[Array, ""]
    """PSNR of the best approximation of the reference rank [dB]."""
    original: UInt8[Array, "row column"]
    """The photograph [1/255]."""
    observed: UInt8[Array, "row column"]
    """Pixels seen, right or wrong; the others grey [1/255]."""
    l2_recovered: UInt8[Array, "row column"]
    """Squares: the image returned [1/255]."""
    huber_recovered: UInt8[Array, "row column"]
    """Huber: the image returned [1/255]."""


def run(key: Key[Array, ""], hparams: HParams) -> Metrics:
    """One cell.

    Raises:
        ValueError: As `photograph` and the solvers do.
    """
    shape = (hparams.size, hparams.size)
    num_seen = hparams.percent * hparams.size**2 // 100
    pixel_key, hit_key, color_key, solve_key = jr.split(key, 4)
    photo = photograph(hparams.photo, hparams.size)
    seen = sensing.entry_sampling(pixel_key, shape, num_seen)
    is_hit = jr.uniform(hit_key, (num_seen,)) < hparams.outlier_share
    wrong = jr.bernoulli(color_key, shape=(num_seen,)).astype(photo.dtype)
    pixels = jnp.where(is_hit, wrong, seen.apply(photo))

    fitted, held, is_held = photographs.hold_out(seen)
    y, y_held = pixels[~is_held], pixels[is_held]
    level = jnp.median(y)  # a mean would follow the wrong pixels
    problem, scale = photographs.normalized(fitted, y, level)

    def image_of(state):
        return level + scale * matmul(state.f, state.g.T)

    def held_out_loss(image):
        return loss_value("huber", held.apply(image) - y_held, hparams.huber_delta)

    def recover(loss):
        """The image of least held-out loss, and the PSNR of the iterates."""
        solver = sensing.gd(
            problem,
            num_columns=hparams.num_columns,
            eta=hparams.eta,
            alpha=hparams.alpha,
            loss=loss,
            huber_delta=hparams.huber_delta / scale,
        )

        kept, psnr = loop.run(
            solve_key,
            photographs.keep_best(solver, image_of, held_out_loss),
            hparams.num_steps,
            every=EVERY,
            watch_fn=lambda kept: sensing.psnr(image_of(kept.state), photo),
        )
        return kept.image, psnr

    (l2, l2_psnr), (huber, huber_psnr) = map(recover, LOSSES)
    mask = seen.adjoint(jnp.ones(num_seen))
    observed = jnp.where(mask > 0, seen.adjoint(pixels), 0.5)
    reference = sensing.best_rank(photo, theory.recoverable_rank(shape, num_seen))
    return Metrics(
        l2_psnr=l2_psnr,
        huber_psnr=huber_psnr,
        l2_recovered_psnr=sensing.psnr(l2, photo),
        huber_recovered_psnr=sensing.psnr(huber, photo),
        reference_psnr=sensing.psnr(reference, photo),
        original=sensing.to_pixels(photo),
        observed=sensing.to_pixels(observed),
        l2_recovered=sensing.to_pixels(l2),
        huber_recovered=sensing.to_pixels(huber),
    )


AXES = {"photo": ("china", "flower"), "outlier_share": (0.0, 0.1, 0.2, 0.3)}


def claims(results) -> list[Claim]:
    """Huber against squares, shares, stopping; every photograph and seed.

    Raises:
        ValueError: If these results lack a share of 0, or any other.
    """
    shares = np.sort(results["outlier_share"].values)
    for is_there, what in ((0 in shares[:1], "= 0"), (np.any(shares > 0), "> 0")):
        if not is_there:
            raise ValueError(f"No cell of these results has outlier_share {what}.")
    spoilt = results.sel(outlier_share=shares[1:])
    least, most = shares[1], shares[-1]
    huber, l2 = results["huber_recovered_psnr"], results["l2_recovered_psnr"]
    gain = huber - l2

    def lost(psnr, before, after):
        return psnr.sel(outlier_share=before).values - psnr.sel(outlier_share=after)

    return [
        Claim(
            "wrong pixels: PSNR gained by Huber over squares [dB]",
            gain.sel(outlier_share=shares[1:]),
            low=2,
        ),
        Claim(
            f"PSNR gained by Huber with {100 * most:g} % wrong over squares with "
            f"{100 * least:g} % [dB]",
            huber.sel(outlier_share=most) - l2.sel(outlier_share=least),
            low=0,
        ),
        Claim(
            "no wrong pixels: PSNR gained by Huber over squares [dB]",
            gain.sel(outlier_share=0.0),
            low=-0.5,
        ),
        Claim(
            "no wrong pixels, Huber: PSNR below the best approximation of the rank "
            "that the pixels determine [dB]",
            (results["reference_psnr"] - huber).sel(outlier_share=0.0),
            high=4,
            source="2.5 measurements per degree of freedom",
        ),
        Claim(
            "Huber: PSNR lost from one share of wrong pixels to the next [dB]",
            lost(huber, shares[:-1], shares[1:]),
            low=0,
        ),
        Claim(
            f"PSNR lost from none to {100 * most:g} % wrong: Huber's over squares' [1]",
            lost(huber, 0.0, most) / lost(l2, 0.0, most),
            low=0,
            high=0.75,
        ),
        Claim(
            "Huber: PSNR lost by stopping where the held-out loss is least [dB]",
            results["huber_psnr"].max("step", skipna=False) - huber,
            high=1.5,
        ),
        Claim(
            "wrong pixels, Huber: PSNR lost by not stopping at all [dB]",
            spoilt["huber_recovered_psnr"] - spoilt["huber_psnr"].isel(step=-1),
            low=1,
        ),
    ]


_STYLES = {"huber": ("Huber", "#009E73"), "l2": ("squares", "#D55E00")}


def figure(results):
    """Images at the largest share; PSNR against steps; PSNR against the share."""
    photos, shares = results["photo"].values, np.sort(results["outlier_share"].values)
    page, _, rows, curves = photographs.page(photos, 4, 11)
    for row, photo in zip(rows, photos, strict=True):
        cell = results.sel(photo=photo, outlier_share=shares[-1]).isel(seed=0)
        titles = {
            "original": "original",
            "observed": f"seen, {100 * shares[-1]:g} % of it wrong",
        } | {
            f"{name}_recovered": f"recovered by {_STYLES[name][0]}: "
            f"{cell[f'{name}_recovered_psnr'].item():.1f} dB"
            for name in LOSSES
        }
        for axis, (name, title) in zip(row, titles.items(), strict=True):
            photographs.show(axis, cell[name], title)

    panels = curves.subplots(1, 2 * len(photos), squeeze=False)[0].reshape(-1, 2)
    for (over_steps, over_shares), photo in zip(panels, photos, strict=True):
        data = results.sel(photo=photo)
        for name, (label, color) in _STYLES.items():
            for share, style in ((shares[0], ":"), (shares[-1], "-")):
                values = data[f"{name}_psnr"].sel(outlier_share=share)
                over_steps.plot(
                    data["step"].values,
                    values.median("seed").values,
                    style,
                    color=color,
                    label=f"{label}, {100 * share:g} % wrong",
                )
            values = data[f"{name}_recovered_psnr"].sel(outlier_share=shares)
            values = values.transpose("seed", "outlier_share").values
            over_shares.plot(100 * shares, values.T, "o", color=color, ms=4)
            over_shares.plot(100 * shares, np.median(values, axis=0), color=color)
        over_shares.axhline(
            data["reference_psnr"].values.flat[0],
            color="black",
            ls="--",
            lw=1,
            label="best of low rank",
        )
        over_steps.set_title(photo, fontsize=10)
        over_steps.set(xlabel="step", ylabel="PSNR [dB]")
        over_shares.set_title(f"{photo}, returned", fontsize=10)
        over_shares.set_xlabel("wrong pixels [%]")
    lines = [*panels[0, 0].get_lines(), panels[0, 1].get_lines()[-1]]
    curves.legend(handles=lines, loc="outside lower center", ncols=len(lines))
    return page


EXPERIMENT = Experiment(
    run=run,
    hparams=HParams(),
    axes=AXES,
    num_seeds=2,
    every=EVERY,
    dims={
        name: ("row", "column")
        for name in ("original", "observed", "l2_recovered", "huber_recovered")
    },
    smoke={
        "num_seeds": 1,
        "axes": {"photo": ("china",), "outlier_share": (0.0, 0.1, 0.3)},
        "hparams": HParams(size=128, num_columns=48),
    },
    claims=claims,
    figure=figure,
)
