"""Where does SAM end on a quadratic?

The loss is w^T H w / 2 in ten dimensions, H of eigenvalues lambda_1 = 1 down to 0.1.
Gradients are taken at w + rho g / ||g||, which is no smaller a perturbation where the
gradient is small.

Claims. Normalized SAM does not converge to the minimum. From random starts it ends in a
cycle w, -w, w, ... along the eigenvector of the largest eigenvalue, of radius eta
lambda rho / (2 - eta lambda): as if the steepest direction alone mattered. Unnormalized
SAM, rho lambda_1 times its gradient, converges.

Falsified if, for any seed, step size or radius, ||w|| leaves the formula by 1e-6 of it
at the end, w does not turn into -w, or its share along any other eigenvector exceeds
1e-6; or if unnormalized SAM's ||w|| is then above 1e-9 of its start.

References:
    Bartlett, Long, Bousquet. "The Dynamics of Sharpness-Aware Minimization: Bouncing
    Across Ravines and Drifting Towards Wide Minima". 2022. arXiv:2210.01513.
"""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key
import optax

from jaxlr import lab, linalg, sharpness
from jaxlr.core import Claim, Experiment, from_optax, Hyper, loop


class HParams(eqx.Module):
    """One cell. Static fields fix shapes; all others may be swept without compiling."""

    is_normalized: bool = eqx.field(static=True, default=True)
    """Whether the perturbation is normalized."""
    rho: Hyper = 0.1
    """Radius of the perturbation [w]; per gradient, if not normalized [1/lambda_1]."""
    eta: Hyper = 0.5
    """Step size [1/lambda_1]."""
    num_steps: int = eqx.field(static=True, default=4000)
    """Number of steps taken."""
    size: int = eqx.field(static=True, default=10)
    """Number of dimensions."""


class Metrics(eqx.Module):
    """The way to the cycle, and the cycle."""

    norm: Float[Array, " step"]
    """||w|| [1]."""
    radius: Float[Array, ""]
    """Predicted radius of the cycle [1]."""
    last_norm: Float[Array, ""]
    """||w|| after the last step [1]."""
    turn: Float[Array, ""]
    """||w + w'|| / ||w|| of the last two iterates; 0 if one is minus the other [1]."""
    astray: Float[Array, ""]
    """Share of the last w outside of the first eigenvector [1]."""


def run(key: Key[Array, ""], hparams: HParams) -> Metrics:
    """One cell.

    Raises:
        ValueError: As the transform does.
    """
    basis_key, start_key, solve_key = jr.split(key, 3)
    size = hparams.size
    basis = linalg.random_orthonormal(basis_key, size, size)
    eigenvalues = jnp.linspace(1.0, 0.1, size)
    hessian = linalg.matmul(basis * eigenvalues, basis.T)

    def loss(w):
        return jnp.vdot(w, linalg.matmul(hessian, w)) / 2

    solver = from_optax(
        loss,
        optax.sgd(hparams.eta),
        lambda key: jr.normal(key, (size,)),
        value_and_grad_fn=sharpness.sam_value_and_grad(
            loss, hparams.rho, is_normalized=hparams.is_normalized
        ),
    )
    state, norm = loop.run(
        solve_key,
        solver,
        hparams.num_steps,
        state=solver.init(start_key),
        watch_fn=lambda state: jnp.linalg.norm(state.params),
    )
    w, after = state.params, solver.step(key, state)[0].params
    last = jnp.linalg.norm(w)
    outside = w - basis[:, 0] * jnp.vdot(basis[:, 0], w)
    return Metrics(
        norm=norm,
        radius=sharpness.theory.two_cycle_radius(1.0, eta=hparams.eta, rho=hparams.rho),
        last_norm=last,
        turn=jnp.linalg.norm(w + after) / last,
        astray=jnp.linalg.norm(outside) / last,
    )


def claims(results) -> list[Claim]:
    """Normalized: the cycle. Unnormalized: the minimum."""
    cycle = lab.select(results, is_normalized=True)
    plain = lab.select(results, is_normalized=False)
    return [
        Claim(
            "normalized: ||w|| / radius of the cycle is 1",
            cycle["last_norm"] / cycle["radius"],
            low=1 - 1e-6,
            high=1 + 1e-6,
            source="theory.two_cycle_radius",
        ),
        Claim("normalized: share of w that does not turn", cycle["turn"], high=1e-6),
        Claim("normalized: share off the eigenvector", cycle["astray"], high=1e-6),
        Claim(
            "unnormalized: ||w|| at the end / at the start",
            plain["last_norm"] / plain["norm"].isel(step=0),
            high=1e-9,
        ),
    ]


def figure(results):
    """||w|| over steps, a color for each step size, the radius dashed."""
    rhos = results["rho"].values
    page, axes = lab.panels(
        1, len(rhos), has_shared_y=True, size=(4.8 * len(rhos), 4.2)
    )
    for axis, rho in zip(axes, rhos, strict=True):
        for eta, color in zip(results["eta"].values, _COLORS, strict=False):
            cell = results.sel(rho=rho, eta=eta)
            style = {"color": color}
            cycle, plain = (cell.sel(is_normalized=is_on) for is_on in (True, False))
            lab.draw_seeds(axis, cycle["norm"], label=f"{eta:g}", **style)
            lab.draw_seeds(axis, plain["norm"], ls=":", **style)
            axis.axhline(cycle["radius"].values.flat[0], ls="--", lw=1, **style)
        axis.set(xscale="log", yscale="log", ylim=(1e-6, 10))
        axis.set(xlabel="step", title=f"rho = {rho:g}")
    axes[0].set_ylabel("||w|| [1]")
    axes[0].legend(title=r"$\eta \lambda_1$", fontsize=9)
    page.suptitle(
        "Normalized SAM (solid) ends in the cycle (dashed); unnormalized (dotted) at 0"
    )
    return page


_COLORS = ("#0072B2", "#009E73", "#D55E00")

EXPERIMENT = Experiment(
    run=run,
    hparams=HParams(),
    axes={"is_normalized": (True, False), "rho": (0.03, 0.3), "eta": (0.25, 0.5, 1.0)},
    num_seeds=5,
    x64=True,
    smoke={"num_seeds": 2, "hparams": HParams(num_steps=1500)},
    claims=claims,
    figure=figure,
)
