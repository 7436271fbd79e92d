"""What does SAM do to bias and variance, and when does it help?

Least squares from n = 200 samples in d = 50 dimensions, whose covariance has
eigenvalues 1/i, ||w*|| = 2, noise of deviation 1; and kernel regression of sin(8 x)
from n = 100 samples on [0, 1], with Gaussian kernels of width 0.2 and noise of
deviation 0.5. Gradient descent (GD) and unnormalized SAM start at zero, with equal
steps. Risk is the mean squared error of the prediction at the samples, over noise.
(Gradients with a kernel are those in its Hilbert space: w are coefficients in an
orthonormal basis of it, features K^(1/2).)

Claims. A step of SAM shrinks the error along an eigenvector by 1 - eta lambda (1 + rho
lambda), one of GD by 1 - eta lambda: the iterates have a closed form, and so have bias
and variance at every step. SAM has lower bias and higher variance than GD, always; its
risk is lower while training is short, higher when it is long. Stopped early, each at
its best, SAM needs fewer steps.

Falsified if an iterate leaves the closed form by 1e-12 of its norm; if the risk over
the draws of the noise leaves the closed form by 3 % in the mean over seeds, at any of
the steps 1, 5, 20, 50; if bias or variance is ordered otherwise at any step; if SAM's
mean risk is not the lower one at step 5 and the higher one at the last step; if its
best step is not the earlier one; or if another program's risks, of one draw of each
problem, are more than two standard deviations from ours.

References:
    Behdin, Mazumder. "SAM: an implicit regularization perspective". 2023.
    arXiv:2302.11836.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key
import numpy as np

from jaxlr import lab, linalg, sharpness
from jaxlr.core import checks, Claim, Experiment, Hyper, loop, Solver
from jaxlr.sharpness import theory


PROBLEMS = ("least_squares", "kernel")


class HParams(eqx.Module):
    """One cell. Static fields fix shapes; all others may be swept without compiling."""

    problem: str = eqx.field(static=True, default="least_squares")
    """What is fitted: least_squares or kernel."""
    eta: Hyper = 0.25
    """Step size [1/lambda_1]."""
    rho: Hyper = 2.0
    """Perturbation a gradient; 0 is gradient descent [1/lambda_1]."""
    num_steps: int = eqx.field(static=True, default=200)
    """Number of steps taken."""
    num_draws: int = eqx.field(static=True, default=1000)
    """Number of draws of the noise that the risk is a mean of."""


class Metrics(eqx.Module):
    """Bias and variance before every step, by closed form and by draws of the noise."""

    squared_bias: Float[Array, " step"]
    """Squared bias of the closed form [f*^2]."""
    variance: Float[Array, " step"]
    """Variance of the closed form [f*^2]."""
    risk: Float[Array, " step"]
    """Mean squared error over the draws [f*^2]."""
    iterate_gap: Float[Array, ""]
    """Largest ||w - closed form|| / ||w|| over steps, of one draw [1]."""


def _problem(key, name):
    """Features (a sample a row), f* at the samples, modes, deviation of the noise."""
    x_key, truth_key = jr.split(key)
    if name == "least_squares":
        num, size = 200, 50
        x = jr.normal(x_key, (num, size)) / jnp.sqrt(jnp.arange(1, size + 1))
        truth = jr.normal(truth_key, (size,))
        truth = 2 * truth / jnp.linalg.norm(truth)
        return x, x @ truth, theory.least_squares_modes(x, truth), 1.0
    points = jr.uniform(x_key, (100,))
    kernel = jnp.exp(-((points[:, None] - points) ** 2) / (2 * 0.2**2))
    values, vectors = jnp.linalg.eigh(kernel)
    features = linalg.matmul(vectors * jnp.sqrt(jnp.maximum(values, 0)), vectors.T)
    truth = jnp.sin(8 * points)
    return features, truth, theory.kernel_modes(kernel, truth), 0.5


def run(key: Key[Array, ""], hparams: HParams) -> Metrics:
    """One cell.

    Raises:
        ValueError: For an unknown `problem`, or as the transform does.
    """
    checks.choice("problem", hparams.problem, PROBLEMS)
    problem_key, noise_key = jr.split(key)
    x, truth, modes, sigma = _problem(problem_key, hparams.problem)
    num, size = x.shape
    largest = modes.eigenvalues[-1]
    eta, rho = hparams.eta / largest, hparams.rho / largest
    y = truth + sigma * jr.normal(noise_key, (hparams.num_draws, num))

    def loss(w, y):
        return jnp.sum((linalg.matmul(x, w) - y) ** 2) / (2 * num)

    gradient = jax.vmap(sharpness.sam_value_and_grad(loss, rho, is_normalized=False))

    def step(key, w):
        return w - eta * gradient(w, y)[1], None

    def watch(w):
        return jnp.mean((linalg.matmul(w, x.T) - truth) ** 2), w[0]

    start = jnp.zeros((hparams.num_draws, size))
    _, (risk, iterates) = loop.run(
        key, Solver(lambda key: start, step), hparams.num_steps, watch_fn=watch
    )
    settings = {"eta": eta, "rho": rho, "num_steps": jnp.arange(hparams.num_steps)}
    parts = theory.bias_variance(modes, num_samples=num, sigma=sigma, **settings)
    closed = theory.quadratic_iterate(
        linalg.matmul(x.T, x) / num, linalg.matmul(x.T, y[0]) / num, **settings
    )
    gap = jnp.linalg.norm(iterates - closed, axis=1)[1:]
    return Metrics(
        squared_bias=parts.squared_bias,
        variance=parts.variance,
        risk=risk,
        iterate_gap=jnp.max(gap / jnp.linalg.norm(closed, axis=1)[1:]),
    )


STEPS = [1, 5, 20, 50]
FIGURES = {  # another program's risks, of one draw of the problem: GD, SAM
    "least_squares": (
        STEPS,
        [0.357, 0.195, 0.122, 0.111],
        [0.249, 0.163, 0.120, 0.114],
    ),
    "kernel": ([5], [0.228], [0.150]),
}


def claims(results) -> list[Claim]:
    """The closed form; the order of bias, variance, risk; early stopping."""
    risk = results["squared_bias"] + results["variance"]
    results = results.assign(closed=risk)
    early = (results["risk"] / risk).sel(step=STEPS).mean("seed", skipna=False)
    source = "Behdin, Mazumder (2023)"
    found = [
        Claim(
            "iterates: distance from the closed form",
            results["iterate_gap"],
            high=1e-12,
        ),
        Claim(
            "risk over draws / closed form is 1, steps 1, 5, 20, 50 (mean)",
            early,
            low=0.97,
            high=1.03,
            source=source,
        ),
    ]
    for problem in np.unique(results["problem"]):
        cells = lab.select(results, problem=problem)
        gd, sam = (cells.sel(rho=rho).squeeze("problem") for rho in (0.0, 2.0))
        better = (gd["closed"] - sam["closed"]).mean("seed", skipna=False)
        found += [
            Claim(
                f"{problem}: squared bias of SAM less GD's, every step from 1 on",
                (sam["squared_bias"] - gd["squared_bias"]).isel(step=slice(1, None)),
                high=0,
                source=source,
            ),
            Claim(
                f"{problem}: variance of SAM less GD's, every step from 1 on",
                (sam["variance"] - gd["variance"]).isel(step=slice(1, None)),
                low=0,
                source=source,
            ),
            Claim(
                f"{problem}: risk that SAM saves at step 5 (mean)",
                better.sel(step=5),
                low=0.005,
            ),
            Claim(
                f"{problem}: risk that SAM saves at the last step (mean)",
                better.isel(step=-1),
                high=0,
            ),
            Claim(
                f"{problem}: best step of SAM / of GD, of the mean risk",
                _best(sam) / _best(gd),
                high=0.9,
            ),
        ]
        steps, *figures = FIGURES[problem]
        for name, cell, figure in zip(("GD", "SAM"), (gd, sam), figures, strict=True):
            ours = cell["closed"].sel(step=steps)
            spread = ours.std("seed", skipna=False)
            found.append(
                Claim(
                    f"{problem}, {name}: risk of another program's draw, in standard "
                    f"deviations of ours",
                    (figure - ours.mean("seed", skipna=False)) / spread,
                    low=-2,
                    high=2,
                )
            )
    return found


def _best(cell):
    """The step of the least mean risk; NaN if a risk is."""
    risk = cell["closed"].mean("seed", skipna=False)
    return np.where(np.isnan(risk).any(), np.nan, np.argmin(risk.values))


def figure(results):
    """Bias, variance and risk over steps, a panel a problem, SAM against GD."""
    problems = [name for name in PROBLEMS if name in results["problem"].values]
    page, axes = lab.panels(1, len(problems), size=(5.6 * len(problems), 4.6))
    for axis, problem in zip(axes, problems, strict=True):
        for rho, name, color in ((0.0, "GD", "#000000"), (2.0, "SAM", "#0072B2")):
            cell = results.sel(problem=problem, rho=rho).isel(step=slice(1, None))
            for metric, style in (("squared_bias", "--"), ("variance", ":")):
                mean = cell[metric].mean("seed")
                label = f"{name}: {metric.replace('_', ' ')}"
                axis.plot(cell["step"], mean, style, color=color, label=label)
            closed = cell["squared_bias"] + cell["variance"]
            mean = closed.mean("seed")
            axis.plot(cell["step"], mean, color=color, label=f"{name}: risk")
            marks = cell.sel(step=[s for s in (*STEPS, 100, 150) if s in cell["step"]])
            axis.plot(
                marks["step"],
                marks["risk"].mean("seed"),
                "o",
                color=color,
                label=f"{name}: risk over draws",
            )
        axis.set(xscale="log", xlabel="step", title=problem.replace("_", " "))
        axis.set_ylim(0, None)
    axes[0].set_ylabel(r"mean over problems [$f^{*2}$]")
    axes[-1].legend(fontsize=8)
    page.suptitle("SAM trades bias for variance: it helps those who stop early")
    return page


EXPERIMENT = Experiment(
    run=run,
    hparams=HParams(),
    axes={"problem": PROBLEMS, "rho": (0.0, 2.0)},
    num_seeds=20,
    x64=True,
    smoke={"num_seeds": 6, "hparams": HParams(num_draws=200)},
    claims=claims,
    figure=figure,
)
