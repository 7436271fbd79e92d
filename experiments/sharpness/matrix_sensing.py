"""Does SAM find the balanced, flatter factorization?

A matrix of rank 1 is recovered as F G^T by full-batch gradients, from a start where F
is three times as large as G. Every F H, G H^-T fits as well, but not as flatly: with
all entries observed the largest eigenvalue of the loss's Hessian is sigma(F)^2 +
sigma(G)^2, least, 2 ||M||, where the two are balanced.

Claims. Gradient descent keeps the imbalance sigma(F)^2 - sigma(G)^2 that it starts its
last phase with. Normalized SAM removes it: its perturbation does not vanish with the
gradient, so the iterates bounce across the valley, in the 2-cycle of
`theory.two_cycle_radius`, and drift along it, down the slope of the curvature
(Bartlett, Long, Bousquet). With d = 2 rho / (2 - 2 eta) the distance from the valley at
which the gradient is taken, that is a decay of the imbalance by 2 eta d^2 a step. The
price: the bouncing leaves an error of order eta rho. Unnormalized SAM, whose
perturbation vanishes with the gradient, balances nothing. All this with superfluous
columns and from Gaussian measurements too, but for the closed form: there the flattest
point is near balance, not at it, and the imbalance ends at some hundredths. (Larger
radii, and rarely this one, end in the saddle point F = G = 0, where SAM stays: one of
two runs tried at rho = 0.1 and k = 1, one of 20 other seeds at rho = 0.05.)

Falsified if, for any of these seeds, gradient descent or unnormalized SAM loses a tenth
of the imbalance in the second half of the run; if SAM ends, at any setting, with more
than a third of gradient descent's imbalance, or, in the median over seeds, 0.95 of its
curvature; if, with k = 1 and all entries, the rate of its decay leaves the formula by
15 %, or the final curvature leaves 2 ||M|| by 5 %; or if the error left exceeds four
times sqrt(2) of the cycle's radius.

References:
    Bartlett, Long, Bousquet. "The Dynamics of Sharpness-Aware Minimization: Bouncing
    Across Ravines and Drifting Towards Wide Minima". 2022. arXiv:2210.01513.
    Wen, Ma, Li. "How Does Sharpness-Aware Minimization Minimize Sharpness?". 2022.
    arXiv:2211.05729.
"""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key
import numpy as np
import optax

from jaxlr import lab, sensing, sharpness
from jaxlr.core import checks, Claim, Experiment, from_optax, Hyper, loop


METHODS = ("gd", "sam", "unnormalized")
EVERY = 20


class HParams(eqx.Module):
    """One cell. Static fields fix shapes; all others may be swept without compiling."""

    method: str = eqx.field(static=True, default="sam")
    """Where the gradient is taken: gd, sam or unnormalized (SAM)."""
    rho: Hyper = 0.05
    """Radius of the perturbation [sqrt(||M||)]; unnormalized: a gradient [1/||M||]."""
    num_columns: int = eqx.field(static=True, default=1)
    """Number of columns k of the factors."""
    num_measurements: int = eqx.field(static=True, default=0)
    """Number of Gaussian measurements m; 0 for all entries of the matrix."""
    eta: Hyper = 0.1
    """Step size [1/||M||]."""
    num_steps: int = eqx.field(static=True, default=4000)
    """Number of steps taken."""
    n: int = eqx.field(static=True, default=20)
    """Side of the matrix."""


class Metrics(eqx.Module):
    """The balance of the factors over steps, and where it ends."""

    imbalance: Float[Array, " step"]
    """|sigma(F)^2 - sigma(G)^2|, of the largest singular values [||M||]."""
    error: Float[Array, " step"]
    """Relative error ||F G^T - M||_F / ||M||_F [1]."""
    curvature: Float[Array, ""]
    """Largest eigenvalue of the loss's Hessian at the end [||M||]."""
    rate: Float[Array, ""]
    """Decay of log imbalance a step, in the second half [1]."""
    predicted_rate: Float[Array, ""]
    """Rate of normalized SAM with all entries; 0 of other methods [1]."""
    cycle_error: Float[Array, ""]
    """sqrt(2) times the radius of the 2-cycle, the error that it leaves [||M||]."""


def run(key: Key[Array, ""], hparams: HParams) -> Metrics:
    """One cell.

    Raises:
        ValueError: For an unknown `method`, or as the operator does.
    """
    checks.choice("method", hparams.method, METHODS)
    shape, eta = (hparams.n, hparams.n), hparams.eta
    rho = jnp.zeros(()) if hparams.method == "gd" else jnp.asarray(hparams.rho)
    truth_key, operator_key, solve_key, lanczos_key = jr.split(key, 4)
    truth = sensing.low_rank(truth_key, shape, 1)
    m = hparams.num_measurements
    operator = (
        sensing.gaussian(operator_key, shape, m) if m else sensing.identity(shape)
    )
    y = operator.apply(truth)

    def loss(factors):
        return jnp.sum((operator.apply_factors(*factors) - y) ** 2) / 2

    def start(key):
        f, g = sensing.init.small_random(key, shape, hparams.num_columns, alpha=1.0)
        return f, g

    gradient = sharpness.sam_value_and_grad(
        loss, rho, is_normalized=hparams.method == "sam"
    )
    solver = from_optax(loss, optax.sgd(eta), start, value_and_grad_fn=gradient)

    def watch(state):
        f, g = state.params
        sizes = (jnp.linalg.norm(f, ord=2), jnp.linalg.norm(g, ord=2))
        imbalance = jnp.abs(sizes[0] ** 2 - sizes[1] ** 2)
        return imbalance, sensing.relative_error(f, g, truth)

    state, (imbalance, error) = loop.run(
        solve_key, solver, hparams.num_steps, every=EVERY, watch_fn=watch
    )
    half = imbalance.shape[0] // 2
    steps = EVERY * (imbalance.shape[0] - 1 - half)
    radius = sharpness.theory.two_cycle_radius(2.0, eta=eta, rho=rho)
    distance = rho + radius
    return Metrics(
        imbalance=imbalance,
        error=error,
        curvature=sharpness.lambda_max(lanczos_key, loss, state.params).value,
        rate=jnp.log(imbalance[half] / imbalance[-1]) / steps,
        predicted_rate=2 * eta * distance**2 * (hparams.method == "sam"),
        cycle_error=2**0.5 * radius,
    )


def _kept(cells):
    """Share of the imbalance at half time that is left at the end."""
    half = cells.sizes["step"] // 2
    return cells["imbalance"].isel(step=-1) / cells["imbalance"].isel(step=half)


def claims(results) -> list[Claim]:
    """SAM balances, at the predicted rate, and pays for it; others do not."""
    sam, gd = (
        lab.select(results, method=name).squeeze("method") for name in ("sam", "gd")
    )
    rest = lab.select(results, method=["gd", "unnormalized"])
    exact = lab.select(sam, num_columns=1, num_measurements=0)
    source = "Bartlett, Long, Bousquet (2022)"
    return [
        Claim(
            "gd, unnormalized SAM: share of the imbalance that the second half keeps",
            _kept(rest),
            low=0.9,
            high=1.1,
        ),
        Claim(
            "SAM: imbalance at the end / gd's",
            (sam["imbalance"] / gd["imbalance"]).isel(step=-1),
            high=1 / 3,
            source=source,
        ),
        Claim(
            "SAM: curvature / gd's (median)",
            (sam["curvature"] / gd["curvature"]).median("seed", skipna=False),
            high=0.95,
            source=source,
        ),
        Claim(
            "SAM, k = r, all entries: decay of the imbalance / predicted is 1",
            exact["rate"] / exact["predicted_rate"],
            low=0.85,
            high=1.15,
            source=source,
        ),
        Claim(
            "SAM, k = r, all entries: curvature / (2 ||M||) is 1, the least there is",
            exact["curvature"] / 2,
            low=0.95,
            high=1.05,
        ),
        Claim(
            "SAM: error left / that of the 2-cycle",
            sam["error"].isel(step=-1) / sam["cycle_error"],
            high=4,
            source="theory.two_cycle_radius",
        ),
    ]


def figure(results):
    """Imbalance over steps, a panel a setting, the predicted decay dashed."""
    settings = [
        (k, m)
        for m in results["num_measurements"].values
        for k in results["num_columns"].values
    ]
    page, axes = lab.panels(
        1, len(settings), has_shared_y=True, size=(max(4.2 * len(settings), 6.4), 4.2)
    )
    steps = results["step"].values
    for axis, (k, m) in zip(axes, settings, strict=True):
        for method, color in zip(METHODS, _COLORS, strict=True):
            here = {"method": method, "num_columns": k, "num_measurements": m}
            cell = lab.select(results, **here).squeeze([*here])
            label = {"gd": "GD", "sam": "SAM"}.get(method, "unnormalized SAM")
            style = {"color": color, "ls": ":" if method == "unnormalized" else "-"}
            lab.draw_seeds(axis, cell["imbalance"], label=label, **style)
            if method == "sam":
                rate = cell["predicted_rate"].values.flat[0]
                middle = cell["imbalance"].median("seed").values
                half = len(steps) // 2
                decay = np.exp(-rate * (steps[half:] - steps[half]))
                axis.plot(
                    steps[half:], middle[half] * decay, "k--", label="closed form"
                )
        what = f"m = {m}" if m else "all entries"
        axis.set(yscale="log", xlabel="step", title=f"{what}, k = {k}")
    axes[0].set_ylabel(r"imbalance $|\sigma(F)^2 - \sigma(G)^2|$ $[\|M\|]$")
    axes[0].legend(fontsize=9)
    page.suptitle("SAM bounces across the valley and drifts to its flattest point")
    return page


_COLORS = ("#000000", "#0072B2", "#E69F00")

EXPERIMENT = Experiment(
    run=run,
    hparams=HParams(),
    axes={
        "method": METHODS,
        "num_columns": (1, 3),
        "num_measurements": (0, 400),
    },
    num_seeds=5,
    x64=True,
    every=EVERY,
    smoke={
        "num_seeds": 5,
        "axes": {
            "method": METHODS,
            "num_columns": (1,),
            "num_measurements": (0,),
        },
        "hparams": HParams(n=10),
    },
    claims=claims,
    figure=figure,
)
