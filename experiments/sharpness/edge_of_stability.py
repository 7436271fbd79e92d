"""How sharp does training get before it turns unstable?

A network of 64-32-32-10 units (ReLU), of half the usual initial weights, learns 200
digits by squared error and full-batch gradients of a constant step size eta: gradient
descent, and unnormalized SAM, w <- w - eta grad L(w + rho grad L(w)). The sharpness is
the largest eigenvalue of the loss's Hessian.

Claims. It rises until a step along its eigenvector would just be stable, and hovers
there while the loss goes on falling: at 2 / eta for gradient descent (Cohen et al.).
For unnormalized SAM the same argument gives the positive root of eta lambda (1 + rho
lambda) = 2, which is below: SAM trains where it is flatter, by an amount that needs no
fit.

Falsified if, for any seed, step size or radius, the median sharpness over the last
quarter of training leaves `theory.edge_of_stability` by 10 %; if it does not start a
tenth below; or if the loss there is not below a tenth of the first.

References:
    Cohen, Kaur, Li, Kolter, Talwalkar. "Gradient Descent on Neural Networks Typically
    Occurs at the Edge of Stability". 2021. arXiv:2103.00065.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key
import optax

from jaxlr import lab, sharpness
from jaxlr.core import Axis, Claim, Experiment, from_optax, Hyper, loop
from jaxlr.data import digits


EVERY = 50


class HParams(eqx.Module):
    """One cell. Static fields fix shapes; all others may be swept without compiling."""

    eta: Hyper = 0.4
    """Step size [1]."""
    rho: Hyper = 0.0
    """Perturbation a gradient; 0 is gradient descent [1]."""
    num_steps: int = eqx.field(static=True, default=4000)
    """Number of steps taken."""
    num_train: int = eqx.field(static=True, default=200)
    """Number of digits to learn."""
    width: int = eqx.field(static=True, default=32)
    """Number of units of both hidden layers."""
    scale: Hyper = 0.5
    """Size of the initial weights over He's [1]."""


class Metrics(eqx.Module):
    """Training over steps, and the edge."""

    loss: Float[Array, " step"]
    """Half the mean squared distance from the one-hot label [1]."""
    curvature: Float[Array, " step"]
    """Largest eigenvalue of the loss's Hessian [1]."""
    edge: Float[Array, ""]
    """Where a step is just stable [1]."""


def run(key: Key[Array, ""], hparams: HParams) -> Metrics:
    """One cell.

    Raises:
        ValueError: As the data set and the loop do.
    """
    data_key, start_key, solve_key, lanczos_key = jr.split(key, 4)
    data = digits(data_key, num_train=hparams.num_train, label_noise=0.0)
    x = data.x - jnp.mean(data.x, axis=0)
    target = jax.nn.one_hot(data.labels, 10)

    def loss(model):
        return jnp.mean(jnp.sum((model(x) - target) ** 2, axis=1)) / 2

    def model_of(key):
        model = sharpness.MLP(key, (64, hparams.width, hparams.width, 10))
        return jax.tree.map(lambda w: hparams.scale * w, model)

    solver = from_optax(
        loss,
        optax.sgd(hparams.eta),
        model_of,
        value_and_grad_fn=sharpness.sam_value_and_grad(
            loss, hparams.rho, is_normalized=False
        ),
    )

    def watch(state):
        lanczos = jr.fold_in(lanczos_key, state.step)
        curvature = sharpness.lambda_max(lanczos, loss, state.params, num_steps=15)
        return loss(state.params), curvature.value

    _, (losses, curvature) = loop.run(
        solve_key,
        solver,
        hparams.num_steps,
        every=EVERY,
        state=solver.init(start_key),
        watch_fn=watch,
    )
    return Metrics(
        loss=losses,
        curvature=curvature,
        edge=sharpness.theory.edge_of_stability(eta=hparams.eta, rho=hparams.rho),
    )


def claims(results) -> list[Claim]:
    """Training ends at the edge, coming from below."""
    quarter = results.isel(step=slice(-(results.sizes["step"] // 4), None))
    first = results.isel(step=0)
    return [
        Claim(
            "sharpness, median of the last quarter / edge is 1",
            quarter["curvature"].median("step", skipna=False) / results["edge"],
            low=0.9,
            high=1.1,
            source="theory.edge_of_stability",
        ),
        Claim(
            "sharpness at the start / edge",
            first["curvature"] / results["edge"],
            high=0.9,
        ),
        Claim(
            "loss, median of the last quarter / first",
            quarter["loss"].median("step", skipna=False) / first["loss"],
            high=0.1,
        ),
    ]


def figure(results):
    """Sharpness over steps, a color for each cell, its edge dashed; the loss."""
    page, (sharp, losses) = lab.panels(1, 2, size=(11, 4.4))
    for i, color in zip(range(results.sizes[DIM]), _COLORS, strict=False):
        cell = results.isel({DIM: i})
        eta, rho = cell["eta"].item(), cell["rho"].item()
        name = f"SAM, rho = {rho:g}" if rho else "GD"
        style = {"color": color, "label": f"{name}, eta = {eta:g}"}
        lab.draw_seeds(sharp, cell["curvature"], **style)
        lab.draw_seeds(losses, cell["loss"], **style)
        sharp.axhline(cell["edge"].values.flat[0], color=color, ls="--", lw=1)
    sharp.set(xlabel="step", ylabel="largest eigenvalue of the Hessian [1]")
    sharp.set(title="dashed: the edge of stability", ylim=(0, None))
    losses.set(yscale="log", xlabel="step", ylabel="loss [1]")
    losses.legend(fontsize=9)
    page.suptitle("Training gets as sharp as its step allows; SAM's step allows less")
    return page


_COLORS = ("#000000", "#56B4E9", "#0072B2", "#D55E00")
DIM = "eta_rho"

EXPERIMENT = Experiment(
    run=run,
    hparams=HParams(),
    axes=(Axis(("eta", "rho"), [(0.4, 0.0), (0.8, 0.0), (0.4, 0.1), (0.4, 0.3)]),),
    num_seeds=3,
    every=EVERY,
    smoke={
        "num_seeds": 1,
        "axes": (Axis(("eta", "rho"), [(0.8, 0.0), (0.4, 0.1)]),),
        "hparams": HParams(num_steps=2000),
    },
    claims=claims,
    figure=figure,
)
