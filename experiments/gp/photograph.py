"""How well does a Gaussian process inpaint a photograph, and does it know how well?

Half of the pixels of a photograph, scattered, and a square of an eighth of its side are
missing. A process with the product of Matern kernels over rows and columns (nu 3/2; two
lengthscales, variance, noise) is trained by L-BFGS on the marginal likelihood of the
pixels seen in a central square, and then sees all of them. Its posterior mean is
compared with linear and nearest-neighbor interpolation (`scipy.interpolate.griddata`)
and the mean of the pixels seen, on the missing pixels, which nothing else has seen; its
intervals, of a new noisy pixel, are counted on the same ones.

Claims. (1) The error is at most 0.95 times that of the nearest pixel, 0.8 times that of
the mean, (2) and at most 1.1 times that of linear interpolation: the gain over a good
interpolation is not the picture. (3) It is the intervals: those of 90 % hold 85 to 97 %
of the missing pixels, though (4) those of 50 % hold more than 55 %: edges make errors
with a sharper peak and longer tails than a Gaussian's. (5) The quarter of the missing
pixels with the largest intervals has at least 1.1 times the error of the quarter with
the smallest.

Falsified if any of these fails for any photograph.

References:
    Rasmussen, Williams. "Gaussian Processes for Machine Learning". 2006.
    Wilson, Gilboa, Nehorai, Cunningham. "Fast Kernel Learning for Multidimensional
    Pattern Extrapolation". 2014. NeurIPS.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8
import numpy as np

from jaxlr import covariance, gp, sensing
from jaxlr.core import Claim, Experiment, lbfgs, multistart
from jaxlr.data import photograph

from ..common import photographs


METHODS = ("process", "linear", "nearest", "mean")
LEVELS = (0.5, 0.8, 0.9, 0.95, 0.99)
FLOOR = 1e-6
"""Of the noise's variance [white^2]."""


class HParams(eqx.Module):
    """One cell."""

    photo: str = eqx.field(static=True, default="china")
    """Photograph: china or flower."""
    twice_nu: int = eqx.field(static=True, default=3)
    """2 nu of the Matern kernels: 1, 3 or 5 [1]."""
    size: int = eqx.field(static=True, default=96)
    """Side of the image [pixels]."""
    train_size: int = eqx.field(static=True, default=48)
    """Side of the square on which hyper-parameters are trained [pixels]."""
    max_steps: int = eqx.field(static=True, default=25)
    """Bound on the steps of L-BFGS."""


class Metrics(eqx.Module):
    """Errors and coverage on missing pixels, hyper-parameters, and the images."""

    rmse: Float[Array, " method"]
    """Root mean square error on missing pixels [white]."""
    coverage: Float[Array, " level"]
    """Share of missing pixels in the interval of each level [1]."""
    spread: Float[Array, ""]
    """Error of the quarter of the widest intervals over that of the narrowest [1]."""
    likelihood: Float[Array, ""]
    """Log marginal likelihood of the square [nat/pixel]."""
    lengthscales: Float[Array, " axis"]
    """Lengthscales of rows and columns [pixels]."""
    noise: Float[Array, ""]
    """Variance of the noise [white^2]."""
    residual: Float[Array, ""]
    """Relative residual of the solve on the whole image [1]."""
    original: UInt8[Array, "row column"]
    """The photograph [1/255]."""
    observed: UInt8[Array, "row column"]
    """Pixels seen, the others white [1/255]."""
    recovered: UInt8[Array, "row column"]
    """The posterior mean [1/255]."""
    sample: UInt8[Array, "row column"]
    """A draw from the posterior [1/255]."""
    deviation: Float[Array, "row column"]
    """Standard deviation of a new pixel [white]."""


def run(key: Key[Array, ""], hparams: HParams) -> Metrics:
    """One cell; the key draws the sample, pixels are the same in all.

    Raises:
        ValueError: As `photograph` and `GridGP` do.
    """
    from scipy.interpolate import griddata
    from scipy.stats import norm

    size, middle = hparams.size, (hparams.size - hparams.train_size) // 2
    with jax.ensure_compile_time_eval():
        photo = np.asarray(photograph(hparams.photo, size))
    seen = np.random.default_rng(0).random(photo.shape) >= 0.5
    seen[size // 4 : size // 4 + size // 8, size // 4 : size // 4 + size // 8] = False
    level = photo[seen].mean()
    y = np.where(seen, photo - level, 0)

    def process(logs, square):
        values = jax.tree.map(jnp.exp, logs)
        rows, columns = (
            covariance.Matern(x, nu=hparams.twice_nu / 2) for x in values["lengths"]
        )
        return gp.GridGP(
            (values["variance"] * rows, columns),
            [np.arange(float(n)) for n in square.shape],
            values["noise"] + FLOOR,
            square,
            max_dense=square.size,
            tolerance=1e-6,
        )

    inner = slice(middle, middle + hparams.train_size)
    square, values = seen[inner, inner], y[inner, inner]

    def loss(logs):
        found = process(logs, square).log_marginal_likelihood(values)
        return -found / square.sum()

    init = {
        "lengths": jnp.log(jnp.array([10.0, 10.0])),
        "variance": jnp.log(jnp.asarray(y[seen].var(), float)),
        "noise": jnp.log(jnp.asarray(1e-3)),
    }
    starts = jax.tree.map(lambda x: x[None], init)
    fitted = multistart(lbfgs(loss, max_steps=hparams.max_steps), starts)
    logs = fitted.params
    noise = jnp.exp(logs["noise"]) + FLOOR
    posterior = process(logs, seen).posterior(y)
    image = level + posterior.mean
    deviation = jnp.sqrt(posterior.variance + noise)
    points, rest = np.argwhere(seen), np.argwhere(~seen)
    nearest, linear = (
        griddata(points, photo[seen], rest, kind) for kind in ("nearest", "linear")
    )
    linear = np.where(np.isnan(linear), nearest, linear)  # outside of all triangles
    truth = photo[~seen]
    guesses = image[~seen], linear, nearest, np.full(truth.shape, level)
    error, width = jnp.abs(guesses[0] - truth), deviation[~seen]
    order = jnp.argsort(width)
    quarter = len(truth) // 4
    squares = error[order] ** 2
    bounds = jnp.asarray(norm.ppf((1 + np.array(LEVELS)) / 2))
    return Metrics(
        rmse=jnp.stack([jnp.sqrt(jnp.mean((x - truth) ** 2)) for x in guesses]),
        coverage=jnp.mean(error <= bounds[:, None] * width, 1),
        spread=jnp.sqrt(jnp.mean(squares[-quarter:]) / jnp.mean(squares[:quarter])),
        likelihood=-fitted.loss,
        lengthscales=jnp.exp(logs["lengths"]),
        noise=noise,
        residual=posterior.info.residual,
        original=sensing.to_pixels(jnp.asarray(photo)),
        observed=sensing.to_pixels(jnp.where(seen, photo, 1.0)),
        recovered=sensing.to_pixels(image),
        sample=sensing.to_pixels(level + posterior.sample(key, 1)[0]),
        deviation=deviation,
    )


def claims(results) -> list[Claim]:
    """Errors against other methods; coverage."""
    process, linear, nearest, mean = (
        results["rmse"].isel(method=i) for i in range(len(METHODS))
    )
    half, _, ninety, *_ = (
        results["coverage"].isel(level=i) for i in range(len(LEVELS))
    )
    return [
        Claim("error over that of the nearest pixel", process / nearest, high=0.95),
        Claim("error over that of the mean", process / mean, high=0.8),
        Claim("error over that of linear interpolation", process / linear, high=1.1),
        Claim("intervals of 90 %: coverage", ninety, low=0.85, high=0.97),
        Claim("intervals of 50 %: coverage", half, low=0.55),
        Claim("error of the widest over the narrowest", results["spread"], low=1.1),
    ]


def figure(results):
    """Images; errors and coverage."""
    photos = results["photo"].values
    page, images, rows, graphs = photographs.page(photos, 5, 15)
    errors, shares = graphs.subplots(1, 2)
    width = 0.8 / len(photos)
    for i, (row, photo) in enumerate(zip(rows, photos, strict=True)):
        cell = results.sel(photo=photo).isel(seed=0)
        for axis, name in zip(
            row, ("original", "observed", "recovered", "sample"), strict=False
        ):
            photographs.show(axis, cell[name], name)
        shown = row[-1].imshow(cell["deviation"], cmap="viridis")
        row[-1].set_title("deviation")
        row[-1].set_axis_off()
        images.colorbar(shown, ax=row[-1], label="standard deviation [white]")
        places = np.arange(len(METHODS)) + i * width
        errors.bar(places, cell["rmse"], width, label=photo)
        shares.plot(LEVELS, cell["coverage"], "o-", label=photo)
    errors.set_xticks(np.arange(len(METHODS)), METHODS)
    errors.set(ylabel="root mean square error [white]", xlabel="missing pixels by")
    shares.plot(LEVELS, LEVELS, "k:", label="Gaussian")
    shares.set(xlabel="level of the interval [1]")
    shares.set_ylabel("share of missing pixels in it [1]")
    for axis in (errors, shares):
        axis.legend(fontsize=8)
    return page


IMAGES = ("original", "observed", "recovered", "sample", "deviation")

EXPERIMENT = Experiment(
    run=run,
    hparams=HParams(),
    axes={"photo": ("china", "flower")},
    num_seeds=1,
    x64=True,
    dims={
        "rmse": ("method",),
        "coverage": ("level",),
        "lengthscales": ("axis",),
    }
    | {name: ("row", "column") for name in IMAGES},
    smoke={
        "axes": {"photo": ("china",)},
        "hparams": HParams(size=40, train_size=24, max_steps=12),
    },
    claims=claims,
    figure=figure,
)
