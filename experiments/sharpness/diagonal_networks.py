"""Whose minimum is sparser: SAM's, or that of SAM with a perturbation an example?

A diagonal linear network, weights w = u^2 - v^2, is fitted to n = 20 noiseless examples
in d = 30 dimensions; three of the true weights are not zero. Many weights fit; which
ones gradient descent finds depends on the scale of the start u = v = alpha: the smaller
alpha, the nearer to the least l1 norm, which recovers the truth.

Claims. Unnormalized SAM of the whole batch does nothing for sparsity: once the loss is
small, so is the perturbation. mSAM with every example a shard does: examples' gradients
are perturbed along themselves, which shrinks the products u_i v_i that gradient descent
conserves, as if the start had been smaller. Its solution has a lower l1 norm and is
nearer to the truth, the more so the larger rho (Andriushchenko, Flammarion).

Falsified if, for any seed at rho = 0.1, mSAM's squared error is above 0.6 of gradient
descent's, its l1 norm is not lower, or its geometric mean of u_i v_i is above 0.5 of
what gradient descent keeps; if SAM's squared error is below 0.9 of gradient descent's;
or if mSAM's does not fall from rho = 0.03 to 0.1.

References:
    Andriushchenko, Flammarion. "Towards Understanding Sharpness-Aware Minimization".
    2022. arXiv:2206.06232.
    Woodworth, Gunasekar, Lee, Moroshko, Savarese, Golan, Soudry, Srebro. "Kernel and
    Rich Regimes in Overparametrized Models". 2020. arXiv:2002.09277.
"""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key
import optax

from jaxlr import lab, sharpness
from jaxlr.core import Axis, Claim, Experiment, from_optax, Hyper, loop


EVERY = 50


class HParams(eqx.Module):
    """One cell. Static fields fix shapes; all others may be swept without compiling."""

    num_shards: int = eqx.field(static=True, default=20)
    """Number of shards of the batch, each with its own perturbation, at most n."""
    rho: Hyper = 0.1
    """Perturbation a gradient; 0 is gradient descent [1]."""
    alpha: Hyper = 0.1
    """Every entry of the start [1]."""
    eta: Hyper = 0.02
    """Step size [1]."""
    num_steps: int = eqx.field(static=True, default=20_000)
    """Number of steps taken."""
    num_examples: int = eqx.field(static=True, default=20)
    """Number of examples n."""
    size: int = eqx.field(static=True, default=30)
    """Number of dimensions d."""
    num_nonzero: int = eqx.field(static=True, default=3)
    """Number of true weights that are 1; the others are 0."""


class Metrics(eqx.Module):
    """The weights over steps, and in the end."""

    error: Float[Array, " step"]
    """Squared distance ||w - w*||^2 [1]."""
    loss: Float[Array, " step"]
    """Quarter of the mean squared residual [1]."""
    final_error: Float[Array, ""]
    """Squared distance after the last step [1]."""
    l1_norm: Float[Array, ""]
    """||w||_1 after the last step; the truth has 3 [1]."""
    scale: Float[Array, ""]
    """Geometric mean of |u_i v_i| after the last step, over alpha^2 [1]."""


def run(key: Key[Array, ""], hparams: HParams) -> Metrics:
    """One cell.

    Raises:
        ValueError: As the transform does.
    """
    data_key, solve_key = jr.split(key)
    size = hparams.size
    x = jr.normal(data_key, (hparams.num_examples, size))
    truth = jnp.where(jnp.arange(size) < hparams.num_nonzero, 1.0, 0.0)
    y = x @ truth

    def weights(params):
        u, v = params
        return u**2 - v**2

    def loss(params, x, y):
        return jnp.mean((x @ weights(params) - y) ** 2) / 4

    solver = from_optax(
        loss,
        optax.sgd(hparams.eta),
        lambda key: (jnp.full(size, hparams.alpha),) * 2,
        lambda key, step: (x, y),
        value_and_grad_fn=sharpness.sam_value_and_grad(
            loss,
            hparams.rho,
            is_normalized=False,
            num_shards=hparams.num_shards,
            backend="vmap",
        ),
    )

    def squared_error(params):
        return jnp.sum((weights(params) - truth) ** 2)

    def watch(state):
        return squared_error(state.params), loss(state.params, x, y)

    state, (error, losses) = loop.run(
        solve_key, solver, hparams.num_steps, every=EVERY, watch_fn=watch
    )
    u, v = state.params
    return Metrics(
        error=error,
        loss=losses,
        final_error=squared_error(state.params),
        l1_norm=jnp.sum(jnp.abs(weights(state.params))),
        scale=jnp.exp(jnp.mean(jnp.log(jnp.abs(u * v)))) / hparams.alpha**2,
    )


def claims(results) -> list[Claim]:
    """A perturbation an example makes the solution sparse, one a batch does not."""
    num = results["num_shards"].values.max()
    gd = lab.select(results, num_shards=1, rho=0.0)
    sam = lab.select(results, num_shards=1, rho=0.1)
    small, large = (lab.select(results, num_shards=num, rho=r) for r in (0.03, 0.1))

    def ratio(metric, cells, others):
        return cells[metric].values / others[metric].values

    source = "Andriushchenko, Flammarion (2022)"
    error = "final_error"
    return [
        Claim(
            "rho = 0.1, a shard an example: squared error / GD's",
            ratio(error, large, gd),
            high=0.6,
            source=source,
        ),
        Claim(
            "rho = 0.1, a shard an example: l1 norm less GD's",
            large["l1_norm"].values - gd["l1_norm"].values,
            high=0,
            source=source,
        ),
        Claim(
            "rho = 0.1, a shard an example: geometric mean of u v / GD's",
            ratio("scale", large, gd),
            high=0.5,
            source=source,
        ),
        Claim(
            "rho = 0.1, one shard: squared error / GD's", ratio(error, sam, gd), low=0.9
        ),
        Claim(
            "a shard an example: squared error at rho = 0.1 / at 0.03",
            ratio(error, large, small),
            high=1,
            source=source,
        ),
    ]


def figure(results):
    """Squared error over steps; the final l1 norm against the final error."""
    page, (over_steps, ends) = lab.panels(1, 2, size=(11, 4.4))
    for i, color in zip(range(results.sizes[DIM]), _COLORS, strict=False):
        cell = results.isel({DIM: i})
        shards, rho = cell["num_shards"].item(), cell["rho"].item()
        name = "a shard an example" if shards > 1 else "one shard"
        style = {"color": color, "label": f"{name}, rho = {rho:g}" if rho else "GD"}
        lab.draw_seeds(over_steps, cell["error"].isel(step=slice(1, None)), **style)
        ends.plot(cell["l1_norm"], cell["final_error"], "o", **style)
    over_steps.set(xscale="log", yscale="log", xlabel="step")
    over_steps.set(ylabel="$||w - w^*||^2$ [1]", title="medians, ranges of seeds")
    ends.axvline(3, color="gray", ls=":", lw=1, label="the truth")
    ends.set(yscale="log", xlabel="$||w||_1$ [1]", title="at the end, each seed")
    ends.set(ylabel="$||w - w^*||^2$ [1]")
    ends.legend(fontsize=9)
    page.suptitle("Sparsity comes from perturbations of examples, not of the batch")
    return page


_COLORS = ("#000000", "#E69F00", "#56B4E9", "#0072B2")
DIM = lab.dimension_name(("num_shards", "rho"))
CELLS = [(1, 0.0), (1, 0.1), (20, 0.03), (20, 0.1)]

EXPERIMENT = Experiment(
    run=run,
    hparams=HParams(),
    axes=(Axis(("num_shards", "rho"), CELLS),),
    num_seeds=5,
    x64=True,
    every=EVERY,
    smoke={
        "num_seeds": 2,
        "hparams": HParams(num_steps=4000, eta=0.05),
    },
    claims=claims,
    figure=figure,
)
